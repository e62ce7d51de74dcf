import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multipert.metrics import (
    challenge_score,
    de_direction_match,
    de_genes,
    de_overlap_at_n,
    evaluate_challenge,
    log2_fold_change,
    perturbation_discrimination,
)

SIZES = {"control": 60, "g3": 40, "g10": 35, "K": 50, "L": 30}
N_VARS = 80


def simulate(strength: float, seed: int, n_times: int = 1) -> ad.AnnData:
    """Cells of four perturbations and control; "L" does nothing and "K" switches on genes that control lacks."""
    rng, effects = np.random.default_rng(seed), np.random.default_rng(5)
    baseline = np.random.default_rng(0).gamma(1.0, 3.0, N_VARS)
    baseline[70:] = 0
    blocks, labels = [], []
    for label, n_cells in SIZES.items():
        effect = np.where(effects.random(N_VARS) < 0.3, effects.normal(0, 1.2, N_VARS), 0)
        new = np.where(np.arange(N_VARS) >= 70, 3 * effects.random(N_VARS), 0)
        mean = baseline * np.exp(strength * effect * (label not in ("control", "L"))) + new * (label == "K")
        counts = rng.poisson(mean, (n_times * n_cells, N_VARS))
        blocks.append(np.log1p(500 * counts / counts.sum(axis=1, keepdims=True)))
        labels += [label] * n_times * n_cells
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(np.vstack(blocks), obs, pd.DataFrame(index=[f"g{i}" for i in range(N_VARS)]))


@pytest.fixture(scope="module")
def observed():
    return simulate(1.0, seed=1)


@pytest.fixture(scope="module", params=["weak", "strong"])
def predicted(request):
    """Too weak, with fewer differentially expressed genes than the truth, or strong and many, with more."""
    return simulate(0.6, seed=2) if request.param == "weak" else simulate(0.9, seed=3, n_times=3)


def of(adata, label):
    return adata[adata.obs["perturbation"] == label].X


def is_control(adata):
    return (adata.obs["perturbation"] == "control").to_numpy()


def test_des_by_its_definition(observed, predicted):
    control = of(observed, "control")
    for label in ("g3", "g10", "K"):
        ordered = []
        for adata in (predicted, observed):
            genes = np.flatnonzero(de_genes(of(adata, label), control, continuity=True))
            change = np.abs(log2_fold_change(of(adata, label), control, pseudocount=0))
            ordered.append(sorted(genes, key=lambda gene: -change[gene]))
        n = len(ordered[1])
        expected = len(set(ordered[0][:n]) & set(ordered[1])) / n
        assert de_overlap_at_n(of(predicted, label), of(observed, label), control) == expected
        assert 0 < expected < 1


def test_des_of_truth_and_of_no_change(observed):
    control, truth, inert = (of(observed, label) for label in ("control", "K", "L"))
    assert de_overlap_at_n(truth, truth, control) == 1
    assert de_overlap_at_n(control, truth, control) == 0
    # no gene is differentially expressed in the truth
    assert de_overlap_at_n(truth, inert, control) == 0
    assert np.isnan(de_overlap_at_n(truth, inert, control, empty=np.nan))


def test_des_takes_the_largest_fold_changes_of_too_many_genes():
    """Four genes are right; a fifth, predicted with a larger change, displaces the smallest of them."""
    rng = np.random.default_rng(0)
    control = np.log1p(rng.poisson(5.0, (80, 30)))
    factor = np.ones(30)
    factor[:4] = [6, 5, 4, 3]
    more = factor.copy()
    more[10] = 8
    observed, predicted = (np.log1p(rng.poisson(5.0 * x, (80, 30))) for x in (factor, more))
    assert np.flatnonzero(de_genes(observed, control, alpha=1e-6)).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(de_genes(predicted, control, alpha=1e-6)).tolist() == [0, 1, 2, 3, 10]
    assert de_overlap_at_n(predicted, observed, control, alpha=1e-6) == 0.75


def test_pds_by_its_definition():
    """Ranks counted by hand, without the target gene, for a mixture of good and bad predictions."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(9, 25))
    guess = truth + 1.5 * rng.normal(size=(9, 25))
    exclude = [[i] if i % 2 else [] for i in range(9)]
    norms = {"l1": lambda d: np.abs(d).sum(axis=1), "l2": lambda d: np.sqrt((d**2).sum(axis=1))}
    for distance, norm in norms.items():
        scores = perturbation_discrimination(guess, truth, exclude=exclude, distance=distance)
        for i, genes in enumerate(exclude):
            distances = norm(np.delete(truth - guess[i], genes, axis=1))
            assert scores[i] == pytest.approx(1 - np.sum(distances < distances[i]) / 9)
        assert 0.5 < scores.mean() < 1
    cosine = perturbation_discrimination(guess, truth, distance="cosine")
    similarity = (truth @ guess.T) / np.linalg.norm(truth, axis=1)[:, None]
    np.testing.assert_allclose(cosine, 1 - (similarity > np.diag(similarity)).sum(axis=0) / 9)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_pds_of_truth_constant_and_mirrored_predictions(distance):
    truth = np.random.default_rng(0).normal(size=(12, 40))
    chance = 13 / 24
    np.testing.assert_array_equal(perturbation_discrimination(truth, truth, distance=distance), 1)
    same = np.tile(truth.mean(axis=0), (12, 1))
    assert perturbation_discrimination(same, truth, distance=distance).mean() == pytest.approx(chance)
    assert perturbation_discrimination(0 * truth, truth, distance=distance).mean() == pytest.approx(chance)
    # the right sizes with the wrong signs are worse than chance
    assert perturbation_discrimination(-truth, truth, distance=distance).mean() < chance / 2


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_pds_without_the_target_gene(distance):
    """The target alone tells the perturbations apart: without it all observed changes are equally near."""
    truth = np.tile(np.random.default_rng(0).normal(size=10), (4, 1))
    truth[np.arange(4), np.arange(4)] = -5
    guess = truth + 0.01
    np.testing.assert_array_equal(perturbation_discrimination(guess, truth, distance=distance), 1)
    alike = np.ones((4, 10))
    alike[np.arange(4), np.arange(4)] = [-1.0, -2.0, -3.0, -4.0]
    own = [[0, 1, 2, 3]] * 4
    scores = perturbation_discrimination(alike, alike, exclude=own, distance=distance)
    np.testing.assert_allclose(scores, 1 - 1.5 / 4)


def test_pds_is_equivariant():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(7, 20))
    guess = truth + rng.normal(size=(7, 20))
    exclude = [[i] for i in range(7)]
    scores = perturbation_discrimination(guess, truth, exclude=exclude)
    order, genes = rng.permutation(7), rng.permutation(20)
    moved = [[int(np.flatnonzero(genes == exclude[i][0])[0])] for i in order]
    again = perturbation_discrimination(guess[order][:, genes], truth[order][:, genes], exclude=moved)
    np.testing.assert_allclose(again, scores[order])


def test_pds_leaves_its_input_as_it_is():
    truth = np.random.default_rng(1).normal(size=(3, 5))
    before = truth.copy()
    perturbation_discrimination(truth, truth, exclude=[[0], [1], [2]])
    np.testing.assert_array_equal(truth, before)
    assert np.isnan(perturbation_discrimination(truth[:1], truth[:1])).all()


@pytest.mark.parametrize(
    ("predicted", "options", "message"),
    [
        (np.zeros((2, 4)), {}, r"`predicted` has shape \(2, 4\) but `observed` \(2, 3\)"),
        (np.full((2, 3), np.inf), {}, "`predicted` holds 6 values that are NaN or infinite, of 6"),
        (np.zeros(3), {}, "`predicted` must hold numbers, one row per perturbation"),
        (np.zeros((2, 3)), {"distance": "euclidean"}, "`distance` is 'euclidean'; it must be one of l1, l2, cosine"),
        (np.zeros((2, 3)), {"exclude": [[0]]}, "`exclude` must hold, for each of the 2 perturbations"),
        (np.zeros((2, 3)), {"exclude": [[0], [3]]}, "`exclude` must hold, for each of the 2 perturbations"),
    ],
)
def test_bad_changes_raise(predicted, options, message):
    with pytest.raises(ValueError, match=message):
        perturbation_discrimination(predicted, np.zeros((2, 3)), **options)


def test_table_joins_the_functions(observed, predicted):
    control = observed[is_control(observed)]
    frame = evaluate_challenge(predicted, observed, control)
    assert frame["perturbation"].tolist() == sorted(set(SIZES) - {"control"})
    means = {name: np.array([of(x, p).mean(axis=0) for p in frame["perturbation"]]) for name, x in
             (("predicted", predicted), ("observed", observed))}  # fmt: skip
    changes = {name: mean - control.X.mean(axis=0) for name, mean in means.items()}
    exclude = [{"g3": [3], "g10": [10]}.get(p, []) for p in frame["perturbation"]]
    np.testing.assert_allclose(frame["pds"], perturbation_discrimination(**changes, exclude=exclude))
    np.testing.assert_allclose(frame["mae"], np.abs(means["predicted"] - means["observed"]).mean(axis=1))
    for row in frame.itertuples():
        cells = of(predicted, row.perturbation), of(observed, row.perturbation), control.X
        assert row.des == de_overlap_at_n(*cells)
        assert row.n_de == de_genes(cells[1], control.X, continuity=True).sum()
        assert row.n_de_predicted == de_genes(cells[0], control.X, continuity=True).sum()


def test_control_cells_of_the_prediction_are_never_read(observed, predicted):
    control = observed[is_control(observed)]
    altered = predicted.copy()
    altered.X[is_control(predicted)] = 3.0
    pd.testing.assert_frame_equal(
        evaluate_challenge(altered, observed, control), evaluate_challenge(predicted, observed, control)
    )


def test_perfect_prediction_and_its_mirror(observed):
    control = observed[is_control(observed)]
    perfect = evaluate_challenge(observed, observed, control)
    has_effect = perfect["n_de"] > 0
    assert has_effect.sum() == 3
    np.testing.assert_array_equal(perfect["pds"], 1)
    np.testing.assert_array_equal(perfect["mae"], 0)
    np.testing.assert_array_equal(perfect["des"], has_effect)
    mirrored = observed.copy()
    mirrored.X = np.clip(2 * control.X.mean(axis=0) - observed.X, 0, None)
    assert evaluate_challenge(mirrored, observed, control)["pds"].mean() < perfect["pds"].mean()


def test_parts_of_a_combination_are_left_out():
    """The targets of both combinations speak for the prediction with 4, all other genes against it with 3."""
    obs = pd.DataFrame({"perturbation": np.repeat(["control", "g0+g1", "g2+g3"], 5)})
    obs.index = obs.index.astype(str)
    observed = ad.AnnData(np.ones((15, 24)), obs, pd.DataFrame(index=[f"g{i}" for i in range(24)]))
    observed.X[5:10, :2] = observed.X[10:, 2:4] = 0
    observed.X[5:10, 4:] = 1.15
    predicted = observed.copy()
    predicted.X[5:10, 4:], predicted.X[10:, 4:] = 1, 1.15
    np.testing.assert_array_equal(evaluate_challenge(predicted, observed, observed, delimiter=None)["pds"], 1)
    np.testing.assert_array_equal(evaluate_challenge(predicted, observed, observed)["pds"], 0.5)


def test_sparse_and_shuffled_input_changes_nothing(observed, predicted):
    control = observed[is_control(observed)]
    expected = evaluate_challenge(predicted, observed, control)
    shuffled = predicted[np.random.default_rng(0).permutation(predicted.n_obs)].copy()
    shuffled.X = sparse.csr_matrix(shuffled.X)
    pd.testing.assert_frame_equal(evaluate_challenge(shuffled, observed, control), expected)


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.5 to"), (12.0, "to 12")])
@pytest.mark.parametrize("name", ["predicted", "observed", "control"])
def test_another_scale_raises(observed, name, value, shown):
    groups = {"predicted": observed, "observed": observed, "control": observed[is_control(observed)]}
    groups[name] = groups[name].copy()
    row = 0 if name == "control" else 100
    groups[name].X[row, 5] = value
    with pytest.raises(ValueError, match=f"`{name}` holds 1 values below 0 or not below 12 .*{shown}"):
        evaluate_challenge(**groups)
    cells = {key: adata.X if key == "control" else of(adata, "g10") for key, adata in groups.items()}
    with pytest.raises(ValueError, match=f"`{name}` holds 1 values below 0"):
        de_overlap_at_n(**cells)


def test_other_perturbations_or_no_control_raise(observed):
    control = observed[is_control(observed)]
    fewer = observed[observed.obs["perturbation"] != "K"]
    with pytest.raises(ValueError, match=r"`predicted` lacks 1 of 4 \(K\) and has 0 more"):
        evaluate_challenge(fewer, observed, control)
    with pytest.raises(ValueError, match=r"`predicted` lacks 0 of 3 \(\) and has 1 more \(K\)"):
        evaluate_challenge(observed, fewer, control)
    with pytest.raises(ValueError, match="`control` has no cells labelled 'control'"):
        evaluate_challenge(observed, observed, observed[~is_control(observed)])
    with pytest.raises(ValueError, match="`alpha` is 2"):
        evaluate_challenge(observed, observed, control, alpha=2)


def test_score_of_baseline_perfect_and_worse():
    baseline = {"baseline_des": 0.1, "baseline_pds": 0.5, "baseline_mae": 0.03}
    assert challenge_score(des=0.1, pds=0.5, mae=0.03, **baseline) == (0, 0, 0, 0, 0)
    assert challenge_score(des=1, pds=1, mae=0, **baseline) == (1, 1, 1, 1, 1)
    worse = challenge_score(des=0.55, pds=0.25, mae=0.3, **baseline)
    assert worse == pytest.approx((0.5, -0.5, -9, 0.5 / 3, -3))
    perfect_baseline = challenge_score(des=1, pds=1, mae=0, baseline_des=1, baseline_pds=0.5, baseline_mae=0.03)
    assert np.isnan(perfect_baseline.des)
    assert np.isnan(perfect_baseline.score)


@pytest.mark.slow
def test_agreement_with_cell_eval(observed, predicted, tmp_path):
    """The same control cells on both sides, as that package takes those of the prediction from the prediction."""
    cell_eval = pytest.importorskip("cell_eval", reason="needs the optional package cell-eval")
    control = observed[is_control(observed)]
    together = ad.concat([control, predicted[~is_control(predicted)]], index_unique="-")
    evaluator = cell_eval.MetricsEvaluator(
        adata_pred=together,
        adata_real=observed.copy(),
        control_pert="control",
        pert_col="perturbation",
        num_threads=1,
        outdir=str(tmp_path),
    )
    skipped = ["clustering_agreement", "pearson_edistance"]
    theirs, _ = evaluator.compute(profile="full", skip_metrics=skipped, write_csv=False)
    theirs = theirs.to_pandas().set_index("perturbation")
    for distance in ("l1", "l2", "cosine"):
        ours = evaluate_challenge(predicted, observed, control, distance=distance).set_index("perturbation")
        theirs = theirs.loc[ours.index]
        np.testing.assert_allclose(ours["pds"], theirs[f"discrimination_score_{distance}"], atol=1e-6)
        np.testing.assert_allclose(ours["des"], theirs["overlap_at_N"], atol=1e-6)
        np.testing.assert_allclose(ours["mae"], theirs["mae"], atol=1e-6)
        np.testing.assert_array_equal(ours["n_de"], theirs["de_nsig_counts_real"])
        np.testing.assert_array_equal(ours["n_de_predicted"], theirs["de_nsig_counts_pred"])
    for label in ("g3", "g10", "K"):
        labels = de_genes(of(observed, label), control.X, continuity=True)
        match = de_direction_match(of(predicted, label), of(observed, label), control.X, labels=labels)
        assert match == pytest.approx(theirs.loc[label, "de_direction_match"])


@pytest.mark.slow
def test_score_is_that_of_cell_eval():
    pytest.importorskip("cell_eval", reason="needs the optional package cell-eval")
    import polars as pl
    from cell_eval._score import score_agg_metrics

    def aggregated(des, pds, mae):
        return pl.DataFrame(
            {"statistic": ["mean"], "overlap_at_N": [des], "discrimination_score_l1": [pds], "mae": [mae]}
        )

    theirs = score_agg_metrics(aggregated(0.4, 0.8, 0.05), aggregated(0.1, 0.5, 0.03)).to_pandas()
    ours = challenge_score(des=0.4, pds=0.8, mae=0.05, baseline_des=0.1, baseline_pds=0.5, baseline_mae=0.03)
    assert ours.score == pytest.approx(theirs.set_index("metric").loc["avg_score", "from_baseline"])
    assert ours.mae < 0

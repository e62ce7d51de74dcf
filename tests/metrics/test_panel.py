"""Metrics of all groups of a context, the presets of published protocols, and predictions made to fool."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from multipert import metrics
from multipert.datasets import simulate
from multipert.metrics import METRICS, PRESETS, adversaries, evaluate, leaderboard

BASIC = ["no_change", "mean_shift", "ceiling"]


@pytest.fixture(scope="module")
def screen():
    """Eight perturbations in three contexts."""
    adata = simulate(n_cells=1620, n_vars=150, n_contexts=3, n_perturbations=8, seed=4)
    return adata[np.argsort(adata.obs_names)].copy()


@pytest.fixture(scope="module")
def case(screen):
    """Half of the perturbations held out in one context."""
    labels = sorted(set(screen.obs["perturbation"]) - {"control"})
    here = (screen.obs["context"] == screen.obs["context"].iloc[0]).to_numpy()
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    held_out = here & screen.obs["perturbation"].isin(labels[::2]).to_numpy()
    return screen[held_out].copy(), screen[is_control & here].copy(), screen[~held_out].copy()


def wrong_context(case):
    """Observed cells of the same perturbations in another context: a prediction of middling worth."""
    observed, _, training = case
    context = sorted(set(training.obs["context"]) - set(observed.obs["context"]))[0]
    same = training.obs["perturbation"].isin(observed.obs["perturbation"].unique()) & (
        training.obs["context"] == context
    )
    predicted = training[same.to_numpy()].copy()
    predicted.obs["context"] = observed.obs["context"].iloc[0]
    return predicted


def means(adata):
    groups = adata.obs.groupby("perturbation", observed=True, sort=True).indices
    return np.stack([np.asarray(adata.X[rows].mean(axis=0)).ravel() for rows in groups.values()])


def found(frame, metric, predictor="prediction"):
    return frame.query("predictor == @predictor and metric == @metric").sort_values("perturbation")["value"].to_numpy()


def test_ranks_are_those_of_the_functions_on_the_means(case):
    predicted, (observed, control, training) = wrong_context(case), case
    names = ["rank_rmse", "rank_pearson_delta", "discrimination_cosine_logfc", "pds", "centroid_accuracy"]
    frame = evaluate(predicted, observed, control, metrics=names, training=training, references=BASIC)
    p, o, c = means(predicted), means(observed), means(control)[0]
    expected = {
        "rank_rmse": metrics.rank(metrics.pairwise(p, o, "rmse")),
        "rank_pearson_delta": metrics.rank(metrics.pairwise(p, o, "pearson_delta", control=c), better="higher"),
        "discrimination_cosine_logfc": metrics.rank(
            metrics.pairwise(p, o, "cosine_logfc", control=c), better="higher", of="observations"
        ),
        "centroid_accuracy": metrics.centroid_accuracy(p, o),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found(frame, name), values, atol=1e-9)
    assert set(frame["n_competitors"]) == {len(p) - 1}
    np.testing.assert_allclose(found(frame, "rank_rmse", "no_change"), 0.5)
    assert frame.query("predictor == 'ceiling'")["value"].notna().all()


def test_rank_of_cells_is_that_of_all_pairs_of_groups(case):
    observed, control, training = case
    predicted = wrong_context(case)
    frame = evaluate(
        predicted,
        observed,
        control,
        metrics=["rank_edistance", "edistance"],
        training=training,
        references=["no_change"],
    )
    labels = sorted(observed.obs["perturbation"].unique())
    of_pairs = np.array([
        [
            evaluate(
                relabelled(predicted, own, other), observed, control,
                metrics=["edistance"], training=training, references=["no_change"],
            ).query("predictor == 'prediction'")["value"].iloc[0]
            for other in labels
        ]
        for own in labels
    ])  # fmt: skip
    np.testing.assert_allclose(np.diag(of_pairs), found(frame, "edistance"), rtol=1e-6)
    np.testing.assert_allclose(found(frame, "rank_edistance"), metrics.rank(of_pairs))


def relabelled(predicted, own, other):
    """Predictions of `other` alone, offered as those of `own`."""
    some = predicted[(predicted.obs["perturbation"] == other).to_numpy()].copy()
    some.obs["perturbation"] = own
    return some


def test_pooled_scores_are_over_all_entries(case):
    predicted, (observed, control, training) = wrong_context(case), case
    frame = evaluate(predicted, observed, control, preset="lpm", training=training, references=["no_change"])
    p, o, c = means(predicted), means(observed), means(control)[0]
    assert found(frame, "pooled_rmse") == pytest.approx(np.sqrt(np.mean((p - o) ** 2)))
    assert found(frame, "pooled_mae") == pytest.approx(np.mean(np.abs(p - o)))
    assert found(frame, "pooled_pearson") == pytest.approx(np.corrcoef(p.ravel(), o.ravel())[0, 1])
    strength, movement = (np.sqrt(((o - c) ** 2).mean(axis=axis)) for axis in (1, 0))
    rows, genes = np.argsort(-strength)[:1], np.argsort(-movement)[:15]
    some = np.ix_(rows, genes)
    assert found(frame, "pooled_rmse_strongest10") == pytest.approx(np.sqrt(np.mean((p - o)[some] ** 2)))


def test_thesis_distances_restate_each_other(case):
    """Energy distance with squared norms, linear discrepancy and distance of means are one number."""
    observed, control, training = case
    frame = evaluate(
        wrong_context(case), observed, control, preset="thesis", training=training, references=["no_change"]
    )
    euclidean = found(frame, "euclidean_over_control")
    np.testing.assert_allclose(found(frame, "edistance_squared_over_control"), euclidean**2, rtol=1e-6)
    np.testing.assert_allclose(found(frame, "mmd_linear_over_control"), euclidean**2, rtol=1e-6)
    unsquared = evaluate(
        wrong_context(case), observed, control, metrics=["edistance_ratio_joint"], training=training, references=[]
    )
    assert (np.abs(found(unsquared, "edistance_ratio_joint") - euclidean**2) > 1e-3).any()


def test_thesis_ratio_has_the_prediction_in_both_terms(case):
    observed, control, training = case
    names = ["euclidean_over_control", "mean_pairwise_over_control", "edistance_squared_over_control"]
    far = observed.copy()
    far.X = np.asarray(far.X.todense() if hasattr(far.X, "todense") else far.X) + 1e4
    frame = evaluate(far, observed, control, metrics=names, training=training, references=["no_change"])
    # whatever is far enough from both groups scores 1, a copy of control nothing at all
    for name in names:
        np.testing.assert_allclose(found(frame, name), 1, atol=1e-3)
    for name in ("euclidean_over_control", "edistance_squared_over_control"):
        assert np.isnan(found(frame, name, "no_change")).all()


def test_headings_of_the_thesis_are_swapped():
    """The column headed Euc holds the squared energy distance and the one headed E-dist the Euclidean distance."""
    assert METRICS["edistance_squared_over_control"].published == "Euc"
    assert METRICS["euclidean_over_control"].published == "E-dist"


def test_perturbench_distance_is_half_of_the_energy_distance_in_components_of_the_observed(case):
    predicted, (observed, control, training) = wrong_context(case), case
    name = "edistance_half_observed"
    frame = evaluate(predicted, observed, control, metrics=[name], training=training, references=["no_change"])
    dense = {key: np.asarray(a.X.todense() if hasattr(a.X, "todense") else a.X, dtype=float) for key, a in
             {"p": predicted, "o": observed, "c": control}.items()}  # fmt: skip
    stacked = np.vstack([dense["o"], dense["c"]])
    _, spreads, axes = np.linalg.svd(stacked - stacked.mean(axis=0), full_matrices=False)
    axes = axes[: min(256, len(stacked) - 1)][spreads[: min(256, len(stacked) - 1)] > 1e-9].T
    expected = []
    for label in sorted(observed.obs["perturbation"].unique()):
        p, o = (
            dense[key][(a.obs["perturbation"] == label).to_numpy()] for key, a in (("p", predicted), ("o", observed))
        )
        expected.append(metrics.edistance((p - stacked.mean(axis=0)) @ axes, (o - stacked.mean(axis=0)) @ axes) / 2)
    np.testing.assert_allclose(found(frame, name), expected, rtol=1e-6)


def test_collapsed_predictions_are_named(case):
    observed, control, training = case
    centroid = adversaries(observed, control, training)["context mean"]
    with pytest.warns(UserWarning, match="predictions of 4 perturbations in context_\\d have collapsed"):
        evaluate(centroid, observed, control, metrics=["rmse"], training=training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(observed, observed, control, metrics=["rmse"], training=training)


ADVERSARIES = [
    *("constant", "control copy", "context mean", "log1p twice", "variance inflated", "permuted", "genes shuffled"),
]


@pytest.fixture(scope="module")
def board(case):
    observed, control, training = case
    frames = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, predicted in adversaries(observed, control, training).items():
            frame = evaluate(predicted, observed, control, training=training)
            frames.append(frame.replace({"predictor": {"prediction": name}}))
    frame = pd.concat(frames).drop_duplicates(["perturbation", "context", "predictor", "metric"])
    return leaderboard(frame)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_is_above_the_baseline(board, name):
    assert board.loc[name, "score"] <= 0


def test_single_metrics_are_fooled(board):
    """Why one metric is not enough: the truth with log1p taken again still points in the right direction."""
    assert board.loc["log1p twice", "rank_rmse"] > 0
    assert board["score"].idxmax() == "ceiling"


def test_adversaries_are_what_they_are_called(case):
    observed, control, training = case
    made = adversaries(observed, control, training)
    assert list(made) == ADVERSARIES
    dense = {name: a.to_df() for name, a in made.items()}
    assert (dense["constant"].nunique() == 1).all()
    np.testing.assert_allclose(dense["constant"].iloc[0], training.to_df().mean(), rtol=1e-5)
    labels = sorted(observed.obs["perturbation"].unique())
    permuted, truth = made["permuted"], observed.to_df()
    for label in labels:
        own = dense["permuted"][(permuted.obs["perturbation"] == label).to_numpy()].mean().to_numpy()
        of_truth = np.stack([truth[(observed.obs["perturbation"] == other).to_numpy()].mean() for other in labels])
        nearest = labels[int(np.abs(of_truth - own).sum(axis=1).argmin())]
        assert nearest != label
    in_group = (made["genes shuffled"].obs["perturbation"] == labels[0]).to_numpy()
    own = truth[(observed.obs["perturbation"] == labels[0]).to_numpy()]
    assert sorted(dense["genes shuffled"][in_group].mean()) == pytest.approx(sorted(own.mean()), rel=1e-5)


def test_adversary_of_log_and_permutation_need_what_they_need(case):
    observed, control, training = (adata.copy() for adata in case)
    one = observed[(observed.obs["perturbation"] == observed.obs["perturbation"].iloc[0]).to_numpy()]
    assert "permuted" not in adversaries(one, control, training)
    for adata in (observed, control, training):
        adata.X = adata.to_df().to_numpy() - 1.0
    assert "log1p twice" not in adversaries(observed, control, training)
    with pytest.raises(ValueError, match="no cells labelled 'control' for 4 of 4 groups"):
        adversaries(observed, training[(training.obs["perturbation"] != "control").to_numpy()], training)


def test_every_metric_prefers_the_truth_to_its_permutation(case):
    """Directions: lower or higher, every metric but the diagnostics ranks the observed cells above other ones."""
    observed, control, training = case
    permuted = adversaries(observed, control, training)["permuted"]
    blind = {"low_variance_share", "variance_ratio"}
    names = [name for name in METRICS if name not in blind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        frames = [
            evaluate(predicted, observed, control, metrics=names, training=training, references=["no_change"])
            for predicted in (observed, permuted)
        ]
    for name in names:
        right, wrong = (METRICS[name].loss(np.nanmean(found(frame, name))) for frame in frames)
        assert right < wrong, name


def test_same_scores_from_float32_and_float64(case):
    observed, control, training = case
    names = list(PRESETS["default"])
    predicted = adversaries(observed, control, training)["variance inflated"]
    frames = []
    for dtype in (np.float32, np.float64):
        cells = [ad.AnnData(a.to_df().to_numpy().astype(dtype), a.obs, a.var) for a in (predicted, *case)]
        frames.append(evaluate(*cells[:3], training=cells[3], metrics=names, references=BASIC))
    np.testing.assert_allclose(frames[0]["value"], frames[1]["value"], rtol=1e-5, atol=1e-5)


def noise(n_observed, n_control, *, seed=0, names="cell"):
    """Control cells and perturbed cells of one distribution: nothing to predict."""
    rng = np.random.default_rng(seed)
    baseline = rng.gamma(1.0, 1.0, 300)
    cells = ad.AnnData(np.log1p(rng.poisson(baseline, (n_observed + n_control, 300))).astype(np.float32))
    cells.obs_names = [f"{names}{i}" for i in range(cells.n_obs)]
    cells.obs["perturbation"] = ["A"] * n_observed + ["control"] * n_control
    cells.obs["context"] = "x"
    return cells[:n_observed].copy(), cells[n_observed:].copy()


@pytest.mark.parametrize("metric", ["pearson_delta_top20", "pearson_delta_top50"])
def test_ceiling_of_chosen_genes_is_not_chosen_with_its_own_cells(metric):
    values = []
    for seed in range(4):
        observed, control = noise(100, 3000, seed=seed)
        with pytest.warns(UserWarning, match="mean_shift"):
            frame = evaluate(None, observed, control, metrics=[metric])
        values.append(found(frame, metric, "ceiling")[0])
    assert abs(np.mean(values)) < 0.25


def test_cells_for_ranks_of_distances_are_drawn_and_not_the_first():
    """The first names are of one lane, which holds half of the distribution."""
    rng = np.random.default_rng(0)
    lanes = {"a": 0.0, "b": 4.0}
    blocks, labels, names = [], [], []
    effects = rng.normal(0, 0.3, (4, 20))
    for number, effect in enumerate(effects):
        for lane, shift in lanes.items():
            blocks.append(rng.normal(effect + shift + 10, 0.2, (200, 20)))
            labels += [f"P{number}"] * 200
            names += [f"{lane}{number}_{i}" for i in range(200)]
    truth = ad.AnnData(np.vstack(blocks), obs=pd.DataFrame({"perturbation": labels, "context": "x"}, index=names))
    control = ad.AnnData(
        rng.normal(10, 0.2, (50, 20)),
        obs=pd.DataFrame({"perturbation": "control", "context": "x"}, index=map(str, range(50))),
    )
    predicted = truth[rng.permutation(truth.n_obs)].copy()
    predicted.obs_names = [f"p{i}" for i in range(predicted.n_obs)]
    with pytest.warns(UserWarning, match="mean_shift"):
        frame = evaluate(predicted, truth, control, metrics=["rank_edistance"])
    assert found(frame, "rank_edistance").mean() < 0.1


def test_moved_cells_do_not_change_the_mean_of_a_reference(case, monkeypatch):
    names = ["rmse", "pearson_delta"]
    # no value near 0, so that nothing is clipped
    lifted = [ad.AnnData(adata.to_df() + 5.0, adata.obs) for adata in case]
    exact = evaluate(None, lifted[0], lifted[1], metrics=names, training=lifted[2], references=["mean_shift"])
    monkeypatch.setattr("multipert.metrics._table.N_MOVED_CELLS", 15)
    few = evaluate(None, lifted[0], lifted[1], metrics=names, training=lifted[2], references=["mean_shift"])
    assert set(few["n_predicted"]) == {15} != set(exact["n_predicted"])
    np.testing.assert_allclose(few["value"], exact["value"], rtol=1e-5)


def test_predictors_that_lack_groups_have_no_rank(screen):
    """`mean_shift` exists for some perturbations only; among fewer of them its rank would be easier."""
    contexts = sorted(screen.obs["context"].unique())
    labels = sorted(set(screen.obs["perturbation"]) - {"control"})
    here = (screen.obs["context"] == contexts[0]).to_numpy()
    control = (screen.obs["perturbation"] == "control").to_numpy()
    gone = screen.obs["perturbation"].isin(labels[:4]).to_numpy()
    training = screen[(~here & ~gone) | control].copy()
    frame = evaluate(
        None, screen[here & ~control].copy(), screen[here & control].copy(), metrics=["rank_rmse"], training=training
    )
    assert np.isnan(found(frame, "rank_rmse", "mean_shift")).all()
    assert np.isfinite(found(frame, "rank_rmse", "ceiling")).all()
    assert set(frame.query("predictor == 'mean_shift'")["n_competitors"]) == {0}


def test_context_mean_leaves_the_own_perturbation_out(screen):
    """Also where `training` holds it, which a warning says."""
    here = (screen.obs["context"] == screen.obs["context"].iloc[0]).to_numpy()
    control = (screen.obs["perturbation"] == "control").to_numpy()
    own = here & (screen.obs["perturbation"] == "P1").to_numpy()
    arguments = {"metrics": ["rmse"], "references": ["context_mean", "ceiling"]}
    honest = evaluate(screen[own], screen[own], screen[here & control], training=screen[~own], **arguments)
    with pytest.warns(UserWarning, match="observed cells are in `training` too"):
        leaky = evaluate(screen[own], screen[own], screen[here & control], training=screen, **arguments)
    assert found(leaky, "rmse", "context_mean") == pytest.approx(found(honest, "rmse", "context_mean"))


def test_permuted_adversary_never_is_the_truth(case):
    observed, control, training = case
    alone = observed[(observed.obs["perturbation"] == observed.obs["perturbation"].iloc[0]).to_numpy()].copy()
    alone.obs["context"] = "other"
    alone.obs_names = "other_" + alone.obs_names
    of_other = control.copy()
    of_other.obs["context"] = "other"
    of_other.obs_names = "other_" + of_other.obs_names
    both, controls = ad.concat([observed, alone], merge="same"), ad.concat([control, of_other], merge="same")
    made = adversaries(both, controls, training)
    assert set(made["permuted"].obs["context"]) == set(observed.obs["context"])
    assert "other" in set(made["constant"].obs["context"])


def test_what_is_hardly_ever_meant_is_warned_of(case):
    observed, control, training = (adata.copy() for adata in case)
    predicted = observed.copy()
    for adata in (observed, control, training):
        adata.X = np.rint(np.expm1(adata.to_df().to_numpy()))
    with pytest.warns(UserWarning, match="`observed` holds integers only and `predicted` does not"):
        evaluate(predicted, observed, control, metrics=["rmse"], training=training, references=["no_change"])
    observed, control, training = (adata.copy() for adata in case)
    for adata in (predicted, observed):
        adata.obs["dose"] = np.arange(adata.n_obs) % 2 + 1.0
    with pytest.warns(UserWarning, match="4 groups pool cells of several doses"):
        evaluate(predicted, observed, control, metrics=["rmse"], training=training, references=["no_change"])


def test_scale_of_the_challenge_is_checked_before_any_work(case):
    observed, control, training = case
    predicted = observed.copy()
    predicted.X = predicted.to_df().to_numpy()
    predicted.X[-1, 0] = -0.001
    with pytest.raises(ValueError, match="predicted"):
        evaluate(predicted, observed, control, preset="vcc", training=training)


def test_swapping_truth_and_control_inverts_the_ratios_of_the_thesis(case):
    """The joint components are those of the same three groups, so only numerator and denominator change places."""
    observed, control, training = case
    label = observed.obs["perturbation"].iloc[0]
    truth = observed[(observed.obs["perturbation"] == label).to_numpy()].copy()
    predicted = relabelled(wrong_context(case), label, label)
    as_control, as_truth = truth.copy(), control.copy()
    as_control.obs["perturbation"], as_truth.obs["perturbation"] = "control", label
    names = [name for name in METRICS if name.endswith("_over_control")]
    assert len(names) == 5
    one = evaluate(predicted, truth, control, metrics=names, training=training, references=[])
    other = evaluate(predicted, as_truth, as_control, metrics=names, training=training, references=[])
    for name in names:
        np.testing.assert_allclose(found(one, name) * found(other, name), 1, rtol=1e-4)

import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multipert import metrics
from multipert.data import read_backed
from multipert.metrics import METRICS, PRESETS, evaluate

GROUP_METRICS = [
    name for name in dict.fromkeys([*PRESETS["default"], *PRESETS["thesis-joint"]]) if not METRICS[name].by_context
]
BASIC = ["no_change", "mean_shift", "ceiling"]
KANG = Path(__file__).parents[3] / "shared" / "data" / "kang18_scgen_valid.h5ad"


def is_control(adata):
    return (adata.obs["perturbation"] == "control").to_numpy()


def held_out(screen, perturbation="A", context="z"):
    """(observed, control, training) of one group, the training without the group."""
    in_context = (screen.obs["context"] == context).to_numpy()
    in_group = in_context & (screen.obs["perturbation"] == perturbation).to_numpy()
    return screen[in_group].copy(), screen[is_control(screen) & in_context].copy(), screen[~in_group].copy()


def as_prediction(control, perturbation="A"):
    predicted = control.copy()
    predicted.obs["perturbation"] = perturbation
    rng = np.random.default_rng(5)
    predicted.X = (predicted.X + rng.random(predicted.n_vars)).astype(np.float32)
    return predicted


@pytest.fixture
def case(screen):
    observed, control, training = held_out(screen)
    return {
        "predicted": as_prediction(control),
        "observed": observed,
        "control": control,
        "training": training,
        "metrics": GROUP_METRICS,
        "references": BASIC,
    }


def values(frame, predictor="prediction"):
    return frame[frame["predictor"] == predictor].set_index("metric")["value"]


def test_frame_is_tidy(case):
    frame = evaluate(**case)
    assert list(frame) == [
        *("perturbation", "context", "predictor", "metric", "value", "calibrated"),
        *("n_predicted", "n_observed", "n_control", "n_competitors"),
    ]
    assert list(frame["predictor"].unique()) == ["prediction", "no_change", "mean_shift", "ceiling"]
    assert len(frame) == 4 * len(GROUP_METRICS)
    assert frame["value"].dtype == float
    assert set(frame["perturbation"]) == {"A"}
    assert set(frame["context"]) == {"z"}
    n_observed, n_control = case["observed"].n_obs, case["control"].n_obs
    sizes = frame.drop_duplicates("predictor")[["n_predicted", "n_observed", "n_control"]].to_numpy().tolist()
    halves = [n_observed // 2, n_observed - n_observed // 2, n_control]
    assert sizes == [[n_control, n_observed, n_control]] * 3 + [halves]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_list_known_metrics(preset, case):
    frame = evaluate(**case | {"metrics": None, "references": ["no_change"]}, preset=preset)
    assert tuple(values(frame).index) == PRESETS[preset]
    assert set(PRESETS[preset]) <= set(METRICS)


def test_values_are_those_of_the_functions(case):
    p, o, c = (case[name].X for name in ("predicted", "observed", "control"))
    found = values(evaluate(**case))
    assert found["rmse"] == pytest.approx(metrics.rmse(p, o))
    assert found["r2"] == pytest.approx(metrics.r2(p, o))
    assert found["r2_pearson"] == pytest.approx(metrics.r2_pearson(p, o))
    assert found["pearson_delta"] == pytest.approx(metrics.pearson_delta(p, o, c))
    assert found["cosine_logfc"] == pytest.approx(metrics.cosine_logfc(p, o, c))
    assert found["low_variance_share"] == pytest.approx(metrics.low_variance_share(p, o))
    for direction in ("absolute", "up", "down"):
        assert found[f"de_overlap_{direction}"] == metrics.de_overlap(p, o, c, direction=direction)


def restated_distances(p, o, c, fitted):
    """(E, Eu) as the definitions read: full decomposition, all pairs."""
    centre = np.vstack(fitted).mean(axis=0)
    _, spreads, axes = np.linalg.svd(np.vstack(fitted) - centre, full_matrices=False)
    axes = axes[spreads > 1e-9][:50].T
    p, o, c = ((x - centre) @ axes for x in (p, o, c))

    def energy(a, b):
        return 2 * spread(a, b) - spread(a, a) - spread(b, b)

    def spread(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    def of_means(a, b):
        return np.linalg.norm(a.mean(0) - b.mean(0))

    return energy(p, o) / energy(c, o), of_means(p, o) / of_means(c, o)


def test_distances_follow_their_definition(case):
    p, o, c = (case[name].X.astype(float) for name in ("predicted", "observed", "control"))
    found = values(evaluate(**case))
    edistance, mean_distance = restated_distances(p, o, c, [p, o, c])
    assert found["edistance_ratio_joint"] == pytest.approx(edistance, rel=1e-8)
    assert found["mean_distance_ratio_joint"] == pytest.approx(mean_distance, rel=1e-8)
    training = case["training"].X.astype(float)
    assert found["edistance_ratio"] == pytest.approx(restated_distances(p, o, c, [training])[0], rel=1e-8)
    with pytest.warns(UserWarning, match="mean_shift"):
        found = values(evaluate(**case | {"training": None}))
    assert found["edistance_ratio"] == pytest.approx(restated_distances(p, o, c, [o, c])[0], rel=1e-8)


@pytest.mark.parametrize("max_side", [2500, 51])
@pytest.mark.parametrize("n_predicted", [28, 9])
def test_every_way_to_the_principal_components(case, monkeypatch, n_predicted, max_side):
    """More cells than genes and fewer, with the direct and the iterative solver."""
    monkeypatch.setattr("multipert.metrics._distribution.MAX_DIRECT_SIDE", max_side)
    case["predicted"] = case["predicted"][:n_predicted]
    p, o, c = (case[name].X.astype(float) for name in ("predicted", "observed", "control"))
    assert (len(p) + len(o) + len(c) > p.shape[1]) == (n_predicted == 28)
    found = values(evaluate(**case | {"metrics": ["edistance_ratio_joint"]}))
    assert found["edistance_ratio_joint"] == pytest.approx(restated_distances(p, o, c, [p, o, c])[0], rel=1e-6)


def test_bootstrap_follows_its_definition(case):
    p, o, c = (case[name].X.astype(float) for name in ("predicted", "observed", "control"))
    # evaluate takes the cells in the order of their names
    p, o = (x[np.argsort(case[n].obs_names.to_numpy(str))] for x, n in ((p, "predicted"), (o, "observed")))
    ranking = np.argsort(-metrics.wilcoxon(o, c), kind="stable")
    found = values(evaluate(**case, seed=3))
    for name, genes in (("", slice(None)), ("_top20", ranking[:20]), ("_top100", ranking[:100])):
        squares = []
        for seed in range(3, 103):
            means = [
                x[np.random.default_rng(seed).choice(len(x), round(0.8 * len(x)), replace=False)].mean(0)[genes]
                for x in (p, o)
            ]
            squares.append(np.corrcoef(*means)[0, 1] ** 2)
        assert found[f"r2_pearson_bootstrap{name}"] == pytest.approx(np.mean(squares), rel=1e-9)


def test_top_genes_are_the_up_regulated_ones_of_the_observed(case):
    """A prediction right on the up-regulated genes alone is right on the top 20, one right on the others is not."""
    control, observed = case["control"].X, case["observed"].X
    top = np.argsort(-metrics.wilcoxon(observed, control))[:20]
    base, truth = np.repeat(control, 4, axis=0)[: len(observed)], observed
    for right_on_top in (True, False):
        right = np.isin(np.arange(control.shape[1]), top) == right_on_top
        predicted = ad.AnnData(np.where(right, truth, base), case["observed"].obs, case["observed"].var)
        value = values(evaluate(**case | {"predicted": predicted}))["r2_pearson_bootstrap_top20"]
        assert (value > 0.999) == right_on_top


def test_perfect_prediction(case):
    found = values(evaluate(**case | {"predicted": case["observed"].copy()}))
    # both bootstraps draw the same cells
    for name in (n for n in found.index if n.startswith("r2") or n in ("pearson_delta", "cosine_logfc")):
        assert found[name] == pytest.approx(1), name
    for name in (n for n in found.index if "distance" in n or n in ("rmse", "low_variance_share")):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert found["de_overlap_up"] + found["de_overlap_down"] == found["de_overlap_absolute"] == 60


def test_prediction_of_the_control_is_no_change(case):
    predicted = case["control"].copy()
    predicted.obs["perturbation"] = "A"
    frame = evaluate(**case | {"predicted": predicted})
    found = values(frame)
    pd.testing.assert_series_equal(found, values(frame, "no_change"))
    pd.testing.assert_series_equal(
        *(frame[frame["predictor"] == name].set_index("metric")["calibrated"] for name in ("prediction", "no_change"))
    )
    for name in ("edistance_ratio", "edistance_ratio_joint", "mean_distance_ratio_joint"):
        assert found[name] == pytest.approx(1)
    assert np.isnan(found["pearson_delta"])
    assert found["de_overlap_up"] == found["de_overlap_absolute"] == 0


def test_control_equal_to_truth_leaves_ratios_undefined(case):
    truth = case["control"].copy()
    truth.obs["perturbation"] = "A"
    found = values(evaluate(**case | {"observed": truth}))
    assert found.filter(like="ratio").isna().all()
    assert np.isfinite(found["rmse"])


def test_constant_added_to_all_cells_changes_nothing(case):
    expected = evaluate(**case)
    for name in ("predicted", "observed", "control", "training"):
        case[name].X = case[name].X.astype(float) + 3
    frame = evaluate(**case)
    invariant = frame["metric"] != "cosine_logfc"
    # the clip of the mean shift at 0 no longer bites
    invariant &= frame["predictor"] != "mean_shift"
    np.testing.assert_allclose(frame["value"][invariant], expected["value"][invariant], rtol=1e-6, atol=1e-9)


def mean_shift_cells(case, contexts=("w", "x", "y")):
    training = case["training"]
    shifts = []
    for context in contexts:
        label, here = training.obs["perturbation"], training.obs["context"] == context
        shifts.append(
            training.X[(here & (label == "A")).to_numpy()].mean(0, dtype=float)
            - training.X[(here & (label == "control")).to_numpy()].mean(0, dtype=float)
        )
    return case["control"].X + np.mean(shifts, axis=0)


def test_mean_shift_weighs_contexts_equally_and_clips(case):
    o, c = case["observed"].X, case["control"].X
    expected = np.maximum(mean_shift_cells(case), 0)
    assert (mean_shift_cells(case) < 0).any()
    found = values(evaluate(**case), "mean_shift")
    assert found["rmse"] == pytest.approx(metrics.rmse(expected, o), rel=1e-9)
    assert found["pearson_delta"] == pytest.approx(metrics.pearson_delta(expected, o, c), rel=1e-9)


def test_mean_shift_of_signed_data_is_not_clipped(case):
    for name in ("predicted", "observed", "control", "training"):
        case[name].X = case[name].X - 1
    found = values(evaluate(**case), "mean_shift")
    assert found["rmse"] == pytest.approx(metrics.rmse(mean_shift_cells(case), case["observed"].X), rel=1e-6)


def test_mean_shift_never_reads_the_own_context(case, screen):
    expected = evaluate(**case)
    leaky = screen.copy()
    leaky.X[((screen.obs["context"] == "z") & (screen.obs["perturbation"] == "A")).to_numpy()] = 99
    pd.testing.assert_frame_equal(evaluate(**case | {"training": leaky}), expected)


@pytest.mark.parametrize("without", ["training", "context", "control"])
def test_mean_shift_without_another_context_is_nan_with_one_warning(case, without):
    training = case["training"]
    label, context = training.obs["perturbation"], training.obs["context"]
    keep = {"context": (context == "z") | (label != "A"), "control": (context == "z") | (label != "control")}
    case["training"] = None if without == "training" else training[keep[without].to_numpy()]
    with pytest.warns(UserWarning, match="`mean_shift` is nan for 1 of 1 groups: pass as `training`") as caught:
        frame = evaluate(**case)
    assert len(caught) == 1
    assert values(frame, "mean_shift").isna().all()
    assert values(frame, "ceiling").notna().all()


def test_ceiling_is_the_mean_over_halves_of_the_observed(case):
    found = values(evaluate(**case, seed=4), "ceiling")
    observed, control = case["observed"], case["control"].X
    observed = observed.X[np.argsort(observed.obs_names.to_numpy(str))]
    deltas, energies = [], []
    for repeat in range(10):
        order = np.random.default_rng([4, repeat]).permutation(len(observed))
        half, other = observed[order[: len(order) // 2]], observed[order[len(order) // 2 :]]
        deltas.append(metrics.pearson_delta(half, other, control))
        fitted = ([case["training"].X], [observed, control])
        energies.append([restated_distances(half, other, control, of)[0] for of in fitted])
    assert found["pearson_delta"] == pytest.approx(np.mean(deltas))
    names = ["edistance_ratio", "edistance_ratio_joint"]
    np.testing.assert_allclose(found[names], np.mean(energies, axis=0), rtol=1e-5)


def test_ceiling_of_equal_cells_is_perfect(case):
    case["observed"].X[:] = case["observed"].X[:1]
    found = values(evaluate(**case), "ceiling")
    assert found["rmse"] == pytest.approx(0, abs=1e-9)
    assert found["pearson_delta"] == pytest.approx(1)
    assert found["edistance_ratio"] == pytest.approx(0, abs=1e-6)


def test_ceiling_of_a_single_cell_is_nan(case):
    frame = evaluate(**case | {"observed": case["observed"][:1]})
    assert values(frame, "ceiling").isna().all()
    assert np.isfinite(values(frame)["pearson_delta"])


def test_references_do_not_see_the_prediction(case):
    expected = evaluate(**case)
    # negative values too, which must not switch off the clip of the mean shift
    case["predicted"].X = case["predicted"].X[:, ::-1] * 2 - 1
    frame = evaluate(**case)
    same = frame["predictor"] != "prediction"
    pd.testing.assert_frame_equal(frame[same], expected[same])
    assert values(frame)["rmse"] != values(expected)["rmse"]


def test_same_seed_same_bits_and_cells_in_any_order(case):
    expected = evaluate(**case)
    pd.testing.assert_frame_equal(evaluate(**case), expected, check_exact=True)
    rng = np.random.default_rng(0)
    for name in ("predicted", "observed", "control", "training"):
        case[name] = case[name][rng.permutation(case[name].n_obs)].copy()
    pd.testing.assert_frame_equal(evaluate(**case), expected, check_exact=True)
    other = evaluate(**case, seed=1)
    assert values(other, "ceiling")["rmse"] != values(expected, "ceiling")["rmse"]
    assert values(other)["rmse"] == values(expected)["rmse"]


@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.astype(np.float64)])
def test_storage_does_not_matter_and_input_is_left_alone(case, convert):
    expected = evaluate(**case)
    names = ("predicted", "observed", "control", "training")
    for name in names:
        case[name].X = convert(case[name].X)
    before = {name: case[name].copy() for name in names}
    frame = evaluate(**case)
    np.testing.assert_allclose(frame["value"], expected["value"], rtol=1e-6, atol=1e-6)
    for name in names:
        assert type(case[name].X) is type(before[name].X)
        assert abs(case[name].X - before[name].X).max() == 0
        pd.testing.assert_frame_equal(case[name].obs, before[name].obs)


@pytest.mark.parametrize("opened", [lambda path: ad.read_h5ad(path, backed="r"), read_backed])
def test_cells_on_disk(opened, case, tmp_path):
    expected = evaluate(**case)
    case["observed"].X = sparse.csr_matrix(case["observed"].X)
    case["observed"].write_h5ad(tmp_path / "observed.h5ad")
    case["observed"] = opened(tmp_path / "observed.h5ad")
    np.testing.assert_allclose(evaluate(**case)["value"], expected["value"], rtol=1e-6, atol=1e-9)


def test_groups_use_their_own_cells(screen, case):
    """All groups at once score as each does alone."""
    observed, control = screen[~is_control(screen)], screen[is_control(screen)]
    predicted = observed.copy()
    predicted.X = predicted.X * 1.3
    together = evaluate(
        predicted, observed, control, training=screen, metrics=["rmse", "pearson_delta"], references=BASIC
    )
    assert len(together) == 8 * 4 * 2
    for (perturbation, context), frame in together.groupby(["perturbation", "context"]):
        own = (screen.obs["context"] == context).to_numpy()
        of_label = (screen.obs["perturbation"].replace("B+A", "A+B") == perturbation).to_numpy()
        alone = screen[own & of_label]
        prediction = alone.copy()
        prediction.X = prediction.X * 1.3
        expected = evaluate(
            *(prediction, alone, screen[own & is_control(screen)]),
            training=screen,
            metrics=["rmse", "pearson_delta"],
            references=BASIC,
        )
        pd.testing.assert_frame_equal(frame.reset_index(drop=True), expected)


def test_perturbation_alone_uses_all_controls(screen):
    observed, control = screen[~is_control(screen)], screen[is_control(screen)]
    with pytest.warns(UserWarning, match="`mean_shift` is nan for 2 of 2"):
        frame = evaluate(observed, observed, control, by=["perturbation"], metrics=["rmse"])
    assert list(frame)[:2] == ["perturbation", "predictor"]
    assert set(frame["n_control"]) == {control.n_obs}


def test_several_context_columns(screen):
    screen.obs["donor"] = np.where(np.arange(screen.n_obs) % 2, "d1", "d2")
    observed, control = screen[~is_control(screen)], screen[is_control(screen)]
    by = ("perturbation", "context", "donor")
    frame = evaluate(observed, observed, control, by, metrics=["rmse"], training=screen, references=BASIC)
    assert len(frame) == 2 * 4 * 2 * 4
    of_group = (control.obs["context"] == "x") & (control.obs["donor"] == "d1")
    assert set(frame.query("context == 'x' and donor == 'd1'")["n_control"]) == {of_group.sum()}


def test_labels_of_combinations_are_one_condition(screen):
    observed, control, training = held_out(screen, "B+A")
    predicted = as_prediction(control, " A + B")
    training.obs["perturbation"] = training.obs["perturbation"].replace("B+A", "A+control+B")
    frame = evaluate(predicted, observed, control, training=training, metrics=GROUP_METRICS)
    assert set(frame["perturbation"]) == {"A+B"}
    assert values(frame, "mean_shift").notna().all()
    with pytest.raises(ValueError, match="share no group: predicted A \\+ B, z, observed B\\+A, z"):
        evaluate(predicted, observed, control, training=training, delimiter=None)


def test_other_name_of_control(case):
    expected = evaluate(**case)
    for name in ("control", "training"):
        labels = case[name].obs["perturbation"].astype(str)
        case[name].obs["perturbation"] = labels.replace("control", "vehicle")
    pd.testing.assert_frame_equal(evaluate(**case, control_label="vehicle"), expected)
    with pytest.raises(ValueError, match="`control` has no cells labelled 'control' for 1 of 1 groups.*vehicle, z"):
        evaluate(**case)


def test_cells_of_other_labels_are_left_out(case, screen):
    expected = evaluate(**case)
    predicted = ad.concat([case["predicted"], case["control"]], index_unique="-", merge="same")
    frame = evaluate(**case | {"predicted": predicted, "observed": screen, "control": screen})
    np.testing.assert_allclose(frame["value"], expected["value"])


def test_layer(case):
    expected = evaluate(**case)
    for name in ("observed", "control", "training"):
        case[name].layers["lognorm"] = case[name].X.copy()
        case[name].X = np.zeros_like(case[name].X)
    pd.testing.assert_frame_equal(evaluate(**case, layer="lognorm"), expected)
    case["predicted"].layers["lognorm"] = case["predicted"].X * 2
    assert values(evaluate(**case, layer="lognorm"))["rmse"] != values(expected)["rmse"]
    with pytest.raises(KeyError, match="`control.layers` has no 'raw'; it has lognorm"):
        evaluate(**case, layer="raw")


def test_predicted_group_without_observed_cells_is_left_out_with_one_warning(case):
    expected = evaluate(**case)
    extra = case["predicted"].copy()
    extra.obs["perturbation"] = np.where(np.arange(extra.n_obs) % 2, "C", "D")
    case["predicted"] = ad.concat([case["predicted"], extra], index_unique="-", merge="same")
    with pytest.warns(UserWarning, match="2 of 3 predicted groups have no observed cells.*C, z; D, z") as caught:
        frame = evaluate(**case)
    assert len(caught) == 1
    np.testing.assert_allclose(frame["value"], expected["value"])


@pytest.mark.parametrize("name", ["predicted", "control", "training"])
def test_genes_must_agree(case, name):
    permuted = case[name][:, ::-1]
    with pytest.raises(ValueError, match=f"`{name}` has the genes .* another order; pass `{name}\\[:, observed.var_na"):
        evaluate(**case | {name: permuted})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(**case | {name: permuted[:, case["observed"].var_names]})
    with pytest.raises(ValueError, match=f"`{name}` lacks 2 genes \\(g0, g1\\) and has 0 genes"):
        evaluate(**case | {name: case[name][:, 2:]})


@pytest.mark.parametrize("name", ["predicted", "observed", "control", "training"])
def test_bad_input_names_the_argument(case, name):
    lacking = case[name].copy()
    del lacking.obs["context"]
    with pytest.raises(KeyError, match=f"`{name}.obs` has no column context; it has perturbation"):
        evaluate(**case | {name: lacking})
    unlabelled = case[name].copy()
    unlabelled.obs["context"] = unlabelled.obs["context"].astype("category")
    unlabelled.obs.loc[unlabelled.obs_names[:3], "context"] = None
    with pytest.raises(ValueError, match=f"`{name}.obs\\['context'\\]` is missing for 3 of {unlabelled.n_obs} cells"):
        evaluate(**case | {name: unlabelled})
    spoilt = case[name].copy()
    spoilt.X[0, :4] = np.nan
    with pytest.raises(ValueError, match=f"`{name}` holds 4 values that are NaN"):
        evaluate(**case | {name: spoilt})
    with pytest.raises(ValueError, match=f"`{name}` is empty: it has 0 cells"):
        evaluate(**case | {name: case[name][:0]})


def test_unknown_names_raise(case):
    with pytest.raises(ValueError, match="`preset` is 'best'; it must be one of default, thesis, thesis-joint"):
        evaluate(**case | {"metrics": None}, preset="best")
    with pytest.raises(ValueError, match="`metrics` names 'rsme', which is not in METRICS; did you mean 'rmse'"):
        evaluate(**case | {"metrics": ["rsme"]})
    with pytest.raises(ValueError, match="`references` is .*'mean'.*names among no_change"):
        evaluate(**case | {"references": ["mean"]})
    with pytest.raises(ValueError, match="must be a list of names"):
        evaluate(**case | {"metrics": "rmse"})
    case["predicted"].obs["perturbation"] = "Q"
    with pytest.raises(ValueError, match="share no group: predicted Q, z, observed A, z"):
        evaluate(**case)


def test_mean_shift_beats_no_change_and_ceiling_beats_mean_shift(case):
    frame = evaluate(**case, preset="default")
    rmse = frame[frame["metric"] == "rmse"].set_index("predictor")["value"]
    assert rmse["ceiling"] < rmse["mean_shift"] < rmse["no_change"]


def test_import_is_light():
    heavy = "torch", "scvi", "scanpy", "pertpy", "anndata", "numba", "sklearn", "ot"
    code = f"import sys, multipert.metrics; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_edistance_is_pertpys(groups):
    distances = pytest.importorskip("pertpy.tools")
    ours = metrics.edistance(groups["predicted"], groups["observed"])
    theirs = distances.Distance("edistance")(groups["predicted"], groups["observed"])
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.skipif(not KANG.exists(), reason=f"needs {KANG.name} in ../shared/data")
def test_references_on_real_cells():
    """Figures of an independent scorer, mean over the seven held-out cell types of Kang et al. 2018."""
    adata = ad.read_h5ad(KANG)
    by = ("perturbation", "cell_type")
    frames = []
    for context in adata.obs["cell_type"].unique():
        here = (adata.obs["cell_type"] == context).to_numpy()
        observed, control = adata[here & ~is_control(adata)], adata[here & is_control(adata)]
        frames.append(
            evaluate(
                *(observed, observed, control, by),
                preset="thesis-joint",
                training=adata[~here | is_control(adata)],
            )
        )
    found = pd.concat(frames).pivot_table(index="metric", columns="predictor", values="value")
    expected = pd.DataFrame(
        {
            "no_change": [0.745, 0.484, np.nan, 1.0, 0, 0],
            "mean_shift": [0.899, 0.796, 0.839, 0.550, 56, 52],
            "ceiling": [0.953, 0.980, 0.916, 0.154, 73, 63],
        },
        index=[
            *("r2_pearson_bootstrap", "r2_pearson_bootstrap_top20", "pearson_delta", "edistance_ratio_joint"),
            *("de_overlap_up", "de_overlap_absolute"),
        ],
    )
    tolerance = np.array([0.003, 0.005, 0.003, 0.003, 1.5, 1.5])[:, None]
    difference = (found.reindex_like(expected) - expected).abs()
    assert (difference <= tolerance).to_numpy()[expected.notna().to_numpy()].all(), found

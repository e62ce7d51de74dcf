"""Predicted cells are read by the evaluation packages of others as they are, and the numbers agree."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import multipert as mp
from multipert.metrics import edistance, pairwise, pearson_delta, rank

HELD_OUT = "context_1"
PERTURBATIONS = ["P1", "P2", "P3", "P4"]


@pytest.fixture(scope="module")
def screen():
    adata = mp.datasets.screen("small")
    adata.obs["split"] = mp.splits.context_transfer(adata, HELD_OUT)
    return adata


@pytest.fixture(scope="module")
def truth(screen):
    """All measured cells of the held-out context, control cells among them."""
    return screen[(screen.obs["context"] == HELD_OUT).to_numpy()].copy()


@pytest.fixture(scope="module")
def training(screen):
    return screen[(screen.obs["split"] == "train").to_numpy()].copy()


@pytest.fixture(scope="module", params=["NoPerturb", "TwoFactor"])
def predicted(request, screen):
    """Cells of the held-out context as `predict` returns them; under the control label they are the control cells."""
    cls = getattr(mp.model, request.param)
    cls.setup_anndata(screen, context_key="context")
    model = cls(screen)
    model.train(split_key="split")
    cells = model.predict(perturbation=["control", *PERTURBATIONS], context=HELD_OUT)
    before = cells.X.copy(), cells.obs.copy()
    yield cells
    np.testing.assert_array_equal(cells.X, before[0])
    pd.testing.assert_frame_equal(cells.obs, before[1])


def is_no_change(predicted):
    return predicted.uns["multipert"]["model"] == "NoPerturb"


def cells(adata, perturbation):
    return adata[(adata.obs["perturbation"] == perturbation).to_numpy()].X


def dense(values):
    return (values.toarray() if sparse.issparse(values) else np.asarray(values)).astype(np.float64)


def means(adata, perturbations=PERTURBATIONS):
    return np.array([dense(cells(adata, p)).mean(axis=0) for p in perturbations])


@pytest.fixture
def distance():
    """Constructor of a distance of pertpy."""
    pertpy = pytest.importorskip("pertpy", reason="needs the extra pertpy", exc_type=ImportError)
    return pertpy.tools.Distance


def test_energy_distance_of_pertpy_is_ours(distance, predicted, truth):
    of_pertpy = distance("edistance")
    for p in [*PERTURBATIONS, "control"]:
        theirs = of_pertpy(cells(predicted, p), cells(truth, p))
        # pertpy computes in the float32 of the cells
        assert theirs == pytest.approx(edistance(cells(predicted, p), cells(truth, p)), rel=1e-5, abs=1e-5)
    assert edistance(cells(predicted, "P1"), cells(truth, "P1")) > 0.1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("euclidean", "euclidean"),
        ("mse", "mse"),
        ("mean_absolute_error", "mae"),
        ("pearson_distance", "pearson"),
        ("cosine_distance", "cosine"),
        ("r2_distance", "r2"),
    ],
)
def test_distances_of_means_of_pertpy_are_ours(distance, predicted, truth, theirs, ours):
    of_pertpy = distance(theirs)
    # the first group is the truth, which r2 alone cares about
    matrix = [[of_pertpy(cells(truth, o), cells(predicted, p)) for p in PERTURBATIONS] for o in PERTURBATIONS]
    expected = pairwise(means(predicted), means(truth), ours)
    if ours in ("pearson", "cosine", "r2"):
        expected = 1 - expected
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-6)


def test_compare_distance_of_pertpy_is_a_ratio_of_ours(distance, predicted, truth):
    control = dense(cells(truth, "control"))
    for p in PERTURBATIONS:
        observed, group = dense(cells(truth, p)), dense(cells(predicted, p))
        if is_no_change(predicted):
            # there the second distance is 0
            assert edistance(group, control) == 0
            continue
        theirs = distance("edistance").compare_distance(pert=observed, pred=group, ctrl=control)
        assert theirs == pytest.approx(edistance(group, observed) / edistance(group, control), rel=1e-8)


@pytest.fixture
def by_cell_eval(predicted, truth, tmp_path):
    """What cell-eval says of the very two AnnData, one row per perturbation."""
    cell_eval = pytest.importorskip("cell_eval", reason="needs the extra cell-eval", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the correlation with a change of zero
        evaluator = cell_eval.MetricsEvaluator(
            adata_pred=predicted,
            adata_real=truth,
            control_pert="control",
            pert_col="perturbation",
            num_threads=1,
            outdir=str(tmp_path / "cell-eval"),
            skip_de=True,
        )
        # clustering needs a package more
        results, _ = evaluator.compute("anndata", skip_metrics=["clustering_agreement"], write_csv=False)
    table = pd.DataFrame(results.to_dict(as_series=False)).set_index("perturbation")
    return table.loc[PERTURBATIONS]


def of_evaluate(predicted, truth, training, metric):
    """Values of the prediction in our table, one per perturbation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*collapsed")  # rightly so for no change
        scores = mp.metrics.evaluate(predicted, truth, truth, metrics=[metric], training=training)
    values = scores[scores["predictor"] == "prediction"].set_index("perturbation")["value"]
    return values[PERTURBATIONS].to_numpy()


def test_errors_of_cell_eval_are_ours(by_cell_eval, predicted, truth, training):
    for name in ("mae", "mse"):
        ours = np.diagonal(pairwise(means(predicted), means(truth), name))
        np.testing.assert_allclose(by_cell_eval[name], ours, atol=1e-6)
        np.testing.assert_allclose(of_evaluate(predicted, truth, training, name), ours, rtol=1e-9)
        assert (ours > 1e-3).all()


def test_correlation_of_changes_of_cell_eval_is_ours(by_cell_eval, predicted, truth, training):
    ours = [pearson_delta(*(cells(a, p) for a in (predicted, truth)), cells(truth, "control")) for p in PERTURBATIONS]
    np.testing.assert_allclose(by_cell_eval["pearson_delta"], ours, atol=1e-5)
    np.testing.assert_allclose(of_evaluate(predicted, truth, training, "pearson_delta"), ours)
    assert np.isnan(ours).all() == is_no_change(predicted)


def test_discrimination_scores_of_cell_eval_are_our_ranks(by_cell_eval, predicted, truth, training):
    groups = means(predicted), means(truth)
    (control,) = means(truth, ["control"])
    n = len(PERTURBATIONS)
    ranks = {
        "discrimination_score_l1": rank(pairwise(*groups, "mae"), of="observations"),
        "discrimination_score_l2": rank(pairwise(*groups, "euclidean"), of="observations"),
    }
    if not is_no_change(predicted):
        cosines = pairwise(*groups, "cosine_delta", control=control)
        ranks["discrimination_score_cosine"] = rank(cosines, better="higher", of="observations")
    for name, ours in ranks.items():
        # cell-eval divides the number of nearer ones by n, the rank by n - 1
        np.testing.assert_allclose(by_cell_eval[name], 1 - ours * (n - 1) / n, atol=1e-12)
    pds = of_evaluate(predicted, truth, training, "pds")
    np.testing.assert_allclose(by_cell_eval["discrimination_score_l1"], pds, atol=1e-12)
    assert (pds < 1).any() == is_no_change(predicted)


def test_energy_distances_of_cell_eval_are_ours(by_cell_eval, predicted, truth):
    control = cells(truth, "control")
    ours = [[edistance(cells(adata, p), control) for p in PERTURBATIONS] for adata in (predicted, truth)]
    if is_no_change(predicted):
        # ours are exactly 0; theirs are what rounding leaves, and so is their correlation
        assert ours[0] == [0.0] * len(PERTURBATIONS)
    else:
        np.testing.assert_allclose(by_cell_eval["pearson_edistance"], np.corrcoef(ours)[0, 1], atol=1e-4)


def test_a_file_with_cells_and_labels_is_enough(predicted, truth, training, tmp_path):
    """Nothing of what `predict` writes beside the labels is needed, not even the names of the cells."""
    obs = predicted.obs[["perturbation", "context"]].astype(str)
    bare = ad.AnnData(predicted.X, obs=obs.set_axis([f"made_up_{number:04d}" for number in range(len(obs))]))
    bare.var_names = predicted.var_names
    bare.write_h5ad(tmp_path / "predictions.h5ad")
    read = ad.read_h5ad(tmp_path / "predictions.h5ad")
    metrics = ["rmse", "pearson_delta", "edistance_ratio"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*collapsed")
        scores, expected = (
            mp.metrics.evaluate(adata, truth, truth, metrics=metrics, training=training) for adata in (read, predicted)
        )
    pd.testing.assert_frame_equal(scores, expected)
    assert set(scores["perturbation"]) == set(PERTURBATIONS)
    assert scores["value"].notna().any()

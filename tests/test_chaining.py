"""Predictions go through scanpy, pertpy and files like any other layer."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import multipert as mp

HELD_OUT = "context_1"
PERTURBATIONS = ["P1", "P2", "P3", "P4"]
N_TOP = 20


@pytest.fixture(scope="module", autouse=True)
def _torch_threads():
    """The neighbour search of scanpy changes the number of threads of torch; later tests get theirs back."""
    import torch

    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def fitted():
    """The small screen, annotated as means and as counts by a briefly trained MTAe and by ContextShift; both models."""
    adata = mp.datasets.screen("small")
    adata.obs["split"] = mp.splits.context_transfer(adata, HELD_OUT)
    models = {}
    for cls, arguments in ((mp.model.MTAe, {"max_epochs": 15, "lr": 2e-3}), (mp.model.ContextShift, {})):
        cls.setup_anndata(adata, context_key="context")
        model = cls(adata)
        model.train(split_key="split", seed=0, enable_progress_bar=False, accelerator="cpu", **arguments)
        model.annotate()
        model.annotate(realise="counts", key=f"{cls.__name__}_counts", latent=False)
        models[cls.__name__] = model
    return adata, models


@pytest.fixture
def annotated(fitted):
    return fitted[0].copy()


@pytest.fixture
def held_out(annotated):
    """All cells of the held-out context; the layers know none of its perturbed cells."""
    return annotated[(annotated.obs["context"] == HELD_OUT).to_numpy()].copy()


def cells(adata, perturbation, layer=None):
    values = adata[(adata.obs["perturbation"] == perturbation).to_numpy()]
    values = values.X if layer is None else values.layers[layer]
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def shared_labels(adata, column):
    """Mean share of a cell's neighbours that have its own label, and what is expected by chance."""
    graph, labels = adata.obsp["distances"].tocoo(), adata.obs[column].astype(str).to_numpy()
    shares = pd.Series(labels).value_counts(normalize=True)
    return np.mean(labels[graph.row] == labels[graph.col]), float((shares**2).sum())


def top_genes(adata, perturbation, **kwargs):
    import scanpy as sc

    sc.tl.rank_genes_groups(
        adata, "perturbation", groups=[perturbation], reference="control", method="wilcoxon", use_raw=False, **kwargs
    )
    return adata.uns["rank_genes_groups"]["names"][perturbation][:N_TOP].tolist()


def test_scanpy_pca_neighbours_and_umap_of_the_predicted_layer(annotated):
    import scanpy as sc

    sc.pp.pca(annotated, n_comps=20, layer="MTAe_predicted")
    sc.pp.neighbors(annotated, n_neighbors=10)
    sc.tl.umap(annotated, maxiter=20, random_state=0)
    assert annotated.obsm["X_umap"].shape == (annotated.n_obs, 2)
    assert np.isfinite(annotated.obsm["X_umap"]).all()
    # a prediction carries the context of its control cell and the label of its own row
    same, chance = shared_labels(annotated, "context")
    assert same > 0.95 > 2 * chance
    same, chance = shared_labels(annotated, "perturbation")
    assert same > 2 * chance


def test_scanpy_neighbours_in_the_latent_representation(annotated):
    import scanpy as sc

    sc.pp.neighbors(annotated, n_neighbors=10, use_rep="X_MTAe")
    same, chance = shared_labels(annotated, "context")
    assert same > 0.9 > 2 * chance


@pytest.mark.parametrize("name", ["MTAe", "ContextShift"])
def test_rank_genes_groups_of_predicted_counts_finds_the_observed_genes(held_out, name):
    observed = {p: set(top_genes(held_out, p)) for p in PERTURBATIONS}
    predicted = {p: set(top_genes(held_out, p, layer=f"{name}_counts_predicted")) for p in PERTURBATIONS}
    shared = np.array([[len(predicted[p] & observed[q]) for q in PERTURBATIONS] for p in PERTURBATIONS])
    chance = N_TOP**2 / held_out.n_vars
    assert np.diag(shared).min() >= 4 * chance
    assert np.diag(shared).mean() >= 8 * chance
    # and those of its own perturbation, not of any
    assert shared.argmax(axis=1).tolist() == list(range(len(PERTURBATIONS)))


def test_rank_genes_groups_directions_follow_the_observed_change(held_out):
    import scanpy as sc

    for layer in (None, "ContextShift_predicted"):
        sc.tl.rank_genes_groups(
            held_out, "perturbation", reference="control", method="t-test", layer=layer, key_added=str(layer)
        )
    for p in PERTURBATIONS:
        frames = [sc.get.rank_genes_groups_df(held_out, p, key=key) for key in ("None", "ContextShift_predicted")]
        observed, predicted = (frame.set_index("names")["logfoldchanges"] for frame in frames)
        strongest = frames[0]["names"][:5].tolist()
        assert (observed[strongest] > 0).all()
        assert (predicted[strongest] > 0).mean() >= 0.8


@pytest.mark.parametrize("metric", ["edistance", "mse"])
def test_pertpy_distance_of_predicted_to_observed_is_below_that_of_control(annotated, held_out, metric):
    pertpy = pytest.importorskip("pertpy", reason="needs the extra pertpy", exc_type=ImportError)
    distance = pertpy.tools.Distance(metric)

    def distances(here, layer, of):
        return np.array([distance(cells(here, of or p, layer), cells(here, p)) for p in PERTURBATIONS])

    trained = annotated[(annotated.obs["context"] == "context_2").to_numpy()]
    layer = "ContextShift_predicted"
    assert (distances(trained, layer, None) < 0.75 * distances(trained, None, "control")).all()
    assert distances(held_out, layer, None).sum() < 0.8 * distances(held_out, None, "control").sum()


def test_pertpy_distance_reads_the_layer(held_out):
    pertpy = pytest.importorskip("pertpy", reason="needs the extra pertpy", exc_type=ImportError)
    held_out.layers["observed"] = held_out.X.toarray()
    options = {"groupby": "perturbation", "selected_group": "control", "show_progressbar": False, "n_jobs": 1}
    strength = {}
    for layer in ("observed", "MTAe_predicted", "ContextShift_predicted"):
        # a copy each: pertpy keeps the distances of cells in obsp under one key for all layers
        strength[layer] = pertpy.tools.Distance(layer_key=layer).onesided_distances(held_out.copy(), **options)
        arrays = cells(held_out, "P1", layer), cells(held_out, "control", layer)
        assert strength[layer]["P1"] == pytest.approx(mp.metrics.edistance(*arrays), rel=1e-4)
    table = pd.DataFrame(strength).drop(index="control").astype(float)
    assert (table > 0).all(axis=None)
    assert not np.allclose(table["MTAe_predicted"], table["observed"])


@pytest.mark.parametrize("name", ["MTAe", "ContextShift"])
def test_pertpy_finds_the_nearest_prediction_of_each_observed_perturbation(held_out, name):
    pertpy = pytest.importorskip("pertpy", reason="needs the extra pertpy", exc_type=ImportError)
    distance = pertpy.tools.Distance("edistance")
    for p in PERTURBATIONS:
        to = {q: distance(cells(held_out, q, f"{name}_predicted"), cells(held_out, p)) for q in PERTURBATIONS}
        assert min(to, key=to.get) == p


def test_h5ad_keeps_all_that_was_written(fitted, annotated, tmp_path):
    import scanpy as sc

    sc.pp.pca(annotated, n_comps=5, layer="MTAe_predicted")
    sc.pp.neighbors(annotated, n_neighbors=5)
    genes = top_genes(annotated, "P1", layer="MTAe_predicted")
    annotated.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")

    assert {"MTAe_predicted", "ContextShift_predicted", "counts"} <= set(read.layers)
    for attribute in ("layers", "obsm", "obsp", "varm"):
        before, after = getattr(annotated, attribute), getattr(read, attribute)
        assert set(before) == set(after)
        for key, values in before.items():
            difference = values - after[key]
            assert abs(difference).max() == 0, (attribute, key)
            assert values.dtype == after[key].dtype
    assert (annotated.X != read.X).nnz == 0
    pd.testing.assert_frame_equal(annotated.obs, read.obs, check_dtype=False, check_categorical=False)
    assert annotated.var_names.equals(read.var_names)
    for name in ("MTAe", "ContextShift"):
        assert read.uns[name] == annotated.uns[name]
        assert read.uns[name]["model"] == name
    assert read.uns["rank_genes_groups"]["names"]["P1"][:N_TOP].tolist() == genes

    # the file serves for prediction and for a further round
    for name, model in fitted[1].items():
        expected = model.predict(context=HELD_OUT, realise="counts")
        np.testing.assert_array_equal(model.predict(read, context=HELD_OUT, realise="counts").X, expected.X)
        layer = read.layers.pop(f"{name}_predicted")
        model.annotate(read)
        np.testing.assert_array_equal(read.layers[f"{name}_predicted"], layer)


@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_predicted_cells_concatenate_with_observed_ones_and_are_scored(fitted, annotated, realise):
    model = fitted[1]["ContextShift"]
    predicted = model.predict(context=HELD_OUT, realise=realise)
    observed = annotated[(annotated.obs["split"] == "test").to_numpy()]
    control = annotated[
        ((annotated.obs["context"] == HELD_OUT) & (annotated.obs["perturbation"] == "control")).to_numpy()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # names that are not unique would warn
        joint = ad.concat({"predicted": predicted, "observed": observed, "control": control}, label="cells")
    assert joint.obs_names.is_unique
    assert joint.n_obs == len(PERTURBATIONS) * control.n_obs + observed.n_obs + control.n_obs
    assert joint.var_names.equals(annotated.var_names)

    parts = {name: joint[(joint.obs["cells"] == name).to_numpy()] for name in ("predicted", "observed", "control")}
    training = annotated[(annotated.obs["split"] == "train").to_numpy()]
    scores = mp.metrics.evaluate(**parts, training=training, metrics=["pearson_delta", "edistance_ratio"])
    apart = mp.metrics.evaluate(
        predicted, observed, control, training=training, metrics=["pearson_delta", "edistance_ratio"]
    )
    pd.testing.assert_frame_equal(scores, apart)
    table = scores.pivot_table(index="predictor", columns="metric", values="value")
    assert set(scores["perturbation"]) == set(PERTURBATIONS)
    assert table.loc["prediction", "edistance_ratio"] < 0.8 * table.loc["no_change", "edistance_ratio"]
    assert table.loc["prediction", "pearson_delta"] > 0.5

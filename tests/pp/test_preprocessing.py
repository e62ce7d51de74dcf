"""What preprocessing fits, on which cells, and what it writes."""

import builtins

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert import datasets, pp, splits
from multipert.data import read_backed
from multipert.pp._moments import Moments, moments, welch_scores


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    adata = datasets.simulate(n_cells=900, n_vars=150, n_contexts=3, n_perturbations=4, seed=3)
    adata.obs["split"] = splits.context_transfer(adata, "context_1")
    return adata


@pytest.fixture
def adata(screen) -> ad.AnnData:
    return screen.copy()


def record(adata: ad.AnnData) -> dict:
    return adata.uns["multipert"]["preprocessing"]


def with_other_test_cells(adata: ad.AnnData, layer: str | None = None) -> ad.AnnData:
    """The same training cells beside test cells of other genes and sizes."""
    other = adata.copy()
    test = np.flatnonzero(adata.obs["split"] == "test")
    matrix = (other.X if layer is None else other.layers[layer]).toarray()
    matrix[test] = 7 * matrix[np.ix_(test, np.arange(adata.n_vars)[::-1])]
    matrix[test[::2], :20] = 0
    if layer is None:
        other.X = sparse.csr_matrix(matrix)
    else:
        other.layers[layer] = sparse.csr_matrix(matrix)
    return other


# ---------------------------------------------------------------- normalise


def test_normalise_is_scanpy_with_the_median_of_training_cells(adata):
    by_hand = ad.AnnData(adata.layers["counts"].copy(), obs=adata.obs, var=adata.var)
    train = (adata.obs["split"] == "train").to_numpy()
    target = np.median(np.asarray(by_hand.X.sum(axis=1)).ravel()[train])
    scanpy.pp.normalize_total(by_hand, target_sum=target)
    scanpy.pp.log1p(by_hand)
    assert pp.normalise(adata, layer="counts") is None
    np.testing.assert_allclose(adata.X.toarray(), by_hand.X.toarray(), rtol=1e-5)
    assert record(adata)["target_sum"] == target
    assert record(adata)["target_sum_n_cells"] == train.sum()
    assert record(adata)["target_sum_split"] == splits.split_hash(adata.obs["split"])


def test_test_cells_decide_no_size(adata):
    other = with_other_test_cells(adata, "counts")
    sizes = {}
    for fit_on in ("train", "all"):
        for name, cells in (("given", adata), ("other", other)):
            sizes[fit_on, name] = record(pp.normalise(cells, layer="counts", fit_on=fit_on, copy=True))["target_sum"]
    assert sizes["train", "given"] == sizes["train", "other"]
    assert sizes["all", "given"] != sizes["all", "other"]


def test_a_given_size_needs_no_split(adata):
    del adata.obs["split"]
    pp.normalise(adata, layer="counts", target_sum=1e4)
    sums = np.expm1(adata.X.toarray().astype(float)).sum(axis=1)
    np.testing.assert_allclose(sums, 1e4, rtol=1e-4)
    assert record(adata)["target_sum_fit_on"] == "given"


def test_an_empty_cell_stays_zero(adata):
    adata.layers["counts"][0] = 0
    pp.normalise(adata, layer="counts")
    assert adata.X[0].sum() == 0
    assert np.isfinite(adata.X.data).all()


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        (None, {}, ValueError, "must hold integer counts"),
        (None, {"layer": "count"}, KeyError, "did you mean 'counts'"),
        (None, {"layer": "counts", "target_sum": 0}, ValueError, "target_sum=0"),
        (None, {"layer": "counts", "fit_on": "test"}, ValueError, "fit_on='test'"),
        (None, {"layer": "counts", "split_key": "splits"}, KeyError, "Split first"),
        ("split", {"layer": "counts"}, ValueError, "held"),
        ("counts", {"layer": "counts"}, ValueError, "no counts"),
    ],
)
def test_what_cannot_be_normalised_is_refused_before_anything_is_written(adata, change, kwargs, error, message):
    if change == "split":
        adata.obs["split"] = "held"
    if change == "counts":
        adata.layers["counts"] = sparse.csr_matrix(adata.shape, dtype=np.float32)
    before = adata.copy()
    with pytest.raises(error, match=message):
        pp.normalise(adata, **kwargs)
    assert (adata.X != before.X).nnz == 0
    assert "multipert" not in adata.uns


@pytest.mark.parametrize("opened", [lambda path: ad.read_h5ad(path, backed="r"), read_backed])
def test_data_on_disk_are_refused(opened, adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="to_memory"):
        pp.normalise(opened(tmp_path / "cells.h5ad"))


# ---------------------------------------------------------------- genes


STEPS = {
    "variance": lambda adata, **kw: pp.highly_variable_genes(adata, 40, **kw),
    "variance within contexts": lambda adata, **kw: pp.highly_variable_genes(adata, 40, batch_key="context", **kw),
    "seurat_v3": lambda adata, **kw: pp.highly_variable_genes(adata, 40, method="seurat_v3", **kw),
    "selection": lambda adata, **kw: pp.select_genes(adata, n_top_genes=20, n_de_genes=2, **kw),
}


@pytest.mark.parametrize("step", STEPS)
def test_test_cells_choose_no_gene(adata, step):
    if step == "seurat_v3":
        pytest.importorskip("skmisc")
    column = "selected" if step == "selection" else "highly_variable"
    other = with_other_test_cells(with_other_test_cells(adata), "counts")
    chosen = {
        (fit_on, name): STEPS[step](cells, fit_on=fit_on, copy=True).var[column]
        for fit_on in ("train", "all")
        for name, cells in (("given", adata), ("other", other))
    }
    assert chosen["train", "given"].equals(chosen["train", "other"])
    assert not chosen["all", "given"].equals(chosen["all", "other"])
    assert 0 < chosen["train", "given"].sum() < adata.n_vars


@pytest.mark.parametrize("step", STEPS)
def test_the_record_survives_a_file_and_copy_leaves_the_input_alone(adata, step, tmp_path):
    if step == "seurat_v3":
        pytest.importorskip("skmisc")
    before = adata.copy()
    made = STEPS[step](adata, copy=True, subset=True)
    assert adata.var.equals(before.var)
    assert "multipert" not in adata.uns
    assert record(made)["genes_fit_on"] == "train"
    assert record(made)["genes_n_cells"] == (adata.obs["split"] == "train").sum()
    assert record(made)["genes_split"] == splits.split_hash(adata.obs["split"])
    made.write_h5ad(tmp_path / "made.h5ad")
    assert record(ad.read_h5ad(tmp_path / "made.h5ad")) == record(made)
    assert STEPS[step](adata) is None
    kept = adata.var["selected" if step == "selection" else "highly_variable"]
    assert list(made.var_names) == list(adata.var_names[kept])


def test_variance_is_that_of_the_training_cells(adata):
    pp.highly_variable_genes(adata, 30)
    variance = adata[adata.obs["split"] == "train"].X.toarray().astype(float).var(axis=0)
    order = np.argsort(-variance, kind="stable")[:30]
    ranks = adata.var["highly_variable_rank"]
    assert ranks.dropna().sort_values().index.tolist() == adata.var_names[order].tolist()
    assert (ranks.notna() == adata.var["highly_variable"]).all()


def test_a_gene_that_differs_between_batches_only_is_not_variable_within_them(adata):
    values = adata.X.toarray()
    values[:, 0] = 10 * adata.obs["context"].cat.codes
    adata.X = sparse.csr_matrix(values)
    for batch_key, expected in ((None, True), ("context", False)):
        pp.highly_variable_genes(adata, 100, batch_key=batch_key)
        assert adata.var["highly_variable"].iloc[0] == expected


@pytest.mark.parametrize("batch_key", [None, "covariate"])
def test_seurat_v3_is_scanpy_on_training_cells(batch_key):
    pytest.importorskip("skmisc")
    adata = datasets.simulate(n_cells=900, n_vars=150, n_contexts=3, n_perturbations=4, covariates=2, seed=3)
    adata.obs["split"] = splits.context_transfer(adata, "context_1")
    pp.highly_variable_genes(adata, 40, method="seurat_v3", batch_key=batch_key)
    train = adata[adata.obs["split"] == "train"].copy()
    scanpy.pp.highly_variable_genes(train, flavor="seurat_v3", layer="counts", n_top_genes=40, batch_key=batch_key)
    assert (train.var["highly_variable"] == adata.var["highly_variable"]).all()


def test_without_scikit_misc_the_extra_is_named(adata, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("skmisc"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"multipert\[scikit-misc\]"):
        pp.highly_variable_genes(adata, 40, method="seurat_v3")


def test_a_choice_among_genes_that_all_cells_chose_remains_one(adata):
    pp.highly_variable_genes(adata, 80, fit_on="all", subset=True)
    pp.highly_variable_genes(adata, 40)
    assert record(adata)["genes_fit_on"] == "all"
    assert not splits.audit(adata).ok


def test_a_view_does_not_write_into_its_parent(adata):
    part = adata[:, :100]
    with pytest.warns(ad.ImplicitModificationWarning):
        pp.highly_variable_genes(part, 30)
    assert "highly_variable" not in adata.var
    assert "multipert" not in adata.uns
    assert record(part)["n_top_genes"] == 30


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_moments_and_scores_are_those_of_each_group(seed, dense):
    from scipy import stats

    rng = np.random.default_rng(seed)
    values = rng.poisson(1.0, (40, 5)).astype(np.float32) * rng.random((1, 5)).astype(np.float32)
    rows = np.flatnonzero(rng.random(40) < 0.8)
    group = rng.integers(0, 3, len(rows))
    found = moments(values if dense else sparse.csc_matrix(values), rows, group, 4)
    for k in range(4):
        own = values[rows[group == k]].astype(float)
        assert found.n[k] == len(own)
        if len(own) > 1:
            np.testing.assert_allclose(found.mean[k], own.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(found.variance[k], own.var(axis=0, ddof=1), atol=1e-10)
    parts = [Moments(*(part[i : i + 1] for part in found)) for i in (0, 1)]
    first, second = (values[rows[group == k]].astype(float) for k in (0, 1))
    if min(len(first), len(second)) > 1:
        expected = np.nan_to_num(stats.ttest_ind(first, second, equal_var=False).statistic, posinf=0, neginf=0)
        np.testing.assert_allclose(welch_scores(*parts)[0], expected, atol=1e-6)


def test_differential_genes_are_the_top_of_scanpys_test(adata):
    pp.select_genes(adata, n_top_genes=0, n_de_genes=3, min_cells=0)
    expected = set()
    train = adata[adata.obs["split"] == "train"]
    for context in train.obs["context"].unique():
        here = train[train.obs["context"] == context].copy()
        groups = [label for label in here.obs["perturbation"].unique() if label != "control"]
        if not groups:
            continue
        here.obs["perturbation"] = pd.Categorical(here.obs["perturbation"].astype(str))
        scanpy.tl.rank_genes_groups(
            here, "perturbation", groups=groups, reference="control", method="t-test", rankby_abs=True
        )
        expected |= {str(name) for names in here.uns["rank_genes_groups"]["names"][:3].tolist() for name in names}
    assert set(adata.var_names[adata.var["differential"]]) == expected
    assert (adata.var["selected"] == adata.var["differential"]).all()


def test_perturbed_genes_are_selected_unless_hardly_expressed(adata):
    adata.var_names = ["P1", "P4", *adata.var_names[2:]]
    values = adata.X.toarray()
    values[:, :2] = 0
    values[np.flatnonzero(adata.obs["split"] == "train")[:10], 0] = 1e-3
    values[np.flatnonzero(adata.obs["split"] == "test")[:10], 1] = 1e-3
    adata.X = sparse.csr_matrix(values)
    pp.select_genes(adata, n_top_genes=5, n_de_genes=0, min_cells=10)
    assert adata.var.loc[["P1", "P4"], "perturbed"].tolist() == [True, False]
    assert adata.var["selected"].sum() == 6


@pytest.mark.parametrize("method", ["variance", "seurat_v3"])
def test_genes_in_too_few_training_cells_are_never_selected(adata, method):
    if method == "seurat_v3":
        pytest.importorskip("skmisc")
    expressing = (adata[adata.obs["split"] == "train"].X > 0).sum(axis=0).A1
    limit = int(np.median(expressing))
    pp.select_genes(adata, n_top_genes=1000, n_de_genes=1000, min_cells=limit, method=method)
    assert (adata.var["selected"] == (expressing >= limit)).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_de_genes": -1}, ValueError, "n_de_genes=-1"),
        ({"layer": "counts"}, ValueError, "integers only"),
        ({"control": "ctrl"}, ValueError, "did you mean 'control'"),
        ({"context_key": "cell_type"}, KeyError, "context_key='cell_type'"),
        ({"method": "seurat"}, ValueError, "method='seurat'"),
    ],
)
def test_bad_arguments_of_the_selection_are_refused(adata, kwargs, error, message):
    with pytest.raises(error, match=message):
        pp.select_genes(adata, **kwargs)
    assert "selected" not in adata.var
    assert "multipert" not in adata.uns


def test_values_that_are_not_finite_are_refused(adata):
    adata.X.data[3] = np.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        pp.highly_variable_genes(adata, 10, fit_on="all")
    assert "highly_variable" not in adata.var

"""Protein and peak counts: restated formulas, what held-out cells change, and the way back."""

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert import datasets, pp

RECORD = ("multipert", "preprocessing")


def peaks(n_cells=60, n_vars=50, seed=0) -> AnnData:
    adata = datasets.simulate_multimodal(n_cells, 20, n_vars, target="atac", seed=seed)["atac"].copy()
    adata.obs["split"] = np.where(np.arange(n_cells) % 4 == 0, "test", "train")
    return adata


def record(adata: AnnData) -> dict:
    return adata.uns["multipert"]["preprocessing"]


# ---------------------------------------------------------------- TF-IDF


def test_tfidf_restated_on_training_cells():
    adata = peaks()
    binary, train = (adata.X.toarray() > 0), (adata.obs["split"] == "train").to_numpy()
    kept = binary[train].sum(0) >= np.ceil(0.1 * train.sum())
    binary = binary[:, kept]
    raw = binary / binary.sum(1, keepdims=True) * np.log(1 + train.sum() / binary[train].sum(0))
    pp.tfidf(adata, min_fraction=0.1)
    assert 0 < kept.sum() < 50
    np.testing.assert_allclose(adata.X.toarray(), np.minimum(raw / raw[train].max(), 1), rtol=1e-6)
    assert adata.X[train].max() == 1
    assert record(adata)["tfidf_scale"] == pytest.approx(raw[train].max())
    assert record(adata)["tfidf_scale_cell"] == adata.obs_names[train][raw[train].max(1).argmax()]
    np.testing.assert_array_equal(adata.obs["n_peaks"], binary.sum(1))
    assert adata.layers["counts"].shape == adata.shape


def test_the_way_back_gives_the_binary_matrix():
    adata = peaks()
    binary = adata.X.toarray() > 0
    pp.tfidf(adata, min_fraction=0, fit_on="all")
    np.testing.assert_allclose(pp.inverse_tfidf(adata).toarray(), binary[:, binary.any(0)], atol=1e-5)


def test_other_test_cells_change_no_statistic_and_no_training_value():
    adata, other = peaks(), peaks()
    test = (adata.obs["split"] == "test").to_numpy()
    x = other.X.toarray()
    x[test] = 1 - np.minimum(x[test], 1)
    other.X = sparse.csr_matrix(x)
    pp.tfidf(adata)
    pp.tfidf(other)
    assert record(adata) == record(other)
    np.testing.assert_array_equal(adata.var["idf"], other.var["idf"])
    np.testing.assert_array_equal(adata.X[~test].toarray(), other.X[~test].toarray())
    assert (adata.X[test] != other.X[test]).nnz


def test_a_later_query_is_scaled_by_what_was_fitted_and_cut_at_one():
    adata = peaks()
    whole, query = adata.copy(), adata[40:, ::-1].copy()
    pp.tfidf(whole)
    pp.tfidf(query, like=whole)
    assert list(query.var_names) == list(whole.var_names)
    np.testing.assert_array_equal(query.X.toarray(), whole.X[40:].toarray())
    lonely = adata[:2].copy()
    lonely.X = sparse.csr_matrix(np.eye(2, 50, dtype=np.float32))
    pp.tfidf(lonely, like=whole)
    assert lonely.X.max() == 1


def test_a_quantile_scales_by_less_than_the_extreme():
    adata = peaks()
    extreme = adata.copy()
    pp.tfidf(extreme)
    pp.tfidf(adata, quantile=0.9)
    assert record(adata)["tfidf_scale"] < record(extreme)["tfidf_scale"]
    train = (adata.obs["split"] == "train").to_numpy()
    assert (adata.X[train].data == 1).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"min_fraction": 1.0}, ValueError, "min_fraction=1.0 must be"),
        ({"quantile": 0}, ValueError, "quantile=0 must be"),
        ({"split_key": "fold"}, KeyError, "split_key='fold'"),
        ({"layer": "peaks"}, KeyError, "layer='peaks'"),
        ({"min_fraction": 0.99}, ValueError, "No peak of X is open in 0.99"),
    ],
)
def test_wrong_arguments_of_tfidf_are_named(arguments, error, message):
    adata = peaks()
    before = adata.copy()
    with pytest.raises(error, match=message):
        pp.tfidf(adata, **arguments)
    assert list(adata.var) == list(before.var)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


def test_what_was_not_preprocessed_has_no_way_back_and_is_no_model_for_others():
    adata = peaks()
    with pytest.raises(KeyError, match=r"apply multipert.pp.tfidf"):
        pp.inverse_tfidf(adata)
    with pytest.raises(KeyError, match=r"apply multipert.pp.tfidf to the training cells first"):
        pp.tfidf(adata.copy(), like=adata)
    whole = adata.copy()
    pp.tfidf(whole)
    with pytest.raises(ValueError, match="var_names lacks"):
        pp.tfidf(adata[:, :10].copy(), like=whole)


def test_a_copy_leaves_the_input_alone():
    adata = peaks()
    made = pp.tfidf(adata, copy=True)
    assert "idf" not in adata.var
    assert made.X.max() == 1
    assert adata.X.max() >= 1
    proteins = datasets.simulate_multimodal(20)["protein"]
    made = pp.clr(proteins, copy=True)
    assert (made.X < 0).any()
    assert (proteins.X.toarray() >= 0).all()


# ---------------------------------------------------------------- CLR


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any))
def test_clr_restated(counts):
    x = np.array([counts], dtype=np.float32)
    adata = AnnData(np.repeat(x, 2, axis=0))
    pp.clr(adata)
    positive = x[x > 0].astype(float)
    expected = np.where(x > 0, np.log(np.maximum(x, 1) / np.exp(np.log(positive).mean())), 0)
    np.testing.assert_allclose(adata.X, np.repeat(expected, 2, axis=0), atol=1e-5)
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[:1], x)


def test_clr_of_a_cell_depends_on_that_cell_only():
    adata = datasets.simulate_multimodal(20)["protein"]
    some = adata[3:9].copy()
    pp.clr(adata)
    pp.clr(some)
    np.testing.assert_array_equal(some.X, adata.X[3:9])


def test_cells_without_counts_are_named():
    adata = datasets.simulate_multimodal(20)["protein"]
    x = adata.X.toarray()
    x[[4, 7]] = 0
    adata.X = x
    with pytest.raises(ValueError, match="2 cell.s. have no counts in X, first 'cell_05', 'cell_08'"):
        pp.clr(adata)


# ---------------------------------------------------------------- pairs of unpaired cells


def test_pairs_share_their_label_and_come_in_the_mean_of_both_proportions():
    mdata = datasets.simulate_multimodal(200, 20, 15, n_types=3, seed=2)
    rna, other = mdata["rna"][:120].copy(), mdata["protein"][120:].copy()
    pairs = pp.pair_by_label(rna, other, "context", names=("rna", "protein"), n_pairs=600, seed=1)
    types = pairs.obs["context"].astype(str)
    for name, source in (("rna", rna), ("protein", other)):
        assert list(pairs[name].obs["context"].astype(str)) == list(types)
        assert list(pairs[name].obs_names) == list(pairs.obs_names)
        drawn = source[pairs[name].obs["source_cell"]]
        np.testing.assert_array_equal(pairs[name].X.toarray(), drawn.X.toarray())
        np.testing.assert_array_equal(pairs[name].layers["counts"].toarray(), drawn.layers["counts"].toarray())
    shares = [adata.obs["context"].astype(str).value_counts(normalize=True) for adata in (rna, other)]
    expected = (shares[0] + shares[1]) / 2 * 600
    np.testing.assert_allclose(types.value_counts()[expected.index], expected, atol=1)
    again = pp.pair_by_label(rna, other, "context", names=("rna", "protein"), n_pairs=600, seed=1)
    assert list(again["rna"].obs["source_cell"]) == list(pairs["rna"].obs["source_cell"])


def test_labels_of_one_side_only_are_left_out():
    mdata = datasets.simulate_multimodal(120, 20, 15, n_types=3, seed=2)
    context = mdata["rna"].obs["context"].astype(str)
    rna, other = mdata["rna"][context != "type_1"].copy(), mdata["protein"][context != "type_2"].copy()
    pairs = pp.pair_by_label(rna, other, "context")
    assert set(pairs.obs["context"]) == {"type_3"}
    # proteins, which no default may call by the name of another kind
    assert list(pairs.mod) == ["rna", "other"]
    assert pairs.n_obs == max(rna.n_obs, other.n_obs)
    with pytest.raises(ValueError, match="share no label: 'type_2' and 'type_1'"):
        pp.pair_by_label(
            rna[context[rna.obs_names] == "type_2"].copy(),
            other[context[other.obs_names] == "type_1"].copy(),
            "context",
        )
    with pytest.raises(ValueError, match="n_pairs=0"):
        pp.pair_by_label(rna, other, "context", n_pairs=0)


def test_pairs_of_one_part_of_the_split_hold_cells_of_that_part_only():
    mdata = datasets.simulate_multimodal(120, 20, 15, n_types=2, seed=3)
    level = np.where(np.arange(120) % 4 == 0, "val", "train")
    rna, other = (mdata[name].copy() for name in ("rna", "protein"))
    rna.obs["split"], other.obs["split"] = level, level[::-1]
    pairs = pp.pair_by_label(rna, other, "context", names=("rna", "protein"), split_key="split", seed=1)
    assert set(pairs.obs["split"]) == {"train", "val"}
    assert 0.15 < (pairs.obs["split"] == "val").mean() < 0.35
    for name, source in (("rna", rna), ("protein", other)):
        drawn = source.obs.loc[pairs[name].obs["source_cell"], "split"].to_numpy()
        np.testing.assert_array_equal(drawn, pairs.obs["split"])
    with pytest.raises(ValueError, match=r"names=\('a', 'a'\) must differ"):
        pp.pair_by_label(rna, other, "context", names=("a", "a"))
    other.obs["split"] = "all"
    with pytest.raises(ValueError, match=r"obs\['split'\] holds 'all'"):
        pp.pair_by_label(rna, other, "context", split_key="split")

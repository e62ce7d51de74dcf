import anndata as ad
import numpy as np
import pytest
from scipy import sparse, stats

from multipert.metrics import de_overlap, welch_t, wilcoxon


def scanpy_scores(group, control, method, **kwargs):
    """Scores of scanpy in the order of the genes, and the order it ranks them in."""
    sc = pytest.importorskip("scanpy")
    adata = ad.AnnData(np.vstack([group, control]))
    adata.obs["label"] = ["group"] * len(group) + ["control"] * len(control)
    adata.obs["label"] = adata.obs["label"].astype("category")
    sc.tl.rank_genes_groups(adata, "label", groups=["group"], reference="control", method=method, **kwargs)
    result = sc.get.rank_genes_groups_df(adata, "group").set_index("names")["scores"]
    return result[adata.var_names].to_numpy(), result.index.astype(int).to_numpy()


def test_welch_t_is_scipy_and_scanpy(groups):
    ours = welch_t(groups["observed"], groups["control"])
    np.testing.assert_allclose(
        ours, stats.ttest_ind(groups["observed"], groups["control"], equal_var=False).statistic, rtol=1e-10
    )
    scores, order = scanpy_scores(groups["observed"], groups["control"], "t-test")
    np.testing.assert_allclose(ours, scores, rtol=1e-5)
    # compared by value, since scanpy leaves the order of equal scores open
    np.testing.assert_allclose(np.sort(ours)[::-1], ours[order], rtol=1e-5)


@pytest.mark.parametrize("tie_correct", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_wilcoxon_is_scanpy(groups, tie_correct, signed):
    # log1p(1) becomes 0, so that zeros stand between negative and positive values
    offset = np.log1p(1) if signed else 0
    group, control = groups["observed"] - offset, groups["control"] - offset
    group[:, 7] = control[:, 7] = 0
    ours = wilcoxon(group, control, tie_correct=tie_correct)
    scores, order = scanpy_scores(group, control, "wilcoxon", tie_correct=tie_correct)
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sort(ours)[::-1], ours[order], rtol=1e-5, atol=1e-7)
    assert ours[7] == 0


def test_wilcoxon_in_blocks_of_genes(groups, monkeypatch):
    expected = wilcoxon(groups["observed"], groups["control"])
    monkeypatch.setattr("multipert.metrics._de.BLOCK_VALUES", 500)
    np.testing.assert_array_equal(wilcoxon(sparse.csc_matrix(groups["observed"]), groups["control"]), expected)


@pytest.mark.parametrize("test", [welch_t, wilcoxon])
def test_swapped_groups_change_sign(test, groups):
    np.testing.assert_allclose(
        test(groups["observed"], groups["control"]), -test(groups["control"], groups["observed"]), atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix])
def test_shift_of_a_silent_gene_is_no_statistic(dtype, convert, groups):
    """A column constant but for rounding scores 0, whatever the dtype; its neighbours score as they do alone."""
    control = groups["control"].copy()
    control[:, 5:60] = 0
    shift = np.random.default_rng(3).random(control.shape[1])
    predicted = (control + shift).astype(dtype)
    # what arithmetic in float64 leaves in a column that should be constant
    if dtype is np.float64:
        predicted[::2] = np.nextafter(predicted[::2], 2)
    ours = welch_t(convert(predicted), convert(control.astype(dtype)))
    silent = ~control.any(axis=0)
    assert silent.sum() >= 55
    np.testing.assert_array_equal(ours[silent], 0)
    reference = stats.ttest_ind((control + shift)[:, ~silent], control[:, ~silent], equal_var=False).statistic
    np.testing.assert_allclose(ours[~silent], reference, rtol=1e-5)


def test_de_overlap_is_the_same_in_float32_and_float64(groups):
    control = groups["control"].copy()
    control[:, ::4] = 0
    predicted = control + np.random.default_rng(3).normal(0, 0.5, control.shape[1])
    wide = de_overlap(predicted, groups["observed"], control, k=20)
    narrow = de_overlap(*(x.astype(np.float32) for x in (predicted, groups["observed"], control)), k=20)
    assert wide == narrow > 0


def test_single_cell_has_no_statistic(groups):
    np.testing.assert_array_equal(welch_t(groups["observed"][:1], groups["control"]), 0)
    assert np.isnan(de_overlap(groups["predicted"][:1], groups["observed"], groups["control"]))


def test_top_sets_by_direction():
    control = np.array([[0.0] * 6, [1.0] * 6])
    observed = control + [5, 4, 3, -6, -2, 0]
    predicted = control + [5, 0, 3, 6, -2, 0]
    assert de_overlap(predicted, observed, control, k=3) == 2  # {3, 0, 1} and {3, 0, 2}
    assert de_overlap(predicted, observed, control, k=3, direction="up") == 2  # {0, 1, 2} and {3, 0, 2}
    assert de_overlap(predicted, observed, control, k=3, direction="down") == 1  # {3, 4} and {4}
    # gene 5 does not change, so it is never common, however large the sets
    assert de_overlap(predicted, observed, control, k=100) == 4


def test_equal_statistics_are_taken_in_the_order_of_the_genes():
    control = np.array([[0.0] * 4, [1.0] * 4])
    assert de_overlap(control + [1, 1, 1, 1], control + [2, 1, 1, 1], control, k=2) == 2
    assert de_overlap(control + [1, 1, 1, 1], control + [1, 1, 1, 2], control, k=2) == 1


def test_bad_options_raise(groups):
    with pytest.raises(ValueError, match="`k` is 0"):
        de_overlap(**groups, k=0)
    with pytest.raises(ValueError, match="`direction` is 'both'; it must be one of absolute, up, down"):
        de_overlap(**groups, direction="both")

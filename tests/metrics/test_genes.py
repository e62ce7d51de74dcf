import numpy as np
import pytest
from scipy import sparse, stats

from multipert.metrics._de import de_overlap
from multipert.metrics._genes import large_effect_genes, top_de_genes

SELECTIONS = (top_de_genes, large_effect_genes)


def log2_fold_change(observed, control, pseudocount=0.1):
    first, second = (np.log2(np.expm1(cells).mean(axis=0) + pseudocount) for cells in (observed, control))
    return first - second


@pytest.mark.parametrize(("direction", "score"), [("absolute", np.abs), ("up", np.positive), ("down", np.negative)])
def test_top_genes_are_those_of_the_t_test(direction, score, groups):
    statistic = stats.ttest_ind(groups["observed"], groups["control"], equal_var=False).statistic
    top = top_de_genes(groups["observed"], groups["control"], 15, direction=direction)
    np.testing.assert_array_equal(top, np.argsort(-score(statistic))[:15])


def test_top_genes_shared_are_the_overlap(groups):
    predicted, observed, control = (groups[name] for name in ("predicted", "observed", "control"))
    shared = np.intersect1d(top_de_genes(predicted, control, 20), top_de_genes(observed, control, 20))
    assert len(shared) == de_overlap(predicted, observed, control, 20)


def test_genes_that_do_not_change_are_never_chosen(groups):
    observed = groups["control"].copy()
    observed[:, [4, 9]] += 1
    assert sorted(top_de_genes(observed, groups["control"])) == [4, 9]
    assert top_de_genes(observed, groups["control"], direction="down").size == 0
    assert top_de_genes(groups["control"], groups["control"]).size == 0


def test_large_effects_are_top_genes_that_double_or_halve(groups):
    observed, control = groups["observed"], groups["control"]
    change = log2_fold_change(observed, control)
    top = top_de_genes(observed, control)
    large = large_effect_genes(observed, control)
    assert 2 <= len(large) < len(top)
    np.testing.assert_array_equal(large, [gene for gene in top if abs(change[gene]) >= 1])
    assert (change[large] > 0).any()
    assert (change[large] < 0).any()
    strict = large_effect_genes(observed, control, k=20, min_logfc=1.5)
    np.testing.assert_array_equal(strict, [gene for gene in top[:20] if abs(change[gene]) >= 1.5])
    np.testing.assert_array_equal(large_effect_genes(observed, control, min_logfc=0), top)


def test_the_least_effect_is_large_enough():
    # expm1 of these is exact in binary, so that the ratio is 4 and its logarithm 2
    control, observed = np.array([[0.0, 0.0], [0.0, 0.0]]), np.zeros((2, 2))
    control[0, 0], observed[:, 1] = np.log1p(2.0), [np.log1p(7.0), np.log1p(9.0)]
    assert large_effect_genes(observed, control, min_logfc=3.0, pseudocount=1.0).tolist() == [1]
    change = float(log2_fold_change(observed, control, 1.0)[1])
    assert large_effect_genes(observed, control, min_logfc=change, pseudocount=1.0).tolist() == [1]
    assert large_effect_genes(observed, control, min_logfc=np.nextafter(change, 9), pseudocount=1.0).size == 0


def test_pseudocount_decides_over_genes_silent_in_control():
    control, observed = np.zeros((6, 2)), np.zeros((6, 2))
    control[:, 1], observed[:, 1] = np.log1p(5.0), np.log1p([5, 6, 5, 6, 5, 6])
    observed[:3, 0] = np.log1p(0.1)
    assert set(top_de_genes(observed, control)) == {0, 1}
    assert large_effect_genes(observed, control).size == 0
    assert large_effect_genes(observed, control, pseudocount=0).tolist() == [0]


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_array, np.float32])
def test_storage_and_order_of_cells_do_not_matter(select, convert, groups):
    observed, control = groups["observed"], groups["control"]
    rng = np.random.default_rng(0)
    shuffled = [convert(rng.permutation(cells, axis=0)) for cells in (observed, control)]
    np.testing.assert_array_equal(select(*shuffled, k=20), select(observed, control, k=20))


@pytest.mark.parametrize("select", SELECTIONS)
def test_a_single_cell_selects_nothing(select, groups):
    assert select(groups["observed"][:1], groups["control"]).size == 0
    assert select(groups["observed"], groups["control"][:1]).size == 0


@pytest.mark.parametrize("select", SELECTIONS)
def test_bad_arguments_raise(select, groups):
    observed, control = groups["observed"], groups["control"]
    with pytest.raises(ValueError, match="`k` is 0; it must be at least 1"):
        select(observed, control, k=0)
    with pytest.raises(ValueError, match="has 119 genes but .* has 120"):
        select(observed, control[:, 1:])
    with pytest.raises(ValueError, match="holds 1 values that are NaN"):
        select(np.where(observed == observed.max(), np.nan, observed), control)


def test_arguments_of_one_selection_raise(groups):
    observed, control = groups["observed"], groups["control"]
    with pytest.raises(ValueError, match="`direction` is 'both'; it must be one of absolute, up, down"):
        top_de_genes(observed, control, direction="both")
    with pytest.raises(ValueError, match="`min_logfc` is -1"):
        large_effect_genes(observed, control, min_logfc=-1)
    with pytest.raises(ValueError, match="`pseudocount` is -1"):
        large_effect_genes(observed, control, pseudocount=-1)
    with pytest.raises(ValueError, match="`control` holds values up to .* log1p"):
        large_effect_genes(observed, np.expm1(control) * 40)

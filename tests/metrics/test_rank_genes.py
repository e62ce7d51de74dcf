import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import numba
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse, stats

from multipert.metrics import benjamini_hochberg, rank_genes, welch_t, wilcoxon

SCANPY_NAMES = {"t": "t-test", "t_overestimated_variance": "t-test_overestim_var", "wilcoxon": "wilcoxon"}


@pytest.fixture
def cells():
    """Sparse log values of three groups of unequal size, and their labels in no order."""
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.repeat(["control", "A", "B"], [50, 31, 24]))
    mean = rng.gamma(0.6, 1.0, 90)
    effect = {"control": 0.0, "A": rng.normal(0, 1, 90), "B": rng.normal(0, 0.5, 90)}
    x = np.array([np.log1p(rng.poisson(mean * np.exp(effect[label]))) for label in labels])
    assert 0.5 < np.mean(x == 0) < 0.8
    return x, labels


def brute_force(x, labels, label, reference):
    """Scores, by gene, of a group against a reference group or all other cells, from ranks of the two together."""
    group, other = x[labels == label], x[labels == reference] if reference != "rest" else x[labels != label]
    n, m = len(group), len(other)
    ranks = stats.rankdata(np.vstack([group, other]), axis=0)
    deviation = np.sqrt(n * m * (n + m + 1) / 12)
    return (ranks[:n].sum(axis=0) - n * (n + m + 1) / 2) / deviation


@pytest.mark.parametrize("reference", ["rest", "control"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("t", {}), ("t_overestimated_variance", {}), ("wilcoxon", {}), ("wilcoxon", {"tie_correct": True})],
)
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix, sparse.csc_array])
def test_all_groups_are_as_in_scanpy(cells, reference, method, options, convert):
    sc = pytest.importorskip("scanpy")
    x, labels = cells
    adata = ad.AnnData(x)
    adata.obs["label"] = pd.Categorical(labels)
    sc.tl.rank_genes_groups(adata, "label", reference=reference, method=SCANPY_NAMES[method], **options)
    ranking = rank_genes(convert(x), labels, reference=reference, method=method, **options)
    assert ranking.groups == (("A", "B") if reference == "control" else ("A", "B", "control"))
    for group, scores, p_values, q_values in zip(
        ranking.groups, ranking.scores, ranking.p_values, ranking.q_values, strict=True
    ):
        theirs = sc.get.rank_genes_groups_df(adata, group).set_index("names").loc[adata.var_names]
        np.testing.assert_allclose(scores, theirs["scores"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p_values, theirs["pvals"], rtol=1e-8)
        np.testing.assert_allclose(q_values, theirs["pvals_adj"], rtol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float64, st.tuples(st.integers(4, 12), st.just(3)), elements=st.integers(-2, 3).map(float)),
    seed=st.integers(0, 1000),
    reference=st.sampled_from(["rest", "0"]),
)
def test_rank_sums_equal_those_of_ranks(x, seed, reference):
    """Few distinct values, so that ties, zeros between negative and positive values, and constant genes all occur."""
    labels = np.random.default_rng(seed).permutation(np.arange(len(x)) % 3).astype(str)
    ranking = rank_genes(sparse.csr_matrix(x), labels, reference=reference, method="wilcoxon")
    for label, scores in zip(ranking.groups, ranking.scores, strict=True):
        np.testing.assert_allclose(scores, brute_force(x, labels, label, reference), atol=1e-12)


@pytest.mark.parametrize("continuity", [False, True])
def test_wilcoxon_p_values_are_those_of_scipy(cells, continuity):
    x, labels = cells
    ranking = rank_genes(x, labels, reference="control", method="wilcoxon", tie_correct=True, continuity=continuity)
    theirs = stats.mannwhitneyu(
        x[labels == "B"], x[labels == "control"], method="asymptotic", use_continuity=continuity
    ).pvalue
    # scipy leaves a gene that is the same in all cells undefined
    np.testing.assert_allclose(ranking.p_values[1], np.nan_to_num(theirs, nan=1), rtol=1e-9)


def test_t_p_values_are_those_of_scipy(cells):
    x, labels = cells
    ranking = rank_genes(x, labels, method="t")
    for label, scores, p_values in zip(ranking.groups, ranking.scores, ranking.p_values, strict=True):
        theirs = stats.ttest_ind(x[labels == label], x[labels != label], equal_var=False)
        # scipy leaves a gene that is the same in all cells undefined
        np.testing.assert_allclose(scores, np.nan_to_num(theirs.statistic), rtol=1e-10)
        np.testing.assert_allclose(p_values, np.nan_to_num(theirs.pvalue, nan=1), rtol=1e-8)


def test_two_matrices_score_as_two_groups(cells):
    x, labels = cells
    group, control = x[labels == "A"], x[labels == "control"]
    pair = np.isin(labels, ["A", "control"])
    for reference in ("control", "rest"):
        row = rank_genes(x[pair], labels[pair], reference=reference, method="wilcoxon").scores[0]
        np.testing.assert_allclose(row, wilcoxon(group, control), atol=1e-12)
        row = rank_genes(x[pair], labels[pair], reference=reference, method="t").scores[0]
        np.testing.assert_allclose(row, welch_t(group, control), rtol=1e-10)


@pytest.mark.parametrize("method", SCANPY_NAMES)
@pytest.mark.parametrize("reference", ["rest", "control"])
def test_other_groups_change_nothing_against_a_reference_group(cells, method, reference):
    x, labels = cells
    changed = np.where((labels == "B")[:, None], x + 1, x)
    before, after = (rank_genes(y, labels, reference=reference, method=method).scores[0] for y in (x, changed))
    assert np.array_equal(before, after) == (reference == "control")


@pytest.mark.parametrize("method", SCANPY_NAMES)
@pytest.mark.parametrize("reference", ["rest", "control"])
def test_format_dtype_and_order_of_cells_change_nothing(cells, method, reference):
    x, labels = cells
    x = x.astype(np.float32)
    expected = rank_genes(x, labels, reference=reference, method=method).scores
    stored_zeros = sparse.csr_matrix(x)
    stored_zeros.data[::3] = 0
    order = np.random.default_rng(0).permutation(len(x))
    cases = [
        (x.astype(np.float64), labels),
        (sparse.csr_matrix(x), labels),
        (sparse.csc_matrix(x.astype(np.float64)), labels),
        (sparse.coo_array(x), pd.Series(labels, dtype="category")),
        (x[order], labels[order]),
        (sparse.csr_matrix(x)[order], labels[order]),
    ]
    for values, names in cases:
        scores = rank_genes(values, names, reference=reference, method=method).scores
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)
    # zeros that are stored are zeros
    np.testing.assert_allclose(
        rank_genes(stored_zeros, labels, reference=reference, method=method).scores,
        rank_genes(stored_zeros.toarray(), labels, reference=reference, method=method).scores,
        rtol=1e-10,
        atol=1e-12,
    )
    assert stored_zeros.nnz == sparse.csr_matrix(x).nnz


@pytest.mark.parametrize("method", SCANPY_NAMES)
def test_number_of_threads_changes_nothing(cells, method, monkeypatch):
    x, labels = sparse.csr_matrix(cells[0]), cells[1]
    monkeypatch.setattr("multipert.metrics._ranksum.GENES_PER_TASK", 7)
    results = []
    for n_threads in (1, 5):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", n_threads)
        results.append(rank_genes(x, labels, method=method).scores)
    np.testing.assert_array_equal(*results)


def test_several_threads_may_rank_at_once(cells):
    x, labels = sparse.csr_matrix(cells[0]), cells[1]
    expected = rank_genes(x, labels, method="wilcoxon").scores
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: rank_genes(x, labels, method="wilcoxon").scores, range(8)))
    for scores in results:
        np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("method", SCANPY_NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix])
@pytest.mark.parametrize("reference", ["rest", "control"])
def test_genes_constant_but_for_rounding(cells, method, dtype, convert, reference):
    """Nothing for a gene that is the same in all cells, and no t for one that is constant in each group."""
    x, labels = cells
    x = x.copy()
    x[:, 0] = 0.0
    x[:, 1] = 0.1
    x[:, 2] = np.where(labels == "control", 0.0, 0.7)
    x[:, 3] = np.where(labels == "control", 0.3, 0.3 + 0.4 * (labels == "A"))
    if dtype is np.float64 and method != "wilcoxon":
        x[::2, :4] = np.nextafter(x[::2, :4], 2)
    ranking = rank_genes(convert(x.astype(dtype)), labels, reference=reference, method=method)
    np.testing.assert_array_equal(ranking.scores[:, :2], 0)
    np.testing.assert_array_equal(ranking.p_values[:, :2], 1)
    if method != "wilcoxon" and reference == "control":
        np.testing.assert_array_equal(ranking.scores[:, 2:4], 0)
        np.testing.assert_array_equal(ranking.p_values[:, 2:4], 1)
    if method == "wilcoxon":
        assert (ranking.scores[0, 2:4] > 3).all()


def test_many_groups_against_the_rest_are_exact():
    """The variance of the rest is not a difference of totals: a huge group does not blur it."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", "d"], 20)
    x = rng.normal(0, 1, (80, 5))
    x[labels == "a"] = 1e8 + 1e6 * x[labels == "a"]
    ours = rank_genes(x, labels).scores[0]
    theirs = stats.ttest_ind(x[:20], x[20:], equal_var=False).statistic
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    rest_alone = rank_genes(x[20:], labels[20:]).scores
    np.testing.assert_allclose(rest_alone[0], stats.ttest_ind(x[20:40], x[40:], equal_var=False).statistic, rtol=1e-9)


def test_group_of_one_cell_has_no_t(cells):
    x, labels = cells
    labels = labels.astype("<U7").copy()
    labels[0] = "alone"
    ranking = rank_genes(x, labels, reference="control")
    row = ranking.groups.index("alone")
    np.testing.assert_array_equal(ranking.scores[row], 0)
    np.testing.assert_array_equal(ranking.p_values[row], 1)
    assert np.isfinite(ranking.scores).all()
    assert rank_genes(x, labels, reference="control", method="wilcoxon").scores[row].any()


def test_continuity_brings_scores_nearer_to_zero(cells):
    x, labels = cells
    plain, moved = (rank_genes(x, labels, method="wilcoxon", continuity=value).scores for value in (False, True))
    assert (np.abs(moved) <= np.abs(plain)).all()
    assert (plain * moved >= 0).all()
    assert np.abs(plain - moved).max() > 0.001


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_benjamini_hochberg_by_its_definition(p_values):
    q_values = benjamini_hochberg(p_values)
    n = len(p_values)
    for p, q in zip(p_values, q_values, strict=True):
        larger = p_values[p_values >= p]
        assert q == pytest.approx(min(1, min(n * x / np.sum(p_values <= x) for x in larger)))


def test_rows_are_adjusted_by_themselves():
    p_values = np.random.default_rng(0).random((3, 20)) ** 3
    np.testing.assert_array_equal(benjamini_hochberg(p_values), [benjamini_hochberg(row) for row in p_values])


def test_bad_p_values_raise():
    with pytest.raises(ValueError, match="2 values that are NaN or not in 0 to 1, of 3"):
        benjamini_hochberg(np.array([np.nan, 0.3, 1.2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["A"] * 4}, "`groups` has 4 labels but `x` has 105 cells"),
        ({"groups": ["A", None] + ["B"] * 103}, "`groups` is missing for 1 of 105 cells"),
        ({"groups": ["A"] * 105}, "only the label 'A'; two groups"),
        ({"groups": ["rest"] * 5 + ["B"] * 100}, "a group is called 'rest'"),
        ({"reference": "ctrl"}, "`reference` is 'ctrl'; it must be 'rest' or one of A, B, control"),
        ({"method": "t-test"}, "`method` is 't-test'; it must be one of t, t_overestimated_variance, wilcoxon"),
        ({"tie_correct": True}, "belong to the Wilcoxon test; `method` is 't'"),
        ({"x": np.full((105, 2), np.nan)}, "`x` holds 210 values that are NaN"),
    ],
)
def test_bad_input_raises(cells, change, message):
    with pytest.raises(ValueError, match=message):
        rank_genes(**({"x": cells[0], "groups": cells[1]} | change))


def test_numba_is_loaded_only_when_it_is_needed():
    code = "import multipert.metrics, sys; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]

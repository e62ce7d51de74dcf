import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse, stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from multipert.metrics._cells import Cells
from multipert.metrics._error import mae, mse, r2, r2_pearson, rmse

ERRORS = (rmse, mae, mse)
SCORES = (r2, r2_pearson)
ALL = ERRORS + SCORES
GENES = np.array([7, 3, 50, 21, 90])


@pytest.fixture
def pair(groups):
    """Predicted and observed cells of equal number, row by row."""
    return groups["predicted"][:38], groups["observed"]


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (mae, mean_absolute_error),
        (mse, mean_squared_error),
        (rmse, lambda o, p: mean_squared_error(o, p) ** 0.5),
        (r2, r2_score),
        (r2_pearson, lambda o, p: stats.pearsonr(o, p).statistic ** 2),
    ],
)
def test_mean_vectors_and_cells_are_scored_as_by_others(function, reference, pair):
    predicted, observed = pair
    assert function(predicted, observed) == pytest.approx(reference(observed.mean(0), predicted.mean(0)), rel=1e-12)
    if function in SCORES:
        expected = np.mean([reference(o, p) for o, p in zip(observed, predicted, strict=True)])
    else:
        expected = reference(observed.ravel(), predicted.ravel())
    assert function(predicted, observed, per_cell=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("per_cell", [False, True])
def test_genes_score_as_if_the_data_held_only_them(function, per_cell, pair):
    predicted, observed = pair
    expected = function(predicted[:, GENES], observed[:, GENES], per_cell=per_cell)
    mask = np.isin(np.arange(observed.shape[1]), GENES)
    assert function(predicted, observed, per_cell=per_cell) != pytest.approx(expected, rel=1e-3)
    for genes in (GENES, GENES[::-1], GENES.astype(np.uint16), GENES.tolist(), mask):
        assert function(predicted, observed, genes=genes, per_cell=per_cell) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([], "names no gene"),
        (np.zeros(120, bool), "names no gene"),
        (np.ones(119, bool), r"mask of shape \(119,\) but there are 120 genes"),
        ([0, 120], "1 positions that do not exist, such as 120; there are 120 genes"),
        ([-1, -2, 5], "2 positions that do not exist, such as -1"),
        ([4, 5, 4, 4], "repeats 2 of 4 positions"),
        ([1.0, 2.0], "integers, one dimension.*float64"),
        ([[1, 2]], r"one dimension.*shape \(1, 2\)"),
        (["g1"], "integers, one dimension"),
    ],
)
def test_bad_genes_raise_with_the_reason(function, genes, message, groups):
    with pytest.raises(ValueError, match=f"`genes`.*{message}"):
        function(groups["predicted"], groups["observed"], genes=genes)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_array, np.asfortranarray, np.float32])
@pytest.mark.parametrize("genes", [None, GENES])
def test_storage_does_not_matter_per_cell(function, convert, genes, pair, monkeypatch):
    expected = function(*pair, genes=genes, per_cell=True)
    monkeypatch.setattr("multipert.metrics._cells.BLOCK_ROWS", 7)
    converted = (convert(cells) for cells in pair)
    assert function(*converted, genes=genes, per_cell=True) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_no_more_than_a_block_of_cells_is_ever_dense(function, pair, monkeypatch):
    n_rows = []
    monkeypatch.setattr("multipert.metrics._cells.BLOCK_ROWS", 10)
    monkeypatch.setattr(Cells, "dense", lambda self: n_rows.append(len(self)) or self.values.toarray().astype(float))
    function(*map(sparse.csr_matrix, pair), per_cell=True)
    assert max(n_rows) == 10
    assert sum(n_rows) == 2 * len(pair[0])


@pytest.mark.parametrize("function", ALL)
def test_cells_are_paired_by_row(function, pair):
    predicted, observed = pair
    order = np.random.default_rng(0).permutation(len(observed))
    expected = function(predicted, observed, per_cell=True)
    assert function(predicted[order], observed[order], per_cell=True) == pytest.approx(expected, rel=1e-12)
    assert function(predicted[order], observed, per_cell=True) != pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="`predicted` has 37 cells but `observed` has 38; .*row by row"):
        function(predicted[1:], observed, per_cell=True)


def test_squared_error_of_cells_is_that_of_the_mean_and_their_variance(groups):
    observed = groups["observed"]
    same_in_all = np.tile(groups["predicted"].mean(0), (len(observed), 1))
    excess = mse(same_in_all, observed, per_cell=True) - mse(same_in_all, observed)
    assert excess == pytest.approx(observed.var(axis=0).mean(), rel=1e-12)


def test_cells_without_a_score_are_left_out():
    observed = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [3.0, 1.0, 2.0]])
    predicted = np.array([[1.0, 2.0, 4.0], [4.0, 5.0, 6.0], [3.0, 1.0, 2.0]])
    assert r2(predicted, observed, per_cell=True) == pytest.approx((0.5 + 1) / 2)
    assert r2_pearson(predicted[1:], observed[1:], per_cell=True) == pytest.approx(1)
    for function in SCORES:
        assert np.isnan(function(predicted[1:2], observed[1:2], per_cell=True))


@pytest.mark.parametrize("function", SCORES)
@pytest.mark.parametrize("per_cell", [False, True])
def test_a_single_gene_has_no_spread(function, per_cell, pair):
    assert np.isnan(function(*pair, genes=[3], per_cell=per_cell))
    assert np.isfinite(function(*pair, genes=[3, 7], per_cell=per_cell))


def test_equal_means_are_equal_despite_rounding():
    observed = np.array([[0.1, 0.1 + 1e-16, 0.1]])
    assert np.ptp(observed) > 0
    assert np.isnan(r2(np.ones((2, 3)), observed))


@given(hnp.arrays(float, (2, 4, 3), elements=st.floats(-100, 100)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_errors_are_those_of_a_norm(values, per_cell):
    predicted, observed = values
    scores = {f: f(predicted, observed, per_cell=per_cell) for f in ERRORS}
    assert all(score == pytest.approx(f(observed, predicted, per_cell=per_cell)) for f, score in scores.items())
    assert 0 <= scores[mae] <= scores[rmse] + 1e-9
    assert scores[rmse] ** 2 == pytest.approx(scores[mse])
    assert mse(predicted, observed) <= mse(predicted, observed, per_cell=True) + 1e-9
    assert all(f(observed, observed, per_cell=per_cell) == 0 for f in ERRORS)

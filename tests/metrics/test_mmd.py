import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from multipert.metrics import _cells, _mmd
from multipert.metrics._distribution import edistance
from multipert.metrics._mmd import mmd_linear, mmd_rbf


def pair(seed=0, n=15, m=22, n_vars=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_vars)) * 1.5, rng.normal(size=(m, n_vars)) + 0.5 * rng.normal(size=n_vars)


def by_hand(first, second, kernel, unbiased):
    """The definition: all pairs, one by one."""

    def mean(a, b, leave_out):
        values = np.array([[kernel(x, y) for y in b] for x in a])
        if leave_out:
            return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))
        return values.mean()

    return mean(first, first, unbiased) + mean(second, second, unbiased) - 2 * mean(first, second, False)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix, sparse.coo_array, np.float32])
def test_definitions(unbiased, convert, monkeypatch):
    monkeypatch.setattr(_cells, "BLOCK_ROWS", 6)
    first, second = (convert(cells) for cells in pair())
    dense = [cells.toarray() if sparse.issparse(cells) else cells.astype(float) for cells in (first, second)]

    def gaussians(x, y):
        return np.mean([np.exp(-np.sum((x - y) ** 2) / (2 * s**2)) for s in (0.7, 3.0)])

    assert mmd_linear(first, second, unbiased=unbiased) == pytest.approx(by_hand(*dense, np.dot, unbiased), rel=1e-9)
    found = mmd_rbf(first, second, bandwidths=[0.7, 3.0], unbiased=unbiased)
    assert found == pytest.approx(by_hand(*dense, gaussians, unbiased), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e2), shift=st.floats(-100, 100))
def test_moved_and_scaled_cells(seed, scale, shift):
    first, second = pair(seed)
    rbf = mmd_rbf(first, second)
    assert 0 <= rbf <= 2
    # the bandwidth follows the observed cells
    assert mmd_rbf(scale * first + shift, scale * second + shift) == pytest.approx(rbf, rel=1e-6)
    assert mmd_linear(scale * first + shift, scale * second + shift) == pytest.approx(
        scale**2 * mmd_linear(first, second), rel=1e-6
    )
    assert mmd_rbf(first, second, bandwidths=[1.0]) == pytest.approx(mmd_rbf(second, first, bandwidths=[1.0]), rel=1e-9)
    assert mmd_linear(second, first) == mmd_linear(first, second)
    assert mmd_rbf(first, first[::-1].copy()) == 0
    assert mmd_linear(first, first) == 0


@pytest.mark.parametrize("unbiased", [False, True])
def test_linear_is_half_the_squared_edistance(unbiased):
    first, second = pair()
    expected = edistance(first, second, squared=True, half=True, unbiased=unbiased)
    assert mmd_linear(first, second, unbiased=unbiased) == pytest.approx(expected, rel=1e-12)


def test_rbf_sees_spread_and_linear_does_not():
    first, _ = pair()
    wider = first.mean(0) + 3 * (first - first.mean(0))
    assert mmd_linear(wider, first) == pytest.approx(0, abs=1e-12)
    assert mmd_rbf(wider, first) > 0.05


def test_default_bandwidth_comes_from_the_observed_cells(monkeypatch):
    first, second = pair()
    squares = [np.sum((x - y) ** 2) for i, x in enumerate(second) for y in second[:i]]
    bandwidths = np.sqrt(np.median(squares) * np.array([0.5, 1, 2, 4]))
    for predicted in (first, 1e3 * first, first[:1]):
        expected = mmd_rbf(predicted, second, bandwidths=bandwidths)
        assert mmd_rbf(predicted, second) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(_mmd, "MAX_CELLS_FOR_MEDIAN", 10)
    assert mmd_rbf(first, second) == mmd_rbf(first, second)
    assert mmd_rbf(first, second) == pytest.approx(mmd_rbf(first, second, bandwidths=bandwidths), rel=0.3)


@pytest.mark.parametrize("function", [mmd_linear, mmd_rbf])
def test_unbiased_is_0_on_average_for_samples_of_one_distribution(function):
    rng = np.random.default_rng(0)
    options = {"bandwidths": [2.0]} if function is mmd_rbf else {}
    samples = [rng.normal(size=(2, 8, 4)) for _ in range(400)]
    values = [function(first, second, unbiased=True, **options) for first, second in samples]
    biased = [function(first, second, **options) for first, second in samples]
    assert abs(np.mean(values)) < 4 * stats.sem(values)
    assert np.mean(biased) > 4 * stats.sem(biased)


def test_undefined_is_nan():
    first, second = pair()
    for function in (mmd_linear, mmd_rbf):
        assert np.isnan(function(first[:1], second, unbiased=True))
        assert np.isfinite(function(first[:1], second))
    assert np.isnan(mmd_linear(first, second[:1], unbiased=True))
    assert np.isnan(mmd_rbf(first, second[:1]))
    assert np.isnan(mmd_rbf(first, np.ones((4, 5))))
    assert mmd_rbf(first, second[:1], bandwidths=[1.0]) > 0
    assert np.isnan(mmd_rbf(first, second[:1], bandwidths=[1.0], unbiased=True))


@pytest.mark.parametrize("bandwidths", [[], [0.0], [1.0, -1.0], [np.nan], [np.inf], 3.0])
def test_bad_bandwidths_raise(bandwidths):
    with pytest.raises(ValueError, match="`bandwidths` is .*above 0"):
        mmd_rbf(*pair(), bandwidths=bandwidths)


def test_mmd_is_pertpys():
    """pertpy's gamma is 1 / (2 s^2)."""
    distances = pytest.importorskip("pertpy.tools", reason="needs the extra pertpy", exc_type=ImportError)
    first, second = pair()
    theirs = distances.Distance("mmd")
    assert mmd_linear(first, second) == pytest.approx(theirs(first, second), rel=1e-5)
    expected = theirs(first, second, kernel="rbf", gamma=0.125)
    assert mmd_rbf(first, second, bandwidths=[2.0]) == pytest.approx(expected, rel=1e-5)

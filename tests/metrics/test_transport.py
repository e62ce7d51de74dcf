import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.special import logsumexp

from multipert.metrics import _transport
from multipert.metrics._transport import sinkhorn_cost, sinkhorn_divergence, wasserstein, wasserstein_genes


def pair(seed=0, n=31, m=24, n_vars=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_vars)) * 1.3, rng.normal(size=(m, n_vars)) + rng.normal(size=n_vars)


def costs_of(first, second):
    return ((first[:, None] - second[None]) ** 2).sum(axis=2)


def in_logarithms(first, second, epsilon, n_iter=3000):
    """Sinkhorn in double precision and logarithms: the cost with the entropy term, from the plan itself."""
    costs = costs_of(first, second)
    g = np.zeros(len(second))
    for _ in range(n_iter):
        f = -epsilon * (logsumexp((g - costs) / epsilon, axis=1) - np.log(len(second)))
        g = -epsilon * (logsumexp((f[:, None] - costs) / epsilon, axis=0) - np.log(len(first)))
    density = np.exp((f[:, None] + g - costs) / epsilon)
    np.testing.assert_allclose(density.mean(axis=1), 1, atol=1e-6)
    return np.mean(density * costs) + epsilon * np.mean(density * np.log(np.maximum(density, 1e-300)))


@pytest.mark.parametrize("share", [2.0, 0.3, 0.05, 0.02])
def test_sinkhorn_cost_is_that_of_double_precision_in_logarithms(share):
    first, second = pair()
    epsilon = share * costs_of(first, second).mean()
    assert sinkhorn_cost(first, second, epsilon=epsilon) == pytest.approx(
        in_logarithms(first, second, epsilon), rel=1e-4
    )


def test_sinkhorn_cost_is_that_of_pots_plan():
    from ot import sinkhorn

    first, second = pair()
    costs = costs_of(first, second)
    epsilon = 0.1 * costs.mean()
    weights = [np.full(len(cells), 1 / len(cells)) for cells in (first, second)]
    plan = sinkhorn(*weights, costs, epsilon, method="sinkhorn_log", stopThr=1e-10)
    divergence = np.sum(plan * np.log(plan * plan.size))
    assert sinkhorn_cost(first, second, epsilon=epsilon) == pytest.approx(
        np.sum(plan * costs) + epsilon * divergence, rel=1e-4
    )


@pytest.mark.parametrize("epsilon", ["mean", "std"])
def test_named_epsilon(epsilon):
    first, second = pair()
    costs = costs_of(first, second)
    strength = 0.05 * (costs.mean() if epsilon == "mean" else costs.std())
    assert sinkhorn_cost(first, second, epsilon=epsilon) == pytest.approx(
        sinkhorn_cost(first, second, epsilon=strength), rel=1e-6
    )


def test_small_epsilon_gives_the_exact_cost_and_large_epsilon_the_means():
    first, second = pair()
    exact = wasserstein(first, second, squared=True)
    mean_cost = costs_of(first, second).mean()
    for epsilon in (0.3 * mean_cost, 0.03 * mean_cost, 0.003 * mean_cost, 0.0003 * mean_cost):
        # the exact plan differs from independence by at most the entropy of the smaller group
        excess = sinkhorn_cost(first, second, epsilon=epsilon) - exact
        assert -1e-4 * exact < excess < epsilon * np.log(24)
    assert excess < 0.002 * exact
    assert sinkhorn_divergence(first, second, epsilon=epsilon) == pytest.approx(exact, rel=0.002)
    between = np.sum((first.mean(0) - second.mean(0)) ** 2)
    assert sinkhorn_divergence(first, second, epsilon=1e3 * mean_cost) == pytest.approx(between, rel=0.01)
    assert sinkhorn_cost(first, second, epsilon=1e3 * mean_cost) == pytest.approx(mean_cost, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_sinkhorn_of_moved_scaled_and_swapped_cells(seed, scale, shift):
    first, second = pair(seed)
    for function in (sinkhorn_cost, sinkhorn_divergence):
        value = function(first, second)
        assert value > 0
        assert function(scale * first, scale * second) == pytest.approx(scale**2 * value, rel=1e-3)
        assert function(first + shift, second + shift) == pytest.approx(value, rel=1e-3)
        assert function(second, first) == pytest.approx(value, rel=1e-3)
    assert sinkhorn_divergence(first, first[::-1].copy()) == 0
    assert sinkhorn_cost(first, first) > 0


def test_divergence_grows_with_the_distance():
    first, _ = pair()
    values = [sinkhorn_divergence(first + shift, first, epsilon=0.5) for shift in (0, 0.5, 1, 2)]
    # a shift of all four values by s costs 4 s^2 whatever the regularisation
    np.testing.assert_allclose(values, [0, 1, 4, 16], rtol=1e-3)


def test_divergence_sees_spread():
    first, _ = pair()
    collapsed = np.tile(first.mean(0), (len(first), 1))
    assert sinkhorn_divergence(collapsed, first) > 0.5 * first.var(axis=0).sum()


def test_kernel_that_is_not_kept_gives_the_same(monkeypatch):
    first, second = pair()
    expected = sinkhorn_cost(first, second)
    monkeypatch.setattr(_transport, "BLOCK_ROWS", 5)
    assert sinkhorn_cost(first, second) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(_transport, "MAX_KERNEL_SIZE", 10)
    assert sinkhorn_cost(first, second) == pytest.approx(expected, rel=1e-5)


def test_far_clusters_of_unequal_share():
    """Mass has to cross between clusters, where the kernel is 0 in single precision."""
    rng = np.random.default_rng(0)
    first = np.vstack([rng.normal(size=(40, 3)), rng.normal(size=(20, 3)) + 60])
    second = np.vstack([rng.normal(size=(10, 3)), rng.normal(size=(60, 3)) + 60])
    exact = wasserstein(first, second, squared=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exact < sinkhorn_cost(first, second, epsilon=1.0) == pytest.approx(exact, rel=1e-3)
        assert sinkhorn_cost(first + 1e4, second, epsilon=1.0) == pytest.approx(
            costs_of(first + 1e4, second).mean(), rel=0.05
        )


def test_single_and_equal_cells():
    first, second = pair()
    for epsilon in ("mean", "std", 0.7):
        expected = costs_of(first[:1], second).mean()
        assert sinkhorn_cost(first[:1], second, epsilon=epsilon) == pytest.approx(expected, rel=1e-6)
        assert sinkhorn_cost(first[:1], second[:1], epsilon=epsilon) == pytest.approx(
            costs_of(first[:1], second[:1]).mean(), rel=1e-6
        )
        assert sinkhorn_cost(np.ones((3, 4)), np.ones((5, 4)), epsilon=epsilon) == pytest.approx(0, abs=1e-9)
        assert sinkhorn_divergence(np.ones((3, 4)), np.ones((5, 4)), epsilon=epsilon) == 0
    assert wasserstein(first[:1], first[:1]) == 0


def test_too_few_iterations_are_reported():
    first, second = pair()
    with pytest.warns(UserWarning, match="`max_iter` = 3 iterations .* error of the margins of"):
        sinkhorn_cost(first, second, max_iter=3, tolerance=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn_cost(first, second)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` is 0.0; it must be"),
        ({"epsilon": -1}, "`epsilon` is -1"),
        ({"epsilon": np.nan}, "`epsilon` is nan"),
        ({"epsilon": "median"}, "`epsilon` is 'median'"),
        ({"max_iter": 0}, "`max_iter` is 0"),
        ({"tolerance": 0.0}, "`tolerance` is 0.0"),
        ({"tolerance": np.nan}, "`tolerance` is nan"),
    ],
)
@pytest.mark.parametrize("function", [sinkhorn_cost, sinkhorn_divergence])
def test_bad_options_raise(function, option, message):
    with pytest.raises(ValueError, match=message):
        function(*pair(), **option)


@pytest.mark.parametrize("function", [sinkhorn_cost, sinkhorn_divergence, wasserstein, wasserstein_genes])
def test_storage_does_not_matter(function):
    first, second = (np.where(cells > 0, cells, 0).astype(np.float32) for cells in pair())
    expected = function(first.astype(float), second.astype(float))
    np.testing.assert_allclose(function(first, second), expected, rtol=1e-9)
    np.testing.assert_allclose(function(sparse.csr_matrix(first), sparse.coo_array(second)), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="`observed` has 3 genes but `predicted` has 4"):
        function(first, second[:, 1:])


def test_sinkhorn_cost_is_pertpys():
    distances = pytest.importorskip("pertpy.tools", reason="needs the extra pertpy", exc_type=ImportError)
    first, second = pair(n=120, m=100, n_vars=10)
    theirs = distances.Distance("wasserstein")(first, second)
    assert sinkhorn_cost(first, second, epsilon="std") == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("squared", [False, True])
def test_wasserstein_by_assignment(squared):
    from scipy.optimize import linear_sum_assignment

    first, second = pair(n=20, m=20)
    costs = costs_of(first, second) if squared else np.sqrt(costs_of(first, second))
    assert wasserstein(first, second, squared=squared) == pytest.approx(costs[linear_sum_assignment(costs)].mean())
    # a copy of every cell changes nothing, but the sizes
    assert wasserstein(np.repeat(first, 2, axis=0), second, squared=squared) == pytest.approx(
        wasserstein(first, second, squared=squared)
    )
    assert wasserstein(first, first[::-1], squared=squared) == pytest.approx(0, abs=1e-12)
    assert wasserstein(first + 2, first, squared=squared) == pytest.approx(16 if squared else 4)


def test_wasserstein_refuses_what_would_not_end(monkeypatch):
    monkeypatch.setattr(_transport, "MAX_EXACT_PAIRS", 100)
    with pytest.raises(ValueError, match="have 31 and 24 cells, 744 pairs, above the 100 .*`sinkhorn_divergence`"):
        wasserstein(*pair())
    monkeypatch.setattr(_transport, "MAX_EXACT_PAIRS", 10**6)
    monkeypatch.setattr(_transport, "MAX_SIMPLEX_STEPS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="exact transport of 744 pairs of cells failed"):
            wasserstein(*pair())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 30))
def test_wasserstein_genes_is_scipys(seed, n, m):
    rng = np.random.default_rng(seed)
    # ties and zeros, as in counts
    first, second = rng.poisson(1.5, (n, 5)) * 0.7, rng.poisson(2.0, (m, 5)) * 1.1
    expected = [stats.wasserstein_distance(x, y) for x, y in zip(first.T, second.T, strict=True)]
    found = wasserstein_genes(first, second)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(wasserstein_genes(second, first), found, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(wasserstein_genes(sparse.csr_matrix(first), sparse.csr_matrix(second)), found)


def test_wasserstein_genes_in_blocks(monkeypatch):
    first, second = pair(n_vars=11)
    expected = wasserstein_genes(first, second)
    assert expected.shape == (11,)
    monkeypatch.setattr(_transport, "BLOCK_GENES", 4)
    np.testing.assert_allclose(wasserstein_genes(first, second), expected, rtol=1e-12)
    shift = np.arange(11.0)
    np.testing.assert_allclose(wasserstein_genes(first - shift, first), shift, atol=1e-12)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from multipert.metrics import _cells, _pairwise_edistance
from multipert.metrics._distribution import edistance, low_variance_share, mean_pairwise, variance_ratio
from multipert.metrics._mmd import mmd_linear
from multipert.metrics._pairwise_edistance import pairwise_edistance

OPTIONS = [
    {},
    {"squared": True},
    {"half": True},
    {"unbiased": True},
    {"squared": True, "unbiased": True},
    {"squared": True, "half": True, "unbiased": True},
]


def pair(seed, n=17, m=23, n_vars=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_vars)) * rng.uniform(0.5, 2), rng.normal(size=(m, n_vars)) + rng.normal(size=n_vars)


def by_hand(first, second, *, squared=False, half=False, unbiased=False):
    """The definition: all pairs, one by one."""

    def mean(a, b, leave_out):
        distances = np.array([[np.linalg.norm(x - y) for y in b] for x in a]) ** (2 if squared else 1)
        return distances.sum() / (len(a) * (len(b) - leave_out))

    within = mean(first, first, unbiased) + mean(second, second, unbiased)
    return (0.5 if half else 1) * (2 * mean(first, second, False) - within)


def small_groups(seed=0, sizes=(1, 5, 12, 3, 7), n_vars=4):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, n_vars)) + rng.normal(size=n_vars) for size in sizes]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix, sparse.coo_array, np.float32])
def test_edistance_is_its_definition(options, convert):
    first, second = (convert(cells) for cells in pair(0))
    dense = [cells.toarray() if sparse.issparse(cells) else cells.astype(float) for cells in (first, second)]
    expected = by_hand(*dense, **options)
    assert edistance(first, second, **options) == pytest.approx(expected, rel=1e-10)
    assert edistance(second, first, **options) == pytest.approx(expected, rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_edistance_of_moved_and_scaled_cells(seed, scale, shift):
    first, second = pair(seed)
    distance = edistance(first, second)
    assert distance >= 0
    assert edistance(second, first) == pytest.approx(distance, rel=1e-9)
    assert edistance(first + shift, second + shift) == pytest.approx(distance, rel=1e-6)
    assert edistance(scale * first, scale * second) == pytest.approx(scale * distance, rel=1e-9)
    squared = edistance(first, second, squared=True)
    assert edistance(scale * first, scale * second, squared=True) == pytest.approx(scale**2 * squared, rel=1e-9)
    assert edistance(first, first[::-1].copy()) == 0
    assert edistance(first, first, squared=True) == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_edistance_of_one_gene_is_twice_the_squared_energy_distance_of_scipy(seed):
    """scipy gives the root of the area between the squared difference of distribution functions, times two."""
    first, second = pair(seed, n_vars=1)
    expected = stats.energy_distance(first[:, 0], second[:, 0]) ** 2
    assert edistance(first, second) == pytest.approx(expected, rel=1e-9)
    assert edistance(first, second, half=True) == pytest.approx(expected / 2, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_squared_edistance_tells_no_more_than_the_means(seed):
    """Ratios to control: squared energy distance, linear MMD and squared Euclidean distance are one number."""
    predicted, observed = pair(seed)
    control, _ = pair(seed + 1)
    euclidean = np.linalg.norm(observed.mean(0) - predicted.mean(0)) / np.linalg.norm(
        control.mean(0) - predicted.mean(0)
    )
    linear = mmd_linear(predicted, observed) / mmd_linear(predicted, control)
    squared = edistance(predicted, observed, squared=True) / edistance(predicted, control, squared=True)
    assert squared == pytest.approx(linear, rel=1e-6)
    assert squared == pytest.approx(euclidean**2, rel=1e-6)


def test_unsquared_edistance_sees_what_the_means_do_not():
    first, _ = pair(0)
    wider = first.mean(0) + 3 * (first - first.mean(0))
    assert edistance(first, wider, squared=True) == pytest.approx(0, abs=1e-12)
    assert edistance(first, wider) > 0.5


@pytest.mark.parametrize("squared", [False, True])
def test_unbiased_edistance_of_samples_of_one_distribution_is_0_on_average(squared):
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(2, 8, 5)) for _ in range(400)]
    values = [edistance(first, second, squared=squared, unbiased=True) for first, second in samples]
    biased = [edistance(first, second, squared=squared) for first, second in samples]
    assert abs(np.mean(values)) < 4 * stats.sem(values)
    assert np.mean(biased) > 4 * stats.sem(biased)


def test_single_cells():
    cell, others = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [-3.0, -4.0]])
    assert edistance(cell, cell) == 0
    assert edistance(cell, others[:1]) == 10
    assert mean_pairwise(cell, others) == 5
    for squared in (False, True):
        assert np.isnan(edistance(cell, others, squared=squared, unbiased=True))
        assert np.isnan(edistance(others, cell, squared=squared, unbiased=True))
        assert np.isfinite(edistance(others, others, squared=squared, unbiased=True))


def test_near_and_far_cells_do_not_lose_digits():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 3))
    second = first + 1e-4 * rng.normal(size=(6, 3))
    assert mean_pairwise(first, second) == pytest.approx(all_distances(first, second).mean(), rel=1e-9)
    # a far cell moves the centre; pairs nearer than a millionth of their distance from it then count as equal
    far = np.full((1, 3), 1e3)
    first, second = np.vstack([first, far]), np.vstack([second, far])
    assert mean_pairwise(first, second) == pytest.approx(all_distances(first, second).mean(), rel=1e-6)


def all_distances(first, second):
    return np.linalg.norm(first[:, None] - second[None], axis=2)


def test_mean_pairwise_keeps_the_spread(monkeypatch):
    first, second = pair(3)
    expected = all_distances(first, second).mean()
    assert mean_pairwise(first, second) == pytest.approx(expected, rel=1e-12)
    assert mean_pairwise(first, first) > 0
    assert mean_pairwise(second.mean(0, keepdims=True), second) < mean_pairwise(second, second)
    monkeypatch.setattr(_cells, "BLOCK_ROWS", 4)
    assert mean_pairwise(sparse.csr_matrix(first), second) == pytest.approx(expected, rel=1e-12)


def test_variance_ratio_is_that_of_a_typical_gene():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(30, 5)) * [1, 1, 1, 1, 100]
    factors = np.sqrt([0.25, 0.25, 4.0, 0.25, 9.0])
    assert variance_ratio(factors * observed + 7, observed) == pytest.approx(0.25)
    assert variance_ratio(observed, observed) == 1
    assert variance_ratio(np.tile(observed.mean(0), (4, 1)), observed) == 0
    constant = np.column_stack([observed, np.ones(30)])
    assert variance_ratio(constant * 2, constant) == pytest.approx(4)
    assert np.isnan(variance_ratio(observed[:1], observed))
    assert np.isnan(variance_ratio(observed, observed[:1]))
    assert np.isnan(variance_ratio(observed, np.ones((3, 5))))
    assert low_variance_share(factors * observed, observed, ratio=0.5) == pytest.approx(0.6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("blocks", [(256, 2048), (4, 6), (1, 1), (28, 3)])
def test_pairwise_edistance_is_edistance_of_every_pair(options, blocks, monkeypatch):
    monkeypatch.setattr(_pairwise_edistance, "BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(_pairwise_edistance, "BLOCK_COLUMNS", blocks[1])
    groups, others = small_groups(), small_groups(1, (4, 1, 9))
    expected = [[edistance(first, second, **options) for second in others] for first in groups]
    np.testing.assert_allclose(pairwise_edistance(groups, others, **options), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        pairwise_edistance(others, groups, **options), np.transpose(expected), rtol=1e-9, atol=1e-12
    )
    together = [[edistance(first, second, **options) for second in groups] for first in groups]
    np.testing.assert_allclose(pairwise_edistance(groups, **options), together, rtol=1e-9, atol=1e-12)


def test_pairwise_edistance_of_equal_groups_is_0():
    groups = [cells + 1e3 for cells in small_groups()]
    distances = pairwise_edistance(groups, [cells[::-1].copy() for cells in groups])
    assert not np.diag(distances).any()
    assert distances[~np.eye(len(groups), dtype=bool)].min() > 0
    assert not np.diag(pairwise_edistance(groups)).any()


def test_pairwise_edistance_of_sparse_and_single_precision():
    groups = [np.where(cells > 0, cells, 0).astype(np.float32) for cells in small_groups()]
    expected = pairwise_edistance([cells.astype(float) for cells in groups])
    np.testing.assert_allclose(pairwise_edistance(groups), expected, rtol=1e-12)
    np.testing.assert_allclose(pairwise_edistance([sparse.csc_matrix(c) for c in groups]), expected, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"unbiased": True}])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_pairwise_edistance_of_wide_cells(options, spread):
    """Products in single precision; a small spread around two far centres needs the double precision they lack."""
    rng = np.random.default_rng(0)
    groups = [spread * rng.normal(size=(12, 300)) + (number % 2) for number in range(4)]
    groups.append(groups[0] + 1e-3 * spread * rng.normal(size=(12, 300)))
    expected = np.array([[edistance(first, second, **options) for second in groups] for first in groups])
    scale = mean_pairwise(groups[0], groups[1])
    np.testing.assert_allclose(pairwise_edistance(groups, **options), expected, rtol=1e-5, atol=1e-8 * scale)
    np.testing.assert_allclose(
        pairwise_edistance(groups, groups[:2], **options), expected[:, :2], rtol=1e-5, atol=1e-8 * scale
    )
    if not options:
        copies = [cells[::-1].copy() for cells in groups]
        assert not np.diag(pairwise_edistance(groups, copies)).any()


def test_pairwise_edistance_ranks_the_right_group_first():
    rng = np.random.default_rng(0)
    observed = [rng.normal(size=(40, 5)) + 2 * rng.normal(size=5) for _ in range(8)]
    predicted = [rng.normal(size=(30, 5)) + cells.mean(0) for cells in observed]
    np.testing.assert_array_equal(pairwise_edistance(predicted, observed).argmin(axis=1), np.arange(8))


def test_pairwise_edistance_names_the_bad_group():
    groups = small_groups()
    with pytest.raises(ValueError, match="`groups` holds no group"):
        pairwise_edistance([])
    with pytest.raises(ValueError, match="`others` holds no group"):
        pairwise_edistance(groups, [])
    with pytest.raises(ValueError, match=r"`groups\[2\]` has 3 genes but `groups\[0\]` has 4"):
        pairwise_edistance([*groups[:2], groups[2][:, 1:]])
    with pytest.raises(ValueError, match=r"`others\[0\]` has 3 genes but `groups\[0\]` has 4"):
        pairwise_edistance(groups, [groups[2][:, 1:]])
    with pytest.raises(ValueError, match=r"`others\[1\]` holds 1 values that are NaN"):
        pairwise_edistance(groups, [groups[0], np.array([[np.nan, 0, 0, 0]])])


@pytest.mark.parametrize("n_vars", [5, 400])
def test_pairwise_edistance_is_pertpys(n_vars):
    """pertpy 1.0 takes unsquared distances and counts a cell with itself."""
    distances = pytest.importorskip("pertpy.tools", reason="needs the extra pertpy", exc_type=ImportError)
    ad = pytest.importorskip("anndata")
    groups = small_groups(2, (6, 11, 9), n_vars)
    labels = np.repeat(["a", "b", "c"], [6, 11, 9])
    adata = ad.AnnData(np.vstack(groups), obsm={"X_pca": np.vstack(groups)})
    adata.obs["perturbation"] = labels
    frame = distances.Distance("edistance", obsm_key="X_pca").pairwise(adata, "perturbation", show_progressbar=False)
    expected = frame.loc[["a", "b", "c"], ["a", "b", "c"]].to_numpy()
    np.testing.assert_allclose(pairwise_edistance(groups), expected, rtol=1e-5)
    mean = distances.Distance("mean_pairwise")(groups[0], groups[1])
    assert mean_pairwise(groups[0], groups[1]) == pytest.approx(mean, rel=1e-5)

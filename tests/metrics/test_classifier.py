import numpy as np
import pytest
from scipy import sparse

from multipert.metrics._classifier import classifier_auc


def cells(seed, n=80, n_vars=6):
    return np.random.default_rng(seed).normal(size=(n, n_vars))


@pytest.mark.parametrize("n_components", [3, 50, None])
def test_samples_of_one_distribution_cannot_be_told_apart(n_components):
    values = [classifier_auc(cells(seed), cells(1000 + seed), n_components=n_components) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("n_components", [3, 50, None])
def test_shifts_are_found_the_more_the_larger(n_components):
    values = [classifier_auc(cells(0) + shift, cells(1), n_components=n_components) for shift in (0, 0.3, 0.6, 3)]
    assert np.all(np.diff(values) > 0)
    assert values[-1] == 1


def test_direction_of_the_shift_does_not_matter():
    for shift in (-1, 1):
        assert classifier_auc(cells(0) + shift, cells(1)) > 0.9
        assert classifier_auc(cells(0), cells(1) + shift) > 0.9


def test_unequal_numbers_are_balanced():
    """A classifier that names the larger group every time tells nothing."""
    values = [classifier_auc(cells(seed, 300), cells(1000 + seed, 20)) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)
    assert classifier_auc(cells(0, 300) + 2, cells(1, 20)) > 0.99


def test_genes_of_large_scale_do_not_hide_the_others():
    first, second = cells(0), cells(1)
    first[:, 2] += 2
    scales = 10.0 ** np.arange(6)
    plain, scaled = (classifier_auc(first * s, second * s, n_components=None) for s in (1, scales))
    assert scaled == pytest.approx(plain, abs=1e-6)
    assert plain > 0.85


def test_same_seed_same_value():
    first, second = cells(0) + 0.2, cells(1)
    assert classifier_auc(first, second, seed=3) == classifier_auc(first, second, seed=3)
    assert len({classifier_auc(first, second, seed=seed) for seed in range(5)}) > 1


def test_left_out_cells_are_not_seen():
    """With more values than cells any training cells are separable, so that a seen cell would be recognised."""
    values = [classifier_auc(cells(s, 20, 200), cells(100 + s, 20, 200), n_components=None) for s in range(10)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_copies_are_not_told_apart():
    values = [classifier_auc(cells(seed), cells(seed)[::-1]) for seed in range(10)]
    assert np.mean(values) < 0.5


def test_storage_does_not_matter():
    first, second = (np.where(c > 0, c, 0).astype(np.float32) for c in (cells(0) + 0.5, cells(1)))
    expected = classifier_auc(first.astype(float), second.astype(float))
    assert classifier_auc(first, second) == expected
    assert classifier_auc(sparse.csr_matrix(first), sparse.csc_matrix(second)) == expected


def test_few_and_equal_cells():
    assert np.isnan(classifier_auc(cells(0)[:1], cells(1)))
    assert np.isnan(classifier_auc(cells(0), cells(1)[:1]))
    assert classifier_auc(cells(0)[:2] + 50, cells(1)) == 1
    assert classifier_auc(np.ones((6, 4)), np.ones((7, 4)), n_components=2) == 0.5
    assert classifier_auc(np.ones((6, 4)), np.ones((7, 4))) == 0.5
    # all predicted cells equal and off the mean
    assert classifier_auc(np.full((10, 6), 5.0), cells(1)) == 1


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="`n_components` is 0"):
        classifier_auc(cells(0), cells(1), n_components=0)
    with pytest.raises(ValueError, match="`observed` has 5 genes but `predicted` has 6"):
        classifier_auc(cells(0), cells(1)[:, 1:])

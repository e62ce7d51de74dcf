import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.spatial.distance import cdist

from multipert.metrics._centroid import centroid_accuracy, pearson_centroid
from multipert.metrics._delta import pearson_delta

GENES = np.array([7, 3, 50, 21, 90])


@pytest.fixture
def centroid(groups) -> np.ndarray:
    rng = np.random.default_rng(4)
    return groups["control"].mean(axis=0) + rng.normal(0, 0.2, groups["control"].shape[1])


def by_pairs(predicted, observed):
    """Centroid accuracy by a loop over pairs."""
    scores = []
    for p, row in enumerate(cdist(predicted, observed)):
        others = np.delete(row, p)
        scores.append(np.mean(others > row[p]) + np.mean(others == row[p]) / 2)
    return np.array(scores)


@pytest.mark.parametrize("genes", [None, GENES, GENES[::-1], np.isin(np.arange(120), GENES)])
def test_correlation_of_differences_from_the_centroid(genes, groups, centroid):
    predicted, observed = groups["predicted"], groups["observed"]
    kept = slice(None) if genes is None else genes
    expected = stats.pearsonr((predicted.mean(0) - centroid)[kept], (observed.mean(0) - centroid)[kept]).statistic
    assert pearson_centroid(predicted, observed, centroid, genes=genes) == pytest.approx(expected, rel=1e-12)
    float32 = [x.astype(np.float32) for x in (predicted, observed, centroid)]
    assert pearson_centroid(*float32, genes=genes) == pytest.approx(expected, abs=1e-6)
    csr = [sparse.csr_matrix(cells[::-1]) for cells in (predicted, observed)]
    assert pearson_centroid(*csr, centroid, genes=genes) == pytest.approx(expected, rel=1e-12)


def test_perfect_and_opposite_predictions(groups, centroid):
    observed = groups["observed"]
    assert pearson_centroid(observed, observed, centroid) == pytest.approx(1)
    opposite = (2 * centroid - observed.mean(0))[None]
    assert pearson_centroid(opposite, observed, centroid) == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predicting_the_centroid_has_no_score(dtype, groups, centroid):
    same = np.tile(centroid, (5, 1)).astype(dtype)
    assert np.isnan(pearson_centroid(same, groups["observed"], centroid))


def test_what_all_perturbations_share_earns_nothing():
    rng = np.random.default_rng(0)
    control, systematic = rng.gamma(1, 1, 300), rng.normal(0, 1, 300)
    means = control + systematic + rng.normal(0, 0.5, (20, 300))
    training, observed = means[:-1], means[-1:]
    # an average over other perturbations than those of the centroid, so that it is not the centroid itself
    predicted = means[:9].mean(axis=0, keepdims=True)
    assert pearson_delta(predicted, observed, control[None]) > 0.8
    assert abs(pearson_centroid(predicted, observed, training.mean(axis=0))) < 0.2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(119), r"one value for each of 120 genes.*\(119,\)"),
        (np.zeros((1, 120)), r"\(1, 120\)"),
        (np.full(120, np.nan), "120 values that are NaN or infinite"),
    ],
)
def test_bad_centroid_raises(bad, message, groups):
    with pytest.raises(ValueError, match=f"`centroid`.*{message}"):
        pearson_centroid(groups["predicted"], groups["observed"], bad)


@pytest.mark.parametrize("block_rows", [1024, 7])
def test_accuracy_is_that_of_all_pairs(block_rows, monkeypatch):
    monkeypatch.setattr("multipert.metrics._centroid.BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(20, 50))
    predicted = 0.3 * observed + rng.normal(0, 0.5, (20, 50))
    expected = by_pairs(predicted, observed)
    assert 0.5 < expected.mean() < 1
    np.testing.assert_allclose(centroid_accuracy(predicted, observed), expected, rtol=1e-10)
    np.testing.assert_allclose(centroid_accuracy(predicted.astype(np.float32), observed), expected, rtol=1e-10)
    # ranks the truths for a prediction, which is another thing than ranking the predictions for a truth
    assert not np.allclose(centroid_accuracy(observed, predicted), expected)


def test_perfect_prediction_is_nearest_to_its_own():
    observed = np.random.default_rng(0).normal(size=(12, 5))
    np.testing.assert_array_equal(centroid_accuracy(observed, observed), 1)
    np.testing.assert_array_equal(centroid_accuracy(observed + 1e6, observed + 1e6), 1)
    two = observed[:2]
    np.testing.assert_array_equal(centroid_accuracy(two[::-1], two), 0)


@given(st.integers(2, 12), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_constant_prediction_scores_one_half_on_average(n_perturbations, seed):
    rng = np.random.default_rng(seed)
    # few levels, so that there are ties
    observed = rng.integers(0, 2, (n_perturbations, 3)).astype(float)
    constant = np.tile(rng.normal(size=3), (n_perturbations, 1))
    assert centroid_accuracy(constant, observed).mean() == pytest.approx(0.5, abs=1e-12)


def test_permuted_predictions_score_one_half_in_the_mean():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(30, 40))
    scores = np.array([centroid_accuracy(rng.permutation(observed), observed).mean() for _ in range(100)])
    assert abs(scores.mean() - 0.5) < 3 * scores.std() / 10


def test_ties_count_half():
    observed = np.array([[0.3, 0.1], [0.3, 0.1], [0.7, 0.2], [0.7, 0.2]])
    np.testing.assert_allclose(centroid_accuracy(observed, observed), 2.5 / 3, rtol=1e-12)
    middle = np.tile([0.5, 0.15], (4, 1))
    np.testing.assert_allclose(centroid_accuracy(middle, observed), 0.5, rtol=1e-12)


def test_rotation_shift_and_order_of_perturbations_change_nothing():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(15, 6))
    predicted = observed + rng.normal(0, 1.5, observed.shape)
    expected = centroid_accuracy(predicted, observed)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(centroid_accuracy(predicted @ rotation + 9, observed @ rotation + 9), expected)
    order = rng.permutation(15)
    np.testing.assert_allclose(centroid_accuracy(predicted[order], observed[order]), expected[order])


def test_a_single_perturbation_has_no_accuracy():
    assert np.isnan(centroid_accuracy(np.ones((1, 3)), np.zeros((1, 3)))).tolist() == [True]


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.ones((3, 4)), r"`observed` has shape \(2, 4\) but `predicted` has \(3, 4\)"),
        (np.ones(4), r"`predicted` must be perturbations x genes .*\(4,\)"),
        (np.ones((2, 0)), r"`predicted` must be .* not empty"),
        (np.full((2, 4), np.inf), "`predicted` holds 8 values that are NaN or infinite, of 8"),
    ],
)
def test_bad_means_raise(predicted, message):
    with pytest.raises(ValueError, match=message):
        centroid_accuracy(predicted, np.ones((2, 4)))

from typing import get_args

import numpy as np
import pytest

from multipert.metrics import _delta, _error
from multipert.metrics._pairwise import NEEDS_CONTROL, PairMetric, pairwise

METRICS = get_args(PairMetric)
LOWER_IS_BETTER = ("euclidean", "mae", "mse", "rmse")


def by_hand(metric, p, o, c):
    """The metric of one pair of means, from the scalar functions where there is one."""
    match metric:
        case "rmse" | "mse" | "mae" | "r2" | "r2_pearson":
            return getattr(_error, metric)(p[None], o[None])
        case "pearson_delta" | "cosine_logfc":
            return getattr(_delta, metric)(p[None], o[None], c[None])
        case "euclidean":
            return np.linalg.norm(p - o)
        case "pearson":
            return np.corrcoef(p, o)[0, 1]
        case "cosine":
            return p @ o / np.sqrt((p @ p) * (o @ o))
        case "cosine_delta":
            p, o = p - c, o - c
            return p @ o / np.sqrt((p @ p) * (o @ o))


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    """20 predicted and 15 observed means of 50 genes; some pairs nearly or wholly agree."""
    rng = np.random.default_rng(0)
    control = rng.gamma(1.0, 1.0, 50)
    observed = np.abs(control + rng.normal(0, 0.4, (15, 50)))
    predicted = np.abs(control + rng.normal(0, 0.4, (20, 50)))
    predicted[:3] = observed[:3]
    predicted[3] = observed[3] + 1e-7 * rng.normal(size=50)
    predicted[4] = observed[4] * (1 + 1e-3)
    return {"predicted": predicted, "observed": observed, "control": control}


@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_double_loop(metric, vectors):
    matrix = pairwise(**vectors, metric=metric)
    predicted, observed, control = vectors.values()
    expected = [[by_hand(metric, p, o, control) for p in predicted] for o in observed]
    np.testing.assert_allclose(matrix, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("metric", LOWER_IS_BETTER)
def test_close_pairs_keep_their_digits(metric, vectors):
    """The expansion of a square would turn a distance of 1e-7 into 0 or 1e-8 into noise, and 0 into 1e-8."""
    predicted, observed, control = vectors.values()
    for offset in (0.0, 1e3):
        matrix = pairwise(predicted + offset, observed + offset, metric)
        assert (np.diagonal(matrix)[:3] == 0).all()
        expected = by_hand(metric, predicted[3] + offset, observed[3] + offset, control)
        assert matrix[3, 3] == pytest.approx(expected, rel=1e-4 if offset else 1e-8)
        assert expected > 0


def test_only_a_vector_itself_is_at_distance_zero(vectors):
    """Also if all vectors are near one another and far from the origin."""
    near = 100 + 1e-4 * vectors["observed"]
    matrix = pairwise(near, near)
    assert (np.diagonal(matrix) == 0).all()
    np.testing.assert_allclose(matrix, 1e-4 * pairwise(vectors["observed"], vectors["observed"]), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_are_observations_and_the_best_pair_is_the_true_one(metric, vectors):
    observed, control = vectors["observed"], vectors["control"]
    predicted = observed[:10] + 0.01 * np.random.default_rng(1).normal(size=(10, 50))
    matrix = pairwise(predicted, observed, metric, control=control)
    assert matrix.shape == (15, 10)
    best = matrix.argmin(axis=0) if metric in LOWER_IS_BETTER else matrix.argmax(axis=0)
    assert best.tolist() == list(range(10))


def test_r2_takes_the_observation_for_the_truth(vectors):
    predicted, observed = vectors["predicted"], vectors["observed"]
    swapped = pairwise(observed, predicted, "r2").T
    assert not np.allclose(pairwise(predicted, observed, "r2"), swapped, atol=0.01)


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_only_where_the_scalar_is(metric, vectors):
    predicted, observed, control = vectors.values()
    predicted[5], observed[5] = 2.0, 0.5  # the same for all genes
    predicted[6], observed[6] = control, control
    predicted[7] = control.astype(np.float32)
    predicted[8] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = [[by_hand(metric, p, o, control) for p in predicted] for o in observed]
    matrix = pairwise(predicted, observed, metric, control=control)
    if metric in ("pearson", "cosine_delta"):
        # numpy knows no rounding: there a change of 1e-8 or a rounded constant has a direction
        blurred = {"pearson": ([5], [5]), "cosine_delta": ([6, 7], [6])}[metric]
        expected = np.array(expected)
        expected[:, blurred[0]] = expected[blurred[1]] = np.nan
    np.testing.assert_allclose(matrix, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("metric", METRICS)
def test_input_is_left_as_it_was_and_read_in_any_type(metric, vectors):
    halves = {name: values.astype(np.float32) for name, values in vectors.items()}
    before = {name: values.copy() for name, values in halves.items()}
    matrix = pairwise(**halves, metric=metric)
    for name, values in halves.items():
        np.testing.assert_array_equal(values, before[name])
    wide = {name: values.astype(np.float64) for name, values in halves.items()}
    np.testing.assert_allclose(matrix, pairwise(**wide, metric=metric), rtol=1e-12, atol=1e-12)


def test_bad_input_is_named(vectors):
    predicted, observed, control = vectors.values()
    with pytest.raises(ValueError, match="`metric` is 'rmsd'; it must be one of cosine, .*rmse"):
        pairwise(predicted, observed, "rmsd")
    for metric in NEEDS_CONTROL:
        with pytest.raises(ValueError, match=f"'{metric}' needs `control`"):
            pairwise(predicted, observed, metric)
    with pytest.raises(ValueError, match="`observed` has 49 genes but `predicted` has 50"):
        pairwise(predicted, observed[:, 1:])
    with pytest.raises(ValueError, match=r"`control` must have one value for each of 50 genes; it has shape \(49,\)"):
        pairwise(predicted, observed, "pearson_delta", control=control[1:])
    with pytest.raises(ValueError, match=r"`control` must have one value .*\(15, 50\)"):
        pairwise(predicted, observed, "pearson_delta", control=observed)
    with pytest.raises(ValueError, match="`predicted` holds 1 values that are NaN"):
        pairwise(np.where(np.arange(1000).reshape(20, 50) == 7, np.nan, predicted), observed)
    with pytest.raises(ValueError, match="`predicted` must be"):
        pairwise(predicted[0], observed)

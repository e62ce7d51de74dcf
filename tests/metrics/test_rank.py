import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.metrics._pairwise import pairwise
from multipert.metrics._rank import rank

N_PERTURBATIONS, N_VARS = 20, 50


@pytest.fixture
def means() -> tuple[np.ndarray, np.ndarray]:
    """Predicted and observed means; a prediction is neither perfect nor useless."""
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(N_PERTURBATIONS, N_VARS))
    return observed + 1.5 * rng.normal(size=observed.shape), observed


def by_loop(values, ties, better):
    """The rank of predictions by counting."""
    ranks = []
    for i, row in enumerate(values):
        others = [value for j, value in enumerate(row) if j != i and not np.isnan(value)]
        ahead = sum(value < row[i] if better == "lower" else value > row[i] for value in others)
        equal = sum(value == row[i] for value in others)
        is_defined = others and not np.isnan(row[i])
        ranks.append((ahead + equal * (0.5 if ties == "mid" else 1)) / len(others) if is_defined else np.nan)
    return np.array(ranks)


# few distinct values, so that ties are common
squares = st.integers(1, 6).flatmap(
    lambda p: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5, -1.0, np.nan, np.inf]), min_size=p, max_size=p),
        min_size=p,
        max_size=p,
    )
)


@settings(max_examples=200, deadline=None)
@given(squares, st.sampled_from(["mid", "le"]), st.sampled_from(["lower", "higher"]))
def test_equals_counting_in_a_loop(square, ties, better):
    values = np.array(square)
    np.testing.assert_array_equal(rank(values, ties=ties, better=better), by_loop(values, ties, better))
    np.testing.assert_array_equal(
        rank(values, ties=ties, better=better, of="observations"), by_loop(values.T, ties, better)
    )


@settings(max_examples=100, deadline=None)
@given(squares, st.sampled_from(["predictions", "observations"]), st.randoms(use_true_random=False))
def test_properties_of_any_matrix(square, of, random):
    values = np.array(square)
    ranks = rank(values, of=of)
    assert ((0 <= ranks) & (ranks <= 1) | np.isnan(ranks)).all()
    # ties can only count against the prediction
    assert (rank(values, of=of, ties="le") >= ranks)[~np.isnan(ranks)].all()
    # reading errors as similarities turns the order round, ties stay in the middle
    np.testing.assert_allclose(rank(values, of=of, better="higher"), 1 - ranks, atol=1e-12)
    np.testing.assert_array_equal(rank(-values, of=of, better="higher"), ranks)
    # the unit of the error does not matter
    for factor in (1e-9, 1e9):
        np.testing.assert_array_equal(rank(factor * values, of=of), ranks)
    # nor the order of the perturbations
    order = random.sample(range(len(values)), len(values))
    np.testing.assert_array_equal(rank(values[np.ix_(order, order)], of=of), ranks[order])
    np.testing.assert_array_equal(rank(values.T, of=of), rank(values, of=_other(of)))


def _other(of):
    return {"predictions": "observations", "observations": "predictions"}[of]


def test_perfect_predictions_rank_first(means):
    _, observed = means
    for of in ("predictions", "observations"):
        assert (rank(pairwise(observed, observed), of=of) == 0).all()
        assert (rank(pairwise(observed, observed, "cosine"), of=of, better="higher") == 0).all()


@pytest.mark.parametrize(("metric", "better"), [("rmse", "lower"), ("mae", "lower"), ("cosine", "higher")])
def test_one_prediction_for_all_gets_exactly_one_half(metric, better, means):
    rng = np.random.default_rng(1)
    predicted, observed = means
    constant = np.tile(predicted[0], (N_PERTURBATIONS, 1))
    rounded = constant * (1 + 1e-8 * rng.normal(size=constant.shape))
    for collapsed in (constant, rounded, constant.astype(np.float32)):
        values = pairwise(collapsed, observed, metric)
        assert (rank(values, better=better) == 0.5).all()
        assert (rank(values, better=better, ties="le") == 1).all()
        # one prediction stands at every place among the observations
        expected = np.arange(N_PERTURBATIONS) / (N_PERTURBATIONS - 1)
        ranks = rank(values, better=better, of="observations")
        np.testing.assert_allclose(np.sort(ranks), expected, atol=1e-12)
    # a difference that is no rounding is no tie
    different = constant * (1 + 1e-3 * rng.normal(size=constant.shape))
    assert (rank(pairwise(different, observed, metric), better=better) != 0.5).any()


def test_similarities_around_zero_tie_when_only_rounding_parts_them():
    values = np.full((4, 4), 0.3)
    values[0] = [0.0, 1e-17, -1e-17, 2e-17]
    assert rank(values, better="higher").tolist() == [0.5] * 4


@pytest.mark.parametrize("of", ["predictions", "observations"])
def test_shuffled_predictions_rank_one_half_on_average(of, means):
    rng = np.random.default_rng(2)
    predicted, observed = means
    averages = [rank(pairwise(rng.permutation(predicted), observed), of=of).mean() for _ in range(300)]
    error = np.std(averages) / np.sqrt(len(averages))
    assert abs(np.mean(averages) - 0.5) < 3 * error
    assert rank(pairwise(predicted, observed), of=of).mean() < 0.2


def test_sign_flip_of_the_change_ranks_worse_than_chance(means):
    predicted, observed = means
    ranks = rank(pairwise(-predicted, observed, "cosine"), better="higher")
    assert ranks.mean() > 0.8


def test_common_rotation_and_shift_change_no_rank(means):
    rng = np.random.default_rng(3)
    predicted, observed = means
    rotation, _ = np.linalg.qr(rng.normal(size=(N_VARS, N_VARS)))
    shift = 5 * rng.normal(size=N_VARS)
    moved = pairwise(predicted @ rotation + shift, observed @ rotation + shift)
    np.testing.assert_array_equal(rank(moved), rank(pairwise(predicted, observed)))
    assert not np.array_equal(rank(pairwise(predicted + shift, observed)), rank(moved))


def test_positive_scaling_changes_no_rank_of_cosine(means):
    predicted, observed = means
    factors = np.random.default_rng(4).uniform(0.1, 10, (N_PERTURBATIONS, 1))
    expected = rank(pairwise(predicted, observed, "cosine"), better="higher")
    scaled = pairwise(factors * predicted, observed, "cosine")
    np.testing.assert_array_equal(rank(scaled, better="higher"), expected)
    assert not np.array_equal(rank(pairwise(factors * predicted, observed)), rank(pairwise(predicted, observed)))


def test_order_of_genes_changes_no_rank(means):
    predicted, observed = means
    order = np.random.default_rng(5).permutation(N_VARS)
    np.testing.assert_array_equal(
        rank(pairwise(predicted[:, order], observed[:, order], "mae")), rank(pairwise(predicted, observed, "mae"))
    )


def test_a_prediction_ranked_is_not_an_observation_ranked():
    """One prediction in the middle is the nearest to all observations, which only the predictions' rank punishes."""
    observed = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    predicted = np.array([[0.1, 0.0], [-9.0, 0.0], [0.0, 9.0]])
    values = pairwise(predicted, observed)
    np.testing.assert_array_equal(rank(values), [0, 0.5, 0.5])
    np.testing.assert_array_equal(rank(values, of="observations"), [0, 0, 0])


def test_undefined_pairs():
    nan = np.nan
    values = np.array([[1.0, nan, 0.5], [0.0, nan, 0.0], [nan, nan, 1.0]])
    np.testing.assert_array_equal(rank(values), [1.0, nan, nan])
    assert np.isnan(rank(np.array([[0.3]]))).tolist() == [True]
    assert np.isnan(rank(np.full((3, 3), nan))).all()


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros(4), np.array([["a"]]), np.zeros((2, 2, 2))])
def test_matrix_that_is_not_square_raises(values):
    with pytest.raises(ValueError, match="`values` must be a square matrix"):
        rank(values)


@pytest.mark.parametrize("option", ["better", "of", "ties"])
def test_unknown_option_raises(option):
    with pytest.raises(ValueError, match=f"`{option}` is 'largest'; it must be one of"):
        rank(np.zeros((2, 2)), **{option: "largest"})


def test_centroid_accuracy_is_one_minus_the_rank_of_observations(means):
    from multipert.metrics import centroid_accuracy

    predicted, observed = means
    ranks = rank(pairwise(predicted, observed, "euclidean"), of="observations")
    np.testing.assert_allclose(centroid_accuracy(predicted, observed), 1 - ranks, atol=1e-12)

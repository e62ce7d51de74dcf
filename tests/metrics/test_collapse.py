from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.metrics._collapse import collapse

N_PERTURBATIONS, N_VARS = 12, 80


def changes(shared, seed, n=N_PERTURBATIONS):
    """Changes of which a part is common to all perturbations."""
    rng = np.random.default_rng(seed)
    return shared * rng.normal(size=N_VARS) + rng.normal(size=(n, N_VARS))


@pytest.fixture
def control() -> np.ndarray:
    return np.random.default_rng(9).gamma(2.0, 1.0, N_VARS)


def test_figures_by_hand(control):
    predicted, observed = changes(2.0, 0), changes(0.5, 1)
    result = collapse(control + predicted, control + observed, control)
    pairs = list(combinations(range(N_PERTURBATIONS), 2))
    of_predicted = [np.corrcoef(predicted[i], predicted[j])[0, 1] for i, j in pairs]
    of_observed = [np.corrcoef(observed[i], observed[j])[0, 1] for i, j in pairs]
    assert result.predicted == pytest.approx(np.median(of_predicted), abs=1e-10)
    assert result.observed == pytest.approx(np.median(of_observed), abs=1e-10)
    assert result.observed_upper == pytest.approx(np.quantile(of_observed, 0.95), abs=1e-10)
    assert result.is_collapsed is True
    assert result.observed < result.observed_upper < result.predicted


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 3), st.floats(0, 0.5), st.integers(0, 1000))
def test_predictions_near_the_truth_have_not_collapsed(shared, noise, seed):
    """However much of the response is common to all perturbations."""
    observed = changes(shared, seed)
    predicted = observed + noise * np.random.default_rng(seed).normal(size=observed.shape)
    assert not collapse(predicted, observed, np.zeros(N_VARS)).is_collapsed


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 3), st.integers(0, 1000))
def test_the_mean_response_for_all_has_collapsed(shared, seed):
    observed = changes(shared, seed)
    rng = np.random.default_rng(seed)
    strengths = rng.uniform(0.5, 2.0, (N_PERTURBATIONS, 1))
    predicted = strengths * observed.mean(axis=0) + 1e-3 * rng.normal(size=observed.shape)
    result = collapse(predicted, observed, np.zeros(N_VARS))
    assert result.is_collapsed
    assert result.predicted > 0.99 > result.observed


def test_order_of_perturbations_and_genes_and_strength_do_not_matter(control):
    predicted, observed = changes(1.0, 0), changes(0.5, 1)
    expected = collapse(control + predicted, control + observed, control)
    rng = np.random.default_rng(2)
    rows, genes = rng.permutation(N_PERTURBATIONS), rng.permutation(N_VARS)
    for other in (
        collapse(control + predicted[rows], control + observed[rows[::-1]], control),
        collapse((control + predicted)[:, genes], (control + observed)[:, genes], control[genes]),
        collapse(control + 3 * predicted, control + 0.2 * observed, control),
    ):
        np.testing.assert_allclose(other, expected, atol=1e-10)


def test_no_change_for_all_has_collapsed(control):
    observed = control + changes(0.5, 0)
    result = collapse(np.tile(control, (N_PERTURBATIONS, 1)), observed, control)
    assert (result.predicted, result.is_collapsed) == (1.0, True)
    # also if only the rounding of float32 tells the predictions from control
    assert collapse(np.tile(control, (N_PERTURBATIONS, 1)).astype(np.float32), observed, control).is_collapsed
    # unless nothing was observed to change
    nothing = np.tile(control, (N_PERTURBATIONS, 1))
    assert collapse(nothing, nothing, control) == (1.0, 1.0, 1.0, False)


def test_no_change_for_a_few_has_not_collapsed(control):
    observed = control + changes(0.0, 0)
    predicted = observed.copy()
    predicted[:3] = control
    result = collapse(predicted, observed, control)
    assert not result.is_collapsed
    assert abs(result.predicted) < 0.1
    predicted[:10] = control
    assert collapse(predicted, observed, control).is_collapsed


def test_too_few_perturbations_to_tell(control):
    for n in (1, 2):
        result = collapse(control + changes(0, 0, n), control + changes(0, 1, n), control)
        assert np.isnan(result[:3]).all()
        assert result.is_collapsed is False
    assert np.isfinite(collapse(control + changes(0, 0, 3), control + changes(0, 1, 3), control)[:3]).all()


def test_bad_input_is_named(control):
    cells = control + changes(0, 0)
    with pytest.raises(ValueError, match=r"`observed` has shape \(12, 80\) but `predicted` has \(11, 80\)"):
        collapse(cells[1:], cells, control)
    with pytest.raises(ValueError, match=r"`observed` has shape \(12, 79\)"):
        collapse(cells, cells[:, 1:], control)
    with pytest.raises(ValueError, match="`control` must have one value for each of 80 genes"):
        collapse(cells, cells, cells)

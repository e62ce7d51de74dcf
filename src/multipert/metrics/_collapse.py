from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._centroid import as_means, as_vector
from ._pairwise import correlations, deltas

UPPER_QUANTILE = 0.95


class Collapse(NamedTuple):
    """How alike the changes of different perturbations are, as predicted and as observed."""

    predicted: float
    """Median correlation between the predicted changes of two perturbations."""
    observed: float
    """Median correlation between the observed changes of two perturbations."""
    observed_upper: float
    """95th percentile of the same correlations as observed."""
    is_collapsed: bool
    """Whether the predicted median is above the observed 95th percentile."""


def collapse(predicted: np.ndarray, observed: np.ndarray, control: np.ndarray) -> Collapse:
    """Tell whether a model predicts the same change for every perturbation.

    A prediction of the common part of all responses has high scores wherever the responses share much, so scores alone
    do not show it :cite:p:`Wu2024`. Here the changes from control of different perturbations are correlated with one
    another over genes, once as predicted and once as observed. If half of the predicted pairs are more alike than all
    but a twentieth of the observed ones, the model has collapsed.

    Two unchanged perturbations are the same answer and count as correlation 1; an unchanged one has nothing in common
    with a changed one and counts as 0. A model that predicts no change at all has therefore collapsed, unless nothing
    was observed to change either.

    The noise of few cells makes observed changes look less alike than they are, so with a handful of cells for each
    perturbation the verdict is a reason to look and not a proof.

    Parameters
    ----------
    predicted
        Predicted mean expression of each perturbation, shape `(n_perturbations, n_vars)`.
    observed
        Observed mean expression of the same perturbations in the same order, shape `(n_perturbations, n_vars)`.
    control
        Mean expression of the control cells of the same context, shape `(n_vars,)`.

    Returns
    -------
    Median correlation as predicted and as observed, 95th percentile as observed, and the verdict. With fewer than
    three perturbations the figures are `nan` and the verdict is False.

    Raises
    ------
    ValueError
        If a matrix is empty or holds NaN or infinite values, or the numbers of genes or perturbations differ.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control, own, common = np.ones(50), rng.normal(size=(6, 50)), rng.normal(size=50)
    >>> collapse(control + own, control + own, control).is_collapsed
    False
    >>> collapse(control + common + 0.1 * own, control + own, control).is_collapsed
    True
    """
    predicted, observed = as_means(predicted=predicted, observed=observed)
    control = as_vector("control", control, observed.shape[1])
    if len(predicted) < 3:
        return Collapse(np.nan, np.nan, np.nan, False)
    of_predicted, of_observed = (_pairs(deltas(mean, control)) for mean in (predicted, observed))
    median, upper = float(np.median(of_predicted)), float(np.quantile(of_observed, UPPER_QUANTILE))
    return Collapse(median, float(np.median(of_observed)), upper, median > upper)


def _pairs(delta: np.ndarray) -> np.ndarray:
    """Correlation of every two different rows, once each."""
    matrix = correlations(delta, delta)
    is_flat = np.isnan(np.diagonal(matrix))
    matrix[is_flat | is_flat[:, None]] = 0.0
    matrix[np.ix_(is_flat, is_flat)] = 1.0
    return matrix[np.triu_indices(len(matrix), k=1)]

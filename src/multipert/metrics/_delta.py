from __future__ import annotations

import numpy as np

from ._cells import Cells, Matrix, as_cells
from ._error import correlation, cosine

FLOAT32_RESOLUTION = 1e-6


def pearson_delta(predicted: Matrix, observed: Matrix, control: Matrix) -> float:
    """Correlation of predicted and observed mean change.

    Both means are taken relative to the mean of the control cells, so a method that only repeats the control earns
    nothing from baseline expression.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.

    Returns
    -------
    Pearson correlation over genes; `nan` if either change is constant, or no larger than the rounding of float32.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> control = np.zeros((2, 3))
    >>> round(pearson_delta(control + [1, 2, 3], control + [2, 4, 6], control), 3)
    1.0
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    return float(correlation(_delta(predicted, control), _delta(observed, control)))


def cosine_logfc(predicted: Matrix, observed: Matrix, control: Matrix, *, pseudocount: float = 0.1) -> float:
    """Cosine of predicted and observed log fold change.

    The log fold change of a gene is `log2(mean + pseudocount) - log2(control mean + pseudocount)` with means of the
    values as given, as in PerturBench :cite:p:`Wu2024`. On log-normalised values it is thus not the fold change of
    counts, and genes near zero weigh more than in :func:`pearson_delta`. A gene whose mean is below `-pseudocount`
    counts as unchanged.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    pseudocount
        Added to every mean, in the unit of the data.

    Returns
    -------
    Cosine over genes; `nan` if either group shows no change.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> control = np.array([[1.0, 1.0]])
    >>> round(cosine_logfc(np.array([[2.0, 1.0]]), np.array([[3.0, 1.0]]), control), 3)
    1.0
    >>> round(cosine_logfc(np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]]), control), 3)
    0.0
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    changes = []
    for group in (predicted, observed):
        with np.errstate(invalid="ignore", divide="ignore"):
            change = np.log2(control.mean + _delta(group, control) + pseudocount) - np.log2(control.mean + pseudocount)
        changes.append(np.where(np.isfinite(change), change, 0.0))
    return float(cosine(*changes))


def _delta(group: Cells, control: Cells) -> np.ndarray:
    """Perturbed mean - control mean; all zero if it could be the rounding of float32 cells."""
    delta = group.mean - control.mean
    noise = FLOAT32_RESOLUTION * np.linalg.norm(control.mean)
    return np.zeros_like(delta) if np.linalg.norm(delta) <= noise else delta

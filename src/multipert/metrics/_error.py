from __future__ import annotations

import numpy as np

from ._cells import Matrix, as_cells


def rmse(predicted: Matrix, observed: Matrix) -> float:
    """Root mean squared error between the two mean expression vectors.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Error in the unit of the data, over genes; 0 is perfect.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> rmse(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 4.0]]))
    2.1213203435596424
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    return float(np.sqrt(np.mean((predicted.mean - observed.mean) ** 2)))


def r2(predicted: Matrix, observed: Matrix) -> float:
    """Coefficient of determination of the predicted mean vector.

    One minus the squared error over the spread of the observed means around their own average over genes. It is
    unbounded below, sees scale and offset, and is not the squared correlation; that one is :func:`r2_pearson`.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    At most 1; 0 for predicting every gene by the average over genes; `nan` if the observed means are all equal.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> observed = np.array([[1.0, 2.0, 3.0]])
    >>> r2(2 * observed, observed)
    -6.0
    >>> round(r2_pearson(2 * observed, observed), 3)
    1.0
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    spread = np.sum((observed.mean - observed.mean.mean()) ** 2)
    if spread == 0:
        return np.nan
    return float(1 - np.sum((observed.mean - predicted.mean) ** 2) / spread)


def r2_pearson(predicted: Matrix, observed: Matrix) -> float:
    """Squared Pearson correlation of the two mean expression vectors.

    The "R2" of much of the literature. Baseline expression dominates it: on real cells the control alone often passes
    0.7. It does not see scale and offset; :func:`r2` does.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Between 0 and 1; `nan` if either mean vector is constant.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> round(r2_pearson(np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 2.0, 3.0]])), 3)
    0.964
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    return float(correlation(predicted.mean, observed.mean) ** 2)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; `nan` where a vector is constant but for rounding."""
    return cosine(_centred(first), _centred(second))


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine along the last axis; `nan` where a vector is zero."""
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(np.sum(first * second, axis=-1) / norms, -1, 1)


def _centred(vector: np.ndarray) -> np.ndarray:
    centred = vector - vector.mean(axis=-1, keepdims=True)
    noise = 1e-12 * np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.where(np.linalg.norm(centred, axis=-1, keepdims=True) <= noise, 0.0, centred)

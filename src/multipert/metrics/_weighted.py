from __future__ import annotations

import numpy as np

from ._cells import VARIANCE_FLOOR
from ._centroid import as_means, as_vector


def de_weights(
    mean: np.ndarray, variance: np.ndarray, n_cells: np.ndarray, *, overestimate_variance: bool = False
) -> np.ndarray:
    """Weights of genes by how much each perturbation sets them apart from all other perturbations.

    Every perturbation is tested against the pooled cells of all others, control excluded, by Welch's t. The sizes of
    its statistics are scaled to [0, 1] over genes, squared and divided by their sum :cite:p:`Mejia2025`. Means,
    variances and numbers of cells suffice, and the pool of the others is the total less the perturbation itself, so
    the cost is P x n_vars.

    Parameters
    ----------
    mean
        Observed means, one row for each perturbation, shape `(n_perturbations, n_vars)`.
    variance
        Unbiased variances over cells, shape `(n_perturbations, n_vars)`; `nan` for a single cell.
    n_cells
        Numbers of cells, shape `(n_perturbations,)`.
    overestimate_variance
        Divide the variance of the pooled cells by the number of cells of the perturbation and not by their own, as the
        publication does with scanpy's `t-test_overestim_var`. It keeps genes that vary little within one small group
        from dominating.

    Returns
    -------
    Weights that sum to 1 over genes, shape `(n_perturbations, n_vars)`; equal ones where all statistics are equal. A
    row is `nan` if no gene has a statistic: there is one cell, nothing else to compare with, or no difference.

    Raises
    ------
    ValueError
        If an array is empty, the shapes do not agree, a mean is not finite, a variance is negative or missing, or a
        number of cells is not a positive integer.

    Examples
    --------
    >>> mean = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> de_weights(mean, np.full((3, 3), 0.1), np.array([10, 10, 10])).round(2)
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    mean, variance, n_cells = _checked(mean, variance, n_cells)
    size = np.abs(_t_against_rest(mean, variance, n_cells, overestimate_variance))
    low, high = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(high > low, (size - low) / (high - low), np.where(high > 0, 1.0, np.nan))
    return scaled**2 / np.sum(scaled**2, axis=1, keepdims=True)


def weighted_mse(predicted_mean: np.ndarray, observed_mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared error of means, averaged over genes with weights.

    With the weights of :func:`de_weights` a prediction of the average perturbation is not rewarded for the many genes
    that do not respond :cite:p:`Mejia2025`. Equal weights give the mean squared error.

    Parameters
    ----------
    predicted_mean
        Predicted means, one row for each perturbation, shape `(n_perturbations, n_vars)`.
    observed_mean
        Observed means in the same order, shape `(n_perturbations, n_vars)`.
    weights
        Not negative, shape `(n_perturbations, n_vars)`; each row is divided by its sum. Rows of `nan` are allowed.

    Returns
    -------
    Error of each perturbation in the squared unit of the data, shape `(n_perturbations,)`; `nan` where the weights are
    `nan` or all 0.

    Raises
    ------
    ValueError
        If an array is not perturbations x genes, is empty, the shapes differ, a mean is not finite, or a weight is
        negative or infinite.

    Examples
    --------
    >>> predicted, observed = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
    >>> weighted_mse(predicted, observed, np.array([[0.5, 0.5]])), weighted_mse(predicted, observed, [[0.9, 0.1]])
    (array([2.]), array([0.4]))
    """
    predicted_mean, observed_mean = as_means(predicted_mean=predicted_mean, observed_mean=observed_mean)
    weights = _normalised(weights, observed_mean.shape)
    return np.sum(weights * (predicted_mean - observed_mean) ** 2, axis=1)


def weighted_r2_delta(
    predicted_mean: np.ndarray,
    observed_mean: np.ndarray,
    weights: np.ndarray,
    reference: np.ndarray | None = None,
) -> np.ndarray:
    """Coefficient of determination of the change from a reference, with weights of genes.

    One minus the weighted squared error over the weighted spread of the observed changes around their weighted
    average. Relative to the mean of all perturbations, and with :func:`de_weights`, predicting that mean does not score
    above 0 :cite:p:`Mejia2025`.

    Parameters
    ----------
    predicted_mean
        Predicted means, one row for each perturbation, shape `(n_perturbations, n_vars)`.
    observed_mean
        Observed means in the same order, shape `(n_perturbations, n_vars)`.
    weights
        Not negative, shape `(n_perturbations, n_vars)`; each row is divided by its sum. Rows of `nan` are allowed.
    reference
        What changes are relative to, shape `(n_vars,)`; the mean over the rows of `observed_mean` if `None`.

    Returns
    -------
    At most 1 for each perturbation, shape `(n_perturbations,)`; `nan` where the weights are `nan` or all 0, or where
    all weighted genes change alike.

    Raises
    ------
    ValueError
        If an array is not perturbations x genes, is empty, the shapes differ, a mean is not finite, or a weight is
        negative or infinite.

    Examples
    --------
    >>> observed = np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    >>> weights = np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    >>> weighted_r2_delta(observed, observed, weights)
    array([1., 1.])
    >>> weighted_r2_delta(np.ones((2, 3)), observed, weights)
    array([-1., -1.])
    """
    predicted_mean, observed_mean = as_means(predicted_mean=predicted_mean, observed_mean=observed_mean)
    weights = _normalised(weights, observed_mean.shape)
    n_vars = observed_mean.shape[1]
    reference = observed_mean.mean(axis=0) if reference is None else as_vector("reference", reference, n_vars)
    change = observed_mean - reference
    centred = change - np.sum(weights * change, axis=1, keepdims=True)
    spread, scale = np.sum(weights * centred**2, axis=1), np.sum(weights * change**2, axis=1)
    error = np.sum(weights * (observed_mean - predicted_mean) ** 2, axis=1)
    # a spread that rounding could have left is none
    return 1 - error / np.where(spread > VARIANCE_FLOOR * scale, spread, np.nan)


def _t_against_rest(
    mean: np.ndarray, variance: np.ndarray, n_cells: np.ndarray, overestimate_variance: bool
) -> np.ndarray:
    """Welch's t of every row against the pooled cells of all other rows; 0 where it is not finite."""
    own = n_cells[:, None]
    rest = own.sum() - own
    within = np.where(own > 1, (own - 1) * variance, 0.0)
    # relative to the mean of all cells the sums of the others are minus those of the row itself
    centred = mean - np.sum(own * mean, axis=0) / own.sum()
    between = own * centred**2
    with np.errstate(invalid="ignore", divide="ignore"):
        rest_centred = -own * centred / rest
        squares = within.sum(axis=0) - within + between.sum(axis=0) - between - rest * rest_centred**2
        rest_variance = _floored(squares / (rest - 1), mean - centred + rest_centred)
        error = np.sqrt(_floored(variance, mean) / own + rest_variance / (own if overestimate_variance else rest))
        statistic = (centred - rest_centred) / error
    return np.where(np.isfinite(statistic), statistic, 0.0)


def _floored(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.where(variance < VARIANCE_FLOOR * (1 + mean**2), 0.0, variance)


def _checked(mean: np.ndarray, variance: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (mean,) = as_means(mean=mean)
    variance, n_cells = np.asarray(variance, dtype=np.float64), np.asarray(n_cells)
    if variance.shape != mean.shape:
        raise ValueError(f"`variance` has shape {variance.shape} but `mean` has {mean.shape}; they must agree.")
    if n_cells.shape != (len(mean),):
        raise ValueError(f"`n_cells` must have one number for each of {len(mean)} perturbations, not {n_cells.shape}.")
    n_wrong = int(np.sum(~((n_cells >= 1) & (n_cells == np.floor(n_cells)))))
    if n_wrong:
        raise ValueError(f"`n_cells` holds {n_wrong} of {n_cells.size} numbers that are not positive integers.")
    # a single cell has no variance, and what stands there is not read
    n_bad = int(np.sum(~(np.isfinite(variance) & (variance >= 0))[n_cells > 1]))
    if n_bad:
        raise ValueError(f"`variance` holds {n_bad} values that are negative, NaN or infinite, of {variance.size}.")
    return mean, np.where(n_cells[:, None] > 1, variance, np.nan), n_cells.astype(np.float64)


def _normalised(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != shape:
        raise ValueError(f"`weights` has shape {weights.shape} but the means have {shape}; they must agree.")
    n_bad = int(np.sum((weights < 0) | np.isinf(weights)))
    if n_bad:
        raise ValueError(f"`weights` holds {n_bad} values that are negative or infinite, of {weights.size}.")
    total = np.sum(weights, axis=1, keepdims=True)
    return weights / np.where(total > 0, total, np.nan)

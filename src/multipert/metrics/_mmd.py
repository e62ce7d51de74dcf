from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._cells import Cells, Matrix, as_cells
from ._distribution import left_factor, right_factor, squared_distances, squared_mean_distance, without_self

if TYPE_CHECKING:
    from collections.abc import Sequence

# squared bandwidths as multiples of the median squared distance
BANDWIDTH_MULTIPLES = (0.5, 1.0, 2.0, 4.0)
MAX_CELLS_FOR_MEDIAN = 2000


def mmd_linear(predicted: Matrix, observed: Matrix, *, unbiased: bool = False) -> float:
    r"""Maximum mean discrepancy with the linear kernel: the squared distance of the mean vectors.

    :math:`E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y)` with :math:`k(x, y) = x^\top y` is
    :math:`|E X - E Y|^2` :cite:p:`Gretton2012`, computed from the means in time proportional to cells times genes.
    Half of :func:`edistance` with squared distances, and the square of the Euclidean distance of the means: these
    three carry one piece of information.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    unbiased
        Leave out the pairs of a cell with itself: subtract from each group the sum over genes of the variance over the
        number of cells. The expected value for two samples of one distribution is then 0.

    Returns
    -------
    Squared distance in squared units of the data; `nan` if `unbiased` and a group has one cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> mmd_linear(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[4.0, 1.0]]))
    9.0
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    return squared_mean_distance(first, second, unbiased=unbiased)


def mmd_rbf(
    predicted: Matrix,
    observed: Matrix,
    *,
    bandwidths: Sequence[float] | None = None,
    unbiased: bool = False,
) -> float:
    r"""Squared maximum mean discrepancy with a mixture of Gaussian kernels.

    :math:`E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y)` with :math:`k(x, y)` the mean over bandwidths :math:`s` of
    :math:`\exp(-|x - y|^2 / (2 s^2))` :cite:p:`Gretton2012`. Unlike the linear kernel it sees spread and shape. The
    expectations run over all ordered pairs, a cell with itself included. Blocks of cells keep the memory bounded.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; principal components rather than genes.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    bandwidths
        Standard deviations of the kernels, in the unit of the data. By default their squares are 0.5, 1, 2 and 4 times
        the median squared distance between observed cells (2,000 drawn with a fixed seed where there are more), so
        that no prediction chooses the scale on which it is judged.
    unbiased
        Leave out the pairs of a cell with itself; single values may then be negative.

    Returns
    -------
    Between 0 and 2, without unit; `nan` if `unbiased` and a group has one cell, or if the default bandwidth is 0
    because half of the pairs of observed cells are equal or there is no pair.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, the numbers of genes differ, or a bandwidth is not a number
        above 0.

    Examples
    --------
    >>> observed = np.array([[0.0], [1.0]])
    >>> round(mmd_rbf(observed + 100, observed, bandwidths=[1.0]), 3)
    1.607
    >>> mmd_rbf(observed, observed)
    0.0
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    variances = _median_squares(second) * np.array(BANDWIDTH_MULTIPLES) if bandwidths is None else _squares(bandwidths)
    if not variances.all():
        return np.nan
    centre = second.mean
    between = _mean_kernel(first, second, centre, variances)
    within = 0.0
    for cells in (first, second):
        mean = _mean_kernel(cells, cells, centre, variances)
        # the kernel of a cell with itself is 1
        within += (mean - 1 / len(cells)) * without_self(cells) if unbiased else mean
    discrepancy = within - 2 * between
    # means of n^2 terms of at most 1: what is below this is rounding
    return float(discrepancy) if unbiased or discrepancy > 1e-12 else 0.0


def _squares(bandwidths: Sequence[float]) -> np.ndarray:
    values = np.asarray(bandwidths, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"`bandwidths` is {bandwidths!r}; it must be a list of one or more numbers above 0.")
    return values**2


def _median_squares(cells: Cells) -> float:
    """Median squared distance over the pairs of different cells; 0 for a single cell."""
    if len(cells) < 2:
        return 0.0
    if len(cells) > MAX_CELLS_FOR_MEDIAN:
        cells = cells[np.sort(np.random.default_rng(0).choice(len(cells), MAX_CELLS_FOR_MEDIAN, replace=False))]
    centred = cells.dense() - cells.mean
    squares = squared_distances(left_factor(centred), right_factor(centred))
    return float(np.median(squares[np.triu_indices(len(cells), 1)]))


def _mean_kernel(first: Cells, second: Cells, centre: np.ndarray, variances: np.ndarray) -> float:
    """Mean of the kernel over all pairs."""
    total = 0.0
    for block in first.blocks():
        left = left_factor(block - centre)
        for other in second.blocks():
            squares = squared_distances(left, right_factor(other - centre))
            total += sum(np.exp(squares / (-2 * variance)).sum() for variance in variances)
    return total / (len(first) * len(second) * len(variances))

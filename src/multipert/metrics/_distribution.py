from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh

from ._cells import Cells, Matrix, as_cells

N_COMPONENTS = 50
SQUARE_RESOLUTION = 1e-12
ROUNDING = 1e-12
# above this side an iterative solver beats the full decomposition
MAX_DIRECT_SIDE = 2500


def edistance(
    predicted: Matrix,
    observed: Matrix,
    *,
    squared: bool = False,
    half: bool = False,
    unbiased: bool = False,
) -> float:
    r"""Energy distance between predicted and observed cells.

    :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` with X predicted and Y observed :cite:p:`Szekely2013`. The expectations
    run over all ordered pairs, a cell with itself included, so identical groups have distance 0 and no value is
    negative. Blocks of cells keep the memory bounded whatever the number of cells.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`, in any space: genes or principal components.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    squared
        Put :math:`|X - Y|^2` in place of each distance. That leaves :math:`2 |E X - E Y|^2`, which sees nothing but
        the means; it is computed from them, without pairs.
    half
        Multiply by one half: :math:`E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2`, the scale of PerturBench's "MMD"; with
        `squared`, that of :func:`mmd_linear`.
    unbiased
        Leave out the pairs of a cell with itself, which multiplies :math:`E|X - X'|` by `n / (n - 1)`. The expected
        value for two samples of one distribution is then 0, and single values may be negative.

    Returns
    -------
    Distance in the unit of the data, or its square; with the default options 0 only for equal distributions; `nan` if
    `unbiased` and a group has one cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> predicted, observed = np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
    >>> edistance(predicted, observed)
    4.0
    >>> edistance(predicted, observed, squared=True)
    18.0
    >>> edistance(predicted, observed, unbiased=True)
    2.0
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    factor = 0.5 if half else 1.0
    if squared:
        return 2 * factor * squared_mean_distance(first, second, unbiased=unbiased)
    between = mean_pair_distance(first, second)
    within = mean_distance_within(first), mean_distance_within(second)
    if unbiased:
        return factor * (2 * between - within[0] * without_self(first) - within[1] * without_self(second))
    distance = 2 * between - within[0] - within[1]
    # the difference of equal numbers is rounding, which a ratio would blow up
    return factor * distance if distance > ROUNDING * between else 0.0


def mean_pairwise(predicted: Matrix, observed: Matrix) -> float:
    r"""Mean Euclidean distance between a predicted and an observed cell, :math:`E|X - Y|`.

    The spread of both groups is part of it: it is not 0 for equal groups, and a prediction that repeats the mean of
    the observed cells beats the observed cells themselves. Set it beside its value for two halves of the observed
    cells, or use :func:`edistance`, which takes the spread out.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Distance in the unit of the data.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> mean_pairwise(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    3.0
    """
    return mean_pair_distance(*as_cells(predicted=predicted, observed=observed))


def mean_pair_distance(first: Cells, second: Cells) -> float:
    """Mean Euclidean distance over all pairs, in blocks."""
    # distances are unchanged by a common shift; centring keeps the products small and so the differences exact
    centre = first.mean
    total = 0.0
    for block in first.blocks():
        left = left_factor(block - centre)
        for other in second.blocks():
            total += np.sqrt(squared_distances(left, right_factor(other - centre))).sum()
    return float(total / (len(first) * len(second)))


def mean_distance_within(cells: Cells) -> float:
    """Mean Euclidean distance over all ordered pairs of one group, computed once for each group."""
    if cells.within is None:
        cells.within = mean_pair_distance(cells, cells)
    return cells.within


def left_factor(cells: np.ndarray) -> np.ndarray:
    """What to multiply with the transposed :func:`right_factor` for squared distances: -2 x, |x|^2 and 1."""
    squares = np.einsum("ij,ij->i", cells, cells)
    return np.column_stack([-2 * cells, squares, np.ones(len(cells))])


def right_factor(cells: np.ndarray) -> np.ndarray:
    """The counterpart of :func:`left_factor`: y, 1 and |y|^2."""
    squares = np.einsum("ij,ij->i", cells, cells)
    return np.column_stack([cells, np.ones(len(cells)), squares])


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all pairs from their factors; exactly 0 where they could be rounding."""
    squares = left @ right.T
    sizes, other_sizes = left[:, -2], right[:, -1]
    limit = SQUARE_RESOLUTION * (sizes.max() + other_sizes.max())
    # no pair is looked at twice in the usual case that none is near
    if squares.min() < limit:
        rows, columns = np.divmod(np.flatnonzero(squares < limit), squares.shape[1])
        rounding = squares[rows, columns] < SQUARE_RESOLUTION * (sizes[rows] + other_sizes[columns])
        squares[rows[rounding], columns[rounding]] = 0.0
    return squares


def squared_mean_distance(first: Cells, second: Cells, *, unbiased: bool) -> float:
    """Squared distance of the two means; `unbiased` takes off what sampling adds to it."""
    distance = float(np.sum((first.mean - second.mean) ** 2))
    if unbiased:
        distance -= float(first.variance.sum() / len(first) + second.variance.sum() / len(second))
    return distance


def without_self(cells: Cells) -> float:
    """Factor that turns a mean over ordered pairs into one without the pairs of a cell with itself."""
    return len(cells) / (len(cells) - 1) if len(cells) > 1 else np.nan


def variance_ratio(predicted: Matrix, observed: Matrix) -> float:
    """Predicted over observed variance of a typical gene.

    The median over genes, because a ratio of total variances is that of the few genes that vary most. Below 1 the
    predicted cells are too alike, as those of models that decode a conditional mean; above 1 they are too spread.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Median over the genes that vary among the observed cells; `nan` if none does or a group has one cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> observed = np.array([[0.0, 0.0], [1.0, 3.0]])
    >>> variance_ratio(observed / 2, observed)
    0.25
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    varies = second.variance > 0
    if len(first) < 2 or not varies.any():
        return np.nan
    return float(np.median(first.variance[varies] / second.variance[varies]))


def low_variance_share(predicted: Matrix, observed: Matrix, *, ratio: float = 0.1) -> float:
    """Share of genes whose predicted variance is far below the observed one.

    Models that decode a conditional mean lose the spread of real cells, which distances and tests against control
    then reward or punish for the wrong reason.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    ratio
        Predicted over observed variance below which a gene counts.

    Returns
    -------
    Between 0 and 1, over the genes that vary among the observed cells; `nan` if none does or a group has one cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> observed = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> low_variance_share(observed * [1.0, 0.1], observed)
    0.5
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    varies = observed.variance > 0
    if len(predicted) < 2 or not varies.any():
        return np.nan
    return float(np.mean(predicted.variance[varies] < ratio * observed.variance[varies]))


class Basis(NamedTuple):
    """Centre `(n_vars,)` and orthonormal axes `(n_vars, n_components)` of a principal component space."""

    centre: np.ndarray
    axes: np.ndarray

    def project(self, cells: Cells) -> Cells:
        """Scores of the cells in this basis."""
        shift = self.centre @ self.axes
        return Cells(np.vstack([block @ self.axes - shift for block in cells.blocks()]))


def fit_basis(*groups: Cells, n_components: int = N_COMPONENTS) -> Basis:
    """Principal components of all cells of the groups together, centred and unscaled.

    The smaller of the two Gram matrices (cells or genes) is decomposed, so a few hundred cells cost little however
    many genes there are. Components without variance are left out; the sign of an axis is arbitrary.
    """
    stacked = np.vstack([group.dense() for group in groups])
    centre = stacked.mean(axis=0)
    stacked -= centre
    by_cells = stacked.shape[0] <= stacked.shape[1]
    side = min(stacked.shape)
    n_components = min(n_components, side)
    if side <= MAX_DIRECT_SIDE:
        gram = stacked @ stacked.T if by_cells else stacked.T @ stacked
        values, vectors = linalg.eigh(gram, subset_by_index=(side - n_components, side - 1), overwrite_a=True)
    else:
        first, second = (stacked, stacked.T) if by_cells else (stacked.T, stacked)
        operator = LinearOperator((side, side), matvec=lambda v: first @ (second @ v), dtype=np.float64)
        values, vectors = eigsh(operator, k=n_components, v0=np.random.default_rng(0).standard_normal(side))
    keep = values > 1e-12 * max(values.max(), np.finfo(float).tiny)
    vectors = vectors[:, keep]
    if by_cells:
        vectors = stacked.T @ vectors / np.sqrt(values[keep])
    return Basis(centre, vectors)

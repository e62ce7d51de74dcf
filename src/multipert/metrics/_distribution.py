from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh

from ._cells import Cells, Matrix, as_cells

N_COMPONENTS = 50
SQUARE_RESOLUTION = 1e-12
# above this side an iterative solver beats the full decomposition
MAX_DIRECT_SIDE = 2500


def edistance(predicted: Matrix, observed: Matrix) -> float:
    """Energy distance between predicted and observed cells, unsquared Euclidean.

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|` with X predicted and Y observed :cite:p:`Szekely2013`. The expectations run
    over all ordered pairs, a cell with itself included, so identical groups have distance 0 and no value is negative.
    Blocks of cells keep the memory bounded whatever the number of cells.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`, in any space: genes or principal components.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Distance in the unit of the data; 0 only for equal distributions.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> edistance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    4.0
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    between = mean_pair_distance(predicted, observed)
    distance = 2 * between - mean_pair_distance(predicted, predicted) - mean_pair_distance(observed, observed)
    # the difference of equal numbers is rounding, which a ratio would blow up
    return distance if distance > 1e-12 * between else 0.0


def mean_pair_distance(first: Cells, second: Cells) -> float:
    """Mean Euclidean distance over all pairs, in blocks."""
    # distances are unchanged by a common shift; centring keeps the products small and so the differences exact
    centre = first.mean
    total = 0.0
    for block in first.blocks():
        block -= centre
        norms = np.einsum("ij,ij->i", block, block)
        for other in second.blocks():
            other -= centre
            sizes = norms[:, None] + np.einsum("ij,ij->i", other, other)[None, :]
            squares = sizes - 2 * block @ other.T
            # what is left between equal cells is rounding
            squares[squares < SQUARE_RESOLUTION * sizes] = 0.0
            total += np.sqrt(squares).sum()
    return float(total / (len(first) * len(second)))


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

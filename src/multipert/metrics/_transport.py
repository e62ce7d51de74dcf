from __future__ import annotations

import warnings
from math import lcm
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.spatial.distance import cdist

from ._cells import Cells, Matrix, as_cells
from ._threads import thread_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

EPSILON_SHARE = 0.05
BLOCK_ROWS = 128
BLOCK_GENES = 256
# 1 GiB of single precision
MAX_KERNEL_SIZE = 2**28
# exp(-87) is the smallest normal single; what is clipped there stays negligible while the scalings are below exp(30)
SMALLEST_EXPONENT = -87.0
MAX_LOG_SCALING = 30.0
# costs are accurate to about this share of themselves, so that a smaller difference of them is rounding
RESOLUTION = 1e-6
MAX_EXACT_PAIRS = 25_000_000
MAX_SIMPLEX_STEPS = 10_000_000

Epsilon = float | Literal["mean", "std"]


def sinkhorn_cost(
    predicted: Matrix,
    observed: Matrix,
    *,
    epsilon: Epsilon = "mean",
    max_iter: int = 2000,
    tolerance: float = 1e-3,
) -> float:
    r"""Entropic transport cost from predicted to observed cells, squared Euclidean.

    The smallest value of :math:`\langle P, C \rangle + \epsilon\, KL(P \,|\, a b^\top)` over plans :math:`P` with
    uniform margins :math:`a, b`, where :math:`C` holds squared Euclidean distances between cells
    :cite:p:`Cuturi2013`. It is found by Sinkhorn's iteration and read from the dual potentials, whose sum it is. This
    objective, with the entropy term, is the `reg_ot_cost` of ott-jax and so the "wasserstein" of pertpy. The cost of
    cells to themselves is not 0; :func:`sinkhorn_divergence` takes that out.

    The kernel is kept in single precision, the potentials in double, and the kernel is rebuilt from log-domain steps
    whenever the scalings leave the range of single precision. Time is `n_predicted * n_observed` per iteration; up to
    1 GiB holds the kernel, beyond which its blocks are computed anew in every iteration.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; principal components rather than genes.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    epsilon
        Strength of the regularisation in units of the cost, that is squared units of the data. "mean" takes 5 % of the
        mean cost between the groups; "std" takes 5 % of its standard deviation, the default of ott-jax 0.6.
        Values at different `epsilon` do not compare: give one number for all predictions of a benchmark.
    max_iter
        Largest number of iterations. If it is reached, a warning states the error of the margins.
    tolerance
        Accepted error of the margins: the absolute differences between those of the plan and the uniform ones, summed
        over cells. Below about 1e-6 single precision does not follow.

    Returns
    -------
    Cost in squared units of the data.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, the numbers of genes differ, or an option is not valid.

    Examples
    --------
    >>> cells = np.array([[0.0], [1.0]])
    >>> round(sinkhorn_cost(cells, cells + 3, epsilon=0.01), 3)
    9.007
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    strength = _strength(predicted, observed, epsilon, max_iter, tolerance)
    return _cost(predicted, observed, strength, max_iter, tolerance)


def sinkhorn_divergence(
    predicted: Matrix,
    observed: Matrix,
    *,
    epsilon: Epsilon = "mean",
    max_iter: int = 2000,
    tolerance: float = 1e-3,
) -> float:
    r"""Entropic transport cost without the part that cells have to themselves.

    :math:`OT_\epsilon(X, Y) - (OT_\epsilon(X, X) + OT_\epsilon(Y, Y)) / 2` with :math:`OT_\epsilon` of
    :func:`sinkhorn_cost` :cite:p:`Feydy2019`. It is 0 for equal groups, symmetric and never negative. For small
    `epsilon` it tends to the squared Wasserstein-2 distance, for large `epsilon` to the squared distance of the means.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; principal components rather than genes.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    epsilon
        As in :func:`sinkhorn_cost`; one strength, that of the cost between the groups, for all three terms.
    max_iter
        Largest number of iterations of each term. If it is reached, a warning states the error of the margins.
    tolerance
        Accepted error of the margins, as in :func:`sinkhorn_cost`.

    Returns
    -------
    Divergence in squared units of the data; 0 where it is below a millionth of the cost, which is rounding.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, the numbers of genes differ, or an option is not valid.

    Examples
    --------
    >>> cells = np.array([[0.0], [1.0]])
    >>> round(sinkhorn_divergence(cells, cells + 3, epsilon=0.01), 3)
    9.0
    >>> sinkhorn_divergence(cells, cells)
    0.0
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    strength = _strength(predicted, observed, epsilon, max_iter, tolerance)
    between, *within = (
        _cost(first, second, strength, max_iter, tolerance)
        for first, second in [(predicted, observed), (predicted, predicted), (observed, observed)]
    )
    divergence = between - sum(within) / 2
    return divergence if divergence > RESOLUTION * between else 0.0


def _strength(predicted: Cells, observed: Cells, epsilon: Epsilon, max_iter: int, tolerance: float) -> float:
    """Regularisation as a number; 0 only if all costs are equal, or all 0."""
    if max_iter < 1:
        raise ValueError(f"`max_iter` is {max_iter}; it must be at least 1.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` is {tolerance}; it must be above 0.")
    if epsilon == "mean":
        return EPSILON_SHARE * _mean_cost(predicted, observed)
    if epsilon == "std":
        return EPSILON_SHARE * _cost_deviation(predicted, observed)
    if isinstance(epsilon, str) or not 0 < epsilon < np.inf:
        raise ValueError(f'`epsilon` is {epsilon!r}; it must be "mean", "std" or a number above 0.')
    return float(epsilon)


def _mean_cost(first: Cells, second: Cells) -> float:
    return float(np.sum((first.mean - second.mean) ** 2) + _spread(first) + _spread(second))


def _spread(cells: Cells) -> float:
    """Mean squared distance to the mean."""
    return 0.0 if len(cells) == 1 else float(cells.variance.sum() * (1 - 1 / len(cells)))


def _cost_deviation(first: Cells, second: Cells) -> float:
    """Standard deviation of the squared distances over all pairs."""
    x, y = first.dense() - second.mean, second.dense() - second.mean
    mean, sizes = _mean_cost(first, second), _half_squares(y) * 2
    squares = 0.0
    for rows in _row_blocks(len(x)):
        costs = 2 * _half_squares(x[rows])[:, None] + sizes - 2 * x[rows] @ y.T
        squares += float(np.sum((costs - mean) ** 2))
    deviation = np.sqrt(squares / (len(x) * len(y)))
    return float(deviation) if deviation > 1e-12 * mean else 0.0


def _cost(first: Cells, second: Cells, epsilon: float, max_iter: int, tolerance: float) -> float:
    mean_cost = _mean_cost(first, second)
    if epsilon == 0:
        # every plan costs the same
        return mean_cost
    x, y = first.dense() - second.mean, second.dense() - second.mean
    g = np.zeros(len(y))
    n_left = max_iter
    with thread_map() as map_blocks:
        for strength in _annealed(epsilon, EPSILON_SHARE * mean_cost):
            # in these units the exponent -cost / strength is x @ y less half of both squares, which p and q absorb
            unit = np.sqrt(strength / 2)
            x_squares, y_squares = _half_squares(x / unit), _half_squares(y / unit)
            start = g / strength - y_squares
            p, q, error, n_left = _potentials(x / unit, y / unit, start, n_left, tolerance, map_blocks)
            f, g = strength * (p + x_squares), strength * (q + y_squares)
            if n_left <= 0:
                break
    if strength > epsilon or error > tolerance:
        warnings.warn(
            f"Sinkhorn stopped after `max_iter` = {max_iter} iterations at strength {strength:.3g} with an error of "
            f"the margins of {error:.2g}, for `epsilon` = {epsilon:.3g} and `tolerance` = {tolerance:g}; raise "
            "`max_iter` or `epsilon`.",
            stacklevel=3,
        )
    return float(np.mean(f) + np.mean(g))


def _annealed(epsilon: float, easy: float) -> list[float]:
    """Strengths down to `epsilon` in factors of ten from at most `easy`, each a start for the next."""
    n_steps = max(0, int(np.log10(easy / epsilon))) if easy > 0 else 0
    return [epsilon * 10.0**step for step in range(n_steps, -1, -1)]


def _half_squares(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x) / 2


def _row_blocks(n: int) -> list[slice]:
    return [slice(start, start + BLOCK_ROWS) for start in range(0, n, BLOCK_ROWS)]


def _potentials(
    x: np.ndarray, y: np.ndarray, q: np.ndarray, n_left: int, tolerance: float, map_blocks: Callable
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Potentials p, q for which the density exp(p_i + q_j + x_i @ y_j) has margins of mean 1.

    The margin of the columns is exact; with them come the error of the rows and the iterations left.
    """
    while True:
        # a step in logarithms is safe from any start; the scalings that follow are faster but must stay near 1
        p = -_log_mean_exp(x, y, q, map_blocks)
        q = -_log_mean_exp(y, x, p, map_blocks)
        u, v, error, n_left = _scalings(_Kernel(x, y, p, q, map_blocks), n_left - 1, tolerance, map_blocks)
        p, q = p + np.log(u), q + np.log(v)
        if error <= tolerance or n_left <= 0:
            return p, q, error, n_left


def _log_mean_exp(x: np.ndarray, y: np.ndarray, q: np.ndarray, map_blocks: Callable) -> np.ndarray:
    """Logarithm of the mean over j of exp(q_j + x_i @ y_j)."""

    def of_block(rows: slice) -> np.ndarray:
        exponents = x[rows] @ y.T
        exponents += q
        top = exponents.max(axis=1, keepdims=True)
        exponents -= top
        return np.log(np.exp(exponents, out=exponents).mean(axis=1)) + top[:, 0]

    return np.concatenate(list(map_blocks(of_block, _row_blocks(len(x)))))


class _Kernel:
    """Blocks of rows of exp(p_i + q_j + x_i @ y_j) in single precision, never 0; kept if they are not too many."""

    def __init__(self, x: np.ndarray, y: np.ndarray, p: np.ndarray, q: np.ndarray, map_blocks: Callable) -> None:
        self.x, self.y, self.p, self.q = x, y, p, q
        self.shape = len(x), len(y)
        self.kept: dict[int, np.ndarray] = {}
        if len(x) * len(y) <= MAX_KERNEL_SIZE:
            blocks = _row_blocks(len(x))
            self.kept = dict(zip((rows.start for rows in blocks), map_blocks(self.block, blocks), strict=True))

    def block(self, rows: slice) -> np.ndarray:
        if rows.start in self.kept:
            return self.kept[rows.start]
        # the terms are large and cancel, so only their sum is rounded
        exponents = self.x[rows] @ self.y.T
        exponents += self.p[rows, None]
        exponents += self.q
        block = exponents.astype(np.float32)
        np.maximum(block, SMALLEST_EXPONENT, out=block)
        return np.exp(block, out=block)


def _scalings(
    kernel: _Kernel, n_left: int, tolerance: float, map_blocks: Callable
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Row and column scalings of the kernel, the error of its margins, and the iterations left."""
    n_rows, n_columns = kernel.shape
    u, v = np.ones(n_rows, np.float32), np.ones(n_columns, np.float32)
    error = np.inf

    def of_block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        # both products while the block is in the cache
        block = kernel.block(rows)
        with np.errstate(over="ignore", divide="ignore"):
            scaling = n_columns / (block @ v)
            return scaling, scaling @ block

    while True:
        scalings, products = zip(*map_blocks(of_block, _row_blocks(n_rows)), strict=True)
        new = np.concatenate(scalings)
        columns = np.sum(products, axis=0, dtype=np.float64) / n_rows
        with np.errstate(divide="ignore"):
            largest = max(np.abs(np.log(new)).max(), np.abs(np.log(columns)).max())
        n_left -= 1
        if not largest <= MAX_LOG_SCALING:
            return u, v, error, n_left
        # rows are exact here, so that the columns hold all of the error
        error = float(np.mean(np.abs(v * columns - 1)))
        u, v = new, np.asarray(1 / columns, dtype=np.float32)
        if error <= tolerance or n_left <= 0:
            return u, v, error, n_left


def wasserstein(predicted: Matrix, observed: Matrix, *, squared: bool = False) -> float:
    """Exact transport cost from predicted to observed cells, by network simplex.

    The smallest mean distance over all ways to match the cells, each group weighing 1: Wasserstein-1 with Euclidean
    distances; with `squared`, the square of Wasserstein-2. Time grows with about the cube of the number of cells.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; principal components rather than genes.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    squared
        Take squared Euclidean distances, the cost of :func:`sinkhorn_cost`; no root is drawn.

    Returns
    -------
    Cost in the unit of the data, or its square; 0 only for equal groups.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, the numbers of genes differ, or there are more than
        25 million pairs of cells.
    RuntimeError
        If the solver does not reach the optimum.

    Examples
    --------
    >>> cells = np.array([[0.0], [1.0]])
    >>> wasserstein(cells, cells + 3)
    3.0
    >>> wasserstein(cells, cells + 3, squared=True)
    9.0
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    n_pairs = len(first) * len(second)
    if n_pairs > MAX_EXACT_PAIRS:
        raise ValueError(
            f"`predicted` and `observed` have {len(first)} and {len(second)} cells, {n_pairs} pairs, above the "
            f"{MAX_EXACT_PAIRS} of exact transport; draw fewer cells, or use `sinkhorn_divergence`."
        )
    costs = cdist(first.dense(), second.dense(), "sqeuclidean" if squared else "euclidean")
    # imported here because POT loads every array library that it finds
    from ot.lp import emd2

    cost, log = emd2([], [], costs, numItermax=MAX_SIMPLEX_STEPS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"exact transport of {n_pairs} pairs of cells failed: {log['warning']}")
    return float(cost)


def wasserstein_genes(predicted: Matrix, observed: Matrix) -> np.ndarray:
    """Wasserstein-1 distance of each gene on its own.

    The mean absolute difference of the two quantile functions, hence of the sorted values where both groups have the
    same number of cells. It sees mean, spread and shape of a gene, and not how genes vary together.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.

    Returns
    -------
    Distance of each gene in its unit, shape `(n_vars,)`.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> observed = np.array([[0.0, 0.0], [2.0, 4.0]])
    >>> wasserstein_genes(observed + [1.0, 0.0], observed)
    array([1., 0.])
    >>> wasserstein_genes(observed[:1], observed)
    array([1., 2.])
    """
    first, second = as_cells(predicted=predicted, observed=observed)
    rows, other_rows, weights = _common_quantiles(len(first), len(second))
    columns = [
        cells.values if isinstance(cells.values, np.ndarray) else cells.values.tocsc() for cells in (first, second)
    ]
    result = np.empty(first.n_vars)
    for start in range(0, first.n_vars, BLOCK_GENES):
        genes = slice(start, start + BLOCK_GENES)
        low, high = (np.sort(_dense(group[:, genes]), axis=0) for group in columns)
        result[genes] = weights @ np.abs(low[rows] - high[other_rows])
    return result


def _common_quantiles(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks in both groups, and the lengths, of the intervals on which both quantile functions are constant."""
    # in units of 1 / lcm the ends are whole numbers, so that equal ones are recognised
    unit = lcm(n, m)
    ends = np.union1d(np.arange(1, n + 1) * (unit // n), np.arange(1, m + 1) * (unit // m))
    starts = np.concatenate([[0], ends[:-1]])
    return starts // (unit // n), starts // (unit // m), (ends - starts) / unit


def _dense(values: np.ndarray | sparse.csc_matrix) -> np.ndarray:
    return (values if isinstance(values, np.ndarray) else values.toarray()).astype(np.float64)

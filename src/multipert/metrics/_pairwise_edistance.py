from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

from ._cells import Cells, Matrix, as_cells
from ._distribution import ROUNDING, left_factor, right_factor, squared_distances, without_self

if TYPE_CHECKING:
    from collections.abc import Sequence

# a block of distances stays in the cache between its product, its roots and its sums
BLOCK_ROWS = 256
BLOCK_COLUMNS = 2048


def pairwise_edistance(
    groups: Sequence[Matrix],
    others: Sequence[Matrix] | None = None,
    *,
    squared: bool = False,
    half: bool = False,
    unbiased: bool = False,
) -> np.ndarray:
    """Energy distance between every two groups of cells.

    Entry `[i, j]` is `edistance(groups[i], others[j])` of :func:`edistance` with the same options. What a group has
    with itself is computed once, and the distances between the cells of many groups by one product of matrices. For
    `n` and `m` cells in all, time is `n * m * n_vars`, half of it without `others`, and with `squared` only
    `(n + m) * n_vars`. The cells of all groups are held as one dense array, the distances never.

    Parameters
    ----------
    groups
        Groups of cells over the same genes or principal components, each of shape `(n_cells, n_vars)`.
    others
        Groups to compare with; without it, all groups are compared with each other.
    squared
        Squared Euclidean distances.
    half
        Multiply by one half.
    unbiased
        Leave out the pairs of a cell with itself. A group compared with itself remains at 0 only without this option.

    Returns
    -------
    Distances, shape `(len(groups), len(others))`; symmetric without `others`.

    Raises
    ------
    ValueError
        If there is no group, or one is empty, holds NaN or infinite values, or has another number of genes.

    Examples
    --------
    >>> first, second = np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
    >>> pairwise_edistance([first, second])
    array([[0., 4.],
           [4., 0.]])
    >>> pairwise_edistance([first], [first, second], squared=True)
    array([[ 0., 18.]])
    """
    first = _checked("groups", groups)
    second = first if others is None else _checked("others", others)
    as_cells(**{"groups[0]": first[0], "others[0]": second[0]})
    factor = 0.5 if half else 1.0
    if squared:
        distances = cdist(_means(first), _means(second), "sqeuclidean")
        if unbiased:
            distances -= _sampling(first)[:, None] + _sampling(second)[None, :]
        return 2 * factor * distances
    centre = np.mean(_means(first), axis=0)
    stacked = _stacked(first, centre)
    if others is None:
        between = _mean_distances(stacked, stacked, _starts(first), _starts(first), symmetric=True)
        within = np.diag(between), np.diag(between)
    else:
        other_stacked = _stacked(second, centre)
        between = _mean_distances(stacked, other_stacked, _starts(first), _starts(second), symmetric=False)
        within = _within(stacked, first), _within(other_stacked, second)
    if unbiased:
        own, other_own = (
            mean * [without_self(cells) for cells in cells_of]
            for mean, cells_of in zip(within, (first, second), strict=True)
        )
        return factor * (2 * between - own[:, None] - other_own[None, :])
    distances = 2 * between - within[0][:, None] - within[1][None, :]
    # the difference of equal numbers is rounding, which a ratio would blow up
    return np.where(distances > ROUNDING * between, factor * distances, 0.0)


def _checked(name: str, groups: Sequence[Matrix]) -> list[Cells]:
    if not len(groups):
        raise ValueError(f"`{name}` holds no group; give at least one.")
    return as_cells(**{f"{name}[{number}]": group for number, group in enumerate(groups)})


def _means(groups: list[Cells]) -> np.ndarray:
    return np.stack([cells.mean for cells in groups])


def _sampling(groups: list[Cells]) -> np.ndarray:
    """What sampling adds to the squared distance of each mean."""
    return np.array([cells.variance.sum() / len(cells) for cells in groups])


def _starts(groups: list[Cells]) -> np.ndarray:
    """First row of each group, and the number of rows."""
    return np.cumsum([0, *(len(cells) for cells in groups)])


def _stacked(groups: list[Cells], centre: np.ndarray) -> np.ndarray:
    """Right factors of the cells of all groups; centring keeps the products small and so the differences exact."""
    starts = _starts(groups)
    stacked = np.empty((starts[-1], len(centre) + 2))
    for cells, start, end in zip(groups, starts[:-1], starts[1:], strict=True):
        stacked[start:end] = right_factor(cells.dense() - centre)
    return stacked


def _within(stacked: np.ndarray, groups: list[Cells]) -> np.ndarray:
    """Mean distance over the ordered pairs of each group."""
    starts = _starts(groups)
    means = []
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        ends = np.array([0, end - start])
        means.append(_mean_distances(stacked[start:end], stacked[start:end], ends, ends, symmetric=True)[0, 0])
    return np.array(means)


def _mean_distances(
    first: np.ndarray, second: np.ndarray, starts: np.ndarray, other_starts: np.ndarray, *, symmetric: bool
) -> np.ndarray:
    """Mean distance between the cells of every two groups, each a range of rows of the right factors.

    With `symmetric`, both sides are the same and only groups from a row's own on are visited.
    """
    totals = np.zeros((len(starts) - 1, len(other_starts) - 1))
    for row in range(0, len(first), BLOCK_ROWS):
        rows = slice(row, min(row + BLOCK_ROWS, len(first)))
        left = left_factor(first[rows, :-2])
        groups, edges = _overlap(starts, rows)
        sums = np.zeros((len(left), totals.shape[1]))
        for column in range(int(other_starts[groups.start]) if symmetric else 0, len(second), BLOCK_COLUMNS):
            columns = slice(column, min(column + BLOCK_COLUMNS, len(second)))
            other_groups, other_edges = _overlap(other_starts, columns)
            distances = squared_distances(left, second[columns])
            np.sqrt(distances, out=distances)
            sums[:, other_groups] += np.add.reduceat(distances, other_edges, axis=1)
        totals[groups] += np.add.reduceat(sums, edges, axis=0)
    if symmetric:
        totals = np.triu(totals) + np.triu(totals, 1).T
    return totals / (np.diff(starts)[:, None] * np.diff(other_starts)[None, :])


def _overlap(starts: np.ndarray, rows: slice) -> tuple[slice, np.ndarray]:
    """The groups that have rows in a block, and where each begins in it."""
    first = int(np.searchsorted(starts, rows.start, side="right")) - 1
    last = int(np.searchsorted(starts, rows.stop, side="left"))
    return slice(first, last), np.maximum(starts[first:last] - rows.start, 0)

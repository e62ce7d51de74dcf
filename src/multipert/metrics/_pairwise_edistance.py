from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from ._cells import Cells, Matrix, as_cells
from ._distribution import ROUNDING, left_factor, right_factor, squared_distances, without_self
from ._threads import thread_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# a block of distances stays in the cache between its product, its roots and its sums
BLOCK_ROWS = 256
BLOCK_COLUMNS = 2048
# from this number of values on the products take most of the time, and single precision halves it
WIDE = 256
SINGLE_ROUNDING = 1e-8
NEAR = 1e-2
MAX_NEAR_SHARE = 2e-3


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
    `(n + m) * n_vars`. The cells of all groups are held as one dense array, the distances never. From 256 genes on the
    products are taken in single precision and the sums in double, which leaves an error of about 1e-9 of the mean
    distance between cells.

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
    with thread_map() as map_blocks:
        if others is None:
            between = _mean_distances(stacked, stacked, _starts(first), _starts(first), map_blocks)
            within = np.diag(between), np.diag(between)
        else:
            other_stacked = _stacked(second, centre)
            between = _mean_distances(stacked, other_stacked, _starts(first), _starts(second), map_blocks)
            within = _within(stacked, first), _within(other_stacked, second)
    if unbiased:
        own, other_own = (
            mean * [without_self(cells) for cells in cells_of]
            for mean, cells_of in zip(within, (first, second), strict=True)
        )
        return factor * (2 * between - own[:, None] - other_own[None, :])
    distances = 2 * between - within[0][:, None] - within[1][None, :]
    rounding = ROUNDING if stacked.cells.dtype == np.float64 else SINGLE_ROUNDING
    # the difference of equal numbers is rounding, which a ratio would blow up
    return np.where(distances > rounding * between, factor * distances, 0.0)


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


class _Stacked(NamedTuple):
    """Centred cells of all groups, in single precision where they are wide, and their squared norms in double."""

    cells: np.ndarray
    squares: np.ndarray

    def rows(self, rows: slice) -> _Stacked:
        return _Stacked(self.cells[rows], self.squares[rows])


def _stacked(groups: list[Cells], centre: np.ndarray) -> _Stacked:
    # centring keeps the products small and so the differences exact
    starts = _starts(groups)
    stacked = np.empty((starts[-1], len(centre)), np.float64 if len(centre) < WIDE else np.float32)
    for cells, start, end in zip(groups, starts[:-1], starts[1:], strict=True):
        values = cells.values if isinstance(cells.values, np.ndarray) else cells.values.toarray()
        np.subtract(values, centre, out=stacked[start:end], casting="same_kind")
    return _Stacked(stacked, np.einsum("ij,ij->i", stacked, stacked, dtype=np.float64))


def _within(stacked: _Stacked, groups: list[Cells]) -> np.ndarray:
    """Mean distance over the ordered pairs of each group."""
    starts = _starts(groups)
    means = []
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        rows = stacked.rows(slice(start, end))
        ends = np.array([0, end - start])
        means.append(_mean_distances(rows, rows, ends, ends, map)[0, 0])
    return np.array(means)


def _mean_distances(
    first: _Stacked, second: _Stacked, starts: np.ndarray, other_starts: np.ndarray, map_blocks: Callable
) -> np.ndarray:
    """Mean distance between the cells of every two groups, each a range of rows.

    Where both sides are the same object, only groups from a row's own on are visited.
    """
    n_rows, n_columns = len(first.cells), len(second.cells)

    def sums_of_block(row: int) -> tuple[slice, np.ndarray]:
        rows = slice(row, min(row + BLOCK_ROWS, n_rows))
        groups, edges = _overlap(starts, rows)
        sums = np.zeros((rows.stop - row, len(other_starts) - 1))
        for column in range(int(other_starts[groups.start]) if first is second else 0, n_columns, BLOCK_COLUMNS):
            columns = slice(column, min(column + BLOCK_COLUMNS, n_columns))
            other_groups, other_edges = _overlap(other_starts, columns)
            distances = _squared_distances(first.rows(rows), second.rows(columns))
            np.sqrt(distances, out=distances)
            sums[:, other_groups] += np.add.reduceat(distances, other_edges, axis=1)
        return groups, np.add.reduceat(sums, edges, axis=0)

    totals = np.zeros((len(starts) - 1, len(other_starts) - 1))
    for groups, sums in map_blocks(sums_of_block, range(0, n_rows, BLOCK_ROWS)):
        totals[groups] += sums
    if first is second:
        totals = np.triu(totals) + np.triu(totals, 1).T
    return totals / (np.diff(starts)[:, None] * np.diff(other_starts)[None, :])


def _squared_distances(first: _Stacked, second: _Stacked) -> np.ndarray:
    """Squared distances of all pairs; those of wide cells from products in single precision."""
    if first.cells.dtype == np.float64:
        return squared_distances(left_factor(first.cells), right_factor(second.cells))
    squares = (first.cells @ second.cells.T).astype(np.float64)
    squares *= -2
    squares += first.squares[:, None]
    squares += second.squares
    if squares.min() >= NEAR * (first.squares.max() + second.squares.max()):
        return squares
    # pairs much nearer to each other than to the centre would be left with few digits
    near = np.flatnonzero(squares < NEAR * (first.squares[:, None] + second.squares))
    if len(near) > MAX_NEAR_SHARE * squares.size:
        exact, other_exact = first.cells.astype(np.float64), second.cells.astype(np.float64)
        return squared_distances(left_factor(exact), right_factor(other_exact))
    rows, columns = np.divmod(near, squares.shape[1])
    squares[rows, columns] = np.sum((first.cells[rows].astype(np.float64) - second.cells[columns]) ** 2, axis=1)
    return squares


def _overlap(starts: np.ndarray, rows: slice) -> tuple[slice, np.ndarray]:
    """The groups that have rows in a block, and where each begins in it."""
    first = int(np.searchsorted(starts, rows.start, side="right")) - 1
    last = int(np.searchsorted(starts, rows.stop, side="left"))
    return slice(first, last), np.maximum(starts[first:last] - rows.start, 0)

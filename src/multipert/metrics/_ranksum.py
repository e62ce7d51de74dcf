"""Compiled rank sums and moments of groups of cells; imported only where they are needed, because numba loads slowly.

The kernels release the interpreter and are spread over plain threads: numba's own thread pools may not be entered from
two threads at once, nor after a fork.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numba
import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scipy import sparse

Job = TypeVar("Job")

GENES_PER_TASK = 64
SMALL_SET = 64
ALL_CELLS = -1


def mann_whitney(
    x: sparse.csr_matrix, codes: np.ndarray, n_groups: int, reference: int
) -> tuple[np.ndarray, np.ndarray]:
    """U of every group, and the sum of t^3 - t over runs of t tied values, both `(n_groups, n_vars)`.

    U counts the pairs of a cell of the group and a cell of the reference group in which the first is higher, ties as
    half. With `ALL_CELLS` for the reference, the others are all cells outside the group.
    """
    n_vars = x.shape[1]
    sizes = np.bincount(codes, minlength=n_groups)
    values, starts = _by_gene_and_group(_floats(x), x.indices, x.indptr, codes, n_groups, n_vars)
    # the sets that the groups are compared with: one for each gene, or the reference group's
    base = values.copy() if reference == ALL_CELLS else values
    u, ties = np.zeros((n_groups, n_vars)), np.zeros((n_groups, n_vars))
    edges = [*range(0, n_vars, GENES_PER_TASK), n_vars]

    def task(genes: tuple[int, int]) -> None:
        first, last = genes
        of_groups = starts[first * n_groups : last * n_groups + 1]
        _sort_sets(values, of_groups)
        if reference == ALL_CELLS:
            _sort_sets(base, of_groups[::n_groups].copy())
        _compare(values, base, starts, sizes, reference, first, last, u, ties)

    _in_threads(task, pairwise(edges))
    return u, ties


def _sort_sets(values: np.ndarray, starts: np.ndarray) -> None:
    """Sort each of the consecutive sets of values."""
    # numpy sorts many times faster than compiled loops do, but each call costs as much as sorting a small set
    for k in np.flatnonzero(np.diff(starts) > SMALL_SET):
        values[starts[k] : starts[k + 1]].sort()
    _sort_small_sets(values, starts)


def moments(x: sparse.csr_matrix, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every group and the sum of squares around it, both `(n_groups, n_vars)`."""
    means, squares = np.zeros((n_groups, x.shape[1])), np.zeros((n_groups, x.shape[1]))
    data = _floats(x)
    # the order of the cells is kept within a group, so that sums do not depend on the number of threads
    cells = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=n_groups))[:-1])

    def task(group: int) -> None:
        _add_moments(data, x.indices, x.indptr, cells[group], means[group], squares[group])

    _in_threads(task, range(n_groups))
    return means, squares


def _in_threads(task: Callable[[Job], None], jobs: Iterable[Job]) -> None:
    with ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS) as pool:  # type: ignore[attr-defined]
        list(pool.map(task, jobs))


def _floats(x: sparse.csr_matrix) -> np.ndarray:
    """Stored values in one of the two types that the kernels are compiled for."""
    return x.data if x.data.dtype == np.float32 else x.data.astype(np.float64, copy=False)


@njit(cache=True, nogil=True)
def _add_moments(data, indices, indptr, cells, mean, squares):
    n_stored = np.zeros(len(mean))
    for cell in cells:
        for k in range(indptr[cell], indptr[cell + 1]):
            mean[indices[k]] += data[k]
            n_stored[indices[k]] += 1
    mean /= len(cells)
    for cell in cells:
        for k in range(indptr[cell], indptr[cell + 1]):
            squares[indices[k]] += (data[k] - mean[indices[k]]) ** 2
    squares += (len(cells) - n_stored) * mean**2


@njit(cache=True, nogil=True)
def _by_gene_and_group(data, indices, indptr, codes, n_groups, n_vars):
    """Non-zero values ordered by gene and then group, and where each of these sets starts."""
    starts = np.zeros(n_vars * n_groups + 1, np.int64)
    for cell in range(len(codes)):
        for k in range(indptr[cell], indptr[cell + 1]):
            if data[k] != 0:
                starts[indices[k] * n_groups + codes[cell] + 1] += 1
    starts = np.cumsum(starts)
    free = starts[:-1].copy()
    values = np.empty(starts[-1], data.dtype)
    for cell in range(len(codes)):
        for k in range(indptr[cell], indptr[cell + 1]):
            if data[k] != 0:
                place = indices[k] * n_groups + codes[cell]
                values[free[place]] = data[k]
                free[place] += 1
    return values, starts


@njit(cache=True, nogil=True)
def _sort_small_sets(values, starts):
    for k in range(len(starts) - 1):
        if starts[k + 1] - starts[k] <= SMALL_SET:
            values[starts[k] : starts[k + 1]].sort()


@njit(cache=True, nogil=True)
def _compare(values, base, starts, sizes, reference, first, last, u, ties):
    """Fill the columns of genes `first` to `last`, whose sets are sorted."""
    n_groups = len(sizes)
    for gene in range(first, last):
        edges = starts[gene * n_groups : (gene + 1) * n_groups + 1]
        if reference < 0:
            base_values, base_lengths = _runs(base[edges[0] : edges[n_groups]], sizes.sum())
        else:
            base_values, base_lengths = _runs(base[edges[reference] : edges[reference + 1]], sizes[reference])
        below = np.zeros(len(base_lengths) + 1)
        below[1:] = np.cumsum(base_lengths)
        base_ties = (base_lengths**3 - base_lengths).sum()

        for group in range(n_groups):
            if group == reference:
                continue
            n_group = sizes[group]
            group_values, group_lengths = _runs(values[edges[group] : edges[group + 1]], n_group)
            higher, tied, place = 0.0, base_ties, 0
            for value, length in zip(group_values, group_lengths):  # noqa: B905 (numba has no strict zip)
                place = _first_not_below(base_values, value, place)
                equal = 0.0
                if place < len(base_values) and base_values[place] == value:
                    equal = base_lengths[place]
                higher += length * (below[place] + equal / 2)
                union = length + equal
                tied += union**3 - union - equal**3 + equal
            if reference < 0:
                # the group is part of all cells: its pairs with itself tell nothing, and it adds to no run
                u[group, gene], ties[group, gene] = higher - n_group * n_group / 2, base_ties
            else:
                u[group, gene], ties[group, gene] = higher, tied


@njit(cache=True, nogil=True)
def _runs(stored, n_cells):
    """Distinct values in ascending order and how many cells have each, from sorted non-zero values and the zeros."""
    n_zero = n_cells - len(stored)
    values, lengths = np.empty(len(stored) + 1, stored.dtype), np.empty(len(stored) + 1)
    n_runs = 0
    for k in range(len(stored) + 1):
        if n_zero > 0 and (k == len(stored) or stored[k] > 0):
            values[n_runs], lengths[n_runs] = 0, n_zero
            n_runs, n_zero = n_runs + 1, 0
        if k == len(stored):
            break
        if k > 0 and stored[k] == stored[k - 1]:
            lengths[n_runs - 1] += 1
        else:
            values[n_runs], lengths[n_runs] = stored[k], 1
            n_runs += 1
    return values[:n_runs], lengths[:n_runs]


@njit(cache=True, nogil=True)
def _first_not_below(values, value, start):
    """First place from `start` on with a value not below the given one, in steps that double."""
    step, stop = 1, start
    while stop < len(values) and values[stop] < value:
        start, stop, step = stop + 1, stop + step, 2 * step
    stop = min(stop, len(values))
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] < value:
            start = middle + 1
        else:
            stop = middle
    return start

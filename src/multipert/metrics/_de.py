from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from ._cells import Matrix, as_cells

Direction = Literal["absolute", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("absolute", "up", "down")
BLOCK_VALUES = 2_000_000


def welch_t(group: Matrix, control: Matrix) -> np.ndarray:
    """Welch's t statistic of every gene, group against control.

    Means and variances are accumulated in float64. A variance below `1e-12 (1 + mean^2)` counts as 0 and a statistic
    that is not finite as 0: a shift added to a gene that no control cell expresses gives a column that is constant up
    to rounding, and without this floor its statistic would be nothing or astronomical depending on the dtype.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.

    Returns
    -------
    Statistics, shape `(n_vars,)`, positive where the group is higher; all 0 if a group has a single cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> welch_t(control + [3.0, 0.7], control)
    array([4.24264069, 0.        ])
    """
    group, control = as_cells(group=group, control=control)
    error = np.sqrt(group.variance / len(group) + control.variance / len(control))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (group.mean - control.mean) / error
    return np.where(np.isfinite(statistic), statistic, 0.0)


def wilcoxon(group: Matrix, control: Matrix, *, tie_correct: bool = False) -> np.ndarray:
    """Wilcoxon rank-sum z score of every gene, group against control.

    The normal approximation without continuity correction, tied values sharing their average rank, as in scanpy's
    `rank_genes_groups(method="wilcoxon")` :cite:p:`Wolf2018`. Only non-zero values are sorted.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    tie_correct
        Shrink the variance of the rank sum for ties.

    Returns
    -------
    Scores, shape `(n_vars,)`, positive where the group is higher; 0 for a gene that is constant.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> wilcoxon(np.array([[2.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])).round(3)
    array([1.549, 0.   ])
    """
    group, control = as_cells(group=group, control=control)
    stacked = sparse.vstack([sparse.csr_matrix(group.values), sparse.csr_matrix(control.values)]).tocsc()
    stacked.eliminate_zeros()
    n_group, n_control = len(group), len(control)
    n_cells = n_group + n_control
    genes_per_block = max(1, BLOCK_VALUES // n_cells)
    blocks = [
        _rank_sums(stacked[:, start : start + genes_per_block], n_group)
        for start in range(0, stacked.shape[1], genes_per_block)
    ]
    rank_sums, ties = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    variance = np.full(len(ties), n_group * n_control * (n_cells + 1) / 12)
    if tie_correct:
        variance *= 1 - ties / (n_cells**3 - n_cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (rank_sums - n_group * (n_cells + 1) / 2) / np.sqrt(variance)
    return np.where(np.isfinite(score), score, 0.0)


def _rank_sums(stacked: sparse.csc_matrix, n_group: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank sum of the first `n_group` rows, and the sum of t^3 - t over runs of t tied values, for every column."""
    n_cells, n_vars = stacked.shape
    n_stored = np.diff(stacked.indptr)
    gene = np.repeat(np.arange(n_vars), n_stored)
    order = np.lexsort((stacked.data, gene))
    value, in_group = stacked.data[order], stacked.indices[order] < n_group
    n_zero = n_cells - n_stored
    n_negative = np.bincount(gene[value < 0], minlength=n_vars)

    # a run is a set of equal values of one gene; its cells share the middle of the places they take
    is_start = np.ones(len(value), dtype=bool)
    is_start[1:] = (value[1:] != value[:-1]) | (gene[1:] != gene[:-1])
    run = np.cumsum(is_start) - 1
    start = np.flatnonzero(is_start)
    length = np.diff(np.append(start, len(value)))
    rank = (start + (length + 1) / 2)[run] - stacked.indptr[gene]
    # the zeros, which are not stored, stand between the negative and the positive values
    rank += np.where(value > 0, n_zero[gene], 0)

    stored_in_group = np.bincount(gene[in_group], minlength=n_vars)
    rank_of_zero = n_negative + (n_zero + 1) / 2
    rank_sum = np.bincount(gene[in_group], weights=rank[in_group], minlength=n_vars)
    rank_sum += (n_group - stored_in_group) * rank_of_zero
    ties = np.bincount(gene[start], weights=length.astype(float) ** 3 - length, minlength=n_vars)
    return rank_sum, ties + n_zero.astype(float) ** 3 - n_zero


def de_overlap(
    predicted: Matrix, observed: Matrix, control: Matrix, k: int = 100, direction: Direction = "absolute"
) -> float:
    """Number of genes among the top `k` by Welch's t of both predicted and observed cells.

    Both groups are tested against the same control cells. A gene whose statistic is 0, or has the sign that
    `direction` does not ask for, is in no top set: a prediction that changes nothing shares nothing. Equal statistics
    are taken in the order of the genes.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    k
        Size of the two sets; fewer where fewer genes change.
    direction
        "absolute" ranks by the size of the statistic, "up" by its value, "down" by its negative.

    Returns
    -------
    Between 0 and `k`; `nan` if a group has a single cell, which has no variance.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `k` is below 1 or
        `direction` unknown.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> observed, predicted = control + [3.0, 2.0, -9.0], control + [4.0, 3.0, 0.1]
    >>> de_overlap(predicted, observed, control, k=2), de_overlap(predicted, observed, control, k=2, direction="up")
    (1.0, 2.0)
    """
    if k < 1:
        raise ValueError(f"`k` is {k}; it must be at least 1.")
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` is {direction!r}; it must be one of {', '.join(DIRECTIONS)}.")
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    if min(len(predicted), len(observed), len(control)) < 2:
        return np.nan
    of_predicted, of_observed = (_top_genes(welch_t(group, control), k, direction) for group in (predicted, observed))
    return float(np.intersect1d(of_predicted, of_observed).size)


def _top_genes(statistic: np.ndarray, k: int, direction: Direction) -> np.ndarray:
    score = {"absolute": np.abs, "up": np.positive, "down": np.negative}[direction](statistic)
    top = np.argsort(-score, kind="stable")[:k]
    return top[score[top] > 0]

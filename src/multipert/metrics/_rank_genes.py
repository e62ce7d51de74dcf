from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from ._cells import VARIANCE_FLOOR, Cells, Matrix, as_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

Method = Literal["t", "t_overestimated_variance", "wilcoxon"]
REST = "rest"
Moments: TypeAlias = tuple[float, np.ndarray | float, np.ndarray | float]


@dataclass(frozen=True, eq=False)
class GeneRanking:
    """Statistics of every gene for several groups of cells, as :func:`rank_genes` returns them."""

    groups: tuple[str, ...]
    """Labels of the rows, sorted; a reference group has no row."""
    scores: np.ndarray
    """t or z statistics, shape `(n_groups, n_vars)`, positive where the group is higher."""
    degrees_of_freedom: np.ndarray | None = None
    """Of the t distribution, shape `(n_groups, n_vars)`; None for z scores."""

    @cached_property
    def p_values(self) -> np.ndarray:
        """Two-sided p values, shape `(n_groups, n_vars)`; 1 where the statistic is 0."""
        from scipy import special

        if self.degrees_of_freedom is None:
            return 2 * special.ndtr(-np.abs(self.scores))
        return np.where(self.scores == 0, 1.0, 2 * special.stdtr(self.degrees_of_freedom, -np.abs(self.scores)))

    @cached_property
    def q_values(self) -> np.ndarray:
        """Adjusted p values, over the genes of each group, shape `(n_groups, n_vars)`."""
        return benjamini_hochberg(self.p_values)


def rank_genes(
    x: Matrix,
    groups: Sequence[str] | np.ndarray | pd.Series,
    *,
    reference: str = REST,
    method: Method = "t",
    tie_correct: bool = False,
    continuity: bool = False,
) -> GeneRanking:
    r"""Statistics of every gene for all groups of cells at once, each against one group or against all other cells.

    The same statistics as scanpy's `rank_genes_groups` :cite:p:`Wolf2018`, up to its rounding to float32. The matrix is
    read once however many groups there are, only non-zero values are sorted, and every gene's values are sorted once.
    The number of threads is numba's (environment variable `NUMBA_NUM_THREADS`, else all cores); it changes no result.

    - "t": Welch's t. Constant genes are treated as in :func:`welch_t`: a statistic without variance is 0, with p 1.
    - "t_overestimated_variance": the same, with the size of the group in place of the size of the others, so that a
      small group is not certain just because the others are many.
    - "wilcoxon": z score of the rank sum, tied values sharing their average rank, as in :func:`wilcoxon`.

    Parameters
    ----------
    x
        Cells, shape `(n_cells, n_vars)`.
    groups
        Label of each cell.
    reference
        Label of the group that all others are compared with, such as "control"; "rest" compares each group with all
        other cells.
    method
        Test to use.
    tie_correct
        Shrink the variance of the rank sum for ties. Without it the p values of genes that most cells do not express
        are too large.
    continuity
        Move each rank sum by one half towards its expectation before the score is taken.

    Returns
    -------
    Scores with p values and Benjamini-Hochberg q values. A group of one cell has t statistics of 0.

    Raises
    ------
    ValueError
        If `x` is empty or holds NaN or infinite values; if labels are missing, of another number than the cells, or of
        fewer than two groups; if `reference` or `method` is unknown; if an option of the Wilcoxon test is given for
        another test.

    See Also
    --------
    welch_t, wilcoxon : the same statistics of two matrices.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.7], [4.0, 0.7], [1.0, 0.0], [2.0, 0.0]])
    >>> ranking = rank_genes(x, ["control", "control", "A", "A", "B", "B"], reference="control")
    >>> ranking.groups
    ('A', 'B')
    >>> ranking.scores.round(3)
    array([[4.243, 0.   ],
           [1.414, 0.   ]])
    >>> ranking.p_values.round(3)
    array([[0.051, 1.   ],
           [0.293, 1.   ]])
    """
    (cells,) = as_cells(x=x)
    labels, codes = _encode(groups, len(cells))
    if method not in get_args(Method):
        raise ValueError(f"`method` is {method!r}; it must be one of {', '.join(get_args(Method))}.")
    if method != "wilcoxon" and (tie_correct or continuity):
        raise ValueError(f"`tie_correct` and `continuity` belong to the Wilcoxon test; `method` is {method!r}.")
    base = _reference_code(reference, labels)
    if method == "wilcoxon":
        ranking = rank_sum_scores(cells, codes, len(labels), base, tie_correct=tie_correct, continuity=continuity)
    else:
        ranking = _t_scores(cells, codes, len(labels), base, overestimate=method == "t_overestimated_variance")
    rows = [row for row in range(len(labels)) if row != base]
    freedom = ranking.degrees_of_freedom
    return GeneRanking(
        tuple(labels[row] for row in rows), ranking.scores[rows], None if freedom is None else freedom[rows]
    )


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Adjust p values for the number of genes: `q < alpha` bounds the false discovery rate.

    Parameters
    ----------
    p_values
        Shape `(..., n_vars)`; each row is adjusted by itself :cite:p:`Benjamini1995`.

    Returns
    -------
    q values, of the same shape.

    Raises
    ------
    ValueError
        If a p value is NaN or outside 0 to 1.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5]))
    array([0.04      , 0.05333333, 0.05333333, 0.5       ])
    """
    from scipy.stats import false_discovery_control

    p_values = np.asarray(p_values, dtype=np.float64)
    n_bad = int((~((p_values >= 0) & (p_values <= 1))).sum())
    if n_bad:
        raise ValueError(f"`p_values` has {n_bad} values that are NaN or not in 0 to 1, of {p_values.size}.")
    return false_discovery_control(p_values, axis=-1)


def t_statistic(
    mean: np.ndarray,
    variance: np.ndarray,
    n: np.ndarray | int,
    other_mean: np.ndarray,
    other_variance: np.ndarray,
    n_other: np.ndarray | int,
) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t, 0 where there is no variance, and its degrees of freedom; all arguments broadcast."""
    first, second = variance / n, other_variance / n_other
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (mean - other_mean) / np.sqrt(first + second)
        freedom = (first + second) ** 2 / (first**2 / (n - 1) + second**2 / (n_other - 1))
    return np.where(np.isfinite(statistic), statistic, 0.0), freedom


def rank_sum_scores(
    cells: Cells, codes: np.ndarray, n_groups: int, reference: int, *, tie_correct: bool, continuity: bool
) -> GeneRanking:
    """Scores of all groups by code; `reference` is a code, or -1 for all cells outside the group."""
    from ._ranksum import mann_whitney

    u, ties = mann_whitney(sparse.csr_matrix(cells.values), codes, n_groups, reference)
    n, n_other = _sizes(codes, n_groups, reference)
    n_both = n + n_other
    variance = n * n_other * (n_both + 1) / 12
    if tie_correct:
        variance = variance * (1 - ties / (n_both**3 - n_both))
    excess = u - n * n_other / 2
    if continuity:
        excess = np.sign(excess) * np.maximum(np.abs(excess) - 0.5, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = excess / np.sqrt(variance)
    return GeneRanking((), np.where(np.isfinite(score), score, 0.0))


def _t_scores(cells: Cells, codes: np.ndarray, n_groups: int, reference: int, *, overestimate: bool) -> GeneRanking:
    mean, squares = _moments(cells, codes, n_groups)
    n, n_other = _sizes(codes, n_groups, reference)
    if reference >= 0:
        other_mean, other_squares = mean[reference], squares[reference]
    else:
        other_mean, other_squares = _rest(mean, squares, n)
    variance, other_variance = _variance(mean, squares, n), _variance(other_mean, other_squares, n_other)
    return GeneRanking((), *t_statistic(mean, variance, n, other_mean, other_variance, n if overestimate else n_other))


def _moments(cells: Cells, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(cells.values, np.ndarray):
        from ._ranksum import moments

        return moments(cells.values, codes, n_groups)
    means, squares = np.empty((n_groups, cells.n_vars)), np.zeros((n_groups, cells.n_vars))
    for group in range(n_groups):
        members = cells[np.flatnonzero(codes == group)]
        means[group] = members.mean
        for block in members.blocks():
            squares[group] += ((block - members.mean) ** 2).sum(axis=0)
    return means, squares


def _rest(mean: np.ndarray, squares: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squares of all cells outside each group, by merging: differences from the total would cancel."""
    groups: list[Moments] = list(zip(n[:, 0], mean, squares, strict=True))
    empty: Moments = (0.0, 0.0, 0.0)
    before = accumulate(groups[:-1], _merge, initial=empty)
    after = list(accumulate(groups[:0:-1], _merge, initial=empty))[::-1]
    _, rest_mean, rest_squares = zip(*map(_merge, before, after), strict=True)
    return np.array(rest_mean), np.array(rest_squares)


def _merge(first: Moments, second: Moments) -> Moments:
    """Number, mean and sum of squares of two sets of cells together :cite:p:`Chan1983`."""
    (n, mean, squares), (n_other, other_mean, other_squares) = first, second
    n_both, shift = n + n_other, other_mean - mean
    return n_both, mean + shift * n_other / n_both, squares + other_squares + shift**2 * n * n_other / n_both


def _variance(mean: np.ndarray, squares: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Unbiased variance with the floor of :class:`Cells`; `nan` for a single cell."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(np.asarray(n) > 1, squares / (np.asarray(n) - 1), np.nan)
    return np.where(variance < VARIANCE_FLOOR * (1 + mean**2), 0.0, variance)


def _sizes(codes: np.ndarray, n_groups: int, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells in each group and in what it is compared with, as columns of floats: cubes overflow integers."""
    n = np.bincount(codes, minlength=n_groups)[:, None].astype(np.float64)
    return n, n[reference] if reference >= 0 else n.sum() - n


def _encode(groups: Sequence[str] | np.ndarray | pd.Series, n_cells: int) -> tuple[list[str], np.ndarray]:
    column = pd.Series(groups)
    if len(column) != n_cells:
        raise ValueError(f"`groups` has {len(column)} labels but `x` has {n_cells} cells.")
    n_missing = int(column.isna().sum())
    if n_missing:
        raise ValueError(f"`groups` is missing for {n_missing} of {n_cells} cells; remove those cells first.")
    codes, unique = pd.factorize(column.astype(str), sort=True)
    labels = [str(label) for label in unique]
    if len(labels) < 2:
        raise ValueError(f"`groups` has only the label {labels[0]!r}; two groups are needed to compare.")
    return labels, codes.astype(np.int64)


def _reference_code(reference: str, labels: list[str]) -> int:
    if reference == REST:
        if REST in labels:
            raise ValueError("a group is called 'rest', which `reference` takes for all other cells; rename the group.")
        return -1
    if reference not in labels:
        raise ValueError(f"`reference` is {reference!r}; it must be 'rest' or one of {', '.join(labels[:10])}.")
    return labels.index(reference)

"""Mean and variance of groups of cells, block by block."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from multipert.data._checks import row_blocks

_BLOCK_BYTES = 256 * 2**20
_FLOOR = 1e-12


class Moments(NamedTuple):
    """Sizes, means and unbiased variances of groups."""

    n: np.ndarray
    """Shape `(n_groups,)`."""
    mean: np.ndarray
    """Shape `(n_groups, n_vars)`; 0 for an empty group."""
    variance: np.ndarray
    """Shape `(n_groups, n_vars)`; 0 for fewer than two cells, and where rounding alone could have made it."""


def moments(x: Any, rows: np.ndarray, group: np.ndarray, n_groups: int) -> Moments:
    """Mean and variance of every gene in groups of cells.

    Parameters
    ----------
    x
        Expression, dense or sparse, shape `(n_cells, n_vars)`.
    rows
        Increasing numbers of the rows to read.
    group
        Group of each of these rows, shape `(n_rows,)`.
    n_groups
        How many groups there are.

    Returns
    -------
    The moments, in float64.
    """
    n = np.bincount(group, minlength=n_groups)
    sums, squares = (np.zeros((n_groups, x.shape[1])) for _ in range(2))
    start = 0
    for at, block in row_blocks(x, rows, _BLOCK_BYTES):
        values = block.astype(np.float64)
        of_block = group[start : start + len(at)]
        start += len(at)
        member = sparse.csr_matrix((np.ones(len(at)), (of_block, np.arange(len(at)))), shape=(n_groups, len(at)))
        squared = values.power(2) if sparse.issparse(values) else values**2
        for total, part in ((sums, member @ values), (squares, member @ squared)):
            total += part.toarray() if sparse.issparse(part) else part
    mean = sums / np.maximum(n, 1)[:, None]
    variance = (squares - n[:, None] * mean**2) / np.maximum(n - 1, 1)[:, None]
    return Moments(n, mean, np.where(variance < _FLOOR * (1 + mean**2), 0.0, variance))


def welch_scores(group: Moments, control: Moments) -> np.ndarray:
    """Welch's t of each group against the one control group, 0 where it is not defined.

    Parameters
    ----------
    group
        Moments of the groups.
    control
        Moments of one group.

    Returns
    -------
    Scores, shape `(n_groups, n_vars)`; all 0 for a group of fewer than two cells.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        error = group.variance / group.n[:, None] + control.variance / control.n[:, None]
        scores = (group.mean - control.mean) / np.sqrt(error)
    defined = np.isfinite(scores) & (group.n > 1)[:, None] & (control.n > 1)[:, None]
    return np.where(defined, scores, 0.0)

"""A checked group of cells whose means and variances are computed once, in float64."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_ROWS = 1024
VARIANCE_FLOOR = 1e-12


class Cells:
    """Cells by genes, dense or CSR, known to be finite and non-empty."""

    def __init__(self, values: np.ndarray | sparse.csr_matrix) -> None:
        self.values = values
        self.within: float | None = None
        """Mean distance between two of the cells, once a distance has needed it."""

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> Cells:
        return Cells(self.values[rows])

    @property
    def n_vars(self) -> int:
        return self.values.shape[1]

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of each gene."""
        if isinstance(self.values, np.ndarray):
            return self.values.mean(axis=0, dtype=np.float64)
        return _sum_of_stored(self.values, self.values.data) / len(self)

    @cached_property
    def variance(self) -> np.ndarray:
        """Unbiased variance of each gene, 0 where rounding alone could have made it; `nan` for a single cell."""
        if len(self) < 2:
            return np.full(self.n_vars, np.nan)
        if isinstance(self.values, np.ndarray):
            squares = np.sum([((block - self.mean) ** 2).sum(axis=0) for block in self.blocks()], axis=0)
        else:
            stored = (self.values.data - self.mean[self.values.indices]) ** 2
            n_zero = len(self) - np.bincount(self.values.indices, minlength=self.n_vars)
            squares = _sum_of_stored(self.values, stored) + n_zero * self.mean**2
        variance = squares / (len(self) - 1)
        return np.where(variance < VARIANCE_FLOOR * (1 + self.mean**2), 0.0, variance)

    def sample(self, n: int, seed: int) -> Cells:
        """At most `n` of the cells, drawn without replacement and in their order; itself if there are no more."""
        if len(self) <= n:
            return self
        return self[np.sort(np.random.default_rng([seed, len(self)]).choice(len(self), n, replace=False))]

    def dense(self) -> np.ndarray:
        """All cells as a new dense float64 array."""
        values = self.values if isinstance(self.values, np.ndarray) else self.values.toarray()
        return values.astype(np.float64)

    def blocks(self) -> Iterator[np.ndarray]:
        """The cells as dense float64 arrays of at most `BLOCK_ROWS` rows."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self[slice(start, start + BLOCK_ROWS)].dense()

    @property
    def is_signed(self) -> bool:
        """Whether any value is negative."""
        stored = stored_values(self.values)
        return bool(stored.size and stored.min() < 0)


def _sum_of_stored(values: sparse.csr_matrix, stored: np.ndarray) -> np.ndarray:
    return np.bincount(values.indices, weights=stored, minlength=values.shape[1])


def stored_values(values: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """All entries of a dense matrix, the stored ones of a sparse matrix."""
    return values if isinstance(values, np.ndarray) else values.data


Matrix: TypeAlias = np.ndarray | sparse.sparray | sparse.spmatrix | Cells
"""What a metric accepts: cells by genes, dense or any scipy sparse format."""


def as_cells(**groups: Matrix) -> list[Cells]:
    """Check groups of cells given by argument name: numeric, two-dimensional, not empty, finite, the same genes."""
    checked = {name: _checked(name, values) for name, values in groups.items()}
    first, *others = checked
    for name in others:
        if checked[name].n_vars != checked[first].n_vars:
            raise ValueError(
                f"`{name}` has {checked[name].n_vars} genes but `{first}` has {checked[first].n_vars}; "
                "give all groups the same genes in the same order."
            )
    return list(checked.values())


def _checked(name: str, values: Matrix) -> Cells:
    if isinstance(values, Cells):
        return values
    values = sparse.csr_matrix(values) if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"`{name}` must be cells x genes (two dimensions); it has shape {values.shape}.")
    if 0 in values.shape:
        raise ValueError(f"`{name}` is empty: it has {values.shape[0]} cells and {values.shape[1]} genes.")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must hold real numbers; its dtype is {values.dtype}.")
    if not isinstance(values, np.ndarray) and not values.has_canonical_format:
        # a COO matrix may name one entry twice; the caller's matrix is left as it is
        values = values.copy()
        values.sum_duplicates()
    _check_finite(name, values)
    return Cells(values)


def _check_finite(name: str, values: np.ndarray | sparse.csr_matrix) -> None:
    stored = stored_values(values)
    with np.errstate(invalid="ignore", over="ignore"):
        total = stored.sum(dtype=np.float64)
    # one bad value makes the sum bad, so that the usual case needs no second array
    if np.isfinite(total):
        return
    n_bad = stored.size - int(np.isfinite(stored).sum())
    if n_bad:
        raise ValueError(
            f"`{name}` holds {n_bad} values that are NaN or infinite, of {stored.size} stored; "
            "remove those cells or genes first."
        )

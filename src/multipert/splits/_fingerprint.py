"""A number for the expression of every cell, by which copies are found."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from multipert.data._checks import row_blocks

LEAST_VALUES = 5
"""Cells with fewer values other than zero are alike by chance."""
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BLOCK_BYTES = 32 * 2**20


def fingerprints(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Hash the rows of a matrix, block by block.

    Values are read as float32, so that dense and sparse matrices, of any type of number, agree.

    Parameters
    ----------
    x
        ndarray, scipy sparse matrix, or a backed array of anndata or h5py.

    Returns
    -------
    A 64-bit hash of every row, and the number of values other than zero, both of shape `(n_cells,)`.
    """
    hashes = np.zeros(x.shape[0], dtype=np.uint64)
    n_values = np.zeros(x.shape[0], dtype=np.int64)
    of_column = _mix(np.arange(1, x.shape[1] + 1, dtype=np.uint64))
    for at, block in row_blocks(x, block_bytes=_BLOCK_BYTES):
        rows = sparse.csr_matrix(block, dtype=np.float32, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        n = np.diff(rows.indptr)
        n_values[at] = n
        # the sum over a row does not depend on the order in which its values are stored
        bits = rows.data.view(np.uint32).astype(np.uint64)
        terms = np.cumsum(_mix(bits + of_column[rows.indices]), dtype=np.uint64)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), terms])
        hashes[at] = sums[rows.indptr[1:]] - sums[rows.indptr[:-1]]
    return hashes, n_values


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread integers over 64 bits; a bijection, modulo 2**64 throughout."""
    values = (values ^ (values >> np.uint64(30))) * _A
    values = (values ^ (values >> np.uint64(27))) * _B
    return values ^ (values >> np.uint64(31))

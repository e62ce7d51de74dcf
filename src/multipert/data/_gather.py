"""Compiled rows of a CSR matrix; imported only where it is needed, because numba loads slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from scipy import sparse


def gather(x: sparse.csr_matrix, rows: np.ndarray, out: np.ndarray) -> None:
    """Write rows of a CSR matrix into a dense array.

    Parameters
    ----------
    x
        The matrix, any type of number; what it holds twice for one place is added up.
    rows
        Row numbers of the matrix, any order, repeats allowed.
    out
        Float32, C order, shape `(len(rows), n_vars)`.

    Examples
    --------
    >>> from scipy import sparse
    >>> out = np.empty((2, 3), dtype=np.float32)
    >>> gather(sparse.csr_matrix(np.diag([1.0, 2.0, 3.0])), np.array([2, 0]), out)
    >>> out
    array([[0., 0., 3.],
           [1., 0., 0.]], dtype=float32)
    """
    _gather(x.data, x.indices, x.indptr, rows, out)


@njit(cache=True, nogil=True)
def _gather(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(rows)):
        out[i, :] = 0
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[k]] += np.float32(data[k])

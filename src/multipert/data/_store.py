"""Registered arrays of many cells, read by row numbers as one batch."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from scipy import sparse

from multipert import _keys

_DENSE_BYTES = 256 * 2**20


class CellStore:
    """Rows of expression, codes and covariates as batches of tensors.

    Expression that fits in 256 MiB is held dense; what does not fit stays as it is (sparse, or on disk) and is made
    dense batch by batch, so memory grows with the batch. The same rows give the same float32 numbers whatever holds
    them.

    Parameters
    ----------
    x
        Expression, shape `(n_cells, n_vars)`: ndarray, scipy sparse or a backed array.
    columns
        Other arrays by batch key, each with `n_cells` rows.
    """

    def __init__(self, x: Any, columns: dict[str, np.ndarray]) -> None:
        self.n_cells, self.n_vars = x.shape
        self._columns = {key: torch.as_tensor(np.ascontiguousarray(value)) for key, value in columns.items()}
        if sparse.issparse(x) and x.format != "csr":
            x = x.tocsr()
        if self.n_cells * self.n_vars * 4 <= _DENSE_BYTES:
            x = torch.from_numpy(_dense(x[:]))
        self._x = x

    def with_columns(self, columns: dict[str, np.ndarray]) -> CellStore:
        """The same cells with further columns; the expression is shared.

        Parameters
        ----------
        columns
            Arrays by batch key, each with `n_cells` rows.

        Returns
        -------
        A store.
        """
        store = copy(self)
        store._columns = {**self._columns, **{key: torch.as_tensor(value) for key, value in columns.items()}}
        return store

    def expression(self, rows: np.ndarray) -> torch.Tensor:
        """Expression of some cells.

        Parameters
        ----------
        rows
            Row numbers, any order, repeats allowed.

        Returns
        -------
        Dense float32, shape `(len(rows), n_vars)`.
        """
        if isinstance(self._x, torch.Tensor):
            return self._x[torch.as_tensor(rows)]
        if isinstance(self._x, np.ndarray) or sparse.issparse(self._x):
            return torch.from_numpy(_dense(self._x[rows]))
        # a backed array reads increasing rows only
        unique, inverse = np.unique(rows, return_inverse=True)
        return torch.from_numpy(_dense(self._x[unique])[inverse])

    def batch(self, rows: np.ndarray, partners: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """All registered tensors of some cells.

        Parameters
        ----------
        rows
            Row numbers.
        partners
            Row numbers of their paired controls, if the pass uses any.

        Returns
        -------
        Tensors by batch key; `"X_control"` holds the expression of the partners.
        """
        index = torch.as_tensor(rows)
        tensors = {_keys.X: self.expression(rows)}
        tensors.update({key: value[index] for key, value in self._columns.items()})
        if partners is not None:
            tensors[_keys.X_CONTROL] = self.expression(partners)
        return tensors


def _dense(x: Any) -> np.ndarray:
    """A contiguous float32 array of its own."""
    if sparse.issparse(x):
        x = x.astype(np.float32, copy=False).toarray()
    return np.ascontiguousarray(x, dtype=np.float32)

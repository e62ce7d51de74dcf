"""Registered arrays of many cells, read by row numbers as one batch."""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from anndata.abc import CSCDataset
from scipy import sparse

from multipert import _keys

from ._disk import DiskMatrix, disk_rows

# what is converted or read from disk at once where it is no larger
_SMALL_BYTES = 256 * 2**20
_BLOCK_BYTES = 64 * 2**20
# what a batch of pairs also holds of the partners
_OF_PARTNER = {_keys.CONTEXT: _keys.CONTEXT_CONTROL, _keys.CELL_EMBEDDING: _keys.CELL_EMBEDDING_CONTROL}


class CellStore:
    """Rows of expression, codes and covariates as batches of tensors.

    Expression stays where it is: an array or a sparse matrix in memory is shared (CSR is the fastest; other sparse
    formats are converted once), a matrix on disk is read by rows, unless it would take at most 256 MiB as dense float32:
    then it is read once. Rows are made dense batch by batch, so memory grows with the batch. The same rows give the same
    float32 numbers whatever holds them.

    Parameters
    ----------
    x
        Expression, shape `(n_cells, n_vars)`: ndarray, scipy sparse, or on disk, see
        :func:`multipert.data._disk.disk_rows`.
    columns
        Other arrays by batch key, each with `n_cells` rows.
    target
        The same cells' values in a target modality, shape `(n_cells, n_target_vars)`.

    Raises
    ------
    ValueError
        If a matrix on disk is stored by columns.
    """

    def __init__(self, x: Any, columns: dict[str, np.ndarray], target: Any = None) -> None:
        self.n_cells, self.n_vars = x.shape
        self._columns = {key: torch.as_tensor(np.ascontiguousarray(value)) for key, value in columns.items()}
        self._cells = _held(x)
        self._of_target = None if target is None else CellStore(target, {})
        self._shares = _shares(x, self._cells)
        # also once the cells are on a device: the order must not depend on how much memory that has
        self.by_blocks = self.on_disk
        """Whether a shuffle keeps neighbouring cells together unless it is told otherwise."""
        # where the cells and columns are, and where batches go
        self._home = self._target = torch.device("cpu")

    @property
    def on_disk(self) -> bool:
        """Whether expression is read from files batch by batch."""
        return isinstance(self._cells, _DiskRows) or bool(self._of_target and self._of_target.on_disk)

    @property
    def nbytes(self) -> int:
        """Bytes held for the cells, shared ones included: expression (of files: where each row begins) and columns."""
        target = self._of_target.nbytes if self._of_target else 0
        return self._cells.nbytes + sum(value.nbytes for value in self._columns.values()) + target

    @property
    def own_bytes(self) -> int:
        """Bytes held that are not shared with the matrix given."""
        columns = sum(value.nbytes for value in self._columns.values())
        target = self._of_target.own_bytes if self._of_target else 0
        return columns + (0 if self._shares else self._cells.nbytes) + target

    def reading_bytes(self, n_cells: int) -> int:
        """Bytes of some cells when they are read from disk; 0 for cells that are in memory.

        Parameters
        ----------
        n_cells
            How many cells.

        Returns
        -------
        About as many bytes.
        """
        own = int(self._cells.resident_bytes() * n_cells / self.n_cells) if isinstance(self._cells, _DiskRows) else 0
        return own + (self._of_target.reading_bytes(n_cells) if self._of_target else 0)

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
        added = {key: torch.as_tensor(value).to(self._home) for key, value in columns.items()}
        store._columns = {**self._columns, **added}
        return store

    def to(self, device: torch.device | str, share: float = 0.5) -> CellStore:
        """A store whose batches are on a device.

        Cells and columns move there if they take at most a share of its free memory: sparse ones as CSR, those on disk
        block by block. Else they stay where they are, and batches are made in pinned memory and sent without waiting.

        Parameters
        ----------
        device
            Where the batches are needed. The free memory of CUDA devices is known; to others batches are sent.
        share
            Largest share of the free memory to take.

        Returns
        -------
        A store; itself if its batches are there already.

        Raises
        ------
        ValueError
            If the share is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} must be from 0 to 1.")
        device = torch.device(device)
        if device == self._target:
            return self
        columns = sum(value.nbytes for value in self._columns.values())
        if self._home.type == "cpu" and self._cells.resident_bytes() + columns <= share * _free_bytes(device):
            store = self._moved(device)
        else:
            store = copy(self)
            store._target = device
        if self._of_target:
            store._of_target = self._of_target.to(device, share)
        return store

    def _moved(self, device: torch.device) -> CellStore:
        """The store with its cells and columns on a device."""
        store = copy(self)
        store._cells = self._cells.resident(device)
        store._columns = {key: value.to(device) for key, value in self._columns.items()}
        store._home = store._target = device
        return store

    def read(self, rows: np.ndarray) -> CellStore:
        """A store that has some cells in memory, under their own row numbers; itself unless they are on disk.

        Parameters
        ----------
        rows
            Increasing row numbers, none twice.

        Returns
        -------
        A store that gives batches of these rows only.
        """
        if not self.on_disk:
            return self
        store = copy(self)
        if isinstance(self._cells, _DiskRows):
            store._cells = self._cells.read(rows)
        if self._of_target:
            store._of_target = self._of_target.read(rows)
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

        Raises
        ------
        IndexError
            If a row number is no cell.
        """
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_cells):
            raise IndexError(f"Row numbers must be from 0 to {self.n_cells - 1}; found {rows.min()} to {rows.max()}.")
        return self._sent(self._cells.take(rows, pinned=self._pins))

    def batch(self, rows: np.ndarray, partners: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """All registered tensors of some cells.

        Parameters
        ----------
        rows
            Row numbers.
        partners
            Row numbers of their paired controls, if the pass uses any; with a target modality, of the cells whose values
            there they meet, where those are not their own.

        Returns
        -------
        Tensors by batch key; `"X_control"` holds the expression of the partners, `"context_control"` and
        `"cell_embedding_control"`, where these are registered, their contexts and embeddings; with a target modality
        `"X_target"` holds the values there in place of them all.
        """
        index = torch.as_tensor(rows, device=self._home)
        tensors = {_keys.X: self.expression(rows)}
        tensors.update({key: self._sent(value[index]) for key, value in self._columns.items()})
        if self._of_target:
            tensors[_keys.X_TARGET] = self._of_target.expression(rows if partners is None else partners)
        elif partners is not None:
            tensors[_keys.X_CONTROL] = self.expression(partners)
            at = torch.as_tensor(partners, device=self._home)
            for key, of_partner in _OF_PARTNER.items():
                if key in self._columns:
                    tensors[of_partner] = self._sent(self._columns[key][at])
        return tensors

    @property
    def _pins(self) -> bool:
        return self._home.type == "cpu" and self._target.type == "cuda"

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        if self._pins and not values.is_pinned():
            values = values.pin_memory()
        return values.to(self._target, non_blocking=self._pins)


class _Cells(Protocol):
    """Expression of cells, wherever it is."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def resident_bytes(self) -> int:
        """Bytes that it takes on a device."""

    def resident(self, device: torch.device) -> _Cells:
        """The same on a device."""

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        """Dense float32 rows, a tensor of its own."""


class _ArrayRows:
    """A dense array of any type of number, shared."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x
        self.nbytes = x.nbytes

    def resident_bytes(self) -> int:
        return 4 * self._x.size

    def resident(self, device: torch.device) -> _Cells:
        return _dense_on(device, self._x.shape, lambda rows: self._x[rows])

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        out = _empty(len(rows), self._x.shape[1], pinned)
        out.numpy()[...] = self._x[rows]
        return out


class _TensorRows:
    """A dense float32 tensor."""

    def __init__(self, x: torch.Tensor) -> None:
        self._x = x
        self.nbytes = x.nbytes

    def values(self) -> np.ndarray:
        return self._x.numpy()

    def resident_bytes(self) -> int:
        return self.nbytes

    def resident(self, device: torch.device) -> _Cells:
        return _TensorRows(self._x.to(device))

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        index = torch.as_tensor(rows, device=self._x.device)
        if not pinned:
            return self._x[index]
        return torch.index_select(self._x, 0, index, out=_empty(len(rows), self._x.shape[1], pinned))


class _CsrRows:
    """A CSR matrix in memory, shared."""

    def __init__(self, x: sparse.csr_matrix) -> None:
        self._x = x
        self.nbytes = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes

    def resident_bytes(self) -> int:
        return 8 * self._x.nnz + 8 * (self._x.shape[0] + 1)

    def resident(self, device: torch.device) -> _Cells:
        return _csr_on(device, self._x.shape, self._x.nnz, lambda rows: self._x[rows])

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        from ._gather import gather

        out = _empty(len(rows), self._x.shape[1], pinned)
        gather(self._x, rows, out.numpy())
        return out


class _DiskRows:
    """A matrix on disk."""

    def __init__(self, x: DiskMatrix) -> None:
        self._x = x

    @property
    def nbytes(self) -> int:
        return self._x.nbytes

    def resident_bytes(self) -> int:
        if self._x.is_dense:
            return 4 * self._x.n_values()
        return 8 * self._x.n_values() + 8 * (self._x.shape[0] + 1)

    def resident(self, device: torch.device) -> _Cells:
        if self._x.is_dense:
            return _dense_on(device, self._x.shape, self._read)
        return _csr_on(device, self._x.shape, self._x.n_values(), self._read)

    def _read(self, rows: slice) -> Any:
        return self._x.read(np.arange(rows.start, rows.stop))

    def read(self, rows: np.ndarray) -> _SomeRows:
        return _SomeRows(rows, _held(self._x.read(rows)))

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        return self.read(np.unique(rows)).take(rows, pinned=pinned)


class _SomeRows:
    """Cells in memory under the row numbers that they have elsewhere."""

    def __init__(self, numbers: np.ndarray, cells: _Cells) -> None:
        self._numbers, self._cells = numbers, cells
        self.nbytes = cells.nbytes + numbers.nbytes

    def resident_bytes(self) -> int:
        return self._cells.resident_bytes()

    def resident(self, device: torch.device) -> _Cells:
        return _SomeRows(self._numbers, self._cells.resident(device))

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        at = np.minimum(np.searchsorted(self._numbers, rows), len(self._numbers) - 1)
        if (self._numbers[at] != rows).any():
            raise IndexError(f"{int((self._numbers[at] != rows).sum())} of {len(rows)} row(s) were not read before.")
        return self._cells.take(at, pinned=pinned)


class _DeviceCsr:
    """CSR on a device: values, genes (int32) and, on both sides, where rows begin; nothing waits for the device."""

    def __init__(self, values: torch.Tensor, genes: torch.Tensor, starts: np.ndarray, n_vars: int) -> None:
        self._values, self._genes, self._starts, self._n_vars = values, genes, starts, n_vars
        self._device_starts = torch.from_numpy(starts).to(values.device)
        self.nbytes = values.nbytes + genes.nbytes + 2 * starts.nbytes

    def resident_bytes(self) -> int:
        return self.nbytes

    def resident(self, device: torch.device) -> _Cells:
        return _DeviceCsr(self._values.to(device), self._genes.to(device), self._starts, self._n_vars)

    def take(self, rows: np.ndarray, *, pinned: bool) -> torch.Tensor:
        device = self._values.device
        index = torch.as_tensor(rows, device=device)
        first = self._device_starts[index]
        lengths = self._device_starts[index + 1] - first
        total = int((self._starts[rows + 1] - self._starts[rows]).sum())
        row = torch.repeat_interleave(torch.arange(len(rows), device=device), lengths, output_size=total)
        # the k-th value of all is the (k - before)-th of its row
        before = lengths.cumsum(0) - lengths
        at = torch.arange(total, device=device) + (first - before)[row]
        out = torch.zeros(len(rows), self._n_vars, device=device)
        out.view(-1)[row * self._n_vars + self._genes[at]] = self._values[at]
        return out


def _held(x: Any) -> _Cells:
    """Expression behind one interface, copied only where it must be."""
    small = x.shape[0] * x.shape[1] * 4 <= _SMALL_BYTES
    if small and isinstance(x, CSCDataset):
        x = x.to_memory()
    disk = disk_rows(x)
    if disk is not None:
        if not small:
            return _DiskRows(disk)
        x = disk.read(np.arange(disk.shape[0]))
    if sparse.issparse(x):
        return _CsrRows(x.tocsr())
    x = np.asarray(x)
    if small:
        x = np.ascontiguousarray(x, dtype=np.float32)
    if x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable:
        return _TensorRows(torch.from_numpy(x))
    return _ArrayRows(x)


def _shares(x: Any, cells: _Cells) -> bool:
    """Whether expression in memory is the matrix given, not a copy."""
    if isinstance(cells, _TensorRows):
        return isinstance(x, np.ndarray) and np.may_share_memory(x, cells.values())
    return isinstance(cells, _ArrayRows) or (isinstance(cells, _CsrRows) and sparse.issparse(x) and x.format == "csr")


def _dense_on(device: torch.device, shape: tuple[int, int], read: Any) -> _TensorRows:
    """Dense cells on a device, written in blocks of rows."""
    out = torch.empty(shape, device=device)
    for rows in _blocks(shape):
        out[rows] = torch.from_numpy(np.ascontiguousarray(read(rows), dtype=np.float32)).to(device)
    return _TensorRows(out)


def _csr_on(device: torch.device, shape: tuple[int, int], n_values: int, read: Any) -> _DeviceCsr:
    """Sparse cells on a device, written in blocks of rows."""
    values = torch.empty(n_values, device=device)
    genes = torch.empty(n_values, dtype=torch.int32, device=device)
    starts = np.zeros(shape[0] + 1, dtype=np.int64)
    for rows in _blocks(shape):
        block = sparse.csr_matrix(read(rows))
        if not block.has_canonical_format:
            # on the device the places of a row are written at once, so none may come twice
            block = block.astype(np.float32, copy=True)
            block.sum_duplicates()
        at = slice(int(starts[rows.start]), int(starts[rows.start]) + block.nnz)
        values[at] = torch.from_numpy(block.data.astype(np.float32)).to(device)
        genes[at] = torch.from_numpy(block.indices.astype(np.int32)).to(device)
        starts[rows.start + 1 : rows.stop + 1] = at.start + block.indptr[1:]
    return _DeviceCsr(values[: starts[-1]], genes[: starts[-1]], starts, shape[1])


def _blocks(shape: tuple[int, int]) -> list[slice]:
    """Runs of rows whose dense float32 takes about `_BLOCK_BYTES`."""
    step = max(1, _BLOCK_BYTES // (4 * max(1, shape[1])))
    return [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]


def _empty(n: int, n_vars: int, pinned: bool) -> torch.Tensor:
    return torch.empty(n, n_vars, pin_memory=pinned)


def _free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device; 0 for others, which do not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0

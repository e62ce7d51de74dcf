"""A matrix of cells that stays in its files and is read by rows."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from ._files import PIECE_BYTES, DensePart, Node, SparsePart, is_zarr, part_of, path_list

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Literal


class DiskMatrix(CSRDataset):
    """Expression that stays in its files: cells x genes, read-only, one file or several stacked by cells.

    What is indexed is read, as a scipy CSR matrix of float32: `matrix[rows]` or `matrix[rows, columns]`, where an index
    is a number, a slice, an array of numbers in any order with repeats, or a boolean mask. Rows are read in the order of
    the file, neighbouring ones at once; columns are taken after reading. Memory holds 8 bytes a cell (where its values
    begin) for a sparse file, and none for a dense one.

    Files are opened when they are needed, and again in another process. A pickle holds their paths only. Reads of
    several threads wait for each other.

    Parameters
    ----------
    paths
        One or several `.h5ad` files or zarr folders of the same number of genes, each CSR or dense.
    layer
        Name of a layer; None is `X`.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    KeyError
        If a file has no such matrix.
    ValueError
        If a file has another format, is stored by columns, or has another number of genes than the first.
    OSError
        If a file is damaged.

    See Also
    --------
    read_backed : the AnnData of such a matrix.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from anndata import AnnData
    >>> folder = Path(tempfile.mkdtemp())
    >>> AnnData(sparse.csr_matrix(np.eye(3, dtype=np.float32))).write_h5ad(folder / "cells.h5ad")
    >>> matrix = DiskMatrix(folder / "cells.h5ad")
    >>> matrix
    DiskMatrix: 3 x 3, float32, 1 file, hdf5
    >>> matrix[[2, 0, 2]].toarray()
    array([[0., 0., 1.],
           [1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """

    dtype = np.dtype(np.float32)

    def __init__(self, paths: str | os.PathLike | Sequence[str | os.PathLike], layer: str | None = None) -> None:
        key = "X" if layer is None else f"layers/{layer}"
        self._stack([part_of(Node(path, key)) for path in path_list(paths)])

    @classmethod
    def _of(cls, node: Node) -> DiskMatrix:
        matrix = cls.__new__(cls)
        matrix._stack([part_of(node)])
        return matrix

    def _stack(self, parts: list[SparsePart | DensePart]) -> None:
        for part in parts[1:]:
            if part.n_vars != parts[0].n_vars:
                raise ValueError(
                    f"{part.node} has {part.n_vars} genes but {parts[0].node} has {parts[0].n_vars}; files that are read "
                    "together must hold the same genes."
                )
        self._parts = parts
        self._first = np.concatenate([[0], np.cumsum([part.n_rows for part in parts])]).astype(np.int64)
        self.shape = (int(self._first[-1]), parts[0].n_vars)

    @property
    def backend(self) -> Literal["hdf5", "zarr"]:
        """Kind of the (first) file."""
        return self._parts[0].backend

    @property
    def n_rows(self) -> list[int]:
        """Cells of each file."""
        return [part.n_rows for part in self._parts]

    @property
    def is_dense(self) -> bool:
        """Whether every file holds a dense matrix."""
        return all(isinstance(part, DensePart) for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory once rows have been read."""
        return sum(part.nbytes for part in self._parts)

    def __repr__(self) -> str:
        n = len(self._parts)
        return f"DiskMatrix: {self.shape[0]} x {self.shape[1]}, float32, {n} file{'s' * (n > 1)}, {self.backend}"

    def __getitem__(self, index: Any) -> Any:
        rows, columns = index if isinstance(index, tuple) and len(index) == 2 else (index, slice(None))
        if isinstance(rows, tuple) and not rows:
            rows = slice(None)
        at = _numbers(rows, self.shape[0], "row")
        if isinstance(columns, slice) and columns == slice(None):
            return self._csr(at)
        genes = _numbers(columns, self.shape[1], "column")
        # so that memory grows with what is kept and not with what is read
        step = max(1, PIECE_BYTES // (8 * max(1, self.shape[1])))
        pieces = [self._csr(at[i : i + step])[:, genes] for i in range(0, max(1, len(at)), step)]
        found = sparse.vstack(pieces, format="csr")
        return found[0, 0] if _is_number(rows) and _is_number(columns) else found

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("Cells on disk are read-only; adata.to_memory() has cells that can be changed.")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # numpy would else wrap the whole matrix as one object
        raise TypeError(
            "Cells on disk are no array; take some (adata[rows].to_memory(), adata.X[rows]) or all (adata.to_memory())."
        )

    def to_memory(self) -> sparse.csr_matrix:
        """Read all cells.

        Returns
        -------
        The whole matrix, float32.
        """
        return self[:]

    def copy(self) -> DiskMatrix:
        """The matrix itself: it cannot be changed, so that a copy of its AnnData reads the same files."""
        return self

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        for part in self._parts:
            part.node.close()

    def n_values(self) -> int:
        """Values that all cells hold, zeros included where the file is dense.

        Returns
        -------
        Their number.
        """
        return sum(part.n_values for part in self._parts)

    def read(self, rows: np.ndarray) -> sparse.csr_matrix | np.ndarray:
        """Rows in the order of the files, as the files hold them.

        Parameters
        ----------
        rows
            Increasing row numbers, none twice.

        Returns
        -------
        Float32: an ndarray if every file is dense, else CSR.
        """
        bounds = np.searchsorted(rows, self._first)
        spans: list[tuple[Any, np.ndarray, slice]] = [
            (part, rows[a:b] - first, slice(a, b))
            for part, first, a, b in zip(self._parts, self._first[:-1], bounds[:-1], bounds[1:], strict=True)
            if b > a
        ]
        if self.is_dense:
            out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
            for part, local, at in spans:
                part.fill(local, out[at])
            return out
        if any(isinstance(part, DensePart) for part, _, _ in spans):
            blocks = [part.csr(local) for part, local, _ in spans]
            return sparse.vstack(blocks, format="csr")
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        for part, local, at in spans:
            starts[at.start + 1 : at.stop + 1] = part.lengths(local)
        np.cumsum(starts, out=starts)
        values, genes = np.empty(starts[-1], dtype=np.float32), np.empty(starts[-1], dtype=np.int32)
        for part, local, at in spans:
            here = slice(starts[at.start], starts[at.stop])
            part.fill(local, values[here], genes[here])
        return sparse.csr_matrix((values, genes, starts), shape=(len(rows), self.shape[1]))

    def _csr(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Rows in any order, with repeats."""
        increasing = len(rows) < 2 or bool((np.diff(rows) > 0).all())
        unique, inverse = (rows, None) if increasing else np.unique(rows, return_inverse=True)
        found = sparse.csr_matrix(self.read(unique))
        return found if inverse is None else found[inverse]


def disk_rows(x: Any) -> DiskMatrix | None:
    """A reader of whole blocks of rows for a matrix on disk, so that nothing is read cell by cell.

    Parameters
    ----------
    x
        Any matrix; on disk are `DiskMatrix`, the `X` of a backed AnnData, `anndata.io.sparse_dataset(...)`, and arrays of
        h5py and zarr.

    Returns
    -------
    The reader; None for a matrix in memory.

    Raises
    ------
    ValueError
        If it is stored by columns.
    """
    if isinstance(x, DiskMatrix):
        return x
    if isinstance(x, CSRDataset | CSCDataset):
        x = x.group
    if isinstance(x, h5py.Group | h5py.Dataset):
        return DiskMatrix._of(Node(x.file.filename, x.name.strip("/"), x))
    if is_zarr(x):
        return DiskMatrix._of(Node(None, x.path, x))
    return None


def _is_number(index: Any) -> bool:
    return isinstance(index, int | np.integer) and not isinstance(index, bool)


def _numbers(index: Any, n: int, what: str) -> np.ndarray:
    """An index as numbers from 0 to n - 1."""
    if index is Ellipsis:
        index = slice(None)
    if isinstance(index, slice):
        return np.arange(*index.indices(n))
    array = np.atleast_1d(np.asarray(index)).ravel()
    if array.dtype == bool:
        if len(array) != n:
            raise IndexError(f"The boolean {what} mask has {len(array)} entries for {n} {what}s.")
        return np.flatnonzero(array)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise IndexError(f"A {what} index must be numbers, a slice or a boolean mask, not {array.dtype}.")
    array = array.astype(np.int64)
    if array.min() < -n or array.max() >= n:
        wrong = array[(array < -n) | (array >= n)]
        raise IndexError(f"{len(wrong)} {what} number(s) are outside the {n} {what}s, first {wrong[0]}.")
    return np.where(array < 0, array + n, array)


# AnnData.to_memory asks this table, which has no public name; without an entry it would leave X in its files
with suppress(ImportError, AttributeError):
    from anndata._core.file_backing import to_memory

    @to_memory.register(DiskMatrix)
    def _(x: DiskMatrix, *, copy: bool = False) -> sparse.csr_matrix:
        return x.to_memory()

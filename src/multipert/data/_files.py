"""Matrices in HDF5 and zarr files: opening them, and reading increasing rows."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

# what is read in vain between two rows where one larger read is cheaper than two
_GAP_BYTES = 64 * 2**10
# what one read holds beside the rows asked for
PIECE_BYTES = 32 * 2**20

_CSC = (
    "is stored by columns (CSC), which cannot be read by rows; convert the file once: adata = anndata.io.read_h5ad(path), "
    "adata.X = adata.X.tocsr(), adata.write_h5ad(path)."
)


def path_list(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Paths as a list.

    Parameters
    ----------
    paths
        One or several.

    Returns
    -------
    At least one path.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not found:
        raise ValueError("paths is empty; name at least one .h5ad file or zarr folder.")
    return found


def open_root(path: Path) -> Any:
    """Open a file for reading.

    Parameters
    ----------
    path
        An HDF5 file or a zarr folder.

    Returns
    -------
    Its root group, of h5py or zarr.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If it has another format.
    OSError
        If it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_dir():
        if not any((path / name).exists() for name in (".zgroup", "zarr.json")):
            raise ValueError(f"{path} is a folder but not a zarr store (it has neither .zgroup nor zarr.json).")
        import zarr

        return zarr.open_group(str(path), mode="r")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is neither an HDF5 file (.h5ad) nor a zarr folder.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path} cannot be opened; it is damaged, cut short or being written ({error}).") from error


class Node:
    """A matrix in a file: opened when it is needed, and again in another process."""

    def __init__(self, path: str | os.PathLike | None, key: str, opened: Any = None) -> None:
        self.path, self.key = None if path is None else Path(path).absolute(), key
        self._start(opened)

    def _start(self, opened: Any) -> None:
        self._opened, self._process, self._lock = opened, os.getpid(), threading.RLock()
        self._size = self._file_size()

    def __getstate__(self) -> dict[str, Any]:
        # an array of zarr goes along where it has no path; it is no open file
        return {"path": self.path, "key": self.key, "opened": self._opened if self.path is None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.key = state["path"], state["key"]
        self._start(state["opened"])

    def __str__(self) -> str:
        return f"{'zarr store' if self.path is None else self.path} ({self.key})"

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The group or array, for this thread alone."""
        if self._process != os.getpid():
            # neither the file of the parent process nor a lock that one of its threads held
            self._start(self._opened if self.path is None else None)
        with self._lock:
            # an h5py object is False once its file is closed
            if self._opened is None or (isinstance(self._opened, h5py.Group | h5py.Dataset) and not self._opened):
                self._opened, self._size = self._find(), self._file_size()
            yield self._opened

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """As `open`; what goes wrong is said in terms of the file."""
        with self.open() as opened:
            try:
                # HDF5 reads zeros behind the end of a file
                if self._file_size() < self._size:
                    raise OSError("it is shorter than when it was opened")
                yield opened
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                raise OSError(
                    f"{self} cannot be read: the file is damaged, or was cut short, moved or changed while in use "
                    f"({type(error).__name__}: {error})."
                ) from error

    def _file_size(self) -> int:
        """Bytes of an HDF5 file; of one that was deleted, which stays readable while it is open, as many as it had."""
        if self.path is not None and self.path.is_file():
            return self.path.stat().st_size
        return getattr(self, "_size", 0)

    def close(self) -> None:
        """Forget the open file."""
        if self.path is not None:
            self._opened = None

    def _find(self) -> Any:
        assert self.path is not None
        root = open_root(self.path)
        if self.key not in root:
            layers = list(root["layers"]) if "layers" in root else []
            raise KeyError(
                f"{self.path} has no {self.key}; it has the layer(s) {', '.join(map(repr, layers)) or 'none'}: name one "
                "with `layer`."
            )
        return root[self.key]


def part_of(node: Node) -> SparsePart | DensePart:
    """The matrix of one file."""
    with node.open() as opened:
        kind = str(opened.attrs.get("encoding-type", opened.attrs.get("h5sparse_format", "array")))
        if kind.startswith("csc"):
            raise ValueError(f"{node} {_CSC}")
        if kind.startswith("csr"):
            return SparsePart(node, opened)
        if hasattr(opened, "shape") and len(opened.shape) == 2 and opened.dtype.kind in "biuf":
            return DensePart(node, opened)
        raise ValueError(f"{node} holds no cells x genes matrix of numbers but {kind!r}; name a layer with `layer`.")


class _Part:
    """What sparse and dense files share."""

    def __init__(self, node: Node, shape: Sequence[int], array: Any) -> None:
        self.node = node
        self.n_rows, self.n_vars = map(int, shape)
        self.backend: Literal["hdf5", "zarr"] = "zarr" if is_zarr(array) else "hdf5"


class DensePart(_Part):
    """Rows of a dense array."""

    nbytes = 0

    def __init__(self, node: Node, opened: Any) -> None:
        super().__init__(node, opened.shape, opened)
        self.n_values = self.n_rows * self.n_vars

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        with self.node.reading() as array:
            row_bytes = max(1, array.dtype.itemsize * self.n_vars)
            runs = _runs(rows, rows + 1, _gap(array, row_bytes), max(1, PIECE_BYTES // row_bytes))
            for a, b in runs:
                block = array[int(rows[a]) : int(rows[b - 1]) + 1]
                with np.errstate(over="ignore"):
                    out[a:b] = block if len(block) == b - a else block[rows[a:b] - rows[a]]

    def csr(self, rows: np.ndarray) -> sparse.csr_matrix:
        out = np.empty((len(rows), self.n_vars), dtype=np.float32)
        self.fill(rows, out)
        return sparse.csr_matrix(out)


class SparsePart(_Part):
    """Rows of a CSR group."""

    def __init__(self, node: Node, opened: Any) -> None:
        shape = opened.attrs["shape"] if "shape" in opened.attrs else opened.attrs["h5sparse_shape"]
        super().__init__(node, shape, opened["data"])
        if opened["data"].dtype.kind not in "biuf":
            raise ValueError(f"{node} holds values of type {opened['data'].dtype}, which are no numbers.")
        self.n_values = int(opened["data"].shape[0])
        self._starts: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_starts": None}

    @property
    def nbytes(self) -> int:
        return 8 * (self.n_rows + 1)

    @property
    def starts(self) -> np.ndarray:
        """Where the values of each row begin."""
        if self._starts is None:
            with self.node.reading() as group:
                starts = group["indptr"][:].astype(np.int64)
                n_values = {int(group[name].shape[0]) for name in ("data", "indices")}
                lost = [name for name in ("data", "indices", "indptr") if _lacks_chunks(group[name])]
            wrong = len(starts) != self.n_rows + 1 or starts[0] != 0 or n_values != {int(starts[-1])}
            if wrong or lost or (np.diff(starts) < 0).any():
                raise OSError(
                    f"{self.node} is damaged: "
                    + (f"parts of {', '.join(lost)} are missing." if lost else "its row starts do not fit its values.")
                )
            self._starts = starts
        return self._starts

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.starts[rows + 1] - self.starts[rows]

    def fill(self, rows: np.ndarray, values: np.ndarray, genes: np.ndarray) -> None:
        first, last = self.starts[rows], self.starts[rows + 1]
        to = np.concatenate([[0], np.cumsum(last - first)])
        with self.node.reading() as group:
            data, indices = group["data"], group["indices"]
            item = data.dtype.itemsize + indices.dtype.itemsize
            gap = max(_gap(array, item) for array in (data, indices))
            for a, b in _runs(first, last, gap, PIECE_BYTES // item):
                start, stop, at = int(first[a]), int(last[b - 1]), slice(to[a], to[b])
                if start == stop:
                    continue
                keep: Any = slice(None)
                if stop - start != at.stop - at.start:
                    keep = np.arange(at.stop - at.start) + np.repeat(
                        first[a:b] - start - to[a:b] + to[a], np.diff(to[a : b + 1])
                    )
                with np.errstate(over="ignore"):
                    values[at] = data[start:stop][keep]
                genes[at] = indices[start:stop][keep]
        if len(genes) and (genes.min() < 0 or genes.max() >= self.n_vars):
            raise OSError(f"{self.node} is damaged: it has gene numbers outside 0 to {self.n_vars - 1}.")

    def csr(self, rows: np.ndarray) -> sparse.csr_matrix:
        starts = np.concatenate([[0], np.cumsum(self.lengths(rows))])
        values, genes = np.empty(starts[-1], dtype=np.float32), np.empty(starts[-1], dtype=np.int32)
        self.fill(rows, values, genes)
        return sparse.csr_matrix((values, genes, starts), shape=(len(rows), self.n_vars))


def _runs(first: np.ndarray, last: np.ndarray, gap: int, longest: int) -> Iterator[tuple[int, int]]:
    """Which of the increasing spans `first` to `last` to read at once: position of the first span and behind the last."""
    far = np.concatenate([[True], first[1:] - last[:-1] > gap])
    begun = first[far][np.cumsum(far) - 1]
    piece = (first - begun) // max(1, longest)
    cuts = np.flatnonzero(far | np.concatenate([[False], piece[1:] != piece[:-1]]))
    yield from zip(cuts.tolist(), [*cuts[1:].tolist(), len(first)], strict=True)


def _gap(array: Any, item_bytes: int) -> int:
    """Entries along the first axis that are better read in vain than skipped."""
    decoded = array.chunks is not None and (is_zarr(array) or array.compression is not None)
    # every read decodes whole chunks
    return max(_GAP_BYTES // item_bytes, array.chunks[0] if decoded else 0)


def _lacks_chunks(array: Any) -> bool:
    """Whether parts of a zarr array were lost, which zarr would read as zeros."""
    return is_zarr(array) and array.nchunks_initialized < array.nchunks


def is_zarr(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "zarr"

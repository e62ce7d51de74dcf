"""From a file to log-normalised expression of chosen genes, fitted on training cells only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._checks import check_expression, check_names
from multipert.data._conditions import close_matches
from multipert.metrics._cells import Cells

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

Record: TypeAlias = "dict[str, str | int | float]"


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, and what to do."""


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what the checks of the package raise into an :class:`InputError` with the same message."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(str(error.args[0]) if error.args else str(error)) from error


def read(path: Path) -> AnnData:
    """Read an h5ad file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The AnnData, in memory.

    Raises
    ------
    InputError
        If there is no such file, or it is no AnnData.
    """
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name an .h5ad file.")
    import anndata
    import h5py

    if not h5py.is_hdf5(path):
        raise InputError(f"{path} is not an .h5ad file (not HDF5).")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        first = str(error).strip().splitlines()
        raise InputError(
            f"{path} cannot be read as an AnnData: {first[0] if first else type(error).__name__}"
        ) from error


def is_counts(x: Any, adata: AnnData) -> bool:
    """Whether a matrix holds finite integers from 0 on.

    Parameters
    ----------
    x
        The matrix, shape `(n_cells, n_vars)`.
    adata
        The AnnData that holds it.

    Returns
    -------
    The answer.
    """
    try:
        check_expression(x, adata, name="X", counts=True)
    except ValueError:
        return False
    return True


def normalise(adata: AnnData, is_train: np.ndarray, *, layer: str | None = None) -> Record:
    """Scale the counts of every cell to one size and take log1p; the counts stay in `layers["counts"]`.

    A cell is scaled by its own total over all genes. The common size is the median total of the training cells, so
    that held-out cells take no part in what is fitted. A cell without counts stays zero.

    Parameters
    ----------
    adata
        Raw counts; `X` and `layers["counts"]` are written.
    is_train
        Whether each cell is a training cell, shape `(n_cells,)`.
    layer
        Layer of the counts; None is `X`.

    Returns
    -------
    What was done, for the record.

    Raises
    ------
    InputError
        If the matrix does not hold raw counts.
    """
    check_names(adata)
    given, name = _matrix(adata, layer)
    try:
        check_expression(given, adata, name=name, counts=True)
    except ValueError as error:
        raise InputError(f"--normalise needs raw counts. {error}") from error
    counts = sparse.csr_matrix(given, dtype=np.float32)
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    target = float(np.median(totals[is_train]))
    if target == 0:
        raise InputError(f"--normalise: half of the training cells have no counts in {name}; drop the empty cells.")
    factors = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    adata.layers[_keys.COUNTS_LAYER] = counts
    # the product with a diagonal matrix would be float64 and twice the size
    scaled = counts.copy()
    scaled.data = np.log1p(scaled.data * np.repeat(factors, np.diff(counts.indptr)), dtype=np.float64).astype(
        np.float32
    )
    adata.X = scaled
    return {
        "counts": name,
        "normalisation": "log1p(counts * target_sum / total of the cell)",
        "target_sum": target,
        "target_sum_from": "median total of the training cells",
    }


def top_genes(adata: AnnData, is_train: np.ndarray, n: int, *, layer: str | None = None) -> tuple[np.ndarray, Record]:
    """The genes with the largest variance over the training cells.

    Parameters
    ----------
    adata
        Log-normalised expression.
    is_train
        Whether each cell is a training cell, shape `(n_cells,)`.
    n
        How many genes to keep. Equal variances are taken in the order of the genes.
    layer
        Layer of the expression; None is `X`.

    Returns
    -------
    Positions of the genes in increasing order, and what was done, for the record.

    Raises
    ------
    InputError
        If values are not finite.
    """
    check_names(adata)
    x, name = _matrix(adata, layer)
    rows = x[is_train]
    variance = Cells(sparse.csr_matrix(rows) if sparse.issparse(rows) else np.asarray(rows)).variance
    if not np.isfinite(variance).all():
        # NaN would pass for the least variable gene
        check_expression(x, adata, name=name, signed=True)
    keep = np.sort(np.argsort(-variance, kind="stable")[:n])
    return keep, {"n_top_genes": len(keep), "genes_by": "variance of the expression over the training cells"}


def _matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """A layer, or X, and what to call it."""
    if layer is None:
        if adata.X is None:
            raise InputError("X is empty; name the layer to read with --layer.")
        return adata.X, "X"
    if layer not in adata.layers:
        raise InputError(f"--layer {layer!r} is not in layers{close_matches(layer, adata.layers)}")
    return adata.layers[layer], f"layers[{layer!r}]"

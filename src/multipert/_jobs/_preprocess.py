"""From a file to log-normalised expression of chosen genes, fitted on training cells only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from multipert import _keys
from multipert.data._checks import check_expression
from multipert.data._conditions import close_matches
from multipert.pp._fit import Record, fit_record, matrix
from multipert.pp._highlyvariablegenes import describe, rank_genes
from multipert.pp._normalise import fitted_size, scale_counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData


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
    """Scale the counts of every cell to one size and take log1p, as :func:`multipert.pp.normalise`.

    Parameters
    ----------
    adata
        Raw counts, and `obs["split"]`; `X` and `layers["counts"]` are written.
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
    counts, name = _matrix(adata, layer)
    try:
        check_expression(counts, adata, name=name, counts=True)
    except ValueError as error:
        raise InputError(f"--normalise needs raw counts. {error}") from error
    target = fitted_size(counts, is_train, name)
    done = scale_counts(adata, counts, name, target) | {"target_sum_from": "median total of the training cells"}
    return done | fit_record("target_sum", adata, is_train, "train", _keys.SPLIT)


def top_genes(adata: AnnData, is_train: np.ndarray, n: int, *, layer: str | None = None) -> tuple[np.ndarray, Record]:
    """The genes with the largest variance over the training cells, as :func:`multipert.pp.highly_variable_genes`.

    Parameters
    ----------
    adata
        Log-normalised expression, and `obs["split"]`.
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
    _matrix(adata, layer)
    keep = np.sort(rank_genes(adata, is_train, n, layer=layer))
    done: Record = {"n_top_genes": len(keep), "genes_by": describe("variance", "train")}
    return keep, done | fit_record("genes", adata, is_train, "train", _keys.SPLIT)


def _matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """A layer, or X, and what to call it; errors name the option of the command line."""
    if layer is None and adata.X is None:
        raise InputError("X is empty; name the layer to read with --layer.")
    if layer is not None and layer not in adata.layers:
        raise InputError(f"--layer {layer!r} is not in layers{close_matches(layer, adata.layers)}")
    return matrix(adata, layer)

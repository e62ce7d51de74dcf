"""Refusals, before anything is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multipert.data._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData


def check_frame(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a frame without rows or without a column.

    Parameters
    ----------
    frame
        What is drawn.
    columns
        Columns that it must have.

    Raises
    ------
    TypeError
        If it is no DataFrame.
    KeyError
        If a column is absent.
    ValueError
        If it has no rows.
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"`frame` is a {type(frame).__name__}; it must be a DataFrame.")
    for column in columns:
        if column not in frame:
            raise KeyError(f"`frame` has no column {column!r}{close_matches(column, frame.columns)}")
    if not len(frame):
        raise ValueError("`frame` has no rows, so there is nothing to draw.")


def check_known(argument: str, wanted: Sequence[str] | np.ndarray, known: Iterable[Any]) -> None:
    """Refuse names that are not there.

    Parameters
    ----------
    argument
        What named them, for the message.
    wanted
        The names.
    known
        Those that are there.

    Raises
    ------
    ValueError
        Naming the first unknown name, how many there are and the nearest known ones; also if none is wanted.
    """
    if not len(wanted):
        raise ValueError(f"`{argument}` is empty; name at least one.")
    known = list(known)
    unknown = [name for name in wanted if name not in set(known)]
    if unknown:
        raise ValueError(
            f"`{argument}` holds {len(unknown)} unknown name(s), first {unknown[0]!r}{close_matches(unknown[0], known)}"
        )


def as_list(names: str | Iterable[str]) -> list[str]:
    """One name or several as a list.

    Parameters
    ----------
    names
        The name or names.

    Returns
    -------
    The list.
    """
    return [names] if isinstance(names, str) else list(names)


def expression(name: str, adata: AnnData, layer: str | None = None, genes: Sequence[str] | None = None) -> Any:
    """Values of an AnnData, checked.

    Parameters
    ----------
    name
        Name of the argument, for the message.
    adata
        Cells.
    layer
        Layer to read in place of `X`; if it is absent from cells called "predicted", `X` is read, which holds the
        prediction in the space of the layer that the model was set up with.
    genes
        Genes to read, in order; None reads all.

    Returns
    -------
    Matrix of shape `(n_cells, n_genes)`, dense or sparse.

    Raises
    ------
    KeyError
        If the layer is absent.
    ValueError
        If there are no cells, a gene is absent, there is no `X`, or values are NaN or infinite.
    """
    if not adata.n_obs:
        raise ValueError(f"`{name}` has no cells.")
    if layer is not None and layer not in adata.layers and name != "predicted":
        raise KeyError(f"`{name}.layers` has no {layer!r}{close_matches(layer, adata.layers)}")
    if genes is not None:
        check_known("genes", genes, adata.var_names)
        adata = adata[:, list(genes)]
    values = adata.layers[layer] if layer is not None and layer in adata.layers else adata.X
    if values is None:
        raise ValueError(f"`{name}.X` is empty; name the `layer` that holds the expression.")
    stored = values.data if hasattr(values, "toarray") else np.asarray(values)
    n_bad = int(np.size(stored) - np.isfinite(stored).sum())
    if n_bad:
        raise ValueError(f"`{name}` holds {n_bad} NaN or infinite value(s); leave these cells or genes out.")
    return values


def dense(values: Any) -> np.ndarray:
    """A matrix as a dense float64 array.

    Parameters
    ----------
    values
        Dense or sparse.

    Returns
    -------
    The array.
    """
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)

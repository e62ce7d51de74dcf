"""On which cells a step of preprocessing is fitted, and the record of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from multipert import _keys
from multipert.data._checks import check_names, expression, is_on_disk
from multipert.data._conditions import close_matches
from multipert.data._rows import split_rows
from multipert.data._splithash import split_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

FitOn = Literal["train", "all"]
Record: TypeAlias = "dict[str, str | int | float]"
PREPROCESSING = "preprocessing"


def matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """A layer, or X, in memory, and what to call it.

    Parameters
    ----------
    adata
        Annotated data.
    layer
        Name of the layer; None is `X`.

    Returns
    -------
    The matrix and its name.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If there is no `X`, expression stays in files, or names are duplicated.
    """
    if is_on_disk(adata):
        raise ValueError("The expression of adata stays in a file; pass adata.to_memory().")
    check_names(adata)
    return expression(adata, layer)


def rows_to_fit(adata: AnnData, fit_on: FitOn, split_key: str) -> np.ndarray:
    """The cells that a step may read.

    Parameters
    ----------
    adata
        Annotated data.
    fit_on
        "train" or "all".
    split_key
        obs column with the split.

    Returns
    -------
    Whether each cell may be read, shape `(n_cells,)`.

    Raises
    ------
    KeyError
        If there is no split to tell training cells by.
    ValueError
        If `fit_on` is unknown, or the column holds other levels.
    """
    if fit_on not in ("train", "all"):
        raise ValueError(f"fit_on={fit_on!r} is unknown; choose 'train' or 'all'.")
    rows = np.ones(adata.n_obs, dtype=bool)
    if fit_on == "train":
        if split_key not in adata.obs.columns:
            raise KeyError(
                f"split_key={split_key!r} is not a column of obs{close_matches(split_key, adata.obs.columns)} Split first "
                "(multipert.splits), so that held-out cells are not read, or pass fit_on='all'."
            )
        rows[:] = False
        rows[split_rows(adata.obs, split_key, 1.0, 0)[0]] = True
    return rows


def fit_record(what: str, adata: AnnData, rows: np.ndarray, fit_on: FitOn, split_key: str) -> Record:
    """What to note of the cells that a step was fitted on.

    Parameters
    ----------
    what
        Prefix of the entries.
    adata
        Annotated data.
    rows
        Whether each cell was read, shape `(n_cells,)`.
    fit_on
        "train" or "all".
    split_key
        obs column with the split.

    Returns
    -------
    The cells in words and number, and the name of the split as :func:`multipert.splits.split_hash` has it.
    """
    record: Record = {f"{what}_fit_on": fit_on, f"{what}_n_cells": int(rows.sum())}
    if fit_on == "train":
        record[f"{what}_split"] = split_hash(adata.obs[split_key])
    return record


def write_record(adata: AnnData, record: Mapping[str, str | int | float]) -> None:
    """Add to `uns["multipert"]["preprocessing"]`.

    Parameters
    ----------
    adata
        Annotated data; changed.
    record
        What was done.
    """
    # whole dictionaries are replaced: those of a view are those of its parent
    old = dict(adata.uns.get(_keys.UNS, {}))
    adata.uns[_keys.UNS] = old | {PREPROCESSING: dict(old.get(PREPROCESSING, {})) | dict(record)}

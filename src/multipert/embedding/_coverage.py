"""Which perturbations of the data a table has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column
from multipert.data._codec import parse_column

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData


def coverage(
    table: pd.DataFrame | Iterable[str],
    adata: AnnData,
    perturbation_key: str = "perturbation",
    control: str = _keys.CONTROL,
    *,
    delimiter: str | None = "+",
) -> pd.DataFrame:
    """Which perturbations of the data have a row in a table, and how many cells hang on that.

    A perturbation without a row cannot be set up with the table: leave its cells out, or complete the table.

    Parameters
    ----------
    table
        Perturbations x features, or the names alone.
    adata
        The data.
    perturbation_key
        obs column of the labels.
    control
        Label of control.
    delimiter
        What joins the parts of a combination; None takes labels whole.

    Returns
    -------
    One row per perturbation of the data, combinations taken apart, sorted by name: `covered` and `n_cells`, the cells that
    got it, alone or combined. In `attrs`: `covered` and `cells`, the shares of perturbations and of perturbed cells that
    the table covers (a combination is covered if all its parts are), and `unused`, how many rows of the table occur in
    no cell: unseen perturbations, which are legal targets of models that read the table.

    Raises
    ------
    TypeError
        If `table` is a single text.
    KeyError
        If there is no such obs column.
    ValueError
        If labels are missing or break the grammar.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> found = coverage(["P1", "P2", "drug"], adata)
    >>> found["covered"].sum(), found.attrs["unused"]
    (np.int64(2), 1)
    """
    if isinstance(table, str):
        raise TypeError(f"table={table!r} must be a DataFrame or a list of names, such as {[table]}.")
    names = {str(name) for name in (table.index if isinstance(table, pd.DataFrame) else table)} - {control}
    labels = check_column(adata.obs, perturbation_key, "perturbation_key")
    conditions, inverse = parse_column(labels, None, control=control, delimiter=delimiter)
    n_cells = np.bincount(inverse, minlength=len(conditions))
    counts: dict[str, int] = {}
    n_perturbed = n_covered = 0
    for condition, n in zip(conditions, n_cells.tolist(), strict=True):
        for name, _ in condition:
            counts[name] = counts.get(name, 0) + n
        if condition:
            n_perturbed += n
            n_covered += n * all(name in names for name, _ in condition)
    found = pd.DataFrame(
        {"covered": [name in names for name in sorted(counts)], "n_cells": [counts[name] for name in sorted(counts)]},
        index=pd.Index(sorted(counts), name=perturbation_key, dtype=object),
    )
    found.attrs = {
        "covered": float(found["covered"].mean()) if len(found) else float("nan"),
        "cells": n_covered / n_perturbed if n_perturbed else float("nan"),
        "unused": len(names - set(counts)),
    }
    return found

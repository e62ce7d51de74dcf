"""The gene set of a benchmark: variable, differentially expressed and perturbed genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column, check_control, check_expression, row_blocks
from multipert.data._codec import parse_column, tokens
from multipert.data._conditions import as_list

from ._fit import matrix, rows_to_fit
from ._highlyvariablegenes import describe, finish_selection, mark_variable, rank_genes
from ._moments import Moments, moments, welch_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._fit import FitOn, Record
    from ._highlyvariablegenes import Method


def select_genes(
    adata: AnnData,
    *,
    n_top_genes: int = 4000,
    n_de_genes: int = 25,
    min_cells: int = 10,
    method: Method = "variance",
    layer: str | None = None,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    fit_on: FitOn = "train",
    split_key: str = _keys.SPLIT,
    subset: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Mark variable genes, genes that perturbations change, and the perturbed genes themselves.

    The gene set of :cite:t:`Wu2024`, from training cells. With `method="seurat_v3"` and `fit_on="all"` it follows the
    published rules, which read held-out cells.

    Parameters
    ----------
    adata
        Log-normalised expression; `var` columns "selected" and, for the reasons, "highly_variable",
        "highly_variable_rank", "differential" and "perturbed", and the record in `uns["multipert"]["preprocessing"]` are
        written.
    n_top_genes
        How many variable genes; contexts are batches, see :func:`highly_variable_genes`.
    n_de_genes
        How many genes for each (context, label): those of the largest absolute Welch statistic against the control cells
        of the context. Groups of one cell have none.
    min_cells
        Genes expressed in fewer of the cells read are not selected.
    method
        As :func:`highly_variable_genes`; "seurat_v3" reads `layers["counts"]`.
    layer
        Layer of the log-normalised expression; None is `X`.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    fit_on
        "train" reads the expression of training cells only, "all" of all cells. Perturbed genes are those named by any
        label, held out or not: a name says nothing of what was measured.
    split_key
        obs column with "train", "val" and "test".
    subset
        Whether to drop the other genes.
    copy
        Whether to return a new AnnData and leave the one given as it is.

    Returns
    -------
    None, or the new AnnData with `copy=True`.

    Raises
    ------
    ImportError
        If scikit-misc is needed and absent.
    KeyError
        If a layer or column is absent.
    ValueError
        If an argument is out of range, there is no control cell to fit on, or values are not what is needed.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> adata.obs["split"] = mp.splits.context_transfer(adata, "context_1")
    >>> mp.pp.select_genes(adata, n_top_genes=100, n_de_genes=5)
    >>> bool(adata.var["selected"].sum() >= 100)
    True
    """
    for argument, value, least in (
        ("n_top_genes", n_top_genes, 0),
        ("n_de_genes", n_de_genes, 0),
        ("min_cells", min_cells, 0),
    ):
        if value < least:
            raise ValueError(f"{argument}={value} must be at least {least}.")
    x, name = matrix(adata, layer)
    rows = rows_to_fit(adata, fit_on, split_key)
    check_expression(x, adata, name=name, rows=np.flatnonzero(rows))
    labels = check_column(adata.obs, perturbation_key, "perturbation_key")
    conditions, condition = parse_column(labels, None, control=control, delimiter=delimiter)
    is_control = np.array([not parts for parts in conditions])[condition]
    check_control(labels[rows], is_control[rows], perturbation_key, control)
    context = _contexts(adata.obs, context_key)
    possible = _n_expressing(x, rows) >= min_cells
    order = rank_genes(
        adata, rows, n_top_genes, method, layer if method == "variance" else None, None, possible, context
    )
    differential = _differential(x, rows, context, condition, is_control, possible, n_de_genes)
    perturbed = np.isin(adata.var_names.astype(str), tokens(conditions)) & possible
    adata = adata.copy() if copy else adata
    mark_variable(adata, order)
    adata.var["differential"], adata.var["perturbed"] = differential, perturbed
    selected = adata.var["highly_variable"].to_numpy() | differential | perturbed
    adata.var["selected"] = selected
    record: Record = {
        "n_genes": int(selected.sum()),
        "n_top_genes": len(order),
        "n_de_genes": n_de_genes,
        "min_cells": min_cells,
        "genes_by": f"{describe(method, fit_on)}, differential expression, perturbed genes",
    }
    finish_selection(adata, selected, record, rows, fit_on, split_key, subset)
    return adata if copy else None


def _contexts(obs: pd.DataFrame, context_key: str | Sequence[str] | None) -> np.ndarray:
    """Code of each cell's context, shape `(n_cells,)`."""
    if context_key is None:
        return np.zeros(len(obs), dtype=np.int64)
    keys = as_list(context_key)
    columns = [check_column(obs, key, "context_key").astype(str).to_numpy() for key in keys]
    return pd.factorize(pd.MultiIndex.from_arrays(columns), sort=True)[0]


def _n_expressing(x: Any, rows: np.ndarray) -> np.ndarray:
    """In how many of the rows each gene is not zero, shape `(n_vars,)`."""
    n = np.zeros(x.shape[1], dtype=np.int64)
    for _, block in row_blocks(x, np.flatnonzero(rows)):
        n += np.asarray((block != 0).sum(axis=0)).ravel()
    return n


def _differential(
    x: Any,
    rows: np.ndarray,
    context: np.ndarray,
    condition: np.ndarray,
    is_control: np.ndarray,
    possible: np.ndarray,
    n: int,
) -> np.ndarray:
    """Whether a gene is among the `n` most changed of any (context, label), shape `(n_vars,)`."""
    found = np.zeros(x.shape[1], dtype=bool)
    for here in np.unique(context[rows]):
        at = np.flatnonzero(rows & (context == here))
        controls = is_control[at]
        if not controls.any() or controls.all():
            continue
        labels = np.where(controls, -1, condition[at])
        names, group = np.unique(labels, return_inverse=True)
        of_all = moments(x, at, group.ravel(), len(names))
        scores = np.abs(welch_scores(Moments(*(part[1:] for part in of_all)), Moments(*(part[:1] for part in of_all))))
        scores[:, ~possible] = 0
        top = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        found[top[np.take_along_axis(scores, top, axis=1) > 0]] = True
    return found

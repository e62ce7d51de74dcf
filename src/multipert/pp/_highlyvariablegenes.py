"""Genes that vary over the training cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column, check_expression

from ._fit import PREPROCESSING, fit_record, matrix, rows_to_fit, write_record
from ._moments import moments

if TYPE_CHECKING:
    from anndata import AnnData

    from ._fit import FitOn, Record

Method = Literal["variance", "seurat_v3"]


def highly_variable_genes(
    adata: AnnData,
    n_top_genes: int = 5000,
    *,
    method: Method = "variance",
    layer: str | None = None,
    batch_key: str | None = None,
    fit_on: FitOn = "train",
    split_key: str = _keys.SPLIT,
    subset: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Mark the genes that vary most over the training cells.

    Parameters
    ----------
    adata
        Annotated data; `var["highly_variable"]`, `var["highly_variable_rank"]` (0 is the first; missing where not chosen)
        and the record in `uns["multipert"]["preprocessing"]` are written.
    n_top_genes
        How many genes; all, where there are fewer.
    method
        "variance": by the variance of log-normalised expression, equal ones in the order of the genes. "seurat_v3": scanpy's
        variance of standardised counts :cite:p:`Wolf2018`; needs scikit-misc.
    layer
        Layer to read. None is `X` for "variance" and `layers["counts"]` for "seurat_v3".
    batch_key
        obs column of batches, within which genes must vary: variances are pooled over them, or ranks combined as scanpy
        does.
    fit_on
        "train" reads training cells only, "all" all cells.
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
        If an argument is unknown, values are not finite, or are no counts where counts are needed.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> adata.obs["split"] = mp.splits.context_transfer(adata, "context_1")
    >>> mp.pp.highly_variable_genes(adata, 50, subset=True)
    >>> adata.n_vars
    50
    """
    if n_top_genes < 1:
        raise ValueError(f"n_top_genes={n_top_genes} must be at least 1.")
    rows = rows_to_fit(adata, fit_on, split_key)
    order = rank_genes(adata, rows, n_top_genes, method, layer, batch_key)
    adata = adata.copy() if copy else adata
    mark_variable(adata, order)
    record: Record = {"n_top_genes": len(order), "genes_by": describe(method, fit_on)}
    finish_selection(adata, adata.var["highly_variable"].to_numpy(), record, rows, fit_on, split_key, subset)
    return adata if copy else None


def describe(method: Method, fit_on: FitOn) -> str:
    """The method in words."""
    cells = "training cells" if fit_on == "train" else "cells"
    what = "variance of the expression" if method == "variance" else "seurat_v3 variance of the counts"
    return f"{what} over the {cells}"


def rank_genes(
    adata: AnnData,
    rows: np.ndarray,
    n: int,
    method: Method = "variance",
    layer: str | None = None,
    batch_key: str | None = None,
    genes: np.ndarray | None = None,
    batch: np.ndarray | None = None,
) -> np.ndarray:
    """The genes that vary most.

    Parameters
    ----------
    adata
        Annotated data.
    rows
        Whether each cell is read, shape `(n_cells,)`.
    n
        How many genes at most.
    method
        As :func:`highly_variable_genes`.
    layer
        As :func:`highly_variable_genes`.
    batch_key
        obs column of batches.
    genes
        Whether each gene may be chosen, shape `(n_vars,)`; None allows all.
    batch
        Batch of each cell in place of `batch_key`, shape `(n_cells,)`.

    Returns
    -------
    Positions of the chosen genes, the first first.

    Raises
    ------
    ValueError
        If the method is unknown or the values are not what it reads.
    """
    if method not in ("variance", "seurat_v3"):
        raise ValueError(f"method={method!r} is unknown; choose 'variance' or 'seurat_v3'.")
    if batch_key is not None:
        batch = check_column(adata.obs, batch_key, "batch_key").astype(str).to_numpy()
    batches = np.zeros(int(rows.sum()), dtype=np.int64) if batch is None else pd.factorize(batch[rows], sort=True)[0]
    possible = np.arange(adata.n_vars) if genes is None else np.flatnonzero(genes)
    if n == 0:
        return possible[:0]
    if method == "seurat_v3":
        counts, name = matrix(adata, _keys.COUNTS_LAYER if layer is None else layer)
        check_expression(counts, adata, name=name, rows=np.flatnonzero(rows), counts=True)
        return possible[_seurat_v3(counts[rows][:, possible], batches, n)]
    x, name = matrix(adata, layer)
    # NaN would pass for the least variable gene, and the variance of counts is that of the deepest cells
    check_expression(x, adata, name=name, rows=np.flatnonzero(rows), signed=True)
    found = moments(x, np.flatnonzero(rows), batches, int(batches.max()) + 1)
    freedom = np.maximum(found.n - 1, 0)
    variance = freedom @ found.variance / max(1, freedom.sum())
    return possible[np.argsort(-variance[possible], kind="stable")[:n]]


def _seurat_v3(counts: Any, batches: np.ndarray, n: int) -> np.ndarray:
    import scanpy
    from anndata import AnnData

    try:
        import skmisc.loess  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "method='seurat_v3' needs scikit-misc: pip install 'multipert[scikit-misc]'. method='variance' needs nothing."
        ) from error
    obs = pd.DataFrame({"batch": pd.Categorical(batches.astype(str))}, index=[str(i) for i in range(len(batches))])
    several = len(obs["batch"].cat.categories) > 1
    part = AnnData(counts, obs=obs)
    try:
        found = scanpy.pp.highly_variable_genes(
            part,
            flavor="seurat_v3",
            n_top_genes=min(n, part.n_vars),
            batch_key="batch" if several else None,
            inplace=False,
            check_values=False,
        )
    except ValueError as error:
        raise ValueError(
            f"method='seurat_v3' cannot fit the trend of variance over the mean ({str(error).strip()}); a batch may have too "
            "few cells or genes: merge batches, or use method='variance'."
        ) from error
    found = found.loc[part.var_names]
    chosen = np.flatnonzero(found["highly_variable"].to_numpy())
    keys = [-found["variances_norm"].to_numpy()[chosen], found["highly_variable_rank"].to_numpy()[chosen]]
    return chosen[np.lexsort(keys)]


def mark_variable(adata: AnnData, order: np.ndarray) -> None:
    """Write `var["highly_variable"]` and `var["highly_variable_rank"]`.

    Parameters
    ----------
    adata
        Annotated data; changed.
    order
        Positions of the chosen genes, the first first.
    """
    rank = np.full(adata.n_vars, np.nan)
    rank[order] = np.arange(len(order))
    adata.var["highly_variable"] = ~np.isnan(rank)
    adata.var["highly_variable_rank"] = rank


def finish_selection(
    adata: AnnData,
    keep: np.ndarray,
    record: Record,
    rows: np.ndarray,
    fit_on: FitOn,
    split_key: str,
    subset: bool,
) -> None:
    """Record a choice of genes, and drop the others where asked for.

    Parameters
    ----------
    adata
        Annotated data; changed.
    keep
        Whether each gene is chosen, shape `(n_vars,)`.
    record
        What was done.
    rows
        Whether each cell was read, shape `(n_cells,)`.
    fit_on
        "train" or "all".
    split_key
        obs column with the split.
    subset
        Whether to drop the other genes.
    """
    before = adata.uns.get(_keys.UNS, {}).get(PREPROCESSING, {})
    record = record | fit_record("genes", adata, rows, fit_on, split_key)
    if before.get("genes_dropped") == "yes" and before.get("genes_fit_on") == "all":
        # a choice among genes that held-out cells had chosen has read them too
        record |= {"genes_fit_on": "all"}
    record["genes_dropped"] = "yes" if subset or before.get("genes_dropped") == "yes" else "no"
    write_record(adata, record)
    if subset:
        adata._inplace_subset_var(keep)

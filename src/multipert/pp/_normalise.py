"""Counts to log-normalised expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._checks import check_expression

from ._fit import fit_record, matrix, rows_to_fit, write_record

if TYPE_CHECKING:
    from anndata import AnnData

    from ._fit import FitOn, Record


def normalise(
    adata: AnnData,
    *,
    target_sum: float | None = None,
    layer: str | None = None,
    fit_on: FitOn = "train",
    split_key: str = _keys.SPLIT,
    copy: bool = False,
) -> AnnData | None:
    """Scale the counts of every cell to one size and take log1p; the counts stay in `layers["counts"]`.

    A cell is scaled by its own total over all genes. The common size is the median total of the training cells, so that
    held-out cells take no part in what is fitted. A cell without counts stays zero.

    Parameters
    ----------
    adata
        Raw counts; `X`, `layers["counts"]` (both CSR, float32) and the record in `uns["multipert"]["preprocessing"]` are
        written.
    target_sum
        The common size; None fits it.
    layer
        Layer of the counts; None is `X`.
    fit_on
        "train" takes the median over training cells, "all" over all cells.
    split_key
        obs column with "train", "val" and "test".
    copy
        Whether to return a new AnnData and leave the one given as it is.

    Returns
    -------
    None, or the new AnnData with `copy=True`.

    Raises
    ------
    KeyError
        If the layer or the split is absent.
    ValueError
        If the matrix does not hold raw counts, the size is not positive, or the split has other levels.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> adata.obs["split"] = mp.splits.context_transfer(adata, "context_1")
    >>> mp.pp.normalise(adata, layer="counts")
    >>> adata.uns["multipert"]["preprocessing"]["target_sum_fit_on"]
    'train'
    """
    counts, name = matrix(adata, layer)
    if target_sum is not None and not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum={target_sum} must be positive and finite.")
    check_expression(counts, adata, name=name, counts=True)
    rows = rows_to_fit(adata, fit_on, split_key) if target_sum is None else None
    size = fitted_size(counts, rows, name) if rows is not None else float(target_sum or 0)
    adata = adata.copy() if copy else adata
    record = scale_counts(adata, counts, name, size)
    if rows is None:
        record |= {"target_sum_fit_on": "given", "target_sum_from": "given"}
    else:
        cells = "training cells" if fit_on == "train" else "all cells"
        record |= {"target_sum_from": f"median total of the {cells}"}
        record |= fit_record("target_sum", adata, rows, fit_on, split_key)
    write_record(adata, record)
    return adata if copy else None


def fitted_size(counts: Any, rows: np.ndarray, name: str) -> float:
    """The median total of some cells.

    Parameters
    ----------
    counts
        Raw counts, shape `(n_cells, n_vars)`.
    rows
        Whether each cell is read, shape `(n_cells,)`.
    name
        What to call the matrix.

    Returns
    -------
    The median.

    Raises
    ------
    ValueError
        If it is 0.
    """
    target = float(np.median(np.asarray(counts[rows].sum(axis=1, dtype=np.float64)).ravel()))
    if target == 0:
        raise ValueError(f"Half of the cells to fit on have no counts in {name}; drop the empty cells.")
    return target


def scale_counts(adata: AnnData, counts: Any, name: str, target_sum: float) -> Record:
    """Write log-normalised expression and counts.

    Parameters
    ----------
    adata
        The AnnData; `X` and `layers["counts"]` are written.
    counts
        Raw counts, shape `(n_cells, n_vars)`.
    name
        What to call that matrix.
    target_sum
        The size to scale to.

    Returns
    -------
    What was done, for the record.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    # the product with a diagonal matrix would be float64 and twice the size
    scaled = counts.copy()
    scaled.data = np.log1p(scaled.data * np.repeat(factors, np.diff(counts.indptr)), dtype=np.float64).astype(
        np.float32
    )
    adata.layers[_keys.COUNTS_LAYER] = counts
    adata.X = scaled
    return {
        "counts": name,
        "normalisation": "log1p(counts * target_sum / total of the cell)",
        "target_sum": target_sum,
    }

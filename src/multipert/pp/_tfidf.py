"""Peak counts to scaled accessibility, fitted on training cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._checks import check_expression, check_genes
from multipert.data._conditions import close_matches

from ._fit import PREPROCESSING, fit_record, matrix, rows_to_fit, write_record

if TYPE_CHECKING:
    from anndata import AnnData

    from ._fit import FitOn, Record

_IDF, _TOTAL, _SCALE = "idf", "n_peaks", "tfidf_scale"


def tfidf(
    adata: AnnData,
    *,
    min_fraction: float = 0.005,
    quantile: float = 1.0,
    layer: str | None = None,
    fit_on: FitOn = "train",
    split_key: str = _keys.SPLIT,
    like: AnnData | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Binarise peaks, drop rare ones, and scale them by term and inverse document frequency to 0..1.

    For a cell with :math:`t` open peaks, and a peak that is open in :math:`n_p` of the :math:`n` training cells, an open peak
    becomes

    .. math::

        \min\Bigl(1, \frac{1}{s\,t} \ln\bigl(1 + n / n_p\bigr)\Bigr)

    and a closed one 0, with :math:`s` the largest such value of training cells before scaling. One cell with very few open
    peaks sets that maximum; the record names it, and `quantile` below 1 takes a quantile of the values above 0 in its
    place. Held-out cells take no part in what is fitted.

    Parameters
    ----------
    adata
        Raw counts of peaks. Peaks that are open in too few training cells are dropped; `X` (CSR, float32), `var["idf"]`,
        `obs["n_peaks"]`, `layers["counts"]` and the record in `uns["multipert"]["preprocessing"]` are written.
    min_fraction
        A peak is kept if it is open in `ceil(min_fraction * n)` of the training cells, and in one at least.
    quantile
        Quantile of the training cells' values above 0 that becomes 1.
    layer
        Layer of the counts; None is `X`.
    fit_on
        "train" fits on training cells, "all" on all cells.
    split_key
        obs column with "train", "val" and "test".
    like
        An AnnData that this function was applied to: its peaks, frequencies and scale are used, and nothing is fitted.
    copy
        Whether to return a new AnnData and leave the one given as it is.

    Returns
    -------
    None, or the new AnnData with `copy=True`.

    Raises
    ------
    KeyError
        If the layer or the split is absent, or `like` was not preprocessed.
    ValueError
        If the matrix does not hold raw counts, an argument is out of range, no peak is left, or peaks of `like` are missing.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate_multimodal(n_cells=60, target="atac")["atac"]
    >>> mp.pp.tfidf(adata, fit_on="all")
    >>> float(adata.X.max())
    1.0
    """
    if not 0 <= min_fraction < 1:
        raise ValueError(f"min_fraction={min_fraction} must be at least 0 and below 1.")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile} must be above 0 and at most 1.")
    counts, name = matrix(adata, layer)
    check_expression(counts, adata, name=name, counts=True)
    if like is not None:
        peaks, idf, scale = _fitted(adata, like)
        record: Record = {_SCALE: scale, "tfidf_fit_on": "given"}
        binary = _binary(counts)[:, peaks]
    else:
        rows = rows_to_fit(adata, fit_on, split_key)
        binary = _binary(counts)
        n_open = np.asarray(binary[rows].sum(axis=0)).ravel()
        peaks = np.flatnonzero(n_open >= max(1, math.ceil(min_fraction * rows.sum())))
        if not len(peaks):
            raise ValueError(
                f"No peak of {name} is open in {min_fraction:g} of the {int(rows.sum())} cells to fit on; lower min_fraction."
            )
        idf, binary = np.log1p(rows.sum() / n_open[peaks]), binary[:, peaks]
        scale, cell = _scale(_weighted(binary, idf), rows, quantile)
        record = {_SCALE: scale, "tfidf_scale_cell": str(adata.obs_names[cell]), "tfidf_quantile": float(quantile)}
        record |= fit_record("tfidf", adata, rows, fit_on, split_key)
    scaled = _weighted(binary, idf)
    scaled.data = np.minimum(scaled.data / scale, 1)
    adata = adata.copy() if copy else adata
    kept = sparse.csr_matrix(counts, dtype=np.float32)[:, peaks]
    # as a whole: other matrices of the object keep their own columns until then
    adata._inplace_subset_var(peaks)
    adata.X, adata.layers[_keys.COUNTS_LAYER] = scaled.astype(np.float32), kept
    adata.var[_IDF] = idf
    adata.obs[_TOTAL] = np.asarray(binary.sum(axis=1)).ravel().astype(np.int64)
    write_record(adata, {"counts": name, "normalisation": "TF-IDF of binary peaks, scaled to 0..1"} | record)
    return adata if copy else None


def inverse_tfidf(adata: AnnData) -> sparse.csr_matrix:
    """Binary peaks from scaled accessibility: the way back from :func:`tfidf`.

    It needs each cell's number of open peaks, so it is for cells that were measured; a prediction is a ranking.

    Parameters
    ----------
    adata
        What :func:`tfidf` was applied to.

    Returns
    -------
    Shape `(n_cells, n_peaks)`, 1 for an open peak; less where the value was cut at 1.

    Raises
    ------
    KeyError
        If it was not.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate_multimodal(n_cells=60, target="atac")["atac"]
    >>> mp.pp.tfidf(adata, fit_on="all")
    >>> sorted(set(inverse_tfidf(adata).data.round(3).tolist()))
    [1.0]
    """
    peaks, idf, scale = _fitted(adata, adata)
    if _TOTAL not in adata.obs:
        raise KeyError(f"obs has no column {_TOTAL!r}; apply multipert.pp.tfidf to these cells.")
    x = sparse.csr_matrix(adata.X, dtype=np.float64)[:, peaks]
    return sparse.csr_matrix(sparse.diags(adata.obs[_TOTAL].to_numpy(float)) @ x @ sparse.diags(scale / idf))


def _binary(counts: Any) -> sparse.csr_matrix:
    binary = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    binary.eliminate_zeros()
    binary.data[:] = 1
    return binary


def _weighted(binary: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """Open peaks over the cell's number of them, times the weight of the peak; a cell without any stays zero."""
    totals = np.asarray(binary.sum(axis=1)).ravel()
    factors = np.divide(1, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_matrix(sparse.diags(factors) @ binary @ sparse.diags(idf))


def _scale(weighted: sparse.csr_matrix, rows: np.ndarray, quantile: float) -> tuple[float, int]:
    """What becomes 1, and the cell with the largest value."""
    training = weighted[rows]
    largest = np.asarray(training.max(axis=1).todense()).ravel()
    scale = float(largest.max()) if quantile == 1 else float(np.quantile(training.data, quantile))
    return scale, int(np.flatnonzero(rows)[largest.argmax()])


def _fitted(adata: AnnData, like: AnnData) -> tuple[np.ndarray, np.ndarray, float]:
    """Where the peaks of one AnnData are in another, their weights, and the scale."""
    record = like.uns.get(_keys.UNS, {}).get(PREPROCESSING, {})
    if _IDF not in like.var or _SCALE not in record:
        raise KeyError(
            f"var has no column {_IDF!r}, or the record no {_SCALE!r}{close_matches(_SCALE, record)}; apply "
            "multipert.pp.tfidf to the training cells first."
        )
    peaks = adata.var_names.get_indexer(like.var_names)
    if (peaks < 0).any():
        check_genes(adata.var_names, like.var_names)
    return peaks, like.var[_IDF].to_numpy(float), float(record[_SCALE])

"""Protein counts to log ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._checks import check_expression

from ._fit import matrix, write_record

if TYPE_CHECKING:
    from anndata import AnnData


def clr(adata: AnnData, *, layer: str | None = None, copy: bool = False) -> AnnData | None:
    r"""Divide each cell's counts by their geometric mean and take the logarithm; the counts stay in `layers["counts"]`.

    With the geometric mean :math:`g` of a cell's counts that are not zero, a count :math:`x > 0` becomes
    :math:`\ln(x / g)` and a count of zero stays 0. Nothing is fitted: a cell's values depend on that cell only. They may be
    negative. A zero and a count equal to the mean give the same value, so there is no way back.

    Parameters
    ----------
    adata
        Raw counts; `X` (dense, float32), `layers["counts"]` and the record in `uns["multipert"]["preprocessing"]` are written.
    layer
        Layer of the counts; None is `X`.
    copy
        Whether to return a new AnnData and leave the one given as it is.

    Returns
    -------
    None, or the new AnnData with `copy=True`.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If the matrix does not hold raw counts, or a cell has none.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate_multimodal(n_cells=30)["protein"]
    >>> mp.pp.clr(adata)
    >>> bool(abs(adata.X.sum(axis=1)).max() < 1e-3)
    True
    """
    counts, name = matrix(adata, layer)
    check_expression(counts, adata, name=name, counts=True)
    dense = (counts.toarray() if sparse.issparse(counts) else np.asarray(counts)).astype(np.float64)
    n_positive = (dense > 0).sum(axis=1)
    if (n_positive == 0).any():
        shown = ", ".join(map(repr, adata.obs_names[n_positive == 0][:3].astype(str)))
        raise ValueError(
            f"{int((n_positive == 0).sum())} cell(s) have no counts in {name}, first {shown}; their geometric mean is not "
            "defined: drop them."
        )
    logs = np.log(dense, out=np.zeros_like(dense), where=dense > 0)
    ratios = np.where(dense > 0, logs - (logs.sum(axis=1) / n_positive)[:, None], 0)
    adata = adata.copy() if copy else adata
    adata.layers[_keys.COUNTS_LAYER] = sparse.csr_matrix(dense.astype(np.float32))
    adata.X = ratios.astype(np.float32)
    write_record(adata, {"counts": name, "normalisation": "ln(count / geometric mean of the cell's non-zero counts)"})
    return adata if copy else None

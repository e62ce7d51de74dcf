"""From decoded expression to predicted cells: plain, residual or counts, one implementation for all models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._checks import row_blocks
from multipert.data._noise import cell_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import torch

Realise = Literal["plain", "residual", "counts"]
_TOLERANCE = 1e-3


def check_realise(realise: str, signed: bool, output: str) -> None:
    """Refuse an unknown realisation, or one that the data or the model exclude.

    Parameters
    ----------
    realise
        What was asked for.
    signed
        Whether the data may be negative.
    output
        The model's tag.

    Raises
    ------
    ValueError
        With the legal values or the reason.
    """
    if realise not in get_args(Realise):
        raise ValueError(f"realise={realise!r} is unknown; known: {', '.join(map(repr, get_args(Realise)))}.")
    if realise != "plain" and output != "cell":
        raise ValueError(f"realise={realise!r} needs a model that maps cells, this one's tag output is {output!r}.")
    if realise == "counts" and signed:
        raise ValueError(
            "realise='counts' needs expression made from counts, but the data were set up with signed=True."
        )


def residual(x: torch.Tensor, decoded: torch.Tensor, decoded_control: torch.Tensor) -> torch.Tensor:
    """The control cell plus the decoded change; exactly the cell where nothing changes.

    Parameters
    ----------
    x
        Control cells, shape `(B, n_vars)`.
    decoded
        Decoded under the target, same shape.
    decoded_control
        Decoded under control, same shape.

    Returns
    -------
    Predicted cells, same shape.
    """
    return x + (decoded - decoded_control)


def size_factors(x: Any, counts: Any, names: Sequence[str], layer: str) -> np.ndarray:
    """The factor `s` of each cell for which `x = log1p(s * counts)`.

    Parameters
    ----------
    x
        Log-normalised expression, shape `(n_cells, n_vars)`, dense or CSR.
    counts
        Raw counts, same shape, dense or CSR.
    names
        Names of the cells.
    layer
        Name of the layer of counts, for messages.

    Returns
    -------
    Size factors, shape `(n_cells,)`; 1 for a cell without counts.

    Raises
    ------
    ValueError
        If the counts are not integers, or the ratio differs between genes by more than 1e-3.
    """
    x, counts = _float64(x), _float64(counts)
    if (counts < 0).any() or (counts != np.rint(counts)).any() or not np.isfinite(counts).all():
        n = int(((counts < 0) | (counts != np.rint(counts))).sum())
        raise ValueError(f"layers[{layer!r}] must hold raw counts; {n} value(s) are negative or no integers.")
    linear = np.expm1(x)
    totals = counts.sum(axis=1)
    factors = np.divide(linear.sum(axis=1), totals, out=np.ones(len(x)), where=totals > 0)
    expected = factors[:, None] * counts
    wrong = np.abs(linear - expected) > _TOLERANCE * np.maximum(expected, factors[:, None])
    if wrong.any():
        cells = np.flatnonzero(wrong.any(axis=1))
        raise ValueError(
            f"The expression is not log1p(size factor * layers[{layer!r}]): {len(cells)} cell(s) differ, first "
            f"{str(names[cells[0]])!r}; both must be of the same normalisation "
            "(scanpy.pp.normalize_total, then scanpy.pp.log1p, without scaling)."
        )
    return factors


def size_factors_of(x: Any, counts: Any, names: pd.Index, rows: np.ndarray) -> np.ndarray:
    """Size factors of some of many cells, read block by block; see :func:`size_factors`.

    Parameters
    ----------
    x
        Log-normalised expression, shape `(n_cells, n_vars)`, in memory or on disk.
    counts
        Raw counts, same shape.
    names
        Names of the cells.
    rows
        Increasing row numbers; no other row is read.

    Returns
    -------
    Size factors, shape `(n_cells,)`, float32; NaN for the other cells.
    """
    factors = np.full(x.shape[0], np.nan, dtype=np.float32)
    for at, block in row_blocks(x, rows):
        factors[at] = size_factors(block, counts[at], names[at], _keys.COUNTS_LAYER)
    return factors


def draw_counts(
    x: np.ndarray,
    counts: np.ndarray,
    factors: np.ndarray,
    rates_control: np.ndarray,
    rates: np.ndarray,
    correction: np.ndarray,
    names: Sequence[str],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Thin the counts of control cells and add new ones, so that their mean follows the rates.

    For a gene with `k` counts in a cell of size factor `s`, control rate `a` and target rate `b`: Binomial(k, min(1,
    b / a)) counts stay and Poisson(max(b - a, 0) * correction / s) come in. Numbers are drawn by (seed, cell).

    Parameters
    ----------
    x
        Control cells, log-normalised, shape `(B, n_vars)`.
    counts
        Their raw counts, same shape.
    factors
        Their size factors, shape `(B,)`.
    rates_control
        Mean normalised counts under control, same shape as `x`.
    rates
        Mean normalised counts under the target, same shape as `x`.
    correction
        Factor on the added rate, shape `(n_vars,)` or the shape of `x`.
    names
        Names of the cells.
    seed
        Seed of the draw.

    Returns
    -------
    Predicted log-normalised expression and predicted counts, both of the shape of `x`, float32. Where the count did not
    change the expression is that of the control cell.
    """
    keep = np.minimum(1.0, np.divide(rates, rates_control, out=np.ones_like(rates), where=rates_control > 0))
    added = np.maximum(rates - rates_control, 0) * correction / factors[:, None]
    predicted = counts.astype(np.float64)
    for i, name in enumerate(names):
        rng = cell_generator(seed, name)
        thinned = np.flatnonzero((counts[i] > 0) & (keep[i] < 1))
        predicted[i, thinned] = rng.binomial(counts[i, thinned].astype(np.int64), keep[i, thinned])
        grown = np.flatnonzero(added[i] > 0)
        predicted[i, grown] += rng.poisson(added[i, grown])
    expression = np.where(predicted == counts, x, np.log1p(factors[:, None] * predicted))
    return expression.astype(np.float32), predicted.astype(np.float32)


def _float64(x: Any) -> np.ndarray:
    return (x.toarray() if sparse.issparse(x) else np.asarray(x)).astype(np.float64)

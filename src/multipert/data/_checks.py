"""The pre-flight report: what is wrong with an AnnData, said before anything is computed or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

_BLOCK_BYTES = 64 * 2**20


def row_blocks(
    x: Any, rows: np.ndarray | None = None, block_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[np.ndarray, Any]]:
    """Read a matrix in blocks of rows, whatever holds it.

    Parameters
    ----------
    x
        ndarray, scipy sparse matrix, or a backed array of anndata or h5py.
    rows
        Increasing row numbers to read; None reads all.
    block_bytes
        About how large a dense float64 block may be.

    Yields
    ------
    The row numbers of the block, and the block (ndarray or CSR).
    """
    if sparse.issparse(x) and x.format != "csr":
        x = x.tocsr()
    n_rows, n_columns = x.shape
    step = max(1, block_bytes // (8 * max(1, n_columns)))
    for start in range(0, n_rows if rows is None else len(rows), step):
        if rows is None:
            at = np.arange(start, min(start + step, n_rows))
            block = x[start : at[-1] + 1]
        else:
            at = rows[start : start + step]
            block = x[at]
        # columns on disk come back as columns
        yield at, block.tocsr() if sparse.issparse(block) else block


def is_on_disk(adata: AnnData) -> bool:
    """Whether expression of an AnnData, `X` or a layer, stays in files.

    Parameters
    ----------
    adata
        Annotated data, of `anndata.read_h5ad(backed="r")` or :func:`multipert.data.read_backed`, or in memory.

    Returns
    -------
    Whether `to_memory` would read it.
    """
    # metrics of arrays are used without AnnData, which loads slowly
    from anndata.abc import CSRDataset

    if adata.isbacked or adata.is_view:
        # a view reads what it gives
        return adata.isbacked
    return any(isinstance(matrix, CSRDataset) for matrix in (adata.X, *adata.layers.values()))


def check_column(obs: pd.DataFrame, key: str, argument: str) -> pd.Series:
    """Take an obs column that must exist and be complete.

    Parameters
    ----------
    obs
        Annotation of the cells.
    key
        Name of the column.
    argument
        The argument that named it, for the message.

    Returns
    -------
    The column.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If it has missing values.
    """
    if key not in obs.columns:
        raise KeyError(
            f"{argument}={key!r} is not a column of obs{close_matches(str(key), obs.columns)} "
            f"Columns: {', '.join(map(str, obs.columns)) or 'none'}."
        )
    column = obs[key]
    missing = column.isna().to_numpy()
    if missing.any():
        places = ", ".join(map(repr, obs.index[missing][:3].astype(str)))
        raise ValueError(
            f"obs[{key!r}] ({argument}) has {int(missing.sum())} missing value(s), first at {places}; fill them or drop "
            "these cells."
        )
    return column


def check_names(adata: AnnData) -> None:
    """Refuse an AnnData without cells or genes, or with duplicated names.

    Parameters
    ----------
    adata
        Annotated data.

    Raises
    ------
    ValueError
        If there are no cells or genes, or a name of an observation or variable appears twice.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"The AnnData has {adata.n_obs} cells and {adata.n_vars} genes; both must be at least 1.")
    for what, names, remedy in (
        ("var_names", adata.var_names, "adata.var_names_make_unique()"),
        ("obs_names", adata.obs_names, "adata.obs_names_make_unique()"),
    ):
        repeated = names[names.duplicated()]
        if len(repeated):
            shown = ", ".join(map(repr, dict.fromkeys(repeated.astype(str))))
            shown = shown if len(shown) < 80 else shown[:80] + "..."
            raise ValueError(f"{what} holds {len(repeated)} duplicate(s): {shown}; run {remedy}.")


def check_genes(var_names: pd.Index, expected: Sequence[str] | np.ndarray) -> None:
    """Refuse genes other than those of the model, or the same ones in another order.

    Parameters
    ----------
    var_names
        Genes of the AnnData given.
    expected
        Genes that the model was set up with.

    Raises
    ------
    ValueError
        Naming the missing or surplus genes, or the indexing that mends the order.
    """
    expected_index = pd.Index(np.asarray(expected, dtype=str))
    given = pd.Index(var_names.astype(str))
    if given.equals(expected_index):
        return
    missing = expected_index.difference(given, sort=False)
    if len(missing):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"var_names lacks {len(missing)} of the model's {len(expected_index)} genes: {shown}; the AnnData must hold "
            "every gene that the model was set up with."
        )
    surplus = len(given) - len(expected_index)
    reason = f"has {surplus} gene(s) more than the model" if surplus else "holds the model's genes in another order"
    raise ValueError(f"var_names {reason}; pass adata[:, model.get_var_names()] instead.")


def check_expression(
    x: Any,
    adata: AnnData,
    *,
    name: str,
    rows: np.ndarray | None = None,
    signed: bool = False,
    counts: bool = False,
    remedy: str | None = None,
) -> None:
    """Refuse NaN, infinity, negative values and the wrong kind of expression.

    Parameters
    ----------
    x
        The matrix, shape `(n_cells, n_vars)`; read in blocks, so it may be backed.
    adata
        The AnnData that holds it, for names of cells and genes.
    name
        What to call the matrix, such as "X" or "layers['counts']".
    rows
        Increasing row numbers to check; None checks all.
    signed
        Whether negative values are legal.
    counts
        Whether integer counts are needed; otherwise they are refused.
    remedy
        What to do about negative values or raw counts, where that is not what expression needs.

    Raises
    ------
    ValueError
        With the number of bad values, the first places and the remedy.
    """
    integral, negatives, nonzero = True, 0, False
    non_finite: list[str] = []
    negative: list[str] = []
    fractional: list[str] = []
    n_non_finite = n_fractional = 0
    for at, block in row_blocks(x, rows):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if values.size == 0:
            continue
        # a float64 beyond the range of float32 would become infinite in a batch
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(values.astype(np.float32, copy=False))
        if bad.any():
            n_non_finite += int(bad.sum())
            non_finite += _places(block, bad, at, adata, 3 - len(non_finite))
            continue
        below = values < 0
        if below.any():
            negatives += int(below.sum())
            negative += _places(block, below, at, adata, 3 - len(negative))
        if integral or counts:
            fraction = values != np.rint(values)
            if fraction.any():
                integral = False
                n_fractional += int(fraction.sum())
                fractional += _places(block, fraction, at, adata, 3 - len(fractional))
        nonzero = nonzero or bool(values.any())
    if n_non_finite:
        raise ValueError(
            f"{name} has {n_non_finite} NaN or infinite value(s), first at {'; '.join(non_finite)}; replace them or drop "
            "these cells or genes."
        )
    if negatives and not signed:
        raise ValueError(
            f"{name} has {negatives} negative value(s), first at {'; '.join(negative)}; "
            + (
                remedy
                or "pass log-normalised expression, or signed=True if values are relative to control (z-scores, log ratios)."
            )
        )
    if counts and not integral:
        raise ValueError(
            f"{name} must hold integer counts but {n_fractional} value(s) are not integers, first at "
            f"{'; '.join(fractional)}; name the layer of raw counts with `layer`."
        )
    if not counts and integral and nonzero and not negatives:
        raise ValueError(
            f"{name} holds integers only, which looks like raw counts; "
            + (
                remedy
                or "normalise and log-transform first (adata.layers['counts'] = adata.X.copy(); "
                "scanpy.pp.normalize_total(adata); scanpy.pp.log1p(adata))."
            )
        )


def _places(block: Any, mask: np.ndarray, at: np.ndarray, adata: AnnData, n: int) -> list[str]:
    """Names of the first bad entries: cell, gene."""
    if n <= 0:
        return []
    if sparse.issparse(block):
        flat = np.flatnonzero(mask)[:n]
        rows = np.searchsorted(block.indptr, flat, side="right") - 1
        columns = block.indices[flat]
    else:
        rows, columns = (index[:n] for index in np.nonzero(mask))
    return [
        f"cell {str(adata.obs_names[at[r]])!r}, gene {str(adata.var_names[c])!r}"
        for r, c in zip(rows, columns, strict=True)
    ]


def check_control(labels: pd.Series, is_control: np.ndarray, key: str, control: str) -> None:
    """Refuse data without a control cell.

    Parameters
    ----------
    labels
        Label of each cell.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    key
        Name of the obs column.
    control
        Name of the control label.

    Raises
    ------
    ValueError
        With the labels seen.
    """
    if not is_control.any():
        seen = pd.unique(labels.astype(str))
        shown = ", ".join(map(repr, seen[:10])) + (", ..." if len(seen) > 10 else "")
        raise ValueError(
            f"No control cell: obs[{key!r}] has no label {control!r}{close_matches(control, seen)} Labels seen "
            f"({len(seen)}): {shown}. Name the control label with `control`."
        )


def expression(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """The expression matrix, as it is held, and what to call it in messages.

    Parameters
    ----------
    adata
        The cells.
    layer
        Name of a layer; None is `X`.

    Returns
    -------
    The matrix, shape `(n_cells, n_vars)`, and "X" or "layers['name']".

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If there is no `X`.
    """
    if layer is None:
        if adata.X is None:
            raise ValueError("adata.X is empty; name the layer of log-normalised expression with `layer`.")
        return adata.X, "X"
    if layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in layers{close_matches(layer, adata.layers)}")
    return adata.layers[layer], f"layers[{layer!r}]"

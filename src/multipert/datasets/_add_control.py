"""Explicit control rows for data that are already relative to control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from multipert import _keys

if TYPE_CHECKING:
    from anndata import AnnData


def add_control(
    adata: AnnData,
    perturbation_key: str = _keys.PERTURBATION,
    control: str = _keys.CONTROL,
    *,
    context_key: str | None = None,
    dose_key: str | None = None,
    n_cells: int = 10,
) -> AnnData:
    """Append control rows of zeros to log ratios, z-scores or other values relative to control.

    Parameters
    ----------
    adata
        Data without control rows, in which zero means "as in control".
    perturbation_key
        Column of `obs` with the labels.
    control
        Label of the new rows.
    context_key
        Column of `obs` with the contexts; each context gets its own rows. None: one block of rows.
    dose_key
        Column of `obs` with the doses; 0 in the new rows.
    n_cells
        New rows per block.

    Returns
    -------
    A new AnnData, `adata`'s rows first: `X` and all layers zero in the new rows, `var`, `varm` and `uns` kept. Another
    column of `obs` keeps its value where the block's rows have only one, else it is missing. `obsm` and `obsp` have no
    meaning for rows of zeros and are left out.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If there are control rows already, a context is missing, there are no rows, or `n_cells` is not positive.

    Examples
    --------
    >>> from anndata import AnnData
    >>> ratios = AnnData(np.array([[1.0, -2.0]]), obs=pd.DataFrame({"perturbation": ["A"]}, index=["a"]))
    >>> add_control(ratios, n_cells=2).obs["perturbation"].tolist()
    ['A', 'control', 'control']
    """
    from anndata import AnnData

    _check(adata, perturbation_key, control, context_key, dose_key, n_cells)
    groups = {"": adata.obs} if context_key is None else dict(list(adata.obs.groupby(context_key, observed=True)))
    blocks = []
    for context, rows in groups.items():
        values = {name: _only_value(rows[name]) for name in rows}
        values[perturbation_key] = control
        if dose_key is not None:
            values[dose_key] = 0 if pd.api.types.is_numeric_dtype(rows[dose_key]) else "0"
        names = [
            f"{control}_{context}_{i}" if context_key is not None else f"{control}_{i}" for i in range(1, n_cells + 1)
        ]
        blocks.append(pd.DataFrame({name: [value] * n_cells for name, value in values.items()}, index=names))
    taken = adata.obs_names.intersection([name for block in blocks for name in block.index])
    if len(taken):
        raise ValueError(
            f"{len(taken)} obs names of adata are those of new control rows, first {taken[0]!r}; rename them."
        )
    n_new = n_cells * len(blocks)
    return AnnData(
        None if adata.X is None else _append_zeros(adata.X, n_new),
        obs=_append_obs(adata.obs, pd.concat(blocks)),
        var=adata.var.copy(),
        varm={key: value.copy() for key, value in adata.varm.items()},
        layers={key: _append_zeros(value, n_new) for key, value in adata.layers.items()},
        uns=dict(adata.copy().uns),
    )


def _check(
    adata: AnnData, perturbation_key: str, control: str, context_key: str | None, dose_key: str | None, n_cells: int
) -> None:
    for argument, key in [("perturbation_key", perturbation_key), ("context_key", context_key), ("dose_key", dose_key)]:
        if key is not None and key not in adata.obs:
            raise KeyError(f"{argument}={key!r} is no column of adata.obs; it has {', '.join(adata.obs.columns)}.")
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells} must be at least 1.")
    if adata.n_obs == 0:
        raise ValueError("adata has 0 cells; there is nothing to add a control to.")
    n_control = int((adata.obs[perturbation_key].astype(str) == control).sum())
    if n_control:
        raise ValueError(
            f"obs[{perturbation_key!r}] has {n_control} rows labelled {control!r} already; none are added."
        )
    if context_key is not None and (n_missing := int(adata.obs[context_key].isna().sum())):
        raise ValueError(f"obs[{context_key!r}] is missing in {n_missing} rows; name their context or remove them.")


def _only_value(column: pd.Series) -> object:
    values = column.dropna().unique()
    return values[0] if len(values) == 1 else None


def _append_obs(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    obs = pd.DataFrame(index=old.index.append(new.index))
    for name in old:
        values = [*old[name], *new[name]]
        if isinstance(old[name].dtype, pd.CategoricalDtype):
            categories = old[name].cat.categories
            extra = [value for value in pd.unique(new[name].dropna()) if value not in categories]
            obs[name] = pd.Categorical(values, categories=[*categories, *extra], ordered=old[name].cat.ordered)
        else:
            obs[name] = pd.Series(values, index=obs.index)
    return obs


def _append_zeros(values: np.ndarray | sparse.spmatrix, n_new: int) -> np.ndarray | sparse.spmatrix:
    shape = (n_new, values.shape[1])
    if not isinstance(values, np.ndarray):
        return sparse.vstack([values, sparse.csr_matrix(shape, dtype=values.dtype)], format=values.format)
    return np.concatenate([values, np.zeros(shape, dtype=values.dtype)])

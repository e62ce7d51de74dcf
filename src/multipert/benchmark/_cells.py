"""The cells of a benchmark: what decides a result, its digest, and who is held out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from multipert import _keys
from multipert.data._checks import check_column, is_on_disk, row_blocks
from multipert.data._conditions import close_matches
from multipert.splits import context_transfer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multipert.model._setup import Setup

CONTEXTS = "context"
"""As `split`: one split for each context."""


def slim(adata: AnnData, setup: Setup) -> AnnData:
    """The part of an AnnData that a run can read, in memory.

    Parameters
    ----------
    adata
        The cells.
    setup
        Arguments of `setup_anndata`.

    Returns
    -------
    An AnnData without what no model is told of.
    """
    if is_on_disk(adata):
        adata = adata.to_memory()
    columns = [
        setup.perturbation_key,
        setup.context_key,
        setup.dose_key,
        setup.pairing_key,
        *(setup.categorical_covariate_keys or ()),
    ]
    obs = adata.obs[list(dict.fromkeys(column for column in columns if column is not None))].copy()
    made = AnnData(obs=obs, var=pd.DataFrame(index=adata.var_names))
    if setup.layer is None:
        made.X = adata.X
    for layer in {setup.layer, _keys.COUNTS_LAYER} & set(adata.layers):
        made.layers[layer] = adata.layers[layer]
    if setup.cell_embedding_key is not None:
        made.obsm[setup.cell_embedding_key] = np.asarray(setup.cell_embedding(adata))
    table = setup.embedding(adata)
    if table is not None:
        made.uns[str(setup.perturbation_embedding_key)] = table.rename(columns=str)
    return made


def digest(adata: AnnData) -> str:
    """A digest of the cells that :func:`slim` keeps; the same for dense and sparse.

    Parameters
    ----------
    adata
        The cells.

    Returns
    -------
    16 hexadecimal digits.
    """
    state = hashlib.sha256()
    _add_text(state, adata.obs_names)
    _add_text(state, adata.var_names)
    for column in sorted(adata.obs):
        _add_text(state, [column])
        _add_text(state, adata.obs[column].astype(str))
    if adata.X is not None:
        _add_matrix(state, "X", adata.X)
    for layer in sorted(adata.layers):
        _add_matrix(state, layer, adata.layers[layer])
    for key in sorted(adata.obsm):
        _add_matrix(state, key, np.asarray(adata.obsm[key]))
    for key in sorted(adata.uns):
        _add_text(state, adata.uns[key].index)
        _add_matrix(state, key, adata.uns[key].to_numpy(dtype=float))
    return state.hexdigest()[:16]


def _add_text(state: Any, values: Iterable[Any]) -> None:
    for value in values:
        text = str(value).encode()
        # with its length, so that two lists never read alike
        state.update(f"{len(text)}:".encode() + text)


def _add_matrix(state: Any, name: str, x: Any) -> None:
    _add_text(state, [name, *x.shape, x.dtype])
    for _, block in row_blocks(x):
        rows = sparse.csr_matrix(block)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        for part in (np.diff(rows.indptr), rows.indices):
            state.update(part.astype(np.int64).tobytes())
        state.update(rows.data.tobytes())


def as_splits(
    adata: AnnData,
    split: str | pd.Series | Mapping[str, pd.Series],
    setup: Setup,
    val_size: float = 0.0,
    seed: int = 0,
) -> dict[str, pd.Series]:
    """Who is held out, by name of the split.

    Parameters
    ----------
    adata
        The cells.
    split
        "context" for one split per context, an obs column, a Series, or several Series by name.
    setup
        Arguments of `setup_anndata`.
    val_size
        Share of the training cells that "context" marks "val".
    seed
        Seed of that draw.

    Returns
    -------
    "train", "val", "test" or None (left out) for every cell, in the order of the cells.

    Raises
    ------
    KeyError
        If there is no such obs column.
    ValueError
        If a split does not cover the cells, holds another value, or holds out nothing.
    """
    if isinstance(split, str) and split == CONTEXTS:
        return _by_context(adata, setup, val_size, seed)
    if val_size:
        raise ValueError(
            f"val_size={val_size} goes with split='context' only; mark validation cells 'val' in your split."
        )
    given: Mapping[str, Any]
    if isinstance(split, str):
        if split not in adata.obs:
            known = [CONTEXTS, *adata.obs.columns]
            raise KeyError(f"split={split!r} is neither 'context' nor a column of obs{close_matches(split, known)}")
        given = {split: adata.obs[split]}
    elif isinstance(split, pd.Series):
        given = {str(split.name or _keys.SPLIT): split}
    else:
        given = {str(name): one for name, one in split.items()}
    if not given:
        raise ValueError("`split` is empty; give at least one split.")
    return {name: _checked(name, one, adata.obs_names) for name, one in given.items()}


def _by_context(adata: AnnData, setup: Setup, val_size: float, seed: int) -> dict[str, pd.Series]:
    if setup.context_key is None:
        raise ValueError("split='context' holds out each context in turn and needs `context_key`.")
    contexts = check_column(adata.obs, setup.context_key, "context_key").astype(str)
    is_control = setup.is_control(adata)
    plain = AnnData(
        obs=pd.DataFrame(
            {_keys.PERTURBATION: np.where(is_control, _keys.CONTROL, "perturbed"), _keys.CONTEXT: contexts},
            index=adata.obs_names,
        )
    )
    both = [
        context
        for context in sorted(set(contexts))
        if is_control[contexts == context].any() and not is_control[contexts == context].all()
    ]
    if len(both) < 2:
        raise ValueError(
            f"split='context' needs two contexts or more with control and perturbed cells; obs[{setup.context_key!r}] has "
            f"{len(both)} of {contexts.nunique()}."
        )
    return {context: context_transfer(plain, context, val_size=val_size, seed=seed) for context in both}


def _checked(name: str, split: Any, obs_names: pd.Index) -> pd.Series:
    split = split if isinstance(split, pd.Series) else pd.Series(np.asarray(split), index=obs_names)
    lacking = obs_names.difference(split.index)
    if len(lacking) or not split.index.is_unique:
        raise ValueError(
            f"Split {name!r} lacks {len(lacking)} of {len(obs_names)} cells, or names one twice; its index must be the "
            "obs names."
        )
    split = split.reindex(obs_names).astype(object)
    split = split.where(split.notna(), None)
    unknown = sorted({str(level) for level in set(split) - {None}} - set(_keys.SPLIT_LEVELS))
    if unknown:
        raise ValueError(
            f"Split {name!r} holds {', '.join(map(repr, unknown[:5]))}; cells are 'train', 'val', 'test', or missing "
            "(left out)."
        )
    for level in ("train", "test"):
        if not (split == level).any():
            raise ValueError(f"Split {name!r} marks no cell as {level!r}.")
    return split.rename(name)

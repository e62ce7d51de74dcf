"""Names, contexts and splits that the user gives must be in the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from anndata import AnnData

    from ._screen import Screen


def require(wanted: Iterable[str], known: Iterable[str], argument: str) -> None:
    """Refuse a name that is not in the data.

    Parameters
    ----------
    wanted
        The names given.
    known
        The names in the data.
    argument
        The argument that gave them.

    Raises
    ------
    ValueError
        With the nearest names.
    """
    known = set(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"{argument}={name!r} is not in the data{close_matches(name, known)}")


def as_contexts(given: Any, screen: Screen, n_keys: int, argument: str) -> list[int]:
    """Positions of the contexts that the user names.

    Parameters
    ----------
    given
        One context or several. With several context columns, a tuple of their values is one context.
    screen
        The contexts known.
    n_keys
        Number of context columns.
    argument
        The argument that named them.

    Returns
    -------
    The positions, in the order given.

    Raises
    ------
    ValueError
        If a context is not in the data, or does not have a value for each column.
    """
    one = isinstance(given, str) or (n_keys > 1 and isinstance(given, tuple) and all(isinstance(v, str) for v in given))
    contexts = [(str(c),) if not isinstance(c, tuple) else tuple(map(str, c)) for c in ([given] if one else given)]
    for context in contexts:
        if len(context) != n_keys:
            raise ValueError(
                f"{argument} names the context {context!r}, but there are {n_keys} context columns; write a context as a "
                "tuple with one value per column."
            )
    require(map(", ".join, contexts), map(screen.context_label, range(len(screen.contexts))), argument)
    position = {context: i for i, context in enumerate(screen.contexts)}
    return [position[context] for context in contexts]


def as_levels(adata: AnnData, split: pd.Series | str) -> np.ndarray:
    """The level of every cell, for functions that read a split.

    Parameters
    ----------
    adata
        The cells.
    split
        A split, or the obs column that holds one.

    Returns
    -------
    "train", "val", "test" or None, shape `(n_cells,)`.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If a cell is not in the split, or a level is none of the three.
    """
    if isinstance(split, str):
        if split not in adata.obs.columns:
            raise KeyError(f"split={split!r} is not a column of obs{close_matches(split, adata.obs.columns)}")
        split = adata.obs[split]
    absent = adata.obs_names.difference(split.index, sort=False)
    if len(absent):
        raise ValueError(
            f"split lacks {len(absent)} of {adata.n_obs} cells, first {absent[0]!r}; make the split from the same AnnData."
        )
    column = split.reindex(adata.obs_names).astype(object)
    levels = column.where(column.notna(), None).to_numpy()
    unknown = sorted({str(level) for level in pd.unique(column.dropna())} - set(_keys.SPLIT_LEVELS))
    if unknown:
        raise ValueError(
            f"split holds {', '.join(map(repr, unknown[:5]))}; the levels are {', '.join(map(repr, _keys.SPLIT_LEVELS))}."
        )
    return levels

"""How much of a label training has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys

from ._names import as_levels
from ._screen import read_screen

if TYPE_CHECKING:
    from anndata import AnnData


def seen_parts(
    adata: AnnData,
    split: pd.Series | str = _keys.SPLIT,
    *,
    perturbation_key: str = _keys.PERTURBATION,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
) -> pd.Series:
    """How many parts of each cell's label occur in training.

    Parameters
    ----------
    adata
        Annotated data.
    split
        A split, or the obs column that holds one.
    perturbation_key
        obs column of labels.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.

    Returns
    -------
    Text such as "1/2" for every cell, one of two parts seen in training, alone or in a combination, in whatever context;
    "0/1" is an unseen single perturbation. Missing for control cells.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a cell is not in the split, or a level is none of "train", "val", "test".

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> split = mp.splits.unseen_perturbation(adata, share=0.5)
    >>> sorted(mp.splits.seen_parts(adata, split)[split != "train"].dropna().unique())
    ['0/1', '0/2', '1/2', '2/2']
    """
    screen = read_screen(
        adata,
        perturbation_key=perturbation_key,
        context_key=None,
        control=control,
        delimiter=delimiter,
        needs_control=False,
    )
    train = as_levels(adata, split) == "train"
    seen = screen.has[np.unique(screen.condition[train])].any(axis=0)
    n_seen = (screen.has & seen).sum(axis=1)
    texts = [f"{k}/{n}" if n else None for k, n in zip(n_seen, screen.n_parts, strict=True)]
    return pd.Series(np.array(texts, dtype=object)[screen.condition], index=screen.names, name="seen_parts")

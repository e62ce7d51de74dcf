"""Cells at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys

from ._assign import TEST, TRAIN, VAL, as_split, check_options, check_share, rank_in_group, shuffled
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def random(
    adata: AnnData,
    *,
    share: float = 0.2,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    seed: int = 0,
) -> pd.Series:
    """Hold out a share of the cells of every context and label, control included.

    This is interpolation: every held-out cell has siblings in training with the same label and context, whose mean is
    the best prediction. It tests no generalisation, and belongs to fitting, to curves over training and to upper bounds.

    Parameters
    ----------
    adata
        Annotated data.
    share
        Share of the cells of each group that is held out, on average over groups; one cell of each at least trains.
    val_share
        Share of the held-out cells that is "val"; the rest is "test".
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    seed
        Seed of all draws. The split does not depend on the order of the cells.

    Returns
    -------
    "train", "val" or "test" for every cell, indexed by obs name.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a share is out of range.

    Examples
    --------
    >>> import multipert as mp
    >>> split = mp.splits.random(mp.datasets.screen("small"), share=0.3)
    >>> round(float((split == "train").mean()), 2)
    0.7
    """
    check_options("multipert", None, val_share)
    check_share(share, "share", most_included=False)
    screen = read_screen(
        adata,
        perturbation_key=perturbation_key,
        context_key=context_key,
        control=control,
        delimiter=delimiter,
        needs_control=False,
    )
    rng = np.random.default_rng(seed)
    n = screen.n_cells.ravel()
    n_held = np.minimum(_round_at_random(n * share, rng), (n - 1).clip(0))
    n_val = _round_at_random(n_held * val_share, rng)
    group = screen.context * len(screen.conditions) + screen.condition
    order = shuffled(screen.names, rng)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = rank_in_group(group[order])
    return as_split(screen, np.select([rank < n_val[group], rank < n_held[group]], [VAL, TEST], TRAIN))


def _round_at_random(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up or down, so that the expectation is the value."""
    return np.floor(values + rng.random(len(values))).astype(np.int64)

"""A split that the user writes down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column
from multipert.data._conditions import as_list, close_matches
from multipert.data._noise import cell_key

from ._assign import TRAIN, assign_held_out, assign_pairs, check_options, check_share
from ._names import as_contexts
from ._screen import context_keys, read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._assign import Algorithm, Controls
    from ._screen import Screen


def manual(
    adata: AnnData,
    held_out: Mapping[str | tuple[str, ...], float | str | Sequence[str]] | pd.DataFrame,
    *,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    controls: Controls | None = None,
    algorithm: Algorithm = "multipert",
    seed: int = 0,
) -> pd.Series:
    """Hold out the (context, perturbation) pairs of a table, or shares of the perturbations of named contexts.

    Parameters
    ----------
    adata
        Annotated data.
    held_out
        What is held out in each named context: the share of its perturbations (drawn at random, rounded down), or their
        labels. Or a table with one row per pair: the columns of `context_key`, the column `perturbation_key` and, if the
        levels are to be as given, a column "split" with "val" or "test".
    val_share
        Share of the held-out pairs of a context that is "val"; the rest is "test". A pair that is alone in its context is
        tested.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None, with a table: all cells are of one
        context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    controls
        "stratified" (the default), "global" or "train"; see :func:`partial_context_transfer`.
    algorithm
        "multipert", or "perturbench" for the rules of :cite:t:`Wu2024`: controls divided globally, and a pair that is alone
        in its context dropped (missing value).
    seed
        Seed of all draws. The split does not depend on the order of the cells.

    Returns
    -------
    "train", "val" or "test" for every cell, indexed by obs name; missing where cells are dropped.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a context or pair is not in the data, a share is not in (0, 1], or a context with a held-out pair has no control
        cell.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> split = mp.splits.manual(adata, {"context_1": ["P1"], "context_2": 0.5})
    >>> adata.obs[split == "test"].groupby("context", observed=True)["perturbation"].nunique().to_dict()
    {'context_1': 2, 'context_2': 2}
    """
    check_options(algorithm, controls, val_share)
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    held = np.zeros_like(screen.present)
    keys = context_keys(context_key)
    if isinstance(held_out, pd.DataFrame):
        levels = np.full(held.shape, TRAIN, dtype=np.int8)
        contexts = _contexts_of_rows(held_out, screen, keys)
        labels = check_column(held_out, perturbation_key, "perturbation_key").astype(str)
        given = _levels_of_rows(held_out)
        for context, label, level in zip(contexts, labels, given, strict=True):
            condition = _find(screen, label, context)
            held[context, condition] = True
            levels[context, condition] = level
        if _keys.SPLIT in held_out.columns:
            return assign_pairs(screen, levels, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed)
    elif isinstance(held_out, Mapping) and keys:
        for name, what in held_out.items():
            (context,) = as_contexts([name] if len(keys) == 1 else name, screen, len(keys), "held_out")
            if isinstance(what, (int, float)):
                check_share(what, f"held_out[{name!r}]")
                possible = np.flatnonzero(screen.present[context])
                rng = np.random.default_rng(cell_key(seed, screen.context_label(context)))
                held[context, rng.permutation(possible)[: int(what * len(possible))]] = True
            else:
                for label in as_list(what):
                    held[context, _find(screen, label, context)] = True
    else:
        raise ValueError(
            "held_out must map contexts to shares or labels, or be a DataFrame; where context_key is None, a DataFrame."
        )
    return assign_held_out(
        screen, held, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed, lonely="test"
    )


def _find(screen: Screen, label: str, context: int) -> int:
    condition = screen.find(label)
    if condition is None or not screen.present[context, condition]:
        known = [screen.label(i) for i in np.flatnonzero(screen.present[context])]
        raise ValueError(
            f"held_out names {label!r} in context {screen.context_label(context)!r}, where it has no perturbed cell"
            f"{close_matches(label, known)}"
        )
    return condition


def _contexts_of_rows(table: pd.DataFrame, screen: Screen, keys: list[str]) -> list[int]:
    if not keys:
        return [0] * len(table)
    columns = [check_column(table, key, "context_key").astype(str) for key in keys]
    return as_contexts(list(zip(*columns, strict=True)), screen, len(keys), "held_out")


def _levels_of_rows(table: pd.DataFrame) -> list[int]:
    if _keys.SPLIT not in table.columns:
        return [TRAIN] * len(table)
    given = table[_keys.SPLIT].astype(str)
    wrong = given[~given.isin(_keys.SPLIT_LEVELS[1:])]
    if len(wrong):
        raise ValueError(
            f"held_out['split'] has {len(wrong)} row(s) that are neither 'val' nor 'test', first {wrong.iloc[0]!r}."
        )
    return [_keys.SPLIT_LEVELS.index(level) for level in given]

"""Nested training sets of growing size with the same val and test cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from multipert import _keys

from ._assign import check_share, rank_in_group, shuffled
from ._names import as_contexts, as_levels, require
from ._screen import context_keys, read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._screen import Screen

By = Literal["context", "perturbation", "cell"]


def scaling(
    adata: AnnData,
    split: pd.Series | str = _keys.SPLIT,
    sizes: Sequence[float] | Mapping[str, Sequence[str] | Sequence[tuple[str, ...]]] = (0.25, 0.5, 1.0),
    *,
    by: By = "context",
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    seed: int = 0,
) -> pd.DataFrame:
    """Shrink the training set of a split step by step; val and test stay as they are.

    What val and test ask about is never taken away: the contexts of their perturbed cells, or the perturbations in their
    labels. With named lists of contexts, on a split by :func:`manual`, this is the scaling task of :cite:t:`Wu2024`.

    Parameters
    ----------
    adata
        Annotated data.
    split
        A split, or the obs column that holds one.
    sizes
        Shares of the contexts, perturbations or cells that train, rounded. With `by="context"` or `"perturbation"`, also
        named lists of those that train.
    by
        "context": whole contexts leave training, control cells included. "perturbation": all labels that contain a
        perturbation leave it. "cell": every group of cells with one label and context shrinks to one cell at least.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    seed
        Seed of all draws. The result does not depend on the order of the cells.

    Returns
    -------
    One column per size, named by it ("0.25", or the name of the list), one row per cell, in the order of size. Training
    cells that are left out have a missing value, so that `adata[frame["0.25"].notna()]` are the cells of that size.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a size is not in (0, 1] or too small for what val and test need, or named lists are not nested.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> split = mp.splits.manual(adata, {"context_1": 0.5})
    >>> frame = mp.splits.scaling(adata, split, (0.2, 0.6, 1.0))
    >>> int(adata.obs.loc[frame["0.6"] == "train", "context"].nunique())
    3
    """
    if by not in ("context", "perturbation", "cell"):
        raise ValueError(f"by={by!r} is unknown; choose 'context', 'perturbation' or 'cell'.")
    screen = read_screen(
        adata,
        perturbation_key=perturbation_key,
        context_key=context_key,
        control=control,
        delimiter=delimiter,
        needs_control=False,
    )
    levels = as_levels(adata, split)
    train = levels == "train"
    if not train.any():
        raise ValueError("split marks no cell as 'train'; there is nothing to make smaller.")
    rng = np.random.default_rng(seed)
    if isinstance(sizes, Mapping):
        if by == "cell":
            raise ValueError("by='cell' takes shares; name lists with by='context' or by='perturbation'.")
        kept = _named(screen, train, levels, sizes, by, len(context_keys(context_key)))
    else:
        for size in sizes:
            check_share(size, "sizes")
        by_size = {f"{size:g}": size for size in sorted(sizes)}
        kept = _cells(screen, train, by_size, rng) if by == "cell" else _drawn(screen, train, levels, by_size, by, rng)
    frame = pd.DataFrame(index=screen.names)
    for name, rows in kept.items():
        column = levels.copy()
        column[train & ~rows] = None
        frame[name] = column
    return frame


def _cells(
    screen: Screen, train: np.ndarray, sizes: dict[str, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    group = (screen.context * len(screen.conditions) + screen.condition)[train]
    order = shuffled(screen.names[train], rng)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = rank_in_group(group[order])
    n = np.bincount(group)
    kept = {}
    for name, size in sizes.items():
        kept[name] = train.copy()
        kept[name][train] = rank < np.rint(size * n).clip(1)[group]
    return kept


def _drawn(
    screen: Screen,
    train: np.ndarray,
    levels: np.ndarray,
    sizes: dict[str, float],
    by: By,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    trained, needed = _trained_and_needed(screen, train, levels, by)
    first, others = np.flatnonzero(trained & needed), np.flatnonzero(trained & ~needed)
    order = np.concatenate([first, rng.permutation(others)]).astype(np.int64)
    kept = {}
    for name, size in sizes.items():
        n = round(size * len(order))
        if n < max(1, len(first)):
            raise ValueError(
                f"sizes={size:g} of {len(order)} {by}s in training is {n}, but val and test need {len(first)} of them; the "
                f"smallest size is {max(1, len(first)) / len(order):.3g}."
            )
        kept[name] = _rows(screen, order[:n], trained, by)
    return kept


def _named(
    screen: Screen,
    train: np.ndarray,
    levels: np.ndarray,
    sizes: Mapping[str, Sequence],
    by: By,
    n_keys: int,
) -> dict[str, np.ndarray]:
    trained, needed = _trained_and_needed(screen, train, levels, by)
    label = screen.context_label if by == "context" else screen.perturbations.__getitem__
    kept = {}
    smaller: set[int] = set()
    before = ""
    for name, members in sorted(sizes.items(), key=lambda item: len(item[1])):
        if by == "context":
            chosen = set(as_contexts(list(members), screen, n_keys, f"sizes[{name!r}]"))
        else:
            require(members, screen.perturbations, f"sizes[{name!r}]")
            chosen = {screen.perturbations.index(member) for member in members}
        missing = set(np.flatnonzero(trained & needed).tolist()) - chosen
        if missing:
            raise ValueError(f"sizes[{name!r}] lacks {label(min(missing))!r}, which val or test need.")
        if smaller - chosen:
            raise ValueError(
                f"sizes[{name!r}] lacks {label(min(smaller - chosen))!r} of the smaller {before!r}; lists must be nested."
            )
        smaller, before = chosen, name
        kept[name] = _rows(screen, np.array(sorted(chosen)), trained, by)
    return kept


def _trained_and_needed(screen: Screen, train: np.ndarray, levels: np.ndarray, by: By) -> tuple[np.ndarray, np.ndarray]:
    """Which contexts, or perturbations, train, and which of all occur in perturbed val or test cells."""
    asked = np.isin(levels, ("val", "test")) & ~screen.is_control
    if by == "context":
        sets = [np.isin(np.arange(len(screen.contexts)), screen.context[rows]) for rows in (train, asked)]
    else:
        sets = [screen.has[np.unique(screen.condition[rows])].any(axis=0) for rows in (train, asked)]
    return sets[0], sets[1]


def _rows(screen: Screen, chosen: np.ndarray, trained: np.ndarray, by: By) -> np.ndarray:
    if by == "context":
        return np.isin(screen.context, chosen)
    left_out = trained & ~np.isin(np.arange(len(trained)), chosen)
    return ~np.asarray(screen.has[:, left_out].any(axis=1))[screen.condition]

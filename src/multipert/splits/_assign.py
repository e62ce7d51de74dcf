"""From held-out (context, condition) pairs to train, val or test for every cell."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from multipert import _keys

if TYPE_CHECKING:
    from ._screen import Screen

Algorithm = Literal["multipert", "perturbench"]
Controls = Literal["stratified", "global", "train"]
Lonely = Literal["train", "test", "drop"]

TRAIN, VAL, TEST, DROPPED = 0, 1, 2, 3
_LEVELS = np.array([*_keys.SPLIT_LEVELS, None], dtype=object)
_OF_HALVES, _OF_CONTROLS = 1, 2


def check_share(value: float, argument: str, *, least_included: bool = False, most_included: bool = True) -> None:
    """Refuse a share outside (0, 1], or with other ends."""
    if value < 0 or value > 1 or (value == 0 and not least_included) or (value == 1 and not most_included):
        least, most = "[" if least_included else "(", "]" if most_included else ")"
        raise ValueError(f"{argument}={value} must lie in {least}0, 1{most}.")


def check_options(algorithm: str, controls: str | None, val_share: float) -> None:
    """Refuse an unknown algorithm, an unknown way with controls, or a share outside [0, 1)."""
    for argument, value, known in (
        ("algorithm", algorithm, ("multipert", "perturbench")),
        ("controls", controls, (None, "stratified", "global", "train")),
    ):
        if value not in known:
            raise ValueError(f"{argument}={value!r} is unknown; choose one of {', '.join(map(repr, known))}.")
    check_share(val_share, "val_share", least_included=True, most_included=False)


def assign_held_out(
    screen: Screen,
    held: np.ndarray,
    *,
    val_share: float,
    controls: Controls | None,
    algorithm: Algorithm,
    seed: int,
    lonely: Lonely = "train",
    dropped: np.ndarray | None = None,
) -> pd.Series:
    """Halve held-out pairs into val and test within each context, then place all cells.

    Parameters
    ----------
    screen
        The labels and contexts.
    held
        Whether a pair is held out, shape `(n_contexts, n_conditions)`.
    val_share
        Share of the held-out pairs that is for validation.
    controls
        As :func:`assign_pairs`.
    algorithm
        "perturbench" drops the one held-out pair of a context that cannot be halved.
    seed
        Seed of all draws.
    lonely
        What becomes of such a pair otherwise.
    dropped
        Whether a pair is left out altogether, shape `(n_contexts, n_conditions)`; None leaves none out.

    Returns
    -------
    The split.
    """
    if algorithm == "perturbench":
        lonely = "drop"
    levels = halve(held, val_share, np.random.default_rng([seed, _OF_HALVES]), lonely)
    if dropped is not None:
        levels[dropped] = DROPPED
    returned = held & (levels == TRAIN)
    if returned.any():
        context, condition = (index[0] for index in np.nonzero(returned))
        warnings.warn(
            f"{int(returned.sum())} context(s) had one held-out pair only, which cannot be both val and test; it stays in "
            f"train (first: {screen.label(condition)} in context {screen.context_label(context)!r}). Pass val_share=0 to "
            "test it.",
            UserWarning,
            stacklevel=3,
        )
    return assign_pairs(screen, levels, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed)


def halve(held: np.ndarray, val_share: float, rng: np.random.Generator, lonely: Lonely) -> np.ndarray:
    """Divide held-out pairs into val and test, in every context as evenly as whole numbers allow.

    Parameters
    ----------
    held
        Whether a pair is held out, shape `(n_contexts, n_conditions)`.
    val_share
        Share for validation; 0 tests all.
    rng
        Source of the draw.
    lonely
        Where the only held-out pair of a context goes.

    Returns
    -------
    Level of every pair, shape `(n_contexts, n_conditions)`.
    """
    levels = np.full(held.shape, TRAIN, dtype=np.int8)
    if val_share == 0:
        levels[held] = TEST
        return levels
    n_held = held.sum(axis=1)
    exact = n_held * val_share
    n_val = np.floor(exact).astype(np.int64)
    # what rounding down left over goes to contexts drawn at random, so that val and test are even over all of them
    left = int(round(float((exact - n_val)[n_held > 1].sum())))
    candidates = np.flatnonzero((n_held > 1) & (exact > n_val))
    n_val[rng.permutation(candidates)[:left]] += 1
    n_val = np.clip(n_val, 1, np.maximum(n_held - 1, 1))
    for context in np.flatnonzero(n_held):
        pairs = rng.permutation(np.flatnonzero(held[context]))
        if len(pairs) == 1:
            levels[context, pairs] = {"train": TRAIN, "test": TEST, "drop": DROPPED}[lonely]
        else:
            levels[context, pairs] = TEST
            levels[context, pairs[: n_val[context]]] = VAL
    return levels


def assign_pairs(
    screen: Screen,
    levels: np.ndarray,
    *,
    val_share: float,
    controls: Controls | None,
    algorithm: Algorithm,
    seed: int,
) -> pd.Series:
    """Give every perturbed cell the level of its pair, and divide the control cells.

    Parameters
    ----------
    screen
        The labels and contexts.
    levels
        Level of every pair, shape `(n_contexts, n_conditions)`.
    val_share
        Share of val among the control cells that are not for training.
    controls
        "stratified": of each context with a held-out pair, half of the control cells train and the others are divided
        between val and test. "global": the same of all control cells together. "train": all train. None: as the
        algorithm has it.
    algorithm
        "multipert" divides controls by context, "perturbench" all together.
    seed
        Seed of the draw.

    Returns
    -------
    The split.

    Raises
    ------
    ValueError
        If nothing is held out, or a context with a held-out pair has no control cell.
    """
    is_held = np.isin(levels, (VAL, TEST)) & screen.present
    if not is_held.any():
        raise ValueError(
            "Nothing is held out: no (context, perturbation) pair can be, under these arguments. Hold out a larger share, "
            "or pass val_share=0 where a context has one such pair only."
        )
    tested = is_held.any(axis=1)
    bare = np.flatnonzero(tested & (screen.n_controls == 0))
    if len(bare):
        raise ValueError(
            f"{len(bare)} context(s) with held-out cells have no control cell to predict from, first "
            f"{screen.context_label(bare[0])!r}; drop these contexts, or name the control label with `control`."
        )
    cells = levels[screen.context, screen.condition]
    rows = np.flatnonzero(screen.is_control)
    rng = np.random.default_rng([seed, _OF_CONTROLS])
    controls = controls or ("stratified" if algorithm == "multipert" else "global")
    if controls == "train":
        cells[rows] = TRAIN
    else:
        groups = screen.context[rows] if controls == "stratified" else np.zeros(len(rows), dtype=np.int64)
        wanted = tested if controls == "stratified" else np.ones(1, dtype=bool)
        cells[rows] = _divide_controls(screen.names[rows], groups, wanted, val_share, rng)
    if controls == "stratified":
        needed = 2 if val_share == 0 else 3
        few = int((tested & (screen.n_controls < needed)).sum())
        if few:
            warnings.warn(
                f"{few} context(s) with held-out cells have fewer than {needed} control cells, too few for every level to "
                "have one.",
                UserWarning,
                stacklevel=3,
            )
    return as_split(screen, cells)


def _divide_controls(
    names: pd.Index, group: np.ndarray, wanted: np.ndarray, val_share: float, rng: np.random.Generator
) -> np.ndarray:
    """Half of each wanted group to train, the rest to val and test, each level at least one cell where there are enough."""
    n = np.bincount(group, minlength=len(wanted))
    least = 1 if val_share == 0 else 2
    n_held = np.where(wanted, np.maximum(n // 2, np.minimum(least, n - 1)).clip(0), 0)
    n_val = np.rint(n_held * val_share).astype(np.int64)
    if val_share > 0:
        n_val = np.clip(n_val, np.minimum(1, n_held - 1).clip(0), (n_held - 1).clip(0))
    order = shuffled(names, rng)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = rank_in_group(group[order])
    return np.select([rank < n_val[group], rank < n_held[group]], [VAL, TEST], TRAIN).astype(np.int8)


def shuffled(names: pd.Index, rng: np.random.Generator) -> np.ndarray:
    """Row numbers in a random order that depends on the names and not on the order of the rows."""
    return np.argsort(names.to_numpy().astype(str), kind="stable")[rng.permutation(len(names))]


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """How many earlier elements are of the same group, shape `(n,)`."""
    order = np.argsort(group, kind="stable")
    of_order = group[order]
    starts = np.flatnonzero(np.r_[True, of_order[1:] != of_order[:-1]]) if len(group) else np.array([], dtype=np.int64)
    first = np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - first
    return rank


def as_split(screen: Screen, cells: np.ndarray) -> pd.Series:
    """Levels of the cells as a Series for `obs`."""
    return pd.Series(_LEVELS[cells], index=screen.names, name=_keys.SPLIT)

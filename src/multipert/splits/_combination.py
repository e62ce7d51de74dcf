"""Combinations: the joint effect of perturbations that were each seen alone, or one seen only jointly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys

from ._assign import assign_held_out, check_options, check_share
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from ._assign import Algorithm, Controls
    from ._screen import Screen

_OF_COMBINATIONS, _OF_SINGLES = 21, 22


def combination(
    adata: AnnData,
    *,
    share: float = 0.7,
    cap: int = 200,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str = "+",
    controls: Controls | None = None,
    algorithm: Algorithm = "multipert",
    seed: int = 0,
) -> pd.Series:
    """Hold out a share of the combinations of every context; all single perturbations train.

    Only combinations whose parts were all measured alone, in any context, are held out, so that training sees every part.

    Parameters
    ----------
    adata
        Annotated data.
    share
        Share of the combinations of a context, rounded down.
    cap
        At most this many combinations of a context are held out there.
    val_share
        Share of the held-out combinations of a context that is "val"; the rest is "test".
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination.
    controls
        "stratified" (the default), "global" or "train"; see :func:`partial_context_transfer`.
    algorithm
        "multipert", or "perturbench" for the rules of :cite:t:`Wu2024`: controls divided globally, a combination that is
        alone in its context dropped (missing value), and any combination may be held out, whether or not its parts were
        measured alone.
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
        If an argument is out of range, there is no combination to hold out, or a context with one has no control cell.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> split = mp.splits.combination(adata)
    >>> bool(adata.obs.loc[split == "test", "perturbation"].str.contains("control|[+]").all())
    True
    """
    check_options(algorithm, controls, val_share)
    _check(share, cap)
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    pool = screen.present & (screen.n_parts > 1)
    _require_combinations(pool, delimiter)
    if algorithm == "multipert":
        alone = _measured_alone(screen).any(axis=0)
        pool = pool & ~screen.has[:, ~alone].any(axis=1)
        if not pool.any():
            raise ValueError(
                "No combination has only parts that were also measured alone; algorithm='perturbench' does not ask for it."
            )
    rng = np.random.default_rng([seed, _OF_COMBINATIONS])
    held = np.zeros_like(pool)
    for context, possible in enumerate(pool):
        conditions = rng.permutation(np.flatnonzero(possible))
        held[context, conditions[: min(int(share * len(conditions)), cap)]] = True
    return assign_held_out(screen, held, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed)


def inverse_combination(
    adata: AnnData,
    *,
    share: float = 0.3,
    cap: int = 200,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str = "+",
    controls: Controls | None = None,
    algorithm: Algorithm = "multipert",
    seed: int = 0,
) -> pd.Series:
    """Hold out single perturbations that training sees in combinations only.

    In every context single perturbations are drawn one by one; the partners of one that is held out are no longer drawn, so
    that they stay in training beside the combination.

    Parameters
    ----------
    adata
        Annotated data.
    share
        Share of the single perturbations of a context, rounded down; fewer are held out where partners run out.
    cap
        At most this many perturbations of a context are held out there.
    val_share
        Share of the held-out perturbations of a context that is "val"; the rest is "test".
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination.
    controls
        "stratified" (the default), "global" or "train"; see :func:`partial_context_transfer`.
    algorithm
        "multipert" draws only perturbations with a combination, in the same context, whose other parts were all measured
        alone there. "perturbench" follows :cite:t:`Wu2024`: any single perturbation may be drawn, also one without a
        combination; controls are divided globally; a perturbation that is alone in its context is dropped (missing value).
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
        If an argument is out of range, there is no such perturbation, or a context with one has no control cell.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> split = mp.splits.inverse_combination(adata)
    >>> bool(adata.obs.loc[split == "test", "perturbation"].str.contains("[+]").any())
    False
    """
    check_options(algorithm, controls, val_share)
    _check(share, cap)
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    _require_combinations(screen.present & (screen.n_parts > 1), delimiter)
    rng = np.random.default_rng([seed, _OF_SINGLES])
    alone = _measured_alone(screen)
    held = np.zeros_like(screen.present)
    for context in range(len(screen.contexts)):
        singles = np.flatnonzero(alone[context])
        combined = screen.has[screen.present[context] & (screen.n_parts > 1)]
        pool = singles
        if algorithm == "multipert":
            solvable = combined & ((combined & ~alone[context]).sum(axis=1, keepdims=True) == 0)
            pool = singles[solvable.any(axis=0)[singles]]
        drawn = _draw_apart(rng.permutation(pool), combined, min(int(share * len(singles)), cap))
        position = {screen.parts[i]: i for i in np.flatnonzero(screen.present[context])}
        held[context, [position[(screen.perturbations[single],)] for single in drawn]] = True
    return assign_held_out(screen, held, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed)


def _draw_apart(candidates: np.ndarray, combined: np.ndarray, n: int) -> list[int]:
    """The first `n` perturbations, in the order given, no two of which share a combination."""
    drawn: list[int] = []
    barred = np.zeros(combined.shape[1], dtype=bool)
    for candidate in candidates:
        if len(drawn) == n:
            break
        if not barred[candidate]:
            drawn.append(int(candidate))
            barred |= combined[combined[:, candidate]].any(axis=0)
    return drawn


def _measured_alone(screen: Screen) -> np.ndarray:
    """Whether a perturbation was measured alone in a context, shape `(n_contexts, n_perturbations)`."""
    single = screen.n_parts == 1
    return screen.present[:, single] @ screen.has[single]


def _check(share: float, cap: int) -> None:
    check_share(share, "share")
    if cap < 1:
        raise ValueError(f"cap={cap} must be at least 1.")


def _require_combinations(combinations: np.ndarray, delimiter: str) -> None:
    if not combinations.any():
        raise ValueError(
            f"No label holds the delimiter {delimiter!r}, so there is no combination; name what separates the parts of a "
            "combination with `delimiter`."
        )

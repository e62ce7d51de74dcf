"""Partial context transfer: each perturbation is held out in some contexts and seen in others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys
from multipert.data._noise import cell_key

from ._assign import assign_held_out, check_options, check_share
from ._screen import Screen, read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from ._assign import Algorithm, Controls

_OF_ORDER, _OF_DOWNSAMPLING = 11, 12


def partial_context_transfer(
    adata: AnnData,
    *,
    share: float = 0.3,
    cap: int = 200,
    min_train: int = 1,
    max_held_out: int = 1,
    downsample: float = 1.0,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    controls: Controls | None = None,
    algorithm: Algorithm = "multipert",
    seed: int = 0,
) -> pd.Series:
    """Hold out (context, perturbation) pairs whose perturbation is seen in other contexts.

    The transfer split of :cite:t:`Wu2024`: perturbations take turns, those of most contexts first. Each that was
    measured in more than `min_train` contexts draws some of them at random, among those that have not reached their cap,
    and is held out there.

    Parameters
    ----------
    adata
        Annotated data.
    share
        At most this share of the labels of a context, control included, is held out there.
    cap
        At most this many labels of a context are held out there.
    min_train
        In how many contexts every perturbation stays in training at least.
    max_held_out
        In how many contexts a perturbation is held out at most. One that was measured in fewer contexts than there are
        loses as many fewer, but one at least.
    downsample
        Share of the perturbations that take part; the cells of the others get a missing value.
    val_share
        Share of the held-out pairs of a context that is "val"; the rest is "test".
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    controls
        "stratified" (the default): where something is held out, half of the context's control cells train and the rest is
        divided between val and test; other contexts keep theirs in train. "global": all control cells are divided so,
        whatever their context. "train": all train.
    algorithm
        "multipert", or "perturbench" for the published rules: controls divided globally, pairs that are alone in their
        context dropped (missing value) and not returned to training, `min_train` not kept where `max_held_out` is larger
        than the contexts of a perturbation allow.
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
        If an argument is out of range, no pair can be held out, or a context with a held-out pair has no control cell.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> split = mp.splits.partial_context_transfer(adata, val_share=0)
    >>> held_out = adata.obs[split == "test"].query("perturbation != 'control'")
    >>> int(held_out.groupby("perturbation", observed=True)["context"].nunique().max())
    1
    """
    check_options(algorithm, controls, val_share)
    check_share(share, "share")
    check_share(downsample, "downsample")
    for argument, value in (("cap", cap), ("min_train", min_train), ("max_held_out", max_held_out)):
        if value < 1:
            raise ValueError(f"{argument}={value} must be at least 1.")
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    dropped = None
    present = screen.present
    if downsample < 1:
        dropped = present & ~_sample(np.asarray(present.any(axis=0)), downsample, seed)
        present = present & ~dropped
    # published rules count the labels before some are left out
    counted = screen.present if algorithm == "perturbench" else present
    held = draw_pairs(
        screen,
        present,
        label_caps(screen, counted, share, cap),
        min_train=min_train,
        max_held_out=max_held_out,
        algorithm=algorithm,
        seed=seed,
    )
    return assign_held_out(
        screen, held, val_share=val_share, controls=controls, algorithm=algorithm, seed=seed, dropped=dropped
    )


def draw_pairs(
    screen: Screen,
    present: np.ndarray,
    caps: np.ndarray,
    *,
    min_train: int,
    max_held_out: int,
    algorithm: Algorithm,
    seed: int,
) -> np.ndarray:
    """Draw the pairs to hold out; see :func:`partial_context_transfer`.

    Parameters
    ----------
    screen
        The labels and contexts.
    present
        Which pairs take part, shape `(n_contexts, n_conditions)`.
    caps
        While fewer labels of a context are held out, another may be, shape `(n_contexts,)`.
    min_train
        Contexts that a perturbation keeps.
    max_held_out
        Contexts that a perturbation loses at most.
    algorithm
        Whose rules.
    seed
        Seed; each perturbation derives its own from it.

    Returns
    -------
    Whether a pair is held out, shape `(n_contexts, n_conditions)`.
    """
    n_contexts = len(screen.contexts)
    n_measured = present.sum(axis=0)
    order = np.flatnonzero(n_measured > min_train)
    if algorithm == "multipert":
        # in the order of names, caps would spare the last letters of the alphabet
        order = np.random.default_rng([seed, _OF_ORDER]).permutation(order)
    held = np.zeros_like(present)
    n_held = np.zeros(n_contexts, dtype=np.int64)
    for condition in order[np.argsort(-n_measured[order], kind="stable")]:
        measured = np.flatnonzero(present[:, condition])
        pool = measured[n_held[measured] < caps[measured]]
        if not len(pool):
            continue
        most = min(max(1, len(pool) - n_contexts + max_held_out), len(pool))
        if algorithm == "multipert":
            most = min(most, len(measured) - min_train)
        rng = np.random.default_rng(cell_key(seed, screen.label(condition)))
        chosen = rng.choice(pool, size=rng.integers(1, most, endpoint=True), replace=False)
        held[chosen, condition] = True
        n_held[chosen] += 1
    return held


def label_caps(screen: Screen, present: np.ndarray, share: float, cap: int) -> np.ndarray:
    """The share of the labels of each context, control included, or `cap` if less, shape `(n_contexts,)`."""
    return np.minimum(share * (present.sum(axis=1) + (screen.n_controls > 0)), cap)


def _sample(is_perturbation: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which conditions are among a random share of the perturbed ones, shape `(n_conditions,)`."""
    perturbed = np.flatnonzero(is_perturbation)
    rng = np.random.default_rng([seed, _OF_DOWNSAMPLING])
    kept = np.zeros(len(is_perturbation), dtype=bool)
    kept[rng.permutation(perturbed)[: int(share * len(perturbed))]] = True
    return kept

"""Contexts with unequal numbers of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys

from ._assign import assign_held_out, check_options, check_share
from ._partialcontexttransfer import draw_pairs, label_caps
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from ._assign import Algorithm, Controls

_OF_COUNTS, _OF_KEPT = 51, 52
_STEPS = 60
_TRIES = 20


def imbalance(
    adata: AnnData,
    entropy: float,
    *,
    least: int = 30,
    tolerance: float = 0.01,
    share: float = 0.3,
    cap: int = 200,
    min_train: int = 1,
    max_held_out: int = 1,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    controls: Controls | None = None,
    algorithm: Algorithm = "multipert",
    seed: int = 0,
) -> pd.Series:
    r"""Thin out the perturbations of the contexts to a given entropy, then split as :func:`partial_context_transfer`.

    With :math:`c_k` perturbations in context `k` of `K` and :math:`p_k = c_k / \sum_j c_j`, the entropy is
    :math:`-\sum_k p_k \ln p_k / \ln K`: 1 where all contexts have as many. One context, of those with most perturbations,
    keeps all.

    Parameters
    ----------
    adata
        Annotated data.
    entropy
        The entropy wanted.
    least
        How many perturbations every context keeps at least.
    tolerance
        How far the entropy may be from the one wanted.
    share
        As in :func:`partial_context_transfer`, as are the arguments that follow and are not described here.
    cap
        At most this many labels of a context are held out there.
    min_train
        In how many contexts every perturbation stays in training at least.
    max_held_out
        In how many contexts a perturbation is held out at most.
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
        "stratified" (the default), "global" or "train".
    algorithm
        How numbers of perturbations are drawn. "multipert": :math:`l + (n_k - l) u_k^t` with `l` the argument `least`,
        :math:`n_k` what the context has, :math:`u_k` uniform and `t` solved for the entropy. "perturbench" follows :cite:t:`Wu2024`: uniform numbers between
        `least` and :math:`n_k`, drawn until the entropy fits, 10,000 times at most; and its rules of the split.
    seed
        Seed of all draws. The split does not depend on the order of the cells.

    Returns
    -------
    "train", "val" or "test" for every cell, indexed by obs name; missing for the cells of perturbations that a context
    does not keep.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If an argument is out of range, there are fewer than two contexts, the entropy cannot be reached, or nothing can be
        held out.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate(n_cells=2000, n_vars=20, n_contexts=3, n_perturbations=40)
    >>> split = mp.splits.imbalance(adata, 0.8, least=2)
    >>> n = adata[split.notna()].obs.query("perturbation != 'control'").groupby("context", observed=True)
    >>> p = n["perturbation"].nunique() / n["perturbation"].nunique().sum()
    >>> abs(float(-(p * np.log(p)).sum() / np.log(3)) - 0.8) < 0.01
    True
    """
    check_options(algorithm, controls, val_share)
    check_share(share, "share")
    check_share(entropy, "entropy")
    if tolerance <= 0:
        raise ValueError(f"tolerance={tolerance} must be above 0.")
    for argument, value in (("least", least), ("cap", cap), ("min_train", min_train), ("max_held_out", max_held_out)):
        if value < 1:
            raise ValueError(f"{argument}={value} must be at least 1.")
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    measured = screen.present.sum(axis=1)
    if len(measured) < 2:
        raise ValueError("There is one context only; imbalance is between contexts.")
    if (measured < least).any():
        context = int(np.argmin(measured))
        raise ValueError(
            f"least={least}, but context {screen.context_label(context)!r} has {measured[context]} perturbations only."
        )
    rng = np.random.default_rng([seed, _OF_COUNTS])
    find = _solve if algorithm == "multipert" else _draw
    counts = find(measured, least, entropy, tolerance, rng)
    rng = np.random.default_rng([seed, _OF_KEPT])
    kept = np.zeros_like(screen.present)
    for context, count in enumerate(counts):
        kept[context, rng.permutation(np.flatnonzero(screen.present[context]))[:count]] = True
    held = draw_pairs(
        screen,
        kept,
        label_caps(screen, kept, share, cap),
        min_train=min_train,
        max_held_out=max_held_out,
        algorithm=algorithm,
        seed=seed,
    )
    return assign_held_out(
        screen,
        held,
        val_share=val_share,
        controls=controls,
        algorithm=algorithm,
        seed=seed,
        dropped=screen.present & ~kept,
    )


def normalised_entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of shares relative to equal ones, over the last axis, shape of the others."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return -(shares * np.log(shares)).sum(axis=-1) / np.log(counts.shape[-1])


def _solve(measured: np.ndarray, least: int, entropy: float, tolerance: float, rng: np.random.Generator) -> np.ndarray:
    near: list[float] = []
    for _ in range(_TRIES):
        u = rng.random(len(measured))
        u[np.argmax(measured)] = 1.0
        found = _bisect(measured, least, u, entropy)
        near.append(float(normalised_entropy(found)))
        if abs(near[-1] - entropy) < tolerance:
            return found
    thinned = np.full(len(measured), least)
    thinned[np.argmax(measured)] = measured.max()
    ends = [float(normalised_entropy(counts)) for counts in (thinned, measured)]
    nearest = min(near, key=lambda value: abs(value - entropy))
    raise ValueError(
        f"entropy={entropy} was not reached within tolerance={tolerance}: thinned to least={least} it is {ends[0]:.3f}, "
        f"with all perturbations {ends[1]:.3f}, and in steps of whole perturbations the nearest was {nearest:.3f}."
    )


def _bisect(measured: np.ndarray, least: int, u: np.ndarray, entropy: float) -> np.ndarray:
    """The numbers `least + (measured - least) * u**t`, rounded, on whichever side of the entropy is nearer."""

    def counts(log_t: float) -> np.ndarray:
        return np.rint(least + (measured - least) * u ** np.exp(log_t)).astype(np.int64)

    even, uneven = -12.0, 12.0
    for _ in range(_STEPS):
        middle = (even + uneven) / 2
        if normalised_entropy(counts(middle)) > entropy:
            even = middle
        else:
            uneven = middle
    return min((counts(even), counts(uneven)), key=lambda found: abs(float(normalised_entropy(found)) - entropy))


def _draw(measured: np.ndarray, least: int, entropy: float, tolerance: float, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(least, measured, size=(10_000, len(measured)), endpoint=True)
    drawn[:, np.argmax(measured)] = measured.max()
    found = normalised_entropy(drawn)
    fits = np.flatnonzero(np.abs(found - entropy) < tolerance)
    if not len(fits):
        raise ValueError(
            f"entropy={entropy} was not reached within tolerance={tolerance} in {len(drawn)} draws, which gave "
            f"{found.min():.3f} to {found.max():.3f}."
        )
    return drawn[fits[0]]

"""Doses: held out between measured ones, or beyond them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from multipert import _keys
from multipert.data._conditions import as_list
from multipert.data._noise import cell_key

from ._assign import TEST, TRAIN, VAL, assign_pairs, check_options, halve
from ._names import require
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from multipert.data._conditions import Condition

    from ._assign import Controls
    from ._screen import Screen

Which = Literal["inner", "highest", "lowest"]
_OF_DOSES = 41


def dose(
    adata: AnnData,
    which: Which = "inner",
    *,
    n_doses: int = 1,
    perturbation: str | Sequence[str] | None = None,
    val_share: float = 0.5,
    dose_key: str = _keys.DOSE,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    controls: Controls | None = None,
    seed: int = 0,
) -> pd.Series:
    """Hold out doses of each perturbation, in every context.

    Parameters
    ----------
    adata
        Annotated data.
    which
        "inner": doses drawn from those between the lowest and the highest, to be told by interpolation. "highest" or
        "lowest": to be told by extrapolation.
    n_doses
        How many doses of each perturbation. Of inner ones, as many as there are; of outer ones, one dose stays in training.
    perturbation
        Perturbations of which doses are held out; None takes all.
    val_share
        Share of the held-out (perturbation, dose) pairs that is "val"; the rest is "test". A single pair is tested.
    dose_key
        obs column of doses: numbers, or text such as "1+5" for combinations.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context; control cells are divided by context.
        None: all cells are of one context.
    control
        Label of the control cells. A perturbation at dose 0 is control.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    controls
        "stratified" (the default), "global" or "train"; see :func:`partial_context_transfer`.
    seed
        Seed of all draws. The split does not depend on the order of the cells.

    Returns
    -------
    "train", "val" or "test" for every cell, indexed by obs name. A combination with a part at a held-out dose goes where
    that dose goes.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If an argument is out of range, a name is not a perturbation of the data, no perturbation has enough doses, or a
        context with held-out cells has no control cell.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("doses")
    >>> split = mp.splits.dose(adata, "highest")
    >>> sorted(set(adata.obs.loc[split == "test", "dose"].tolist()))
    [0.0, 50.0]
    """
    check_options("multipert", controls, val_share)
    if which not in ("inner", "highest", "lowest"):
        raise ValueError(f"which={which!r} is unknown; choose 'inner', 'highest' or 'lowest'.")
    if n_doses < 1:
        raise ValueError(f"n_doses={n_doses} must be at least 1.")
    screen = read_screen(
        adata,
        perturbation_key=perturbation_key,
        context_key=context_key,
        control=control,
        delimiter=delimiter,
        dose_key=dose_key,
    )
    names = screen.perturbations
    if perturbation is not None:
        names = as_list(perturbation)
        require(names, screen.perturbations, "perturbation")
    chosen = _choose(screen, sorted(set(names)), which, n_doses, seed)
    units = np.ones((1, len(chosen)), dtype=bool)
    of_unit = halve(units, val_share, np.random.default_rng([seed, _OF_DOSES]), "test")[0]
    at = {level: {unit for unit, own in zip(chosen, of_unit, strict=True) if own == level} for level in (VAL, TEST)}
    of_condition = [
        TEST
        if at[TEST].intersection(condition) or _is_beyond(condition, chosen, which)
        else VAL
        if at[VAL].intersection(condition)
        else TRAIN
        for condition in screen.conditions
    ]
    levels = np.broadcast_to(np.array(of_condition, dtype=np.int8), screen.present.shape)
    return assign_pairs(screen, levels, val_share=val_share, controls=controls, algorithm="multipert", seed=seed)


def _is_beyond(condition: Condition, chosen: list[tuple[str, float]], which: Which) -> bool:
    """Whether a part of a combination has a dose beyond all held-out ones, which no split by dose may train on."""
    if which == "inner" or len(condition) < 2:
        return False
    for name, dose in condition:
        held_out = [other for one, other in chosen if one == name]
        if held_out and (dose > max(held_out) if which == "highest" else dose < min(held_out)):
            return True
    return False


def _choose(screen: Screen, names: list[str], which: Which, n_doses: int, seed: int) -> list[tuple[str, float]]:
    """The (perturbation, dose) pairs to hold out."""
    measured: dict[str, list[float]] = {name: [] for name in names}
    for condition in screen.conditions:
        if len(condition) == 1 and condition[0][0] in measured:
            measured[condition[0][0]].append(condition[0][1])
    chosen: list[tuple[str, float]] = []
    too_few = []
    for name, doses in measured.items():
        doses = sorted(doses)
        # one dose must stay beside those beyond it, two around those between them
        possible = doses[1:-1] if which == "inner" else doses[1:] if which == "highest" else doses[:-1]
        if not possible:
            too_few.append(name)
            continue
        if which == "inner":
            rng = np.random.default_rng(cell_key(seed, name))
            held = rng.permutation(possible)[:n_doses].tolist()
        else:
            held = possible[-n_doses:] if which == "highest" else possible[:n_doses]
        chosen += [(name, dose) for dose in held]
    needed = 3 if which == "inner" else 2
    if not chosen:
        raise ValueError(f"No perturbation was measured alone at {needed} doses, which which={which!r} needs.")
    if too_few:
        warnings.warn(
            f"{len(too_few)} perturbation(s) have fewer than {needed} doses and stay in train: {', '.join(too_few[:5])}"
            f"{', ...' if len(too_few) > 5 else ''}.",
            UserWarning,
            stacklevel=3,
        )
    return chosen

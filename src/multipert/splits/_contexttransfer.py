"""Context transfer: a perturbation is predicted in a context where only control cells were seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys
from multipert.data._conditions import as_list

from ._assign import TEST, TRAIN, VAL, as_split
from ._names import as_contexts, require
from ._screen import context_keys, read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def context_transfer(
    adata: AnnData,
    hold_out: str | Sequence[str] | Sequence[tuple[str, ...]],
    *,
    perturbation: str | Sequence[str] | None = None,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    val_size: float = 0.0,
    seed: int = 0,
) -> pd.Series:
    """Hold out the perturbed cells of some contexts; their control cells train.

    Parameters
    ----------
    adata
        Annotated data.
    hold_out
        Context or contexts whose perturbed cells are the test cells. With several context columns, a context is a tuple
        of their values.
    perturbation
        Labels to hold out there; None holds out all but control.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    val_size
        Share of the training cells that becomes "val", drawn at random.
    seed
        Seed of that draw.

    Returns
    -------
    "train", "val" or "test" for every cell, indexed by obs name, for use as `adata.obs["split"]`.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a context or label is not in the data, a held-out context lacks control cells or cells to hold out, or
        `val_size` is not in [0, 1).

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> context = adata.obs["context"].iloc[0]
    >>> split = mp.splits.context_transfer(adata, context)
    >>> set(adata.obs["context"][split == "test"]) == {context}
    True
    """
    if not 0 <= val_size < 1:
        raise ValueError(f"val_size={val_size} must be at least 0 and below 1.")
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    out = as_contexts(hold_out, screen, len(context_keys(context_key)), "hold_out")
    wanted = screen.n_parts > 0
    if perturbation is not None:
        names = as_list(perturbation)
        known = [screen.label(condition) for condition in np.flatnonzero(wanted)]
        found = {name: screen.find(name) for name in names}
        require([name for name, condition in found.items() if condition is None], known, "perturbation")
        wanted = np.isin(np.arange(len(wanted)), [condition for condition in found.values() if condition is not None])
    for context in out:
        if not (screen.present[context] & wanted).any():
            raise ValueError(f"Context {screen.context_label(context)!r} has no perturbed cell to hold out.")
        if not screen.n_controls[context]:
            raise ValueError(
                f"Context {screen.context_label(context)!r} has no control cell ({control!r}) to predict from."
            )
    test = wanted[screen.condition] & np.isin(screen.context, out)
    cells = np.where(test, TEST, TRAIN)
    train = np.flatnonzero(~test)
    cells[np.random.default_rng(seed).choice(train, size=round(val_size * len(train)), replace=False)] = VAL
    return as_split(screen, cells)

"""Context transfer: a perturbation is predicted in a context where only control cells were seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def context_transfer(
    adata: AnnData,
    hold_out: str | Sequence[str],
    *,
    perturbation: str | Sequence[str] | None = None,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    val_size: float = 0.0,
    seed: int = 0,
) -> pd.Series:
    """Hold out the perturbed cells of some contexts; their control cells train.

    Parameters
    ----------
    adata
        Annotated data.
    hold_out
        Context or contexts whose perturbed cells are the test cells.
    perturbation
        Labels to hold out there; None holds out all but control.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts.
    control
        Label of the control cells.
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
    for argument, key in (("perturbation_key", perturbation_key), ("context_key", context_key)):
        if key not in adata.obs:
            raise KeyError(f"{argument}={key!r} is not a column of obs{close_matches(key, adata.obs.columns)}")
    if not 0 <= val_size < 1:
        raise ValueError(f"val_size={val_size} must be at least 0 and below 1.")
    labels, contexts = (adata.obs[key].astype(str).to_numpy() for key in (perturbation_key, context_key))
    held = labels != control
    if perturbation is not None:
        wanted = [perturbation] if isinstance(perturbation, str) else list(perturbation)
        _require(wanted, labels[held], "perturbation")
        held &= np.isin(labels, wanted)
    out = [hold_out] if isinstance(hold_out, str) else list(hold_out)
    _require(out, contexts, "hold_out")
    test = held & np.isin(contexts, out)
    for context in out:
        here = contexts == context
        if not (test & here).any():
            raise ValueError(f"Context {context!r} has no perturbed cell to hold out.")
        if not (here & (labels == control)).any():
            raise ValueError(f"Context {context!r} has no control cell ({control!r}) to predict from.")
    split = np.where(test, "test", "train").astype(object)
    train = np.flatnonzero(~test)
    split[np.random.default_rng(seed).choice(train, size=round(val_size * len(train)), replace=False)] = "val"
    return pd.Series(split, index=adata.obs_names, name=_keys.SPLIT)


def _require(wanted: Sequence[str], known: np.ndarray, argument: str) -> None:
    for name in wanted:
        if name not in set(known):
            raise ValueError(f"{argument}={name!r} is not in the data{close_matches(name, set(known))}")

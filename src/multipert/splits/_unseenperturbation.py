"""Unseen perturbations: held out in every context, alone and in combinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys
from multipert.data._conditions import as_list

from ._assign import TEST, TRAIN, VAL, assign_pairs, check_options, check_share, halve
from ._names import require
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from ._assign import Controls

_OF_PERTURBATIONS, _OF_SEEN_COMBINATIONS = 31, 32


def unseen_perturbation(
    adata: AnnData,
    *,
    share: float = 0.25,
    combination_share: float = 0.25,
    perturbation: str | Sequence[str] | None = None,
    val_share: float = 0.5,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    controls: Controls | None = None,
    seed: int = 0,
) -> pd.Series:
    """Hold out perturbations in every context, with all combinations that contain them.

    The held-out perturbations are divided between val and test. A combination goes to test if a part does, else to val if
    a part does. Of the combinations whose parts all train, a share is held out too, so that combinations with none, one
    and both parts seen are tested, as :cite:t:`Roohani2024` do; :func:`seen_parts` tells them apart.

    Parameters
    ----------
    adata
        Annotated data.
    share
        Share of the perturbations, rounded, one at least.
    combination_share
        Share of the combinations whose parts all train and were all measured alone, rounded down. The same ones are held
        out in every context.
    perturbation
        The perturbations to hold out, in place of a random `share`.
    val_share
        Share of what is held out that is "val"; the rest is "test". A single perturbation is tested.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context; control cells are divided by context.
        None: all cells are of one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    controls
        "stratified" (the default), "global" or "train"; see :func:`partial_context_transfer`.
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
        If an argument is out of range, a name is not a perturbation of the data, no perturbation would be left to train
        on, or a context with held-out cells has no control cell.

    See Also
    --------
    seen_parts : how many parts of each label training sees.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> split = mp.splits.unseen_perturbation(adata, perturbation="P2")
    >>> "P2" in set(adata.obs.loc[split == "train", "perturbation"])
    False
    """
    check_options("multipert", controls, val_share)
    check_share(share, "share")
    check_share(combination_share, "combination_share", least_included=True)
    screen = read_screen(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, delimiter=delimiter
    )
    names = np.array(screen.perturbations, dtype=object)
    rng = np.random.default_rng([seed, _OF_PERTURBATIONS])
    if perturbation is None:
        chosen = rng.permutation(len(names))[: max(1, round(share * len(names)))]
    else:
        wanted = as_list(perturbation)
        require(wanted, screen.perturbations, "perturbation")
        chosen = np.flatnonzero(np.isin(names, wanted))
    if not len(chosen) or len(chosen) == len(names):
        raise ValueError(
            f"{len(chosen)} of {len(names)} perturbations would be held out; some must be held out and some must train."
        )
    is_held = np.zeros((1, len(names)), dtype=bool)
    is_held[0, chosen] = True
    of_name = halve(is_held, val_share, rng, "test")[0]
    of_condition = np.full(len(screen.conditions), TRAIN, dtype=np.int8)
    for level in (VAL, TEST):
        of_condition[screen.has[:, of_name == level].any(axis=1)] = level
    alone = screen.has[screen.n_parts == 1].any(axis=0)
    pool = (screen.n_parts > 1) & (of_condition == TRAIN) & ~screen.has[:, ~alone].any(axis=1)
    rng = np.random.default_rng([seed, _OF_SEEN_COMBINATIONS])
    seen = np.zeros((1, len(pool)), dtype=bool)
    seen[0, rng.permutation(np.flatnonzero(pool))[: int(combination_share * pool.sum())]] = True
    of_condition = np.where(seen[0], halve(seen, val_share, rng, "test")[0], of_condition)
    levels = np.broadcast_to(of_condition, screen.present.shape)
    return assign_pairs(screen, levels, val_share=val_share, controls=controls, algorithm="multipert", seed=seed)

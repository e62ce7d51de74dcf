"""Which control cell stands for each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ._noise import cell_key

if TYPE_CHECKING:
    import pandas as pd

Pairing = Literal["self", "random"]


def paired_controls(
    obs_names: pd.Index, contexts: np.ndarray, is_control: np.ndarray, rows: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Draw for each cell a control cell of its own context.

    A control cell is paired with itself. The partner of a perturbed cell depends on the seed, its name and the names of
    the control cells among `rows` only, so batch size, the order of cells and the other perturbed cells change nothing.

    Parameters
    ----------
    obs_names
        Names of all cells, length `n_cells`.
    contexts
        Context code of each cell, shape `(n_cells,)`.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    rows
        Row numbers to pair; partners are taken among these only.
    seed
        Seed of the draw.

    Returns
    -------
    Row number of each partner, shape `(len(rows),)`; -1 where the context has no control cell among `rows`.

    Examples
    --------
    >>> import pandas as pd
    >>> names = pd.Index(["a", "b", "c", "d"])
    >>> paired_controls(names, np.array([0, 0, 1, 1]), np.array([True, False, True, False]), np.arange(4))
    array([0, 0, 2, 2])
    """
    rows = np.asarray(rows)
    partners = np.where(is_control[rows], rows, -1)
    for context in np.unique(contexts[rows]):
        here = contexts[rows] == context
        pool = rows[here & is_control[rows]]
        pool = pool[np.argsort(obs_names[pool].to_numpy(dtype=object))]
        todo = np.flatnonzero(here & ~is_control[rows])
        if len(pool) and len(todo):
            draws = np.array([cell_key(seed, name) for name in obs_names[rows[todo]]], dtype=np.uint64)
            partners[todo] = pool[draws % np.uint64(len(pool))]
    return partners

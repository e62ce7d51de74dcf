"""Which cells train, which validate, which are never read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys

from ._checks import check_column

if TYPE_CHECKING:
    import pandas as pd


def split_rows(
    obs: pd.DataFrame, split_key: str | None, train_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of training, validation and test cells.

    Parameters
    ----------
    obs
        Annotation of the cells.
    split_key
        obs column with `"train"`, `"val"` and `"test"`; None draws `train_size` of the cells at random and validates on
        the rest.
    train_size
        Share of training cells where there is no `split_key`.
    seed
        Seed of that draw.

    Returns
    -------
    Increasing row numbers of the three parts; every cell is in one.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If a cell has another value or none, there is no training cell, or `train_size` is not in (0, 1].
    """
    if split_key is None:
        if not 0 < train_size <= 1:
            raise ValueError(f"train_size={train_size} must be above 0 and at most 1.")
        order = np.random.default_rng([seed, 0x5B11]).permutation(len(obs))
        n_train = max(1, round(train_size * len(obs)))
        return np.sort(order[:n_train]), np.sort(order[n_train:]), np.array([], dtype=np.int64)
    column = check_column(obs, split_key, "split_key").astype(str).to_numpy()
    wrong = ~np.isin(column, _keys.SPLIT_LEVELS)
    if wrong.any():
        shown = ", ".join(map(repr, sorted(set(column[wrong]))[:5]))
        raise ValueError(
            f"obs[{split_key!r}] has {int(wrong.sum())} cell(s) with {shown}; every cell must be one of "
            f"{', '.join(map(repr, _keys.SPLIT_LEVELS))}."
        )
    train, val, test = (np.flatnonzero(column == level) for level in _keys.SPLIT_LEVELS)
    if len(train) == 0:
        raise ValueError(f"obs[{split_key!r}] marks no cell as 'train'.")
    return train, val, test

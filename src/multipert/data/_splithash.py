"""A name for a split."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def split_hash(split: pd.Series) -> str:
    """Name a split by what it does: the same cells at the same levels have the same name, in any order.

    Parameters
    ----------
    split
        Level of every cell, indexed by obs name; missing values count as a level.

    Returns
    -------
    Ten hexadecimal digits of the SHA-256 of all (cell, level) pairs.

    Examples
    --------
    >>> import pandas as pd
    >>> split = pd.Series(["train", "test"], index=["a", "b"])
    >>> split_hash(split)
    'b58c6f546f'
    >>> split_hash(split[::-1]) == split_hash(split)
    True
    """
    column = split.astype(object)
    levels = column.where(column.notna(), "")
    lines = sorted(f"{name}\t{level}" for name, level in zip(split.index, levels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:10]

"""Random numbers keyed by (seed, cell): batch size and order change nothing."""

from __future__ import annotations

import hashlib

import numpy as np


def cell_key(seed: int, cell: str) -> int:
    """A 64-bit number that depends on the seed and the cell's name only.

    Parameters
    ----------
    seed
        Seed of the call.
    cell
        Name of the cell.

    Returns
    -------
    The number.

    Examples
    --------
    >>> cell_key(0, "AAAC") == cell_key(0, "AAAC") != cell_key(1, "AAAC")
    True
    """
    digest = hashlib.blake2b(f"{seed}:{cell}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def cell_generator(seed: int, cell: str) -> np.random.Generator:
    """A counter-based generator for one cell.

    Parameters
    ----------
    seed
        Seed of the call.
    cell
        Name of the cell.

    Returns
    -------
    A generator; two calls with the same arguments draw the same numbers.
    """
    return np.random.Generator(np.random.Philox(key=cell_key(seed, cell)))

"""Random numbers keyed by (seed, cell): batch size and order change nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def cell_keys(seed: int, cells: Iterable[str]) -> np.ndarray:
    """The numbers of many cells; see :func:`cell_key`.

    Parameters
    ----------
    seed
        Seed of the call.
    cells
        Names of the cells.

    Returns
    -------
    Shape `(n_cells,)`, the 64 bits as int64.
    """
    return np.array([cell_key(seed, cell) for cell in cells], dtype=np.uint64).view(np.int64)


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of several samples.

    Parameters
    ----------
    seed
        Seed of the call.
    sample
        Number of the sample.

    Returns
    -------
    A seed.
    """
    return cell_key(seed, f"sample {sample}")


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

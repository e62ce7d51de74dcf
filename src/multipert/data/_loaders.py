"""Batches by row numbers: shuffled, paired, of one condition each, or of several groups."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from ._store import CellStore

BUFFER_CELLS = 16384
"""Cells that are read from disk, and shuffled, at once."""
BLOCK_CELLS = 64
"""Neighbouring cells that are read together from disk."""


class CellLoader:
    """Batches of some cells of a store.

    Each pass over the loader is one epoch; the order of epoch `e` depends on `(seed, e)` only, not on where the cells are.
    Cost per epoch is linear in the number of cells.

    With a `block_size` the order is shuffled by blocks, so that cells on disk are read in runs: the rows, sorted, are cut
    into runs of `block_size` neighbours (the first cut is drawn anew each epoch), the runs are shuffled and put into
    buffers of `buffer_size` cells, and the cells of each buffer are shuffled. The cells of a batch of `B` come from about
    `R (1 - (1 - 1/R)^B)` of the `R = buffer_size / block_size` runs of a buffer. If neighbouring cells are alike, batches
    differ more from each other than those of a full shuffle: where cells of a run correlate by `r` (1 for data sorted by
    condition), the variance of a batch mean is about `1 + r (B - 1) / R` times as large.

    Cells on disk are read a buffer at a time, by a thread, while the buffer before is in use; memory holds two buffers.
    One takes 8 bytes for each non-zero value (4 for each value of dense files) of `buffer_size` cells, and as much again
    for their partners.

    Parameters
    ----------
    store
        Where the cells are.
    rows
        Row numbers to visit, shape `(n,)`.
    batch_size
        Cells per batch.
    shuffle
        Whether to visit them in a new random order each epoch.
    drop_last
        Whether to leave out the last, incomplete batch; it is kept when it is the only one.
    partners
        Row number of the paired control of each of `rows`; batches then hold `"X_control"`.
    pools
        Positions in `rows`, and row numbers among which their partners are drawn anew each epoch: all of these before one
        comes again. Rows without pool keep their partner of `partners`.
    groups
        Group of each of `rows`; a batch then holds cells of one group only, and the groups' batches are mixed, so that
        from disk they are read in smaller pieces.
    seed
        Seed of the order.
    block_size
        Neighbouring rows that are kept together until the buffer; None shuffles cells in memory fully, and those of files
        that are not read at once in blocks of 64, also where they were moved to a device.
    buffer_size
        Cells that are shuffled, and read from disk, together; rounded to whole batches.

    Attributes
    ----------
    rank
        Number of this process among those that share each batch.
    n_ranks
        Number of such processes. Each takes every `n_ranks`-th cell of a batch, the first ones again where the batch does
        not divide, so that all have equally many cells; a process reads its own cells only.
    """

    def __init__(
        self,
        store: CellStore,
        rows: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        partners: np.ndarray | None = None,
        pools: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        groups: np.ndarray | None = None,
        seed: int = 0,
        block_size: int | None = None,
        buffer_size: int = BUFFER_CELLS,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("A loader needs at least one cell; the selection of cells is empty.")
        for name, value in (("batch_size", batch_size), ("buffer_size", buffer_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        pooled = sum(len(at) for at, _ in pools)
        if any(not len(pool) for _, pool in pools) or (pools and partners is None and pooled < len(rows)):
            raise ValueError(
                f"pools give {pooled} of {len(rows)} rows a partner; every row needs a pool, or a partner."
            )
        check_block_size(block_size)
        self.store = store
        self.rows = np.asarray(rows)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.partners, self.pools = partners, pools
        self.seed = seed
        self.epoch = 0
        self.rank, self.n_ranks = 0, 1
        self.block_size = BLOCK_CELLS if block_size is None and store.by_blocks else block_size
        self.batches_per_buffer = max(1, round(buffer_size / batch_size))
        labels = np.zeros(len(self.rows), dtype=np.int64) if groups is None else np.asarray(groups)
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return sum(self._n_batches(len(members)) for members in self._members)

    def _n_batches(self, n: int) -> int:
        full, rest = divmod(n, self.batch_size)
        return full + bool(rest and not (self.drop_last and full))

    def positions(self) -> list[np.ndarray]:
        """Positions in `rows` of each batch of the next epoch, in order; those of all ranks.

        Returns
        -------
        One array per batch.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for members in self._members:
            order = self._order(members, rng)
            n = self._n_batches(len(members))
            batches += [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(n)]
        if self.shuffle and len(self._members) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _drawn_partners(self) -> np.ndarray | None:
        """Partner of each row in the next epoch."""
        if not self.pools:
            return self.partners
        # a stream beside that of the order
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        partners = self.rows.copy() if self.partners is None else self.partners.copy()
        for at, pool in self.pools:
            rounds = -(-len(at) // len(pool))
            partners[at] = np.concatenate([pool[:0], *(rng.permutation(pool) for _ in range(rounds))])[: len(at)]
        return partners

    def _order(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.shuffle:
            return members
        if self.block_size is None:
            return rng.permutation(members)
        nearby = members[np.argsort(self.rows[members], kind="stable")]
        return nearby[block_order(len(members), self.block_size, self.batches_per_buffer * self.batch_size, rng)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches, partners = self.positions(), self._drawn_partners()
        self.epoch += 1
        own = (at[share(len(at), self.rank, self.n_ranks)] for at in batches)
        cells = ((self.rows[at], None if partners is None else partners[at]) for at in own)
        yield from _delivered(self.store, cells, self.batches_per_buffer)


class GroupLoader:
    """Batches of several groups: some cells of each, and as many control cells of its context.

    A group holds the cells of one condition in one context. Each pass visits every group once, so rare groups count as
    much as frequent ones; cells are drawn anew, each at most once (control cells again only where there are too few). The
    draw of pass `e` depends on `(seed, e)` only.

    Cells on disk are read for several batches at once, by a thread, while those before are in use. They lie anywhere in
    the file, which is slower to read than a :class:`CellLoader`'s runs.

    Parameters
    ----------
    store
        Where the cells are.
    groups
        Row numbers of the cells of each group, and of the control cells of its context.
    n_cells
        Cells drawn of each group, all of a smaller one.
    groups_per_batch
        Groups in a batch.
    shuffle
        Whether each pass draws anew.
    seed
        Seed of the draw.
    buffer_size
        About how many cells are read from disk together, control cells not counted.

    Attributes
    ----------
    rank
        Number of this process among those that share each batch.
    n_ranks
        Number of such processes. Each takes every `n_ranks`-th group of a batch, the first ones again where the batch does
        not divide; cells are drawn alike in all, and each reads its own only.
    """

    def __init__(
        self,
        store: CellStore,
        groups: list[tuple[np.ndarray, np.ndarray]],
        n_cells: int,
        groups_per_batch: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        buffer_size: int = BUFFER_CELLS,
    ) -> None:
        if not groups:
            raise ValueError("A loader needs at least one group; no context has both control and perturbed cells.")
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} must be at least 1.")
        self.store, self.groups = store, groups
        self.n_cells, self.groups_per_batch = n_cells, groups_per_batch
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.rank, self.n_ranks = 0, 1
        self.batches_per_buffer = max(1, round(buffer_size / (n_cells * groups_per_batch)))
        self.rows = np.concatenate([rows for rows, _ in groups])

    def __len__(self) -> int:
        return -(-len(self.groups) // self.groups_per_batch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += self.shuffle
        yield from _delivered(self.store, self._drawn(rng), self.batches_per_buffer)

    def _drawn(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cells and control cells of each batch."""
        order = rng.permutation(len(self.groups))
        for first in range(0, len(order), self.groups_per_batch):
            drawn = [self._draw(rng, *self.groups[i]) for i in order[first : first + self.groups_per_batch]]
            own = [drawn[i] for i in share(len(drawn), self.rank, self.n_ranks)]
            cells, controls = (np.concatenate(part) for part in zip(*own, strict=True))
            yield cells, controls

    def _draw(self, rng: np.random.Generator, rows: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = min(self.n_cells, len(rows))
        return rng.choice(rows, n, replace=False), rng.choice(controls, n, replace=len(controls) < n)


def check_block_size(block_size: int | None) -> None:
    """Refuse a size of blocks that is none.

    Parameters
    ----------
    block_size
        What was given; None chooses.

    Raises
    ------
    ValueError
        If it is no whole number of at least 1.
    """
    if block_size is not None and (not isinstance(block_size, Integral) or block_size < 1):
        raise ValueError(f"block_size={block_size} must be a whole number of at least 1, or None.")


def block_order(n: int, block_size: int, buffer_size: int, rng: np.random.Generator) -> np.ndarray:
    """An order of `n` cells in which runs of neighbours stay within a buffer, or two.

    Parameters
    ----------
    n
        Number of cells.
    block_size
        Cells of a run; the first may be shorter, and the last.
    buffer_size
        Cells that are shuffled among each other.
    rng
        Source of the order.

    Returns
    -------
    Positions from 0 to `n - 1`, each once.

    Examples
    --------
    >>> order = block_order(8, 2, 4, np.random.default_rng(1))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    starts = np.arange(-int(rng.integers(block_size)), n, block_size)
    runs = (rng.permutation(starts)[:, None] + np.arange(block_size)).ravel()
    order = runs[(runs >= 0) & (runs < n)]
    for first in range(0, n, buffer_size):
        rng.shuffle(order[first : first + buffer_size])
    return order


def share(n: int, rank: int, n_ranks: int) -> np.ndarray:
    """Positions within a batch that one of several processes takes.

    Parameters
    ----------
    n
        Size of the batch.
    rank
        Number of the process.
    n_ranks
        Number of processes.

    Returns
    -------
    Positions, equally many for each rank, together all; the first ones come twice where `n_ranks` does not divide `n`.

    Raises
    ------
    ValueError
        If the rank is not from 0 to `n_ranks - 1`.

    Examples
    --------
    >>> share(5, 0, 2), share(5, 1, 2)
    (array([0, 2, 4]), array([1, 3, 0]))
    """
    if not 0 <= rank < n_ranks:
        raise ValueError(f"rank={rank} must be from 0 to n_ranks - 1, and n_ranks is {n_ranks}.")
    return (np.arange(-(-n // n_ranks)) * n_ranks + rank) % n


def _delivered(
    store: CellStore, batches: Iterator[tuple[np.ndarray, np.ndarray | None]], per_read: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of cells and their partners; those of several batches are read from disk at once, one read ahead."""
    if not store.on_disk:
        for cells, partners in batches:
            yield store.batch(cells, partners)
        return

    def read(some: list[tuple[np.ndarray, np.ndarray | None]]) -> CellStore:
        return store.read(np.unique(np.concatenate([rows for pair in some for rows in pair if rows is not None])))

    # leaving the block, however that happens, waits for the thread
    with ThreadPoolExecutor(1, thread_name_prefix="multipert-read") as thread:
        some = list(islice(batches, per_read))
        ahead = thread.submit(read, some)
        while some:
            held = ahead.result()
            following = list(islice(batches, per_read))
            if following:
                # takes the place of the read before, which would else be kept as a third one
                ahead = thread.submit(read, following)
            for cells, partners in some:
                yield held.batch(cells, partners)
            del held
            some = following

"""Batches by row numbers: shuffled, paired, of one condition each, or of several groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from ._store import CellStore


class CellLoader:
    """Batches of some cells of a store.

    Each pass over the loader is one epoch; the order of epoch `e` depends on `(seed, e)` only. Cost per epoch is linear
    in the number of cells.

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
    groups
        Group of each of `rows`; a batch then holds cells of one group only.
    seed
        Seed of the order.
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
        groups: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("A loader needs at least one cell; the selection of cells is empty.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        self.store = store
        self.rows = np.asarray(rows)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.partners = partners
        self.seed = seed
        self.epoch = 0
        labels = np.zeros(len(self.rows), dtype=np.int64) if groups is None else np.asarray(groups)
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return sum(self._n_batches(len(members)) for members in self._members)

    def _n_batches(self, n: int) -> int:
        full, rest = divmod(n, self.batch_size)
        return full + bool(rest and not (self.drop_last and full))

    def positions(self) -> list[np.ndarray]:
        """Positions in `rows` of each batch of the next epoch, in order.

        Returns
        -------
        One array per batch.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for members in self._members:
            order = rng.permutation(members) if self.shuffle else members
            n = self._n_batches(len(members))
            batches += [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(n)]
        if self.shuffle and len(self._members) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = self.positions()
        self.epoch += 1
        for at in batches:
            yield self.store.batch(self.rows[at], None if self.partners is None else self.partners[at])


class GroupLoader:
    """Batches of several groups: some cells of each, and as many control cells of its context.

    A group holds the cells of one condition in one context. Each pass visits every group once, so rare groups count as
    much as frequent ones; cells are drawn anew, each at most once (control cells again only where there are too few). The
    draw of pass `e` depends on `(seed, e)` only.

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
    ) -> None:
        if not groups:
            raise ValueError("A loader needs at least one group; no context has both control and perturbed cells.")
        self.store, self.groups = store, groups
        self.n_cells, self.groups_per_batch = n_cells, groups_per_batch
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.rows = np.concatenate([rows for rows, _ in groups])

    def __len__(self) -> int:
        return -(-len(self.groups) // self.groups_per_batch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += self.shuffle
        order = rng.permutation(len(self.groups))
        for first in range(0, len(order), self.groups_per_batch):
            drawn = [self._draw(rng, *self.groups[i]) for i in order[first : first + self.groups_per_batch]]
            cells, controls = (np.concatenate(part) for part in zip(*drawn, strict=True))
            yield self.store.batch(cells, controls)

    def _draw(self, rng: np.random.Generator, rows: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = min(self.n_cells, len(rows))
        return rng.choice(rows, n, replace=False), rng.choice(controls, n, replace=len(controls) < n)

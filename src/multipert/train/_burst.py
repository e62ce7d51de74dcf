"""Several batches handed to the training plan at once, so that the framework's hooks are paid once for all of them."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from lightning.pytorch import Trainer

    from multipert.model._module import Tensors


class Loader(Protocol):
    """Batches of a known number; where training runs in several processes, the share of one of them."""

    rank: int
    n_ranks: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensors]: ...


class Burst:
    """Some batches in a row; each is made and moved when its turn comes.

    Parameters
    ----------
    batches
        The batches, to be iterated over once.
    first
        Number of the first of them within the epoch.
    device
        Where to move them.
    """

    def __init__(self, batches: Iterator[Tensors], first: int, device: torch.device | str = "cpu") -> None:
        self._batches, self.first, self.device = batches, first, device
        self.seconds = 0.0
        """Seconds that the batches were waited for."""

    def __iter__(self) -> Iterator[Tensors]:
        while True:
            started = time.perf_counter()
            batch = next(self._batches, None)
            if batch is None:
                return
            moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            self.seconds += time.perf_counter() - started
            yield moved


class Bursts:
    """A loader whose items are bursts of batches, or the batches themselves.

    Where training runs in several processes, each takes its share of every batch.

    Parameters
    ----------
    loader
        The batches.
    size
        Batches in a burst; 1 gives the batches themselves.
    trainer
        Knows the number of this process and of all.
    """

    def __init__(self, loader: Loader, size: int, trainer: Trainer) -> None:
        self.loader, self.size, self.trainer = loader, size, trainer

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[Burst | Tensors]:
        self.loader.rank, self.loader.n_ranks = self.trainer.global_rank, self.trainer.world_size
        batches, n = iter(self.loader), len(self)
        if self.size == 1:
            yield from _one_ahead(batches)
            return
        for i in range(n):
            # the last one asks until there is no more, which ends the thread of a loader that reads ahead
            yield Burst(islice(batches, self.size) if i + 1 < n else batches, i * self.size)


def _one_ahead(batches: Iterator[Tensors]) -> Iterator[Tensors]:
    """The same batches; the iterator has come to its end when the last is given."""
    batch = next(batches, None)
    while batch is not None:
        following = next(batches, None)
        yield batch
        batch = following

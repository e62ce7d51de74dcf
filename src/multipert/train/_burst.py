"""Several batches handed to the training plan at once, so that the framework's hooks are paid once for all of them."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """

    def __init__(self, batches: Iterator[Tensors], first: int) -> None:
        self._batches, self.first = batches, first
        self.device = torch.device("cpu")
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
    """A loader whose items are bursts of batches.

    Where training runs in several processes, each takes its share of every batch.

    Parameters
    ----------
    loader
        The batches.
    size
        Batches in a burst.
    """

    def __init__(self, loader: Loader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[Burst]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.loader.rank = torch.distributed.get_rank()
            self.loader.n_ranks = torch.distributed.get_world_size()
        batches = iter(self.loader)
        for first in range(0, len(self.loader), self.size):
            yield Burst(islice(batches, self.size), first)
        # to its end, so that a thread that reads ahead ends now
        next(batches, None)

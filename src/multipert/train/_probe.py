"""What an update costs, measured on a few."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from ._fit import fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multipert.model._module import Tensors

    from ._burst import Loader
    from ._plan import PerturbationTrainingPlan


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training will take; see :meth:`multipert.model.PerturbationModel.estimate`.

    Parameters
    ----------
    n_updates
        Updates of all passes together.
    seconds
        Seconds of the updates, without pairing and without what is fitted before and after them.
    cells_per_second
        Cells that the updates see in a second.
    memory
        Bytes taken beside the AnnData: weights with gradients, moments and a copy to fall back on, one batch with what its
        gradient needs, codes, and the cells as far as they are copied or read ahead from disk.
    """

    n_updates: int
    seconds: float
    cells_per_second: float
    memory: int

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        length = f"{minutes} min {seconds} s" if minutes else f"{self.seconds:.1f} s"
        return (
            f"{self.n_updates:,} updates in about {length} ({self.cells_per_second:,.0f} cells/s), "
            f"{self.memory / 1e6:,.0f} MB beside the data"
        )


class _Head:
    """The first batches of a loader."""

    rank, n_ranks = 0, 1

    def __init__(self, loader: Loader, n_batches: int) -> None:
        self.loader, self.n_batches = loader, min(n_batches, len(loader))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Tensors]:
        return islice(iter(self.loader), self.n_batches)


def probe(
    plan: PerturbationTrainingPlan, loader: Loader, n_batches: int, **trainer_kwargs: Any
) -> tuple[float, float, int]:
    """Train on a few batches twice; the second time is measured.

    Parameters
    ----------
    plan
        What to train; its module is changed.
    loader
        The batches.
    n_batches
        How many to take.
    trainer_kwargs
        Arguments of scvi-tools' `Trainer`.

    Returns
    -------
    Seconds per update, cells per update, and bytes of one batch with what its gradient needs.
    """
    batch = next(iter(loader))
    batch = {key: value.to(plan.module.device) for key, value in batch.items()}
    kept = _kept_for_gradient(plan, batch) + sum(value.nbytes for value in batch.values())
    head = _Head(loader, n_batches)
    history = fit(plan, head, None, max_epochs=2, enable_progress_bar=False, **trainer_kwargs)
    seconds = float(history["epoch_seconds"].iloc[-1, 0])
    cells = seconds * float(history["cells_per_second"].iloc[-1, 0])
    return seconds / len(head), cells / len(head), kept


def _kept_for_gradient(plan: PerturbationTrainingPlan, batch: Tensors) -> int:
    """Bytes that the loss of a batch keeps until its gradient is taken, and of its largest output twice."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in plan.module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = plan(batch).loss if plan.trains != "critic" else plan.module.critic_loss(batch)
    del loss
    return sum(kept.values()) + 2 * max(kept.values(), default=0)

"""Time and memory of a training before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.model._utils import parse_device_args

from multipert.data._loaders import CellLoader
from multipert.train import TrainingEstimate
from multipert.train._plan import PerturbationTrainingPlan
from multipert.train._probe import probe

from ._passes import Pass, n_transported
from ._training import PREDICT_BATCH, make_ready, n_epochs, passes_of, training_batch_size, training_conditions

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from ._base import PerturbationModel

_PROBE_BATCHES = 10
# weights, gradients, two moments of Adam, and the copy to fall back on
_COPIES = 5


def estimate_training(
    model: PerturbationModel,
    adata: AnnData,
    train: np.ndarray,
    *,
    seed: int,
    max_epochs: int | None,
    batch_size: int | None,
    accelerator: str,
    devices: int | list[int] | str,
    precision: str,
) -> TrainingEstimate:
    """Train a fresh module on a few batches of every pass.

    Parameters
    ----------
    model
        The model; neither it nor its module is changed.
    adata
        The cells.
    train
        Row numbers of the training cells.
    seed
        Seed of the weights and batches.
    max_epochs
        Epochs per pass; None takes the preset's.
    batch_size
        Cells per update; None takes the preset's.
    accelerator
        As in Lightning.
    devices
        As in Lightning; one of them is used.
    precision
        As in Lightning.

    Returns
    -------
    The estimate.
    """
    batch_size = training_batch_size(model, batch_size)
    store = model._with_size_factors(model._training_store(adata, seed), adata, train)
    conditions, _ = training_conditions(model, adata, train)
    accelerator, _, device = parse_device_args(accelerator, devices, return_device="torch")
    n_updates, seconds, cells, batch_bytes, buffers = 0, 0.0, 0.0, 0, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = model._new_module()
        make_ready(model, module, conditions, CellLoader(store, train, max(batch_size, PREDICT_BATCH)))
        for stage in passes_of(model):
            transported = stage.pairing == "ot" and model._setup.pairing_key is None
            # the transport itself would take longer than all the rest, and any pairs cost the same
            pairing = "random" if transported else stage.pairing
            passes = Pass(model, adata, store, pairing, batch_size, seed, itself=stage.itself)
            loader = passes.training(train, seed)
            n_pairs = n_transported(model, adata, train, itself=stage.itself) if transported else 0
            n_batches = max(1, n_pairs // batch_size) if transported else len(loader)
            module.n_rows, module.stage = len(loader.rows), stage.name
            module.to(device).train()
            plan = PerturbationTrainingPlan(module, trains=stage.trains, **model._preset.get("plan_kwargs", {}))
            if store.on_disk:
                # a whole buffer would be read for the few batches of the probe
                buffered = store.reading_bytes(loader.batches_per_buffer * batch_size)
                loader.batches_per_buffer = _PROBE_BATCHES // 2
                buffers = max(buffers, 2 * buffered * (1 if stage.pairing == "self" else 2))
            one = device.index if device.index is not None else 0
            each, n_cells, kept = probe(
                plan,
                loader,
                _PROBE_BATCHES,
                accelerator=accelerator,
                devices=1 if device.type == "cpu" else [one],
                precision=precision,
            )
            updates = n_batches * n_epochs(model, max_epochs, n_batches, stage.share)
            n_updates += updates
            seconds += updates * each
            cells += updates * n_cells
            batch_bytes = max(batch_bytes, kept)
    n_bytes = sum(parameter.nbytes for parameter in module.parameters())
    return TrainingEstimate(
        n_updates=n_updates,
        seconds=seconds,
        cells_per_second=cells / seconds if seconds else float("nan"),
        memory=int(store.own_bytes + buffers + _COPIES * n_bytes + batch_bytes),
    )

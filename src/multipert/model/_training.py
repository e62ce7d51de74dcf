"""What `train` does once its arguments are checked: stages, then what is fitted in closed form."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.model._utils import parse_device_args

from multipert import _keys
from multipert.data._loaders import CellLoader
from multipert.train import Stage
from multipert.train._fit import append_history, fit
from multipert.train._plan import PerturbationTrainingPlan

from ._passes import Pass
from ._targets import encode_targets

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition

    from ._base import PerturbationModel
    from ._module import PerturbationModule

logger = logging.getLogger(__name__)

PREDICT_BATCH = 512
"""Cells per batch where no gradient is taken."""
_DEFAULTS = {"lr": 1e-3, "batch_size": 64, "max_epochs": 100, "weight_decay": 0.0}
_LARGEST_CORRECTION = 5


def fit_model(
    model: PerturbationModel,
    adata: AnnData,
    split: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    max_epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float | None,
    plan_kwargs: dict[str, Any],
    early_stopping: bool,
    block_size: int | None,
    accelerator: str,
    devices: int | list[int] | str,
    **trainer_kwargs: Any,
) -> None:
    """Run the stages of a model, then its `conclude`; hooks see training cells only.

    Parameters
    ----------
    model
        The model, its module made.
    adata
        The cells.
    split
        Row numbers of the training and of the validation cells.
    seed
        Seed of batches and dropout.
    max_epochs
        Epochs per stage; None takes the preset's.
    batch_size
        Cells per update; None takes the preset's.
    lr
        Learning rate; None takes the preset's.
    weight_decay
        L2 penalty; None takes the preset's.
    plan_kwargs
        Further arguments of the training plan.
    early_stopping
        Whether a pass stops when the loss of the validation cells no longer falls.
    block_size
        Neighbouring cells that the shuffling keeps together; None as :class:`CellLoader` chooses.
    accelerator
        As in Lightning.
    devices
        As in Lightning.
    trainer_kwargs
        Further arguments of scvi-tools' `Trainer`.
    """
    train, val = split
    defaults = {**_DEFAULTS, **model._preset}
    pool = np.union1d(train, val)
    store = model._with_size_factors(model._training_store(adata, seed), adata, pool)
    conditions, codes = training_conditions(model, adata, train)
    accelerator, devices, device = parse_device_args(accelerator, devices, return_device="torch")
    processes = n_processes(devices, trainer_kwargs.get("num_nodes", 1))
    batch_size = training_batch_size(model, batch_size, processes)
    in_order = CellLoader(store, train, max(batch_size, PREDICT_BATCH))
    trained_before = model.trained_conditions_, model.trained_contexts_, model.trained_covariates_
    fitted_before = {name: getattr(model.module, name) for name in model.module.fitted}
    if processes > 1:
        # the loss of a module says nothing of its adversary's parameters, and the other way round; nor may that of one pass
        # of the parameters of another
        partial = bool(model.module.critic_groups()) or any(stage.name for stage in passes_of(model))
        trainer_kwargs.setdefault("strategy", "ddp_find_unused_parameters_true" if partial else "ddp")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            make_ready(model, model.module, conditions, in_order)
            # all batches first: cells that cannot be paired are found before any pass has run
            stages = []
            near = store if processes > 1 else store.to(device)
            for number, stage in enumerate(passes_of(model)):
                passes = Pass(model, adata, near, stage.pairing, batch_size, seed, block_size, stage.itself)
                loaders = passes.training(train, seed + number), passes.validation(val, pool)
                if early_stopping and loaders[1] is None:
                    raise ValueError(
                        f"early_stopping needs validation cells that can be paired; none of the {len(val)} has a control "
                        "cell in its context."
                    )
                stages.append((stage, *loaders))
            for stage, loader, validation in stages:
                model.module.n_rows, model.module.stage = len(loader.rows), stage.name
                plan = PerturbationTrainingPlan(
                    model.module,
                    lr=defaults["lr"] if lr is None else lr,
                    weight_decay=defaults["weight_decay"] if weight_decay is None else weight_decay,
                    trains=stage.trains,
                    **{**defaults.get("plan_kwargs", {}), **plan_kwargs},
                )
                # the loss of validation cells says nothing about a pass that trains the adversary alone
                stops = early_stopping and stage.trains != "critic"
                if model.module.keeps_best and validation is not None:
                    trainer_kwargs.setdefault("check_val_every_n_epoch", 1)
                history = fit(
                    plan,
                    loader,
                    validation,
                    max_epochs=n_epochs(model, max_epochs, len(loader), stage.share),
                    early_stopping=stops,
                    accelerator=accelerator,
                    devices=devices,
                    **trainer_kwargs,
                )
                logger.info("%s, pass %r: %s", type(model).__name__, stage.pairing, _summary(plan))
                model.history_ = append_history(model.history_, history)
            model.trained_conditions_ = conditions
            model.trained_contexts_ = sorted(set(model._setup.contexts(adata)[train]))
            model.trained_covariates_ = {
                key: sorted(set(adata.obs[key].astype(str).to_numpy()[train]))
                for key in model._setup.categorical_covariate_keys or ()
            }
            model.module.to(device).eval()
            with torch.no_grad():
                model.module.conclude(in_order)
                of_logarithms = not (model._setup.signed or model.tags.counts)
                if model.module.fits_correction and model.tags.output == "cell" and of_logarithms:
                    _fit_correction(model, in_order, codes)
    except BaseException:
        # what was fitted belongs to the conditions of the training that it came from
        model.trained_conditions_, model.trained_contexts_, model.trained_covariates_ = trained_before
        for name, value in fitted_before.items():
            setattr(model.module, name, value)
        raise
    finally:
        model.module.eval()


def passes_of(model: PerturbationModel) -> list[Stage]:
    """The stages of a model, as long as its preset's `"shares"` have them.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    One stage per pass; those that a model has once only while it is not trained.
    """
    stages = [Stage.of(stage) for stage in model.stages]
    shares = model._preset.get("shares", [stage.share for stage in stages])
    stages = [replace(stage, share=share) for stage, share in zip(stages, shares, strict=True)]
    return [stage for stage in stages if not (stage.once and model.is_trained_)]


def n_processes(devices: Any, num_nodes: int) -> int:
    """In how many processes Lightning trains.

    Parameters
    ----------
    devices
        A number, or a list of which, as scvi-tools resolved them.
    num_nodes
        Machines.

    Returns
    -------
    The number.
    """
    return num_nodes * (len(devices) if isinstance(devices, list) else devices)


def make_ready(
    model: PerturbationModel, module: PerturbationModule, conditions: list[Condition], in_order: CellLoader
) -> None:
    """Tell a module the trained conditions and run what it does before the first pass.

    Parameters
    ----------
    model
        The model, for its codes.
    module
        The module.
    conditions
        The conditions of the training cells.
    in_order
        The training cells.
    """
    module.train()
    module.known_codes, module.known_doses = (
        torch.from_numpy(values).to(module.device)
        for values in encode_targets(conditions, model._codec, model._n_slots)
    )
    with torch.no_grad():
        module.prepare(in_order)


def training_conditions(
    model: PerturbationModel, adata: AnnData, train: np.ndarray
) -> tuple[list[Condition], np.ndarray]:
    """The conditions of the training cells, and each cell's position among them.

    Parameters
    ----------
    model
        The model.
    adata
        The cells.
    train
        Row numbers of the training cells.

    Returns
    -------
    The conditions, and for each of `train` its position among them.

    Raises
    ------
    ValueError
        If there is no control or no perturbed training cell.
    """
    conditions, inverse = model._setup.conditions(adata)
    present = np.unique(inverse[train])
    if model._setup.translates:
        return [conditions[i] for i in present], np.searchsorted(present, inverse[train])
    if not any(conditions[i] == () for i in present):
        raise ValueError("No training cell is a control cell; mark control cells as 'train' in the split.")
    if not any(conditions[i] for i in present):
        raise ValueError("Every training cell is a control cell; mark perturbed cells as 'train' in the split.")
    return [conditions[i] for i in present], np.searchsorted(present, inverse[train])


def training_batch_size(model: PerturbationModel, given: int | None, processes: int = 1) -> int:
    """Cells per update: what was given, or the preset's.

    Parameters
    ----------
    model
        The model.
    given
        What the user gave.
    processes
        Processes that share each batch.

    Returns
    -------
    The batch size.

    Raises
    ------
    ValueError
        If it is below 1, or leaves a process one cell where the module normalises over the batch.
    """
    batch_size = checked_batch_size(given, {**_DEFAULTS, **model._preset}["batch_size"])
    normalises = any(isinstance(part, torch.nn.BatchNorm1d) for part in model.module.modules())
    if normalises and batch_size < 2 * processes:
        among = f" in {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"batch_size={batch_size}{among}, but {type(model).__name__} normalises over the cells of a batch; take "
            f"{2 * processes} or more."
        )
    return batch_size


def n_epochs(model: PerturbationModel, max_epochs: int | None, n_batches: int, share: float) -> int:
    """The epochs asked for, the preset's, or as many as its number of updates takes; each times the pass's share.

    Parameters
    ----------
    model
        The model.
    max_epochs
        What the user gave.
    n_batches
        Batches of an epoch.
    share
        Length of the pass; see :class:`multipert.train.Stage`.

    Returns
    -------
    Number of epochs.
    """
    if max_epochs is not None:
        return math.ceil(max_epochs * share)
    if "n_updates" in model._preset and "max_epochs" not in model._preset:
        return max(model._preset.get("min_epochs", 1), math.ceil(model._preset["n_updates"] * share / n_batches))
    return math.ceil(model._preset.get("max_epochs", _DEFAULTS["max_epochs"]) * share)


def _summary(plan: PerturbationTrainingPlan) -> str:
    """What a pass has cost."""
    seconds, rates = plan.history.get("epoch_seconds", {}), plan.history.get("cells_per_second", {})
    total, n_cells = sum(seconds.values()), sum(rates[epoch] * seconds[epoch] for epoch in seconds)
    peak = max(plan.history.get("peak_memory", {0: math.nan}).values())
    return (
        f"{len(seconds)} epoch(s), {plan.n_updates:,} updates in {total:.1f} s, {n_cells / max(total, 1e-9):,.0f} cells/s, "
        f"peak memory {peak / 1e9:.2f} GB"
    )


def _fit_correction(model: PerturbationModel, loader: CellLoader, codes: np.ndarray) -> None:
    """Ratio of observed to decoded mean of `expm1` per condition and gene, clipped."""
    module, device = model.module, model.module.device
    sums = torch.zeros(2, len(model.trained_conditions_), model.summary_stats.n_vars, dtype=torch.float64)
    start = 0
    for batch in loader:
        batch = {key: value.to(device) for key, value in batch.items()}
        stop = start + len(batch[_keys.X])
        here = torch.from_numpy(codes[start:stop])
        decoded = module.reconstruction(batch)
        # sums of a batch in float32, over the batches in float64
        present, at = torch.unique(here, return_inverse=True)
        for i, values in enumerate((batch[_keys.X], decoded.clamp(min=0))):
            of_batch = values.new_zeros(len(present), values.shape[1])
            sums[i, present] += of_batch.index_add_(0, at.to(device), torch.expm1(values)).double().cpu()
        start = stop
    ratio = torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1e-300), torch.ones_like(sums[0]))
    module.count_correction = ratio.clamp(0, _LARGEST_CORRECTION).float().to(device)


def checked_batch_size(given: int | None, default: int) -> int:
    """A batch size of at least 1.

    Parameters
    ----------
    given
        What the user gave.
    default
        What holds where nothing was given.

    Returns
    -------
    The batch size.

    Raises
    ------
    ValueError
        If it is below 1.
    """
    if given is not None and given < 1:
        raise ValueError(f"batch_size={given} must be at least 1.")
    return default if given is None else given

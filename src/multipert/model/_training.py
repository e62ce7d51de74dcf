"""What `train` does once its arguments are checked: stages, then what is fitted in closed form."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.model._utils import parse_device_args

from multipert import _keys
from multipert.data._loaders import CellLoader, GroupLoader
from multipert.data._pairing import check_pairs, transport_pairs
from multipert.train import Stage
from multipert.train._fit import append_history, fit
from multipert.train._plan import PerturbationTrainingPlan

from ._targets import encode_targets

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._pairing import Pairing
    from multipert.data._store import CellStore

    from ._base import PerturbationModel

logger = logging.getLogger(__name__)

PREDICT_BATCH = 512
"""Cells per batch where no gradient is taken."""
_DEFAULTS = {"lr": 1e-3, "batch_size": 64, "max_epochs": 100, "weight_decay": 0.0}
_LARGEST_CORRECTION = 5
# cells of one context and condition in a batch of groups
_GROUP_CELLS = 32


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
    trainer_kwargs
        Arguments of scvi-tools' `Trainer`.
    """
    train, val = split
    defaults = {**_DEFAULTS, **model._preset}
    store = model._training_store(adata, seed)
    conditions, codes = _training_conditions(model, adata, train)
    batch_size = checked_batch_size(batch_size, defaults["batch_size"])
    if batch_size == 1 and any(isinstance(part, torch.nn.BatchNorm1d) for part in model.module.modules()):
        raise ValueError(
            f"batch_size=1, but {type(model).__name__} normalises over the cells of a batch; take 2 or more."
        )
    in_order = CellLoader(store, train, max(batch_size, PREDICT_BATCH))
    pool = np.union1d(train, val)
    conditions_before, contexts_before = model.trained_conditions_, model.trained_contexts_
    fitted_before = {name: getattr(model.module, name) for name in model.module.fitted}
    device = parse_device_args(trainer_kwargs["accelerator"], trainer_kwargs["devices"], return_device="torch")[2]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.module.train()
            model.module.known_codes, model.module.known_doses = (
                torch.from_numpy(values).to(model.module.device)
                for values in encode_targets(conditions, model._codec, model._n_slots)
            )
            with torch.no_grad():
                model.module.prepare(in_order)
            # all batches first: cells that cannot be paired are found before any pass has run
            stages = []
            for number, stage in enumerate(map(Stage.of, model.stages)):
                passes = _Pass(model, adata, store, stage.pairing, batch_size, seed)
                loaders = passes.training(train, seed + number), passes.validation(val, pool)
                if early_stopping and loaders[1] is None:
                    raise ValueError(
                        f"early_stopping needs validation cells that can be paired; none of the {len(val)} has a control "
                        "cell in its context."
                    )
                stages.append((stage, *loaders))
            for stage, loader, validation in stages:
                model.module.n_rows = len(loader.rows)
                plan = PerturbationTrainingPlan(
                    model.module,
                    lr=defaults["lr"] if lr is None else lr,
                    weight_decay=defaults["weight_decay"] if weight_decay is None else weight_decay,
                    trains=stage.trains,
                    **plan_kwargs,
                )
                # the loss of validation cells says nothing about a pass that trains the adversary alone
                stops = early_stopping and stage.trains != "critic"
                history = fit(
                    plan,
                    loader,
                    validation,
                    max_epochs=_epochs(model, max_epochs, len(loader), stage.share),
                    early_stopping=stops,
                    **trainer_kwargs,
                )
                model.history_ = append_history(model.history_, history)
            model.trained_conditions_ = conditions
            model.trained_contexts_ = sorted(set(model._setup.contexts(adata)[train]))
            model.module.to(device).eval()
            with torch.no_grad():
                model.module.conclude(in_order)
                of_logarithms = not (model._setup.signed or model.tags.counts)
                if model.module.fits_correction and model.tags.output == "cell" and of_logarithms:
                    _fit_correction(model, in_order, codes)
    except BaseException:
        # what was fitted belongs to the conditions of the training that it came from
        model.trained_conditions_, model.trained_contexts_ = conditions_before, contexts_before
        for name, value in fitted_before.items():
            setattr(model.module, name, value)
        raise
    finally:
        model.module.eval()


def _training_conditions(
    model: PerturbationModel, adata: AnnData, train: np.ndarray
) -> tuple[list[Condition], np.ndarray]:
    """The conditions of the training cells, and each cell's position among them."""
    conditions, inverse = model._setup.conditions(adata)
    present = np.unique(inverse[train])
    if not any(conditions[i] == () for i in present):
        raise ValueError("No training cell is a control cell; mark control cells as 'train' in the split.")
    if not any(conditions[i] for i in present):
        raise ValueError("Every training cell is a control cell; mark perturbed cells as 'train' in the split.")
    return [conditions[i] for i in present], np.searchsorted(present, inverse[train])


@dataclass
class _Pass:
    """Loaders of one training pass."""

    model: PerturbationModel
    adata: AnnData
    store: CellStore
    pairing: Pairing
    batch_size: int
    seed: int

    def training(self, rows: np.ndarray, seed: int) -> CellLoader | GroupLoader:
        """Shuffled batches of the training cells."""
        kept, partners, groups = rows[:0], None, []
        if self.pairing == "group":
            groups = self._groups(rows, rows)
            is_control = self.model._setup.is_control(self.adata)
            kept = np.concatenate([rows[:0], *(cells for cells, _ in groups if not is_control[cells[0]])])
        else:
            kept, partners = self._paired(rows, rows)
        if not len(kept):
            raise ValueError(
                f"None of the {len(rows)} training cells can be paired: no context has both control and perturbed cells "
                "in training. Mark such cells as 'train', or take a model that pairs none."
            )
        if groups:
            return self._group_loader(groups, shuffle=True, seed=seed)
        return CellLoader(self.store, kept, self.batch_size, shuffle=True, drop_last=True, partners=partners, seed=seed)

    def validation(self, rows: np.ndarray, pool: np.ndarray) -> CellLoader | GroupLoader | None:
        """Batches of the validation cells, their control cells among the increasing rows of the pool; None without."""
        if self.pairing == "group":
            groups = self._groups(rows, pool)
            return self._group_loader(groups) if groups else None
        kept, partners = self._paired(rows, pool)
        return CellLoader(self.store, kept, self.batch_size, partners=partners) if len(kept) else None

    def _paired(self, rows: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Cells of the pass, and their paired controls."""
        if self.pairing == "self" or not len(rows):
            return rows, None
        if self.pairing == "ot" and self.model._setup.pairing_key is None:
            return _transported_rows(self.model, self.adata, rows, pool, self.seed)
        partners = self.model._partners(self.adata, pool, self.seed)[np.searchsorted(pool, rows)]
        partners = np.where(np.isin(partners, pool), partners, -1)
        dropped = int((partners < 0).sum())
        if dropped:
            logger.warning("%d cell(s) have no control cell in their context and are left out.", dropped)
        return rows[partners >= 0], partners[partners >= 0]

    def _groups(self, rows: np.ndarray, pool: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The cells of every context and condition, and the control cells of the context."""
        setup = self.model._setup
        contexts, conditions = setup.contexts(self.adata), setup.conditions(self.adata)[1]
        controls = pool[setup.is_control(self.adata)[pool]]
        control_rows = {name: controls[contexts[controls] == name] for name in np.unique(contexts[controls])}
        groups = []
        for context in np.unique(contexts[rows]):
            here = rows[contexts[rows] == context]
            if context not in control_rows:
                logger.warning("%d cell(s) of %s have no control cell and are left out.", len(here), repr(context))
                continue
            groups += [
                (here[conditions[here] == condition], control_rows[context])
                for condition in np.unique(conditions[here])
            ]
        return groups

    def _group_loader(
        self, groups: list[tuple[np.ndarray, np.ndarray]], *, shuffle: bool = False, seed: int = 0
    ) -> GroupLoader:
        per_batch = max(1, self.batch_size // _GROUP_CELLS)
        return GroupLoader(
            self.store, groups, min(_GROUP_CELLS, self.batch_size), per_batch, shuffle=shuffle, seed=seed
        )


def _transported_rows(
    model: PerturbationModel, adata: AnnData, rows: np.ndarray, pool: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each control cell its partner of every condition, and itself; the partners and the control cells.

    Contexts whose perturbed cells have no control cell among the rows take those of the pool.
    """
    setup = model._setup
    conditions, contexts, is_control = setup.conditions(adata)[1], setup.contexts(adata), setup.is_control(adata)
    bare = np.setdiff1d(contexts[rows].astype(str), contexts[rows[is_control[rows]]].astype(str))
    lent = pool[is_control[pool] & np.isin(contexts[pool].astype(str), bare)]
    used = np.union1d(rows, lent)
    cells = conditions, contexts, is_control
    pairs = transport_pairs(setup.expression(adata), *cells, used, partner=model._partner, seed=seed)
    check_pairs(pairs, contexts, is_control, conditions, used)
    controls = np.setdiff1d(pairs["control"].to_numpy(), lent)
    return (
        np.concatenate([controls, pairs["perturbed"].to_numpy()]),
        np.concatenate([controls, pairs["control"].to_numpy()]),
    )


def _epochs(model: PerturbationModel, max_epochs: int | None, n_batches: int, share: float) -> int:
    """The epochs asked for, the preset's, or as many as its number of updates takes; each times the pass's share."""
    if max_epochs is not None:
        return math.ceil(max_epochs * share)
    if "n_updates" in model._preset and "max_epochs" not in model._preset:
        return max(model._preset.get("min_epochs", 1), math.ceil(model._preset["n_updates"] * share / n_batches))
    return math.ceil(model._preset.get("max_epochs", _DEFAULTS["max_epochs"]) * share)


def _fit_correction(model: PerturbationModel, loader: CellLoader, codes: np.ndarray) -> None:
    """Ratio of observed to decoded mean of `expm1` per condition and gene, clipped."""
    module, device = model.module, model.module.device
    sums = torch.zeros(2, len(model.trained_conditions_), model.summary_stats.n_vars, dtype=torch.float64)
    start = 0
    for batch in loader:
        batch = {key: value.to(device) for key, value in batch.items()}
        stop = start + len(batch[_keys.X])
        here = torch.from_numpy(codes[start:stop])
        decoded = module.counterfactual(batch)
        for i, values in enumerate((batch[_keys.X], decoded.clamp(min=0))):
            sums[i].index_add_(0, here, torch.expm1(values).double().cpu())
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

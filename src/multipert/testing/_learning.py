"""Checks of training: what it reads, what it finds, and that it can be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.dataloaders import DataSplitter
from scvi.train import Trainer, TrainingPlan

from ._case import QUIET, require
from ._invariance import changed

if TYPE_CHECKING:
    from ._case import Case

FLOOR = 0.5
_EPOCHS, _BATCH_SIZE = 30, 16


def check_seed(case: Case) -> None:
    """The same seed gives the same model and the same predictions, bit for bit."""
    case.require_same_predictions(case.trained, case.predicted, "of one model, asked twice")
    case.require_same_predictions(
        case.train(case.screen.adata()), case.predicted, "of two models trained with one seed"
    )


def check_held_out_cells(case: Case) -> None:
    """Cells marked as test are not read: changing them changes no prediction by a bit."""
    model = case.train(changed(case.screen.adata(), case.screen.is_test))
    case.require_same_predictions(model, case.predicted, "before and after cells marked as test are changed")


def check_training_cells(case: Case) -> None:
    """Training cells are read: changing them changes predictions. Skipped for models that learn nothing."""
    if not case.learns:
        return
    rows = ~case.screen.is_test & ~case.screen.is_control
    model = case.train(changed(case.screen.adata(), rows))
    found = model.predict(case.screen.adata())
    require(
        not np.array_equal(found.X, case.predicted.X), "quite other perturbed training cells give the same predictions"
    )


def check_two_setups(case: Case) -> None:
    """A second setup of one AnnData under other labels changes nothing for the first model."""
    adata = case.screen.adata()
    order = np.random.default_rng(2).permutation(adata.n_obs)
    adata.obs["other_label"] = adata.obs["label"].to_numpy()[order]
    adata.obs["other_amount"] = adata.obs["amount"].to_numpy()[order]
    changes = {"perturbation_key": "other_label"}
    if case.cls.tags.doses:
        changes["dose_key"] = "other_amount"
    first = case.set_up(adata)
    second = case.set_up(adata, **changes)
    case.fit(first)
    case.require_same_predictions(first, case.predicted, "before and after a second setup of the same AnnData")
    case.fit(second)
    case.require_same_predictions(first, case.predicted, "before and after a second model trains on the same AnnData")


def check_plain_plan(case: Case) -> None:
    """A module trained by gradient, with one optimiser, also trains under scvi-tools' own plan and loader."""
    model = case.set_up(case.screen.adata())
    if not case.cls.stages or model.module.critic_groups():
        return
    before = [parameter.detach().clone() for parameter in model.module.parameters()]
    settings = {key: value for key, value in QUIET.items() if key != "devices"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = Trainer(max_epochs=1, devices=1, **settings)
        trainer.fit(TrainingPlan(model.module), DataSplitter(model.adata_manager, train_size=0.9, batch_size=32))
    after = list(model.module.parameters())
    require(
        all(bool(torch.isfinite(p).all()) for p in after),
        "weights are not finite after an epoch of scvi's TrainingPlan",
    )
    moved = any(not torch.equal(old, new.detach().cpu()) for old, new in zip(before, after, strict=True))
    require(moved, "an epoch of scvi's TrainingPlan changed no weight")


def check_effect(case: Case) -> None:
    """Strong planted effects are found: predicted and measured changes correlate over genes.

    For every trained condition the Pearson correlation must reach 0.5. Models trained by gradient get 30 epochs in batches
    of 16. Skipped for models that learn nothing.
    """
    if not case.learns:
        return
    screen, model = case.screen, case.trained
    if case.cls.stages:
        model = case.train(screen.adata(), max_epochs=_EPOCHS, batch_size=_BATCH_SIZE)
    control = screen.x[screen.control_rows].mean(axis=0)
    for label, dose in screen.trained:
        found = model.predict(screen.adata(), label, dose=dose).X.mean(axis=0) - control
        require(found.std() > 0, f"the prediction for {label!r} is no change, or the same change in every gene")
        correlation = float(np.corrcoef(found, screen.delta(label, dose))[0, 1])
        at = "" if dose is None else f" at dose {dose:g}"
        require(
            correlation >= FLOOR,
            f"predicted and measured change under {label!r}{at} correlate at {correlation:.2f}; wanted: {FLOOR} or more",
        )

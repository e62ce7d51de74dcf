"""Train one model on a split and predict some of its held-out groups."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import canonical_dose, canonical_label
from multipert.model._setup import OF_MUDATA

from ._facts import predictable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.model import PerturbationModel
    from multipert.model._realise import Realise
    from multipert.model._setup import Setup

    from ._facts import Facts

SPLIT_KEY = "_multipert_split"
_QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}


class NothingToPredictError(Exception):
    """A model that can be trained refuses every held-out group; the message says why."""


class Stopwatch:
    """Seconds of each phase of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 4)


def fit(
    cls: type[PerturbationModel],
    adata: AnnData,
    setup: Setup,
    arguments: dict[str, Any],
    training: dict[str, Any],
    seed: int,
    watch: Stopwatch,
) -> PerturbationModel:
    """Set up, make and train a model on the cells marked "train" in obs.

    Parameters
    ----------
    cls
        The class.
    adata
        The cells, with their levels in `obs[SPLIT_KEY]`; changed by the setup.
    setup
        Arguments of `setup_anndata`.
    arguments
        Arguments of `__init__`.
    training
        Arguments of `train`.
    seed
        Seed of training.
    watch
        Takes the times.

    Returns
    -------
    The model.
    """
    with watch("setup"):
        cls.setup_anndata(adata, **{key: value for key, value in vars(setup).items() if key not in OF_MUDATA})
        model = cls(adata, **arguments)
    with watch("train"):
        model.train(split_key=SPLIT_KEY, seed=seed, **{**_QUIET, **training})
    return model


def predict(
    model: PerturbationModel,
    adata: AnnData,
    facts: Facts,
    setup: Setup,
    level: Literal["val", "test"],
    realise: Realise,
    seed: int,
    returns: Literal["cells", "mean"] = "cells",
) -> tuple[AnnData, dict[str, int]]:
    """Predict the held-out groups of a level from the control cells of their contexts.

    Parameters
    ----------
    model
        A trained model.
    adata
        Its cells.
    facts
        Their labels and levels.
    setup
        Arguments of `setup_anndata`.
    level
        "test", or "val" in a search.
    realise
        How decoded expression becomes cells.
    seed
        Seed of what is drawn.
    returns
        As in `predict` of the model.

    Returns
    -------
    What `predict` of the model returned, and how many groups it was not asked for, by reason.

    Raises
    ------
    NothingToPredictError
        If no group is left.
    """
    pairs, dropped = predictable(model.tags.given(model._n_embedding is not None), facts.pairs(level), facts)
    conditions = list(dict.fromkeys(condition for condition, _ in pairs))
    reasons = dict(zip(conditions, model._refusals(conditions), strict=True))
    controls = facts.controls(level)
    bare = set(facts.without_controls(level))
    targets = []
    for condition, context in pairs:
        reason = reasons[condition] or (f"context {context!r} has no control cell" if context in bare else None)
        if reason is None:
            targets.append((condition, context))
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    if not targets:
        raise NothingToPredictError("; ".join(dropped) or f"the split marks no perturbed cell {level!r}")
    predicted = model.predict(
        adata, _as_targets(targets, setup), indices=controls, returns=returns, realise=realise, seed=seed
    )
    return predicted, dropped


def _as_targets(targets: list[tuple[Condition, str]], setup: Setup) -> pd.DataFrame:
    """The frame of targets that `predict` takes."""
    conditions, contexts = zip(*targets, strict=True)
    labels = [canonical_label(one, control=setup.control, delimiter=setup.delimiter) for one in conditions]
    frame = pd.DataFrame({_keys.PERTURBATION: labels})
    if setup.dose_key is not None:
        frame[_keys.DOSE] = [canonical_dose(one, delimiter=setup.delimiter) for one in conditions]
    if setup.context_key is not None:
        frame[_keys.CONTEXT] = np.asarray(contexts, dtype=object)
    return frame

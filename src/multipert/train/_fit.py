"""One pass of gradient training."""

from __future__ import annotations

import inspect
import logging
import signal
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from scvi.train import Trainer

from multipert.data._conditions import close_matches

from ._plan import PerturbationTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multipert.data._loaders import CellLoader, GroupLoader


def fit(
    plan: PerturbationTrainingPlan,
    train: CellLoader | GroupLoader,
    validation: CellLoader | GroupLoader | None,
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    """Train a plan and return the history of this pass.

    Parameters
    ----------
    plan
        What to train and how.
    train
        Batches to learn from.
    validation
        Batches to log the loss of; None logs none.
    trainer_kwargs
        Arguments of scvi-tools' `Trainer`.

    Returns
    -------
    One frame per logged quantity, indexed by epoch.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupted; the weights reached so far stay.
    """
    with _quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fused.*")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*|.*logging interval.*")
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = Trainer(early_stopping_monitor="validation_loss", **trainer_kwargs)
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(plan, train, validation)
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into an exit of the interpreter, which would end a notebook's kernel
            raise KeyboardInterrupt from exit_
        finally:
            # and it leaves further Ctrl-C ignored
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt
    history = getattr(trainer.logger, "history", None) or {}
    return {key: frame for key, frame in history.items() if isinstance(frame, pd.DataFrame)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes about devices and loggers out of notebooks; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def append_history(old: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Continue a history by that of a further pass.

    Parameters
    ----------
    old
        History so far.
    new
        History of the pass.

    Returns
    -------
    One frame per quantity; epochs count on from the last one of `old`.
    """
    offset = max((int(frame.index.max()) + 1 for frame in old.values() if len(frame)), default=0)
    merged = dict(old)
    for key, frame in new.items():
        frame = frame.astype(float)
        frame.index = pd.RangeIndex(offset, offset + len(frame), name="epoch")
        merged[key] = pd.concat([old[key], frame]) if key in old else frame
    return merged


def check_train_kwargs(trainer_kwargs: dict[str, Any], plan_kwargs: dict[str, Any] | None) -> None:
    """Refuse a keyword that neither `train`, nor scvi-tools' trainer, nor the training plan knows.

    Parameters
    ----------
    trainer_kwargs
        Further keyword arguments given to `train`.
    plan_kwargs
        Its argument of that name.

    Raises
    ------
    TypeError
        Naming the unknown keyword.
    """
    import lightning.pytorch as pl

    known = {*_arguments(Trainer), *_arguments(pl.Trainer)}
    for key in trainer_kwargs:
        if key not in known:
            raise TypeError(f"train() got an unexpected keyword argument {key!r}{close_matches(key, known)}")
    legal = _arguments(PerturbationTrainingPlan) - {"module", "lr", "weight_decay", "trains"}
    for key in plan_kwargs or {}:
        if key in ("lr", "weight_decay"):
            raise TypeError(f"plan_kwargs holds {key!r}; pass it to train() itself.")
        if key not in legal:
            raise TypeError(f"plan_kwargs has an unexpected key {key!r}{close_matches(key, legal)}")


def _arguments(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)

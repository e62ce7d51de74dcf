"""One pass of gradient training."""

from __future__ import annotations

import inspect
import logging
import signal
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from lightning.pytorch.callbacks import Callback
from scvi.train import Trainer
from scvi.train._callbacks import LoudEarlyStopping

from multipert.data._conditions import close_matches

from ._burst import Bursts
from ._plan import PerturbationTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._burst import Loader


Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_PRECISIONS: dict[Precision, tuple] = {
    "32-true": (None, 32, "32"),
    "bf16-mixed": ("bf16",),
    "16-mixed": (16, "16"),
}
_BURST = 32
# arguments of the trainer that look at no single update, so that several may be one step of it
_PER_EPOCH = {
    "accelerator",
    "check_val_every_n_epoch",
    "default_root_dir",
    "deterministic",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "logger",
    "max_epochs",
    "num_nodes",
    "num_sanity_val_steps",
    "strategy",
}


def fit(
    plan: PerturbationTrainingPlan,
    train: Loader,
    validation: Loader | None,
    *,
    early_stopping: bool = False,
    precision: Precision = "32-true",
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    """Train a plan and return the history of this pass.

    The trainer sees bursts of batches, one by one only where an argument of it (a callback, say) could look at single
    updates; the updates are the same.

    Parameters
    ----------
    plan
        What to train and how.
    train
        Batches to learn from.
    validation
        Batches to log the loss of; None logs none.
    early_stopping
        Whether to stop when the loss of the validation batches no longer falls.
    precision
        As in Lightning.
    trainer_kwargs
        Further arguments of scvi-tools' `Trainer`.

    Returns
    -------
    One frame per logged quantity, indexed by epoch.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupted; the weights reached so far stay.
    RuntimeError
        If one of several processes ended.
    """
    stopping = {key: value for key, value in trainer_kwargs.items() if key.startswith("early_stopping_")}
    given = {key: value for key, value in trainer_kwargs.items() if key not in stopping}
    observed = given.keys() - _PER_EPOCH
    if given.get("logger") is None and not given.keys() & {"log_save_dir", "learning_rate_monitor"}:
        # the plan keeps the history
        given["logger"] = False
    callbacks = given.pop("callbacks", None) or []
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    if early_stopping:
        # scvi-tools' own argument does nothing with several devices
        callbacks.append(_early_stopping(stopping))
        given["check_val_every_n_epoch"] = given.get("check_val_every_n_epoch") or 1
    with _quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fused.*")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*|.*logging interval.*")
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*early_stopping was automatically disabled.*")
        trainer = Trainer(precision=precision, callbacks=callbacks, **given)
        size = 1 if observed else _BURST
        plan.direct = not observed and trainer.world_size == 1 and not precision.startswith("16")
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                plan, Bursts(train, size, trainer), None if validation is None else Bursts(validation, size, trainer)
            )
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into an exit of the interpreter, which would end a notebook's kernel
            raise KeyboardInterrupt from exit_
        except RuntimeError as error:
            if trainer.world_size == 1 or "onnection" not in str(error):
                raise
            raise RuntimeError(
                f"Training in {trainer.world_size} processes stopped at epoch {trainer.current_epoch}: process "
                f"{trainer.global_rank} lost the connection to another, which ended. Look for its own message above; "
                "without one it was killed, often for want of memory. Nothing was written; train again, or on one device."
            ) from error
        finally:
            # and it leaves further Ctrl-C ignored
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return {key: pd.Series(values, name=key).rename_axis("epoch").to_frame() for key, values in plan.history.items()}


def _early_stopping(given: dict[str, Any]) -> LoudEarlyStopping:
    """The callback, with scvi-tools' defaults for what was not given."""
    defaults = inspect.signature(Trainer).parameters
    names = ("min_delta", "patience", "mode", "warmup_epochs")
    arguments = {
        name: given.get(f"early_stopping_{name}", defaults[f"early_stopping_{name}"].default) for name in names
    }
    return LoudEarlyStopping(monitor=given.get("early_stopping_monitor", "validation_loss"), **arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes about devices and loggers out of notebooks; its warnings stay."""
    # that a process was killed is said by this one, at the level of a note, before it ends all others
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
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
        frame = frame.astype(float).set_axis((frame.index.astype(int) + offset).rename("epoch"))
        merged[key] = pd.concat([old[key], frame]) if key in old else frame
    return merged


def checked_precision(precision: Any) -> Precision:
    """One of the precisions that keep the weights in float32.

    Parameters
    ----------
    precision
        What the user gave, as in Lightning.

    Returns
    -------
    Its full name.

    Raises
    ------
    ValueError
        If it is another.
    """
    for name, short in _PRECISIONS.items():
        if precision in (name, *short):
            return name
    raise ValueError(
        f"precision={precision!r} is not offered; known: {', '.join(map(repr, _PRECISIONS))}, which keep the weights in "
        "float32."
    )


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

"""A model class under test, with what the checks share."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multipert.model import PerturbationModule

from ._screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from multipert.model import PerturbationModel

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "enable_checkpointing": False,
}


class Case:
    """A model class, its screen, and one trained model that no check changes; each is made when first used.

    Parameters
    ----------
    cls
        The model class.
    """

    def __init__(self, cls: type[PerturbationModel]) -> None:
        self.cls = cls

    @cached_property
    def screen(self) -> Screen:
        """The screen that fits the class's tags."""
        return Screen(self.cls.tags)

    @cached_property
    def trained(self) -> PerturbationModel:
        """A model trained on the screen as it is."""
        return self.train(self.screen.adata())

    @cached_property
    def predicted(self) -> AnnData:
        """Every control cell of the screen under every trained label, by :attr:`trained`."""
        return self.trained.predict(self.screen.adata())

    @cached_property
    def learns(self) -> bool:
        """False for a model that keeps nothing of its training cells and hands control cells on unchanged."""
        kept = set(self.trained.module.state_dict()) - set(PerturbationModule.fitted)
        control = self.screen.x[self.screen.control_rows]
        unchanged = np.array_equal(self.predicted.X, np.tile(control, (len(self.screen.trained), 1)))
        return bool(kept) or not unchanged

    def set_up(self, adata: AnnData, **changes: Any) -> PerturbationModel:
        """An untrained model.

        Parameters
        ----------
        adata
            What to set up.
        **changes
            Setup arguments that differ from the screen's.

        Returns
        -------
        The model.
        """
        self.cls.setup_anndata(adata, **{**self.screen.setup, **changes})
        return self.cls(adata)

    def train(self, adata: AnnData, **arguments: Any) -> PerturbationModel:
        """A model trained on the cells that are not marked as test.

        Parameters
        ----------
        adata
            What to set up.
        **arguments
            Arguments of `train` that differ from two quiet epochs with seed 0.

        Returns
        -------
        The model.
        """
        model = self.set_up(adata)
        self.fit(model, **arguments)
        return model

    def fit(self, model: PerturbationModel, **arguments: Any) -> None:
        """Train a model that was set up before; see :meth:`train`.

        Parameters
        ----------
        model
            The model.
        **arguments
            Arguments of `train`.
        """
        model.train(**{"max_epochs": 2, "split_key": "split", "seed": 0, **QUIET, **arguments})

    def one_target(self, label: str = "A") -> dict[str, Any]:
        """Arguments of `predict` for one trained label, with a dose where the screen has doses."""
        dose = next(dose for known, dose in self.screen.trained if known == label)
        return {"perturbation": label, "dose": dose}

    def require_same_predictions(
        self, model: PerturbationModel, expected: AnnData, situation: str, *, tolerance: float = 0.0
    ) -> None:
        """Fail unless a model predicts the untouched screen as expected.

        Parameters
        ----------
        model
            A trained model.
        expected
            What `predict` should return for the screen.
        situation
            Why the two should agree, for the message.
        tolerance
            Greatest absolute difference allowed.
        """
        found = model.predict(self.screen.adata())
        require_equal(found.X, expected.X, f"predictions {situation}", tolerance=tolerance)


def require(condition: bool, message: str) -> None:
    """Fail a check.

    Parameters
    ----------
    condition
        What the contract wants.
    message
        What was found, and what the contract wants.

    Raises
    ------
    AssertionError
        With the message, unless the condition holds.
    """
    if not condition:
        raise AssertionError(message)


def require_equal(found: Any, expected: Any, what: str, *, tolerance: float = 0.0) -> None:
    """Fail unless two arrays are equal; NaN equals NaN.

    Parameters
    ----------
    found
        The array.
    expected
        What it should be.
    what
        The array's name, for the message.
    tolerance
        Greatest absolute difference allowed; 0 means bit for bit.

    Raises
    ------
    AssertionError
        With the greatest difference.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    require(found.shape == expected.shape, f"{what} have shape {found.shape}, not {expected.shape}")
    if np.array_equal(found, expected, equal_nan=True):
        return
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isnan(found) & np.isnan(expected), 0, np.abs(found.astype(float) - expected))
    greatest = np.inf if np.isnan(difference).any() else difference.max()
    wanted = f"at most {tolerance:g}" if tolerance else "none, bit for bit"
    require(greatest <= tolerance and tolerance > 0, f"{what} differ by up to {greatest:.3g}; wanted: {wanted}")


@contextmanager
def refused(error: type[Exception], what: str, *, mention: str = "") -> Iterator[None]:
    """Fail unless the block raises an error of the right kind that names what is wrong.

    Parameters
    ----------
    error
        The error that the contract wants.
    what
        What must be refused, for the message.
    mention
        Text that the error's message must hold.

    Yields
    ------
    Nothing.
    """
    try:
        yield
    except error as raised:
        require(
            mention in str(raised), f"{what}: raised {type(raised).__name__}({raised}), which does not name {mention!r}"
        )
    except Exception as raised:
        found = f"{type(raised).__name__}({raised})"
        raise AssertionError(f"{what}: raised {found}; the contract wants {error.__name__}") from raised
    else:
        raise AssertionError(f"accepted: {what}; the contract wants {error.__name__}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Yields
    ------
    Its path.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

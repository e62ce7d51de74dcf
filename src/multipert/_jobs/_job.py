"""What the command line is asked to do, and what it made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multipert import _keys
from multipert.data._conditions import canonical_label
from multipert.model._setup import Setup

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from multipert.data._conditions import Condition


@dataclass(frozen=True)
class Job:
    """What to do with an AnnData; the options of `multipert run`.

    Parameters
    ----------
    hold_out
        Context whose perturbed cells no model sees.
    model
        Name of a model.
    perturbation_key
        obs column of labels.
    control
        Label of the control cells.
    context_key
        obs column of contexts.
    perturbation
        The one perturbation to hold out; None holds out all.
    layer
        Layer of the expression; None is `X`.
    signed
        Whether values may be negative.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    normalise
        Whether the expression is raw counts, to be normalised and log-transformed.
    n_top_genes
        How many genes to keep; None keeps all.
    realise
        How decoded expression becomes cells.
    preset
        The model's preset.
    max_epochs
        Passes over the training cells; None takes the preset's.
    seed
        Seed of training, prediction and evaluation.
    """

    hold_out: str
    model: str = "MTAe"
    perturbation_key: str = _keys.PERTURBATION
    control: str = _keys.CONTROL
    context_key: str = _keys.CONTEXT
    perturbation: str | None = None
    layer: str | None = None
    signed: bool = False
    delimiter: str | None = "+"
    normalise: bool = False
    n_top_genes: int | None = None
    realise: str = "plain"
    preset: str | None = None
    max_epochs: int | None = None
    seed: int = 0

    @property
    def setup(self) -> Setup:
        """The setup of every model of this job, on the AnnData after :func:`prepare`."""
        return Setup(
            perturbation_key=self.perturbation_key,
            control=self.control,
            layer=None if self.normalise else self.layer,
            context_key=self.context_key,
            signed=self.signed,
            delimiter=self.delimiter,
        )

    def label(self, condition: Condition) -> str:
        """The one way to write a condition."""
        return canonical_label(condition, control=self.control, delimiter=self.delimiter)


@dataclass
class Result:
    """What a job made."""

    job: Job
    adata: AnnData
    """All cells as the models saw them, with obs["split"]."""
    predicted: AnnData
    observed: AnnData
    control: AnnData
    scores: pd.DataFrame
    """Columns of :func:`multipert.metrics.evaluate`; the column `predictor` names models and references."""
    means: dict[str, pd.DataFrame]
    """Mean prediction of each model: perturbations x genes."""
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    truth: pd.DataFrame | None = None
    """True means of the held-out context under each perturbation and under control, where they are known."""

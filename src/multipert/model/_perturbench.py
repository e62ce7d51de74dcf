"""What PerturBench's models share: the loss of means, the activation of the output, and the reference's schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scvi.module.base import LossOutput
from torch.nn.functional import mse_loss

from multipert.nn._perceptron import OutputActivation

from ._arguments import one_of
from ._embedding import registered_embedding, scaled

if TYPE_CHECKING:
    import torch

    from multipert.data._conditions import Condition
    from multipert.nn import LabelVector

    from ._base import PerturbationModel
    from ._module import PerturbationModule
    from ._tags import ModelTags

REFERENCE: dict[str, Any] = {
    "max_epochs": 500,
    "batch_size": 4000,
    "keeps_best": True,
    "plan_kwargs": {"n_warmup_steps": 0},
}
"""What presets after the reference have in common; its rate also falls when the validation loss stands still."""


def squared_error(decoded: torch.Tensor, x: torch.Tensor) -> LossOutput:
    """Squared error of decoded cells.

    Parameters
    ----------
    decoded
        Decoded cells, shape `(B, n_vars)`.
    x
        What they should be, same shape.

    Returns
    -------
    The mean over cells and genes as the loss, and for each cell its mean over genes.
    """
    per_cell = mse_loss(decoded, x, reduction="none").mean(dim=1)
    return LossOutput(loss=per_cell.mean(), reconstruction_loss=per_cell)


def checked_output(model: PerturbationModel, given: OutputActivation | None, *, default: OutputActivation) -> str:
    """Activation of the output: what was given, else the default, or none for signed data.

    Parameters
    ----------
    model
        The model, for its setup.
    given
        What the user gave.
    default
        What holds where nothing was given and the data are not signed.

    Returns
    -------
    Its name.

    Raises
    ------
    ValueError
        If the name is unknown, or excludes values that signed data have.
    """
    signed = model._setup.signed
    name = given if given is not None else "identity" if signed else default
    one_of(OutputActivation)("output_activation", name)
    if signed and name != "identity":
        raise ValueError(
            f"output_activation={name!r} gives no negative values, but the data were set up with signed=True; take "
            "'identity'."
        )
    return name


def blind_to_covariates(tags: ModelTags) -> ModelTags:
    """Tags of a model that was told to read neither contexts nor covariates.

    Parameters
    ----------
    tags
        Those of its class.

    Returns
    -------
    Tags under which control cells of any context are a legal input.
    """
    return replace(tags, uses_context=False, unseen_context=True, uses_covariates=False)


def single_conditions(model: PerturbationModel) -> list[Condition]:
    """What a table of a trained model's perturbations has rows for.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    Each perturbation that was trained or has a given embedding; with doses each trained condition.
    """
    if model._setup.dose_key is not None:
        return sorted(condition for condition in model.trained_conditions_ if condition)
    trained = {name for condition in model.trained_conditions_ for name, _ in condition}
    return [((name, 1.0),) for name in model._codec.vocabulary if name in trained or model._n_embedding]


def label_sizes(model: PerturbationModel) -> dict[str, Any]:
    """What a module is told of the genes and of the labels.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    Arguments of the module, by name.
    """
    return {
        "n_vars": model.summary_stats.n_vars,
        "n_perturbations": model.summary_stats.n_perturbations,
        "n_embedding": model._n_embedding,
        "doses": model._setup.dose_key is not None,
    }


def equip(model: PerturbationModel, module: PerturbationModule, vector: LabelVector | None) -> None:
    """Give a new module what its preset says of the weights to keep, and the perturbation embedding, scaled.

    Parameters
    ----------
    model
        The model.
    module
        Its module.
    vector
        The module's vectors of labels, if it reads any; unchanged where no embedding is given.
    """
    module.keeps_best = model._preset.get("keeps_best", False)
    table = registered_embedding(model)
    if table is not None and vector is not None:
        vector.fill(scaled(table))

"""The given perturbation embedding, as models hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ._base import PerturbationModel


def registered_embedding(model: PerturbationModel) -> torch.Tensor | None:
    """Embedding of every perturbation of a model's vocabulary.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    Shape `(n_perturbations, n_dimensions)`, float64, in the order of the codes; None for a model without data, or
    set up without `perturbation_embedding_key`.

    Raises
    ------
    ValueError
        If rows were removed from the table after the setup, or it has another width.
    """
    if model.adata is None or model._setup.perturbation_embedding_key is None:
        return None
    table, names = model._setup.embedding(model._setup.as_anndata(model.adata)), list(model._codec.vocabulary)
    absent = [name for name in names if table is None or name not in table.index]
    if table is None or absent:
        raise ValueError(
            f"uns[{model._setup.perturbation_embedding_key!r}] lacks {len(absent)} perturbation(s) that it had at the "
            f"setup: {', '.join(absent[:5])}; set up the data again and make a new model."
        )
    if model._n_embedding not in (None, table.shape[1]):
        raise ValueError(
            f"uns[{model._setup.perturbation_embedding_key!r}] has {table.shape[1]} columns, the model was set up with "
            f"{model._n_embedding}; set up the data again and make a new model."
        )
    return torch.from_numpy(table.loc[names].to_numpy(np.float64, copy=True))


def embed(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Embedding of conditions: the sum of their parts'.

    Parameters
    ----------
    table
        Embedding of the perturbations, shape `(n_perturbations, n_dimensions)`.
    codes
        Codes of the conditions, shape `(n_conditions, n_slots)`, -1 for control and padding.

    Returns
    -------
    Shape `(n_conditions, n_dimensions)`.
    """
    # code -1 is the last row, which adds nothing
    return torch.cat([table, torch.zeros_like(table[:1])])[codes.long()].sum(1)


def scaled(table: torch.Tensor) -> torch.Tensor:
    """A table for a network: columns centred, then all divided by one number so that rows have norm 1 on average.

    Parameters
    ----------
    table
        Embedding of the perturbations, shape `(n_perturbations, n_dimensions)`.

    Returns
    -------
    Same shape, float32; rows have a root mean squared norm of 1, or are 0 where all rows are equal.
    """
    centred = table - table.mean(0) if len(table) > 1 else table
    norm = centred.square().sum(1).mean().sqrt()
    return (centred / norm if norm > 0 else centred).float()

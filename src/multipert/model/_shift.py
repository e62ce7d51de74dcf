"""Closed-form models that move every control cell by a shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from multipert import _keys
from multipert.nn import GroupMeans, group_means

from ._module import PerturbationModule, Tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multipert.data._loaders import CellLoader

    from ._base import PerturbationModel


def by_condition(tensors: Tensors) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The distinct conditions of a batch, control left out.

    Parameters
    ----------
    tensors
        A batch.

    Yields
    ------
    Codes and doses of one condition, each of shape `(n_slots,)`, and the positions of its cells.
    """
    codes, doses = tensors[_keys.PERTURBATION].double(), tensors[_keys.DOSE].double()
    labels, inverse = torch.unique(torch.cat([codes, doses], dim=1), dim=0, return_inverse=True)
    for i, label in enumerate(labels):
        one, dose = label.chunk(2)
        if (one >= 0).any():
            yield one.long(), dose.to(tensors[_keys.DOSE].dtype), torch.nonzero(inverse == i).reshape(-1)


def context_codes(tensors: Tensors) -> torch.Tensor:
    """Code of each cell's context, shape `(B,)`; 0 where no context is set up, -1 for one that is new.

    Parameters
    ----------
    tensors
        A batch.

    Returns
    -------
    The codes, as in :func:`multipert.nn.group_means`.
    """
    if _keys.CONTEXT not in tensors:
        return torch.zeros(len(tensors[_keys.X]), dtype=torch.long, device=tensors[_keys.X].device)
    return tensors[_keys.CONTEXT].reshape(-1).long()


class ShiftModule(PerturbationModule):
    """Prediction = control cell + shift of its condition and context; control is moved by exactly 0.

    A subclass fills its buffers in `conclude` and gives the shift of one condition in `condition_shift`.
    """

    context_means = True
    fits_correction = False

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition.

        Parameters
        ----------
        codes
            Codes of the condition, shape `(n_slots,)`.
        doses
            Doses of the condition, same shape.
        tensors
            The batch, restricted to these cells.

        Returns
        -------
        Shift of the expression, broadcastable to `(B, n_vars)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define condition_shift.")

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Control cells plus their shifts, shape `(B, n_vars)`."""
        x = tensors[_keys.X]
        shift = torch.zeros_like(x)
        for codes, doses, rows in by_condition(tensors):
            some = {key: value[rows] for key, value in tensors.items()}
            shift[rows] = self.condition_shift(codes, doses, some).to(x.dtype)
        return x + shift

    def position(self, codes: torch.Tensor, doses: torch.Tensor) -> int:
        """Position of one condition among the trained ones, or -1."""
        return int(self.lookup({_keys.PERTURBATION: codes[None], _keys.DOSE: doses[None]})[0])

    def means(self, loader: CellLoader) -> GroupMeans:
        """Means of every (context, condition) pair of the training cells."""
        return group_means(loader, self.lookup)

    @property
    def control_position(self) -> int:
        """Position of control among the trained conditions."""
        return int(torch.nonzero((self.known_codes < 0).all(1))[0, 0])


class MeasuredShiftModule(ShiftModule):
    """Changes of every trained condition in every training context that has it beside control."""

    fitted = (*ShiftModule.fitted, "pair_context", "pair_condition", "delta")

    def conclude(self, loader: CellLoader) -> None:
        """Compute all changes in one pass."""
        deltas = Deltas(self.means(loader), self.control_position)
        device = self.known_codes.device
        self.pair_context = deltas.contexts[deltas.context_row].to(device)
        self.pair_condition, self.delta = deltas.condition.to(device), deltas.delta.float().to(device)

    def measured_shift(self, position: int, tensors: Tensors) -> torch.Tensor:
        """Change of a trained condition in the cell's own context, else its mean over training contexts.

        Parameters
        ----------
        position
            Position of a condition that has a change.
        tensors
            A batch.

        Returns
        -------
        Shape `(B, n_vars)`, float64.
        """
        at = torch.nonzero(self.pair_condition == position).reshape(-1)
        delta = self.delta[at].double()
        own = self.pair_context[at] == context_codes(tensors)[:, None]
        return torch.where(own.any(1, keepdim=True), delta[own.int().argmax(1)], delta.mean(0))

    def measured(self) -> torch.Tensor:
        """Positions of the conditions that have a change, increasing."""
        return torch.unique(self.pair_condition)

    def mean_shifts(self) -> torch.Tensor:
        """Mean change over training contexts, equal weight each, of the conditions of :meth:`measured`, float64."""
        means = [self.delta[self.pair_condition == i].double().mean(0) for i in self.measured()]
        return torch.stack(means) if means else self.delta.double()


def mean_shift_table(model: PerturbationModel) -> pd.DataFrame:
    """Mean change over training contexts of every trained condition that has one.

    Parameters
    ----------
    model
        A model whose module is a :class:`MeasuredShiftModule`.

    Returns
    -------
    Labels x genes.
    """
    index = model._labels([model.trained_conditions_[i] for i in model.module.measured().tolist()])
    return pd.DataFrame(model.module.mean_shifts().float().cpu().numpy(), index=index, columns=model.get_var_names())


class Deltas:
    """Perturbed minus control means, for every pair whose context has control cells.

    Parameters
    ----------
    means
        Means of the training cells.
    control
        Position of control among the conditions.
    """

    def __init__(self, means: GroupMeans, control: int) -> None:
        is_control = means.condition == control
        self.contexts = means.context[is_control]
        self.control_mean = means.mean[is_control]
        row = {int(context): i for i, context in enumerate(self.contexts)}
        kept = [i for i in range(len(means.context)) if not is_control[i] and int(means.context[i]) in row]
        at = torch.tensor(kept, dtype=torch.long)
        control_row = torch.nonzero(is_control).reshape(-1)
        of_control = control_row[torch.tensor([row[int(means.context[i])] for i in kept], dtype=torch.long)]
        self.context_row = torch.tensor([row[int(means.context[i])] for i in kept], dtype=torch.long)
        self.condition = means.condition[at]
        self.n_cells = means.n_cells[at]
        self.delta = means.mean[at] - means.mean[of_control]
        self.mean_expm1, self.control_expm1 = means.mean_expm1[at], means.mean_expm1[of_control]
        # a pair without any variance, such as a single cell, takes that of all pairs
        n_cells = means.n_cells[:, None]
        pooled = (n_cells * means.variance).sum(0) / n_cells.sum()
        error = torch.where(means.variance > 0, means.variance, pooled) / n_cells
        self.error = error[at] + error[of_control]

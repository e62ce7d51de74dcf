"""Closed-form models that move every control cell by a shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multipert import _keys
from multipert.nn import GroupMeans, group_means

from ._module import PerturbationModule, Tensors

if TYPE_CHECKING:
    from multipert.data._loaders import CellLoader


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
        codes, doses = tensors[_keys.PERTURBATION].to(x.dtype), tensors[_keys.DOSE].to(x.dtype)
        labels, inverse = torch.unique(torch.cat([codes, doses], dim=1), dim=0, return_inverse=True)
        for i, label in enumerate(labels):
            one, dose = label.chunk(2)
            if (one >= 0).any():
                rows = torch.nonzero(inverse == i).reshape(-1)
                some = {key: value[rows] for key, value in tensors.items()}
                shift[rows] = self.condition_shift(one.long(), dose, some).to(x.dtype)
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

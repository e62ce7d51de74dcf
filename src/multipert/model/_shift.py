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

    A subclass fills its buffers in `conclude` and gives the shifts of one condition in `condition_shift`.
    """

    context_means = True
    fits_correction = False

    def condition_shift(
        self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shifts of cells that share one condition.

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
        Shift of log-normalised expression and shift of mean normalised counts, each broadcastable to `(B, n_vars)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define condition_shift.")

    def shifts(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Both shifts of every cell of a batch, shape `(B, n_vars)`; see :meth:`condition_shift`."""
        x = tensors[_keys.X]
        shift, shift_expm1 = torch.zeros_like(x), torch.zeros_like(x)
        codes, doses = tensors[_keys.PERTURBATION].long(), tensors[_keys.DOSE].to(x.dtype)
        labels, inverse = torch.unique(torch.cat([codes.to(x.dtype), doses], dim=1), dim=0, return_inverse=True)
        for i in range(len(labels)):
            one, dose = labels[i].chunk(2)
            if (one < 0).all():
                continue
            rows = torch.nonzero(inverse == i).reshape(-1)
            some = {key: value[rows] for key, value in tensors.items()}
            log, linear = self.condition_shift(one.long(), dose, some)
            shift[rows], shift_expm1[rows] = log.to(x.dtype), linear.to(x.dtype)
        return shift, shift_expm1

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Control cells plus their shifts, shape `(B, n_vars)`."""
        return tensors[_keys.X] + self.shifts(tensors)[0]

    def rates(
        self, tensors: Tensors, decoded: torch.Tensor, decoded_control: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean normalised counts of the context, and the same moved by the shift of means."""
        control = tensors["context_mean_expm1"]
        return control, (control + self.shifts(tensors)[1]).clamp(min=0)

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
        self.delta_expm1 = means.mean_expm1[at] - means.mean_expm1[of_control]
        self.control_expm1 = means.mean_expm1[of_control]
        self.error = (
            means.variance[at] / means.n_cells[at][:, None]
            + means.variance[of_control] / means.n_cells[of_control][:, None]
        )

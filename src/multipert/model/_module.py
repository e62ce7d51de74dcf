"""The torch side of the contract: what every module offers to training and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi.module.base import BaseModuleClass, LossOutput

from multipert import _keys
from multipert.data._labelindex import LabelIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multipert.data._loaders import CellLoader

Tensors = dict[str, torch.Tensor]


class PerturbationModule(BaseModuleClass):
    """Base of all modules: a network trained by gradient, or buffers filled in closed form.

    A batch is a dict: `"X"` (B, n_vars) expression, `"perturbation"` (B, n_slots) codes with -1 for control and padding,
    `"dose"` (B, n_slots), and where set up `"context"` (B, 1), `"extra_categorical_covs"` and `"cell_embedding"`; in
    training on pairs also `"X_control"` (B, n_vars) and `"context_control"` (B, 1). Contexts and covariates are codes, -1
    for one that was not there at the setup. In a prediction the batch holds control cells with the target's codes and
    doses, and, where `context_means` is True, `"context_mean"` (B, n_vars): the mean of all control cells of the cell's
    context; where `draws` is True, or samples were asked for, `"cell_key"` (B,): 64 random bits that depend on the seed
    and the cell's name only. Training batches hold it where `keyed_training` is True. `"X_control"` comes with
    `"cell_embedding_control"` (B, n_cell_embedding) where an embedding is registered.
    """

    context_means: bool = False
    """Whether a prediction needs the mean of the context's control cells."""

    context_latents: bool = False
    """Whether a prediction needs the mean latent representation of the context's control cells: its batches then hold
    `"context_latent"` (B, n_latent)."""

    draws: bool = False
    """Whether every prediction draws at random: its batches then hold `"cell_key"`."""

    keyed_training: bool = False
    """Whether the loss draws numbers that stay with each cell: training batches then hold `"cell_key"`."""

    indexed_training: bool = False
    """Whether the loss needs to know which cell a row is: training batches then hold `"row"` (B,), its number among all
    cells of the model's data."""

    reads_counts: bool = False
    """Whether training and prediction need raw counts: batches then hold `"size_factor"` (B,), with which
    `counts = expm1(X) / size_factor`."""

    n_rows: int = 1
    """Cells, or pairs, of the present training pass."""

    adversarial: bool = True
    """Whether the adversary takes part in the loss of the present training pass."""

    stage: str = ""
    """Name of the present training pass."""

    epoch: int = 0
    """Number of the present epoch within its pass, from 0."""

    critic_optimizer: Literal["adam", "sgd"] = "adam"
    """What moves the adversary."""

    critic_turn: Literal["after", "before", "alone"] = "after"
    """Whether the adversary moves on each batch after the rest or before it, or on batches of its own."""

    keeps_best: bool = False
    """Whether a pass with validation cells ends with the weights whose loss on them was lowest."""

    fits_correction: bool = True
    """Whether added counts are corrected for the decoder's mean of logarithms; see `count_correction`."""

    fitted: tuple[str, ...] = ("known_codes", "known_doses", "count_correction")
    """Names of buffers whose shape is known after training only; saved and loaded with the rest."""

    _label_index: LabelIndex | None = None

    def __init__(self) -> None:
        super().__init__()
        for name in self.fitted:
            self.register_buffer(name, None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Give fitted buffers the shape that they have in the state."""
        for name in self.fitted:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def lookup(self, tensors: Tensors) -> torch.Tensor:
        """Find the condition of each cell among the trained ones.

        Parameters
        ----------
        tensors
            A batch.

        Returns
        -------
        Positions in `known_codes`, shape `(B,)`; -1 where the condition was never trained.
        """
        if self._label_index is None or not self._label_index.is_of(self.known_codes, self.known_doses):
            self._label_index = LabelIndex(self.known_codes, self.known_doses)
        # batches of a loader stay on the CPU, the module may not
        return self._label_index.find(tensors[_keys.PERTURBATION], tensors[_keys.DOSE])

    @property
    def device(self) -> torch.device:
        """Device of the parameters, or of the buffers where there are none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _get_inference_input(self, tensors: Tensors, full_forward_pass: bool = False) -> dict[str, Any]:
        return {"tensors": tensors}

    def _get_generative_input(self, tensors: Tensors, inference_outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"z": inference_outputs["z"], "tensors": tensors}

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Encode a batch; `"z"` (B, n_latent) must not depend on the label.

        Parameters
        ----------
        tensors
            A batch. `"X_control"` is read in place of `"X"` when it is there.

        Returns
        -------
        A dict with `"z"`. A closed-form module hands the cell on as it is.
        """
        return {"z": tensors.get(_keys.X_CONTROL, tensors[_keys.X])}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Decode a batch under its labels.

        Parameters
        ----------
        z
            Latent representation, shape `(B, n_latent)`.
        tensors
            A batch.

        Returns
        -------
        A dict with `"px"`, expression of shape `(B, n_vars)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder.")

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Loss of a batch; not used by closed-form modules.

        Parameters
        ----------
        tensors
            A batch.
        inference_outputs
            What :meth:`inference` returned.
        generative_outputs
            What :meth:`generative` returned.

        Returns
        -------
        The loss, with `reconstruction_loss` per cell.
        """
        raise NotImplementedError(f"{type(self).__name__} is fitted in closed form.")

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Expression of control cells under the labels of the batch.

        Parameters
        ----------
        tensors
            Control cells with the target's codes and doses.
        z
            Their latent representation, if it was computed before.

        Returns
        -------
        Decoded expression, shape `(B, n_vars)`, before it is realised.
        """
        if z is None:
            z = self.inference(tensors)["z"]
        return self.generative(z, tensors)["px"]

    def rates(
        self, tensors: Tensors, decoded: torch.Tensor, decoded_control: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean normalised counts under control and under the target, for `realise="counts"`.

        Parameters
        ----------
        tensors
            Control cells with the target's codes and doses, and their `"size_factor"` (B,).
        decoded
            Their counterfactual under the target, shape `(B, n_vars)`.
        decoded_control
            Their counterfactual under control, shape `(B, n_vars)`.

        Returns
        -------
        Rates under control and under the target, non-negative, shape `(B, n_vars)`.
        """
        return torch.expm1(decoded_control.clamp(min=0)), torch.expm1(decoded.clamp(min=0))

    def reconstruction(self, tensors: Tensors) -> torch.Tensor:
        """Cells decoded under their own labels, shape `(B, n_vars)`; the decoder's means are compared with the cells'."""
        return self.counterfactual(tensors)

    def prepare(self, loader: CellLoader) -> None:
        """Called once before the first stage with a loader over the training cells."""

    def conclude(self, loader: CellLoader) -> None:
        """Called once after the last stage with a loader over the training cells."""

    def critic_parameters(self) -> Iterable[torch.nn.Parameter]:
        """Parameters of an adversary, trained in turn with the rest."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters outside the adversary, as torch's Adam takes them.

        Returns
        -------
        Dicts with `"params"`, and where they differ `"betas"` and `"factor"`, which the learning rate is multiplied by.
        """
        of_critic = {id(parameter) for group in self.critic_groups() for parameter in group["params"]}
        return [{"params": [p for p in self.parameters() if p.requires_grad and id(p) not in of_critic]}]

    def critic_groups(self) -> list[dict[str, Any]]:
        """Parameters of the adversary, as :meth:`parameter_groups` has the others; none without an adversary."""
        parameters = list(self.critic_parameters())
        return [{"params": parameters}] if parameters else []

    def critic_loss(self, tensors: Tensors) -> torch.Tensor:
        """Loss of the adversary.

        Parameters
        ----------
        tensors
            A batch.

        Returns
        -------
        A scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} has critic parameters but no critic_loss.")

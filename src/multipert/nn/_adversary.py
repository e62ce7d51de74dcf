"""Adversaries: discriminators of the latent representation, trained in turn with the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from multipert import _keys

from ._covariates import covariate_codes
from ._film import SLOPE, linear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_HIDDEN, _DROPOUT, _SMOOTHING = 32, 0.1, 0.1


def discriminator(n_latent: int) -> nn.Sequential:
    """Logit of a latent representation; spectral norm on the first layer bounds its slope.

    Parameters
    ----------
    n_latent
        Width of the latent representation.

    Returns
    -------
    A network from shape `(B, n_latent)` to `(B, 1)`.
    """
    first = nn.utils.parametrizations.spectral_norm(linear(n_latent, _HIDDEN))
    return nn.Sequential(first, nn.LeakyReLU(SLOPE), nn.Dropout(_DROPOUT), linear(_HIDDEN, 1))


class ConditionAdversary(nn.Module):
    """Tells control from perturbed cells; the encoder is rewarded when perturbed cells pass for control.

    Targets are smooth: each control cell has one in 0.9..1, each perturbed cell one in 0..0.1, drawn once by the cell's
    key.

    Parameters
    ----------
    n_latent
        Width of the latent representation.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.discriminator = discriminator(n_latent)

    def penalty(self, z: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """How well the perturbed cells of a batch are told from control; None where it has none.

        Parameters
        ----------
        z
            Latent representation, shape `(B, n_latent)`.
        tensors
            The batch.

        Returns
        -------
        A scalar.
        """
        perturbed = ~_is_control(tensors)
        if not perturbed.any():
            return None
        return _entropy(self.discriminator(z[perturbed]), 1 - self.targets(tensors)[perturbed])

    def critic_loss(self, z: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of the discriminator; see :meth:`penalty` for the arguments."""
        return _entropy(self.discriminator(z), self.targets(tensors))

    def targets(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Target of each cell, shape `(B,)`: above 0.9 for control, below 0.1 for perturbed cells."""
        # the upper 24 bits of the key are a uniform number
        uniform = ((tensors[_keys.CELL_KEY] >> 40) & 0xFFFFFF).to(tensors[_keys.X].dtype) / 2**24
        return torch.where(_is_control(tensors), 1 - _SMOOTHING * uniform, _SMOOTHING * uniform)


class GaussianAdversary(nn.Module):
    """Tells the latent representation from standard normal noise, which pulls it towards that noise.

    Parameters
    ----------
    n_latent
        Width of the latent representation.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.discriminator = discriminator(n_latent)

    def penalty(self, z: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """How well the cells of a batch are told from noise; see :meth:`ConditionAdversary.penalty`."""
        return self._against(z, torch.ones)

    def critic_loss(self, z: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the cells and of as much noise; see :meth:`ConditionAdversary.penalty`."""
        return (self._against(z, torch.zeros) + self._against(torch.randn_like(z), torch.ones)) / 2

    def _against(self, z: torch.Tensor, target: Callable[..., torch.Tensor]) -> torch.Tensor:
        return _entropy(self.discriminator(z), target(len(z), dtype=z.dtype, device=z.device))


class LabelAdversary(nn.Module):
    """Classifiers that tell the label of a cell, and its covariates, from its latent representation.

    The first gives control and every perturbation a score; the logit of a label is the sum of its parts' scores, so that
    every trained combination is a class of its own and the size does not depend on which were trained.

    Parameters
    ----------
    label
        Network from shape `(B, n_latent)` to `(B, 1 + n_perturbations)`, control first.
    covariates
        By the position of a covariate in a batch, a network from shape `(B, n_latent)` to `(B, n_values)`.
    """

    def __init__(self, label: nn.Module, covariates: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.label = label
        self.columns = tuple(covariates)
        self.covariates = nn.ModuleList(covariates.values())

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Logits.

        Parameters
        ----------
        z
            Latent representation, shape `(B, n_latent)`.
        labels
            Codes of the trained labels, shape `(n_labels, n_slots)`, -1 for control and padding.

        Returns
        -------
        Shape `(B, n_labels)`, then `(B, n_values)` for each covariate.
        """
        scores = self.label(z)
        parts, present = scores[:, labels.long().clamp(min=0) + 1], (labels >= 0).to(scores.dtype)
        logits = (parts * present).sum(dim=2)
        is_control = ~(labels >= 0).any(dim=1)
        logits = torch.where(is_control, scores[:, :1], logits)
        return [logits, *(network(z) for network in self.covariates)]

    def entropy(
        self,
        logits: Sequence[torch.Tensor],
        tensors: dict[str, torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Sum of the classifiers' cross-entropies.

        Parameters
        ----------
        logits
            What the adversary gave.
        tensors
            The batch.
        labels
            Codes of the trained labels; those of the batch are among them.
        weights
            Weight of each label, shape `(n_labels,)`.

        Returns
        -------
        A scalar, in nats.
        """
        codes = tensors[_keys.PERTURBATION].long()
        target = (codes[:, None] == labels.long()).all(dim=2).long().argmax(dim=1)
        total = nn.functional.cross_entropy(logits[0], target, weight=weights.to(logits[0].dtype))
        values = covariate_codes(tensors)
        for column, found in zip(self.columns, logits[1:], strict=True):
            total = total + nn.functional.cross_entropy(found, values[:, column])
        return total


def gradient_penalty(logits: Sequence[torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """Squared gradients of the sums of logits, mean over cells and latent dimensions, summed over classifiers.

    Parameters
    ----------
    logits
        Logits of each classifier.
    z
        What they were computed from, shape `(B, n_latent)`, with gradients on.

    Returns
    -------
    A scalar, itself with gradients.

    Examples
    --------
    >>> z = torch.ones(2, 3, requires_grad=True)
    >>> gradient_penalty([z.square()], z).item()
    4.0
    """
    total = torch.zeros((), device=z.device)
    for found in logits:
        (gradient,) = torch.autograd.grad(found.sum(), z, create_graph=True)
        total = total + gradient.square().mean()
    return total


def _is_control(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return (tensors[_keys.PERTURBATION] < 0).all(dim=1)


def _entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), targets)

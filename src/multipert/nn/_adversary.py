"""Adversaries: discriminators of the latent representation, trained in turn with the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from multipert import _keys

from ._film import SLOPE, linear

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _is_control(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return (tensors[_keys.PERTURBATION] < 0).all(dim=1)


def _entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), targets)

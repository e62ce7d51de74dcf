"""Two sides, an autoencoder each, and a variational translator between their hidden codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ._film import SLOPE, linear
from ._mlp import MLP, BlockLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

Output = Literal["leaky", "sigmoid", "identity"]
_ACTIVATIONS: dict[Output, type[nn.Module]] = {
    "leaky": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


@dataclass(frozen=True)
class Side:
    """What the two sides may differ in; translator, discriminators and losses never ask for more.

    Parameters
    ----------
    n_vars
        Number of features.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them. With `groups` one number, the units of a group.
    mask_rate
        Share of the features masked in training.
    output
        Activation of the decoder; "sigmoid" makes the reconstruction a cross-entropy, the others a squared error.
    weight
        Weight of the reconstruction where both sides are trained together.
    kl_weight
        Weight of the divergence from the standard normal.
    zero_below
        Predictions below this are set to 0; None keeps them.
    groups
        Group of each feature, where the widest layer keeps groups apart.
    """

    n_vars: int
    hidden: tuple[int, ...]
    mask_rate: float
    output: Output
    weight: float
    kl_weight: float
    zero_below: float | None
    groups: np.ndarray | None = None

    def encoder(self, n_latent: int, dropout_rate: float) -> MLP:
        """Features to hidden code."""
        if self.groups is None:
            return MLP(_chain((self.n_vars, *self.hidden, n_latent)), dropout_rate, mask_rate=self.mask_rate)
        blocks = BlockLinear(self.groups, self.hidden[0])
        return MLP([blocks, linear(blocks.out_features, n_latent)], dropout_rate, mask_rate=self.mask_rate)

    def decoder(self, n_latent: int, dropout_rate: float) -> MLP:
        """Hidden code to features."""
        output = nn.LeakyReLU(SLOPE) if self.output == "leaky" else _ACTIVATIONS[self.output]()
        if self.groups is None:
            return MLP(_chain((n_latent, *self.hidden[::-1], self.n_vars)), dropout_rate, output=output)
        blocks = BlockLinear(self.groups, self.hidden[0], decodes=True)
        return MLP([linear(n_latent, blocks.in_features), blocks], dropout_rate, output=output)

    def start(self, decoder: MLP, mean: torch.Tensor, spread: torch.Tensor) -> None:
        """Let a decoder whose last batch norm has learnt nothing yet start at means and standard deviations, shape `(n_vars,)`."""
        norm = decoder.norm
        if norm.bias.any():
            return
        if self.output == "sigmoid":
            inside = mean.clamp(1e-4, 1 - 1e-4)
            # the slope of the logit at the mean holds near it only: a rare feature would start at many times its mean
            mean, spread = torch.logit(inside), (spread / (inside * (1 - inside))).clamp(max=1.0)
        with torch.no_grad():
            norm.bias.copy_(mean)
            norm.weight.copy_(spread)

    def errors(self, decoded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction error of each cell, mean over features, shape `(B,)`."""
        if self.output == "sigmoid":
            # under mixed precision the cross-entropy of probabilities is refused
            with torch.autocast(decoded.device.type, enabled=False):
                return nn.functional.binary_cross_entropy(decoded.float(), x.float(), reduction="none").mean(dim=1)
        return nn.functional.mse_loss(decoded, x, reduction="none").mean(dim=1)

    def finished(self, decoded: torch.Tensor) -> torch.Tensor:
        """A prediction as it is handed out."""
        return decoded if self.zero_below is None else torch.where(decoded < self.zero_below, 0, decoded)


def _chain(widths: Sequence[int]) -> list[nn.Linear | BlockLinear]:
    return [linear(n_in, n_out) for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)]


def _normalised(n_latent: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(n_latent, n_latent), nn.BatchNorm1d(n_latent), activation)


class Translator(nn.Module):
    """A normal distribution from the hidden code of each side, and from its draws a hidden code for every side.

    Parameters
    ----------
    n_latent
        Width of hidden codes and of the latent representation.
    n_sides
        Number of sides; with one, the middle of a variational autoencoder.
    linear_logvar
        Whether log variances are not activated; activated ones stay near or above 0.
    """

    def __init__(self, n_latent: int, n_sides: int, *, linear_logvar: bool = False) -> None:
        super().__init__()
        self.mean, self.to_side = (
            nn.ModuleList(_normalised(n_latent, nn.LeakyReLU(SLOPE)) for _ in range(n_sides)) for _ in range(2)
        )
        self.log_variance = nn.ModuleList(
            _normalised(n_latent, nn.Identity() if linear_logvar else nn.LeakyReLU(SLOPE)) for _ in range(n_sides)
        )

    def encode(self, hidden: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latent representation of one side's hidden codes, drawn in training, with its means and log variances."""
        mean, log_variance = self.mean[side](hidden), self.log_variance[side](hidden)
        z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2) if self.training else mean
        return z, mean, log_variance

    def forward(self, z: torch.Tensor, side: int) -> torch.Tensor:
        """Hidden codes for one side, shape `(B, n_latent)`."""
        return self.to_side[side](z)


def code_discriminator(n_latent: int) -> nn.Sequential:
    """Logit of a hidden code, normalised over the batch.

    Parameters
    ----------
    n_latent
        Width of hidden codes.

    Returns
    -------
    A network from shape `(B, n_latent)` to `(B, 1)`.
    """
    return nn.Sequential(linear(n_latent, 1), nn.BatchNorm1d(1))


def soft_targets(uniform: torch.Tensor) -> torch.Tensor:
    """Targets of discriminators in [0, 0.2] or [0.8, 1], half of them each.

    Parameters
    ----------
    uniform
        Uniform draws from [0, 1), shape `(B,)`.

    Returns
    -------
    Draws between 0.2 and 0.8 moved to the nearer of the two, 0.5 down; the others as they are.

    Examples
    --------
    >>> soft_targets(torch.tensor([0.1, 0.4, 0.6, 0.9]))
    tensor([0.1000, 0.2000, 0.8000, 0.9000])
    """
    high = uniform > 0.5
    return torch.where(high, uniform.clamp(min=0.8), uniform.clamp(max=0.2))

"""A latent representation with a distribution for each cell, and divergences of distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ._film import SLOPE, linear

if TYPE_CHECKING:
    from collections.abc import Callable


_STREAM = 1 << 64


class GaussianLatent(nn.Module):
    """Mean and log variance of each latent dimension from the encoder's output.

    Parameters
    ----------
    n_latent
        Width of the latent representation.
    frozen
        Whether both heads keep their random start and are activated, as in the published code.
    """

    def __init__(self, n_latent: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.mean, self.log_variance = linear(n_latent, n_latent), linear(n_latent, n_latent)
        self.frozen = frozen
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log variances, each of shape `(B, n_latent)`."""
        activate: Callable[[torch.Tensor], torch.Tensor] = nn.LeakyReLU(SLOPE) if self.frozen else nn.Identity()
        return activate(self.mean(hidden)), activate(self.log_variance(hidden))


def kl_to_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence of diagonal normal distributions from the standard one.

    Parameters
    ----------
    mean
        Means, shape `(B, n_latent)`.
    log_variance
        Log variances, same shape.

    Returns
    -------
    Sum over dimensions, shape `(B,)`, in nats.

    Examples
    --------
    >>> kl_to_standard_normal(torch.zeros(1, 3), torch.zeros(1, 3))
    tensor([0.])
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def bernoulli_divergence(mask: torch.Tensor, logits: torch.Tensor, prior_logit: float) -> torch.Tensor:
    """Log-ratio of two Bernoulli distributions at a mask; at the first one's probabilities, its mean: the divergence.

    Parameters
    ----------
    mask
        Zeros and ones, or probabilities.
    logits
        Of the first distribution, a shape that broadcasts to that of the mask.
    prior_logit
        Of the second.

    Returns
    -------
    Shape of the mask, in nats.

    Examples
    --------
    >>> logits = torch.tensor([0.5])
    >>> bernoulli_divergence(torch.sigmoid(logits), logits, 0.5).abs() < 1e-6
    tensor([True])
    """
    softplus = nn.functional.softplus
    return mask * (logits - prior_logit) - softplus(logits) + math.log1p(math.exp(prior_logit))


def normal_divergence(
    mean: torch.Tensor, variance: torch.Tensor, scale: float, value: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of normal distributions from a centred one, or the log-ratio of both densities at some values.

    Parameters
    ----------
    mean
        Means.
    variance
        Variances, same shape.
    scale
        Standard deviation of the centred distribution.
    value
        Where the log-ratio is taken; None gives its mean, the divergence.

    Returns
    -------
    Shape of the means (of the values), in nats.

    Examples
    --------
    >>> normal_divergence(torch.tensor([1.0]), torch.ones(1), 1.0)
    tensor([0.5000])
    """
    ratio = variance / scale**2
    if value is None:
        return 0.5 * (ratio + (mean / scale).square() - 1 - ratio.log())
    return 0.5 * ((value / scale).square() - (value - mean).square() / variance - ratio.log())


def noise_of_cells(keys: torch.Tensor, n_dimensions: int) -> torch.Tensor:
    """Standard normal noise that depends on each cell's key only, so that batch size and order change nothing.

    Parameters
    ----------
    keys
        64 random bits of each cell, shape `(B,)`.
    n_dimensions
        Numbers per cell.

    Returns
    -------
    Shape `(B, n_dimensions)`, float32, on the CPU.

    Examples
    --------
    >>> one, other = noise_of_cells(torch.tensor([5, 7]), 3), noise_of_cells(torch.tensor([7]), 3)
    >>> torch.equal(one[1:], other)
    True
    """
    noise = np.empty((len(keys), n_dimensions), dtype=np.float32)
    for row, key in zip(noise, keys.cpu().numpy().view(np.uint64), strict=True):
        # the upper half of Philox' key sets this stream apart from that of counts, which has the same lower half
        generator = np.random.Generator(np.random.Philox(key=int(key) + _STREAM))
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(noise)

"""A latent representation with a distribution for each cell."""

from __future__ import annotations

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

"""Encoder and decoder of a variational autoencoder of expression, as scGen and ScVIDR have them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ._blocks import batch_norm, blocks
from ._film import SLOPE

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_VARIANCE = 1e-4
_LEAKY = partial(nn.LeakyReLU, SLOPE)


class VAEEncoder(nn.Module):
    """Mean and variance of the normal distribution of each cell's latent representation.

    Parameters
    ----------
    n_vars
        Number of genes.
    hidden
        Widths of the hidden layers.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout after each hidden layer.

    Examples
    --------
    >>> mean, variance = VAEEncoder(6, (5, 4), 2, 0.2).eval()(torch.ones(3, 6))
    >>> mean.shape, bool((variance > 1e-4).all())
    (torch.Size([3, 2]), True)
    """

    def __init__(self, n_vars: int, hidden: Sequence[int], n_latent: int, dropout_rate: float) -> None:
        super().__init__()
        widths = [n_vars, *hidden]
        self.hidden = blocks(widths, dropout_rate, activation=_LEAKY)
        self.mean, self.log_variance = nn.Linear(widths[-1], n_latent), nn.Linear(widths[-1], n_latent)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and variances, each of shape `(B, n_latent)`."""
        hidden = self.hidden(x)
        return self.mean(hidden), self.log_variance(hidden).exp() + _LEAST_VARIANCE


class VAEDecoder(nn.Module):
    """Expression of a latent representation; the output is not activated, so values may be negative.

    Parameters
    ----------
    n_latent
        Width of the latent representation.
    hidden
        Widths of the hidden layers, in the decoder's order.
    n_vars
        Number of genes.
    dropout_rate
        Dropout after each hidden layer.
    linear
        Whether to take one linear layer and a batch norm of the genes in place of the hidden layers.

    Examples
    --------
    >>> VAEDecoder(2, (4, 5), 6, 0.2).eval()(torch.ones(3, 2)).shape
    torch.Size([3, 6])
    """

    def __init__(
        self, n_latent: int, hidden: Sequence[int], n_vars: int, dropout_rate: float, *, linear: bool = False
    ) -> None:
        super().__init__()
        widths = [n_latent] if linear else [n_latent, *hidden]
        self.hidden = blocks(widths, dropout_rate, activation=_LEAKY)
        self.output = nn.Linear(widths[-1], n_vars)
        self.norm = batch_norm(n_vars) if linear else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Expression, shape `(B, n_vars)`."""
        return self.norm(self.output(self.hidden(z)))

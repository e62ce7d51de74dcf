"""Feature-wise linear modulation and the multi-layer perceptrons around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ._condition import LabelLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOPE = 0.01
"""Slope of the leaky ReLU below 0."""


def linear(n_in: int, n_out: int, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A linear layer with Xavier-uniform weights.

    Parameters
    ----------
    n_in
        Width of the input.
    n_out
        Width of the output.
    kind
        Class of the layer.

    Returns
    -------
    The layer.
    """
    layer = kind(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class FiLMGenerator(nn.Module):
    """Scale and shift of one layer from the perturbation's vector.

    Both are `leaky_relu(linear(trunk(c)))`, with weights of their own and no offset of 1 on the scale.

    Parameters
    ----------
    n_condition
        Width of the perturbation's vector.
    width
        Width of the modulated layer.
    hidden
        Widths of the trunk; none makes it the identity.
    """

    def __init__(self, n_condition: int, width: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        widths = [n_condition, *hidden]
        trunk: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            trunk += [linear(n_in, n_out, nn.Linear if trunk else LabelLinear), nn.LeakyReLU(SLOPE)]
        self.trunk = nn.Sequential(*trunk)
        kind = nn.Linear if trunk else LabelLinear
        self.scale = linear(widths[-1], width, kind)
        self.shift = linear(widths[-1], width, kind)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, each of shape `(B, width)`."""
        hidden = self.trunk(condition)
        activate = nn.functional.leaky_relu
        return activate(self.scale(hidden), SLOPE), activate(self.shift(hidden), SLOPE)


class GeneMask(nn.Module):
    """Dropout of genes with the usual scaling; its random numbers cost a fifth of those of `torch.nn.Dropout`.

    Each gene of each cell is masked with probability `round(2^15 * rate) / 2^15`, from torch's own generator.

    Parameters
    ----------
    rate
        Share of genes masked in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"mask_rate={rate} must be at least 0 and below 1.")
        self.threshold = min(round(rate * 2**15), 2**15 - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Masked expression, shape of `x`; `x` itself outside training."""
        if not self.training or self.threshold == 0:
            return x
        draws = torch.empty(x.shape, dtype=torch.int16, device=x.device).random_()
        # 0 or 1 in whole numbers: a comparison would make logical values, which take thrice as long to multiply with
        kept = draws.sub_(self.threshold - 1).clamp_(0, 1)
        return (x * kept.to(x.dtype)).mul_(2**15 / (2**15 - self.threshold))


class Encoder(nn.Module):
    """Dropout on the genes, then linear, batch norm, leaky ReLU and dropout per width, then the latent layer.

    The latent layer is activated too, so latent values are almost non-negative.

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
    mask_rate
        Share of genes masked in training.
    """

    def __init__(
        self, n_vars: int, hidden: Sequence[int], n_latent: int, dropout_rate: float, mask_rate: float
    ) -> None:
        super().__init__()
        self.mask = GeneMask(mask_rate)
        widths = [n_vars, *hidden]
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(SLOPE), nn.Dropout(dropout_rate))
                for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.latent = linear(widths[-1], n_latent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Latent representation, shape `(B, n_latent)`."""
        return nn.functional.leaky_relu(self.latent(self.hidden(self.mask(x))), SLOPE)


class FiLMDecoder(nn.Module):
    """Hidden layers modulated by the perturbation, then an output layer that is not.

    Parameters
    ----------
    n_latent
        Width of the latent representation.
    hidden
        Widths of the hidden layers, in the decoder's order.
    n_vars
        Number of genes.
    n_condition
        Width of the perturbation's vector.
    film_hidden
        Widths of the trunks of the FiLM generators.
    dropout_rate
        Dropout after each hidden layer.
    """

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        n_vars: int,
        n_condition: int,
        film_hidden: Sequence[int],
        dropout_rate: float,
    ) -> None:
        super().__init__()
        widths = [n_latent, *hidden]
        self.linears = nn.ModuleList(linear(n_in, n_out) for n_in, n_out in zip(widths[:-1], widths[1:], strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in hidden)
        self.films = nn.ModuleList(FiLMGenerator(n_condition, width, film_hidden) for width in hidden)
        self.dropout = nn.Dropout(dropout_rate)
        self.output = linear(widths[-1], n_vars)

    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Expression, shape `(B, n_vars)`; may be slightly negative. One row of `condition` serves all cells."""
        for layer, norm, film in zip(self.linears, self.norms, self.films, strict=True):
            scale, shift = film(condition)
            z = self.dropout(nn.functional.leaky_relu(scale * norm(layer(z)) + shift, SLOPE))
        # in place, since the output is by far the largest tensor here and no gradient needs it as it was
        return nn.functional.leaky_relu(self.output(z), SLOPE, inplace=True)

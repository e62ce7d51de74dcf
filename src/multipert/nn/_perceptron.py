"""Perceptrons: that of PerturBench's models, with layer norm in every hidden layer, and a residual one."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from ._condition import LabelLinear
from ._film import SLOPE

PerceptronVariant = Literal["linear_first", "standard"]
OutputActivation = Literal["softplus", "relu", "identity"]

_OUTPUTS = {"softplus": nn.Softplus, "relu": nn.ReLU, "identity": nn.Identity}


class Perceptron(nn.Module):
    """Linear, layer norm, ReLU and dropout `n_layers` times, then a linear layer; starts as PyTorch has it.

    Two networks go by this name in PerturBench :cite:p:`Wu2024`. "standard" is the first: its hidden layers read widths
    `n_in, n_hidden, ..., n_hidden`. In "linear_first" a linear layer from `n_in` to `n_hidden`, with nothing after it, comes
    before hidden layers that all read `n_hidden`. It merges with the next layer into one, so it adds no function unless
    `n_hidden` is below `n_in`, where it bounds the rank; it changes how the network is trained.

    Parameters
    ----------
    n_in
        Width of the input.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers.
    n_out
        Width of the output.
    dropout_rate
        Dropout after each hidden layer.
    variant
        "linear_first" or "standard".
    affine
        Whether layer norms have a scale and a shift to learn.
    reads_labels
        Whether the input is of vectors of labels.

    Raises
    ------
    ValueError
        If a number of layers, a width or the rate is out of range, or the variant is unknown.

    Examples
    --------
    >>> Perceptron(7, 5, 2, 3, 0.1)(torch.ones(4, 7)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        n_out: int,
        dropout_rate: float,
        variant: PerceptronVariant = "linear_first",
        affine: bool = False,
        *,
        reads_labels: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"n_in": n_in, "n_hidden": n_hidden, "n_layers": n_layers, "n_out": n_out}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate={dropout_rate} must be at least 0 and below 1.")
        if variant not in get_args(PerceptronVariant):
            raise ValueError(f"variant={variant!r} is unknown; known: 'linear_first', 'standard'.")
        first = variant == "linear_first"
        entry = LabelLinear if reads_labels else nn.Linear
        self.first = entry(n_in, n_hidden) if first else nn.Identity()
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Linear(n_hidden, n_hidden) if first or layer else entry(n_in, n_hidden),
                    nn.LayerNorm(n_hidden, elementwise_affine=affine),
                    nn.ReLU(),
                    nn.Dropout(dropout_rate),
                )
                for layer in range(n_layers)
            )
        )
        self.output = nn.Linear(n_hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the last layer, shape `(B, n_out)`."""
        return self.output(self.hidden(self.first(x)))


class ResidualPerceptron(nn.Module):
    """Linear layers with leaky ReLU, the second and later ones added to what they read, then a linear layer.

    Parameters
    ----------
    n_in
        Width of the input.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers.
    n_out
        Width of the output.
    dropout_rate
        Dropout after each hidden layer.

    Examples
    --------
    >>> ResidualPerceptron(7, 5, 2, 3, 0.1)(torch.ones(4, 7)).shape
    torch.Size([4, 3])
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, n_out: int, dropout_rate: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(n_hidden if layer else n_in, n_hidden) for layer in range(n_layers))
        self.dropout = nn.Dropout(dropout_rate)
        self.output = nn.Linear(n_hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the last layer, shape `(..., n_out)`."""
        for number, layer in enumerate(self.hidden):
            added = self.dropout(nn.functional.leaky_relu(layer(x), SLOPE))
            x = x + added if number else added
        return self.output(x)


def output_activation(name: OutputActivation) -> nn.Module:
    """What keeps decoded expression from being negative, or nothing.

    Parameters
    ----------
    name
        "softplus", which is positive everywhere and ln 2 at 0; "relu"; or "identity".

    Returns
    -------
    The layer.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> output_activation("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if name not in _OUTPUTS:
        raise ValueError(f"output_activation={name!r} is unknown; known: {', '.join(map(repr, _OUTPUTS))}.")
    return _OUTPUTS[name]()

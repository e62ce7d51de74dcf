"""Perceptrons with batch norm in every layer, and a linear layer that keeps groups of features apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from ._film import SLOPE, GeneMask

if TYPE_CHECKING:
    from collections.abc import Sequence


class MLP(nn.Module):
    """Mask on the input, then layer, batch norm, activation and dropout; no dropout after the last layer.

    Parameters
    ----------
    layers
        Linear layers with `out_features`, in order.
    dropout_rate
        Dropout after each layer but the last.
    mask_rate
        Share of the input masked in training.
    output
        Activation of the last layer; None is the leaky ReLU of the others.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear | BlockLinear],
        dropout_rate: float,
        *,
        mask_rate: float = 0.0,
        output: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mask = GeneMask(mask_rate)
        *inner, last = layers
        self.layers = nn.Sequential(
            *(
                nn.Sequential(layer, nn.BatchNorm1d(layer.out_features), nn.LeakyReLU(SLOPE), nn.Dropout(dropout_rate))
                for layer in inner
            ),
            nn.Sequential(last, nn.BatchNorm1d(last.out_features), output or nn.LeakyReLU(SLOPE)),
        )

    @property
    def norm(self) -> nn.BatchNorm1d:
        """The batch norm of the last layer."""
        return cast("nn.BatchNorm1d", cast("nn.Sequential", self.layers[-1])[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the last layer, shape `(B, out_features)`."""
        return self.layers(self.mask(x))


class BlockLinear(nn.Module):
    """A linear layer of several blocks: each group of features has units of its own.

    `n_groups * width` units in all, those of a group side by side. From features to units a unit reads the features of its
    group only; with `decodes` a feature is made of the units of its group only. The features may stand in any order. The
    weights of each block start Xavier-uniform, the biases at 0.

    Parameters
    ----------
    groups
        Group of each feature, shape `(n_features,)`, numbers from 0 without gaps.
    width
        Units of each group.
    decodes
        Whether the layer goes from units to features.
    """

    order: torch.Tensor

    def __init__(self, groups: np.ndarray, width: int, *, decodes: bool = False) -> None:
        super().__init__()
        groups = np.asarray(groups)
        self.sizes = np.bincount(groups).tolist()
        if 0 in self.sizes:
            raise ValueError(f"groups has no feature of number {self.sizes.index(0)}; number the groups without gaps.")
        n_features, n_units = len(groups), len(self.sizes) * width
        self.width, self.decodes = width, decodes
        self.in_features, self.out_features = (n_units, n_features) if decodes else (n_features, n_units)
        self.register_buffer("order", torch.from_numpy(np.argsort(groups, kind="stable").astype(np.int64)))
        # one row for each feature, in the order of the features
        self.weight = nn.Parameter(torch.empty(n_features, width))
        self.bias = nn.Parameter(torch.zeros(self.out_features))
        fans = torch.from_numpy(np.asarray(self.sizes)[groups] + width).to(self.weight)
        with torch.no_grad():
            self.weight.uniform_(-1, 1).mul_(torch.sqrt(6 / fans)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Units, or with `decodes` features, shape `(B, out_features)`."""
        weights = self.weight.index_select(0, self.order).split(self.sizes)
        if self.decodes:
            units = x.split(self.width, dim=1)
            values = torch.cat([unit @ w.T for unit, w in zip(units, weights, strict=True)], dim=1)
            return torch.empty_like(values).index_copy(1, self.order, values) + self.bias
        features = x.index_select(1, self.order).split(self.sizes, dim=1)
        return torch.cat([feature @ w for feature, w in zip(features, weights, strict=True)], dim=1) + self.bias

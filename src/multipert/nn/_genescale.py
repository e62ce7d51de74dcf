"""Decoded values in units of each gene's spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from multipert import _keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# added to the standard deviation, which is 0 for a gene without counts
_EPS = 1e-2


class GeneScale(nn.Module):
    """Training mean and standard deviation of each gene, in whose units a decoder works.

    Rare genes vary by a hundredth of what others do. Where every gene has a variance of its own, a decoder that is off by
    the same amount in all of them is furthest off in the rare ones, and spends its updates there.

    Parameters
    ----------
    n_vars
        Number of genes.

    Examples
    --------
    >>> scale = GeneScale(2)
    >>> scale.measure([{"X": torch.tensor([[0.0, 1.0], [2.0, 1.0]])}])
    >>> scale(torch.ones(1, 2))
    tensor([[2.0100, 1.0100]])
    """

    center: torch.Tensor
    spread: torch.Tensor

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(n_vars))
        self.register_buffer("spread", torch.ones(n_vars))

    @torch.no_grad()
    def measure(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Take mean and spread of some cells; what was measured once is kept, as weights were learnt in its units.

        Parameters
        ----------
        batches
            Batches of the cells.
        """
        if self.center.any() or (self.spread != 1).any():
            return
        n, sums = 0, torch.zeros(2, len(self.center), dtype=torch.float64)
        for batch in batches:
            x = batch[_keys.X].double().cpu()
            n, sums = n + len(x), sums + torch.stack([x.sum(0), x.square().sum(0)])
        mean = sums[0] / n
        self.center.copy_(mean)
        self.spread.copy_((sums[1] / n - mean.square()).clamp(min=0).sqrt() + _EPS)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the unit of the data, shape `(..., n_vars)`."""
        return self.center + self.spread * values

    def standardised(self, x: torch.Tensor) -> torch.Tensor:
        """Data in units of the spread, the inverse of a call, shape `(..., n_vars)`."""
        return (x - self.center) / self.spread

"""Contexts and categorical covariates of a batch, as codes and as one-hot vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from multipert import _keys

if TYPE_CHECKING:
    from collections.abc import Sequence


def covariate_codes(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Codes of the context, where one is registered, and then of the categorical covariates.

    Parameters
    ----------
    tensors
        A batch.

    Returns
    -------
    Shape `(B, n_covariates)`, int64; -1 for a value that was not there at the setup. No columns without either.

    Examples
    --------
    >>> import torch
    >>> covariate_codes({"X": torch.zeros(2, 3), "context": torch.tensor([[1], [0]])})
    tensor([[1],
            [0]])
    """
    known = [tensors[key] for key in (_keys.CONTEXT, _keys.CATEGORICAL_COVARIATES) if key in tensors]
    x = tensors[_keys.X]
    return torch.cat([torch.zeros(len(x), 0, dtype=torch.long, device=x.device), *(codes.long() for codes in known)], 1)


class CovariateVector(nn.Module):
    """One-hot vectors of the context and of the categorical covariates, one after the other.

    Parameters
    ----------
    sizes
        Number of values of each, in the order of :func:`covariate_codes`; none reads no covariate, whatever a batch holds.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return sum(self.sizes)

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch, shape `(B, width)`; an unknown value has none of its entries set."""
        if not self.sizes:
            return tensors[_keys.X].new_zeros(len(tensors[_keys.X]), 0)
        codes = covariate_codes(tensors)
        starts = torch.tensor([0, *self.sizes[:-1]], device=codes.device).cumsum(0)
        vectors = tensors[_keys.X].new_zeros(len(codes), self.width + 1)
        # an unknown value falls on the extra column, which is cut off
        at = torch.where(codes < 0, self.width, codes + starts)
        return vectors.scatter_(1, at, 1)[:, : self.width]

"""Hidden layers, one block after the other."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BlockNorm = Literal["batch", "layer", "none"]

_MOMENTUM, _EPS = 0.01, 1e-3


def blocks(
    widths: Sequence[int],
    dropout_rate: float = 0.0,
    *,
    norm: BlockNorm = "batch",
    bias: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear, norm, activation and dropout between successive widths; Linear starts as PyTorch has it.

    Parameters
    ----------
    widths
        Width of the input, then of each layer.
    dropout_rate
        Dropout after each layer.
    norm
        "batch" normalises over the cells of a batch, "layer" over the units of a cell.
    bias
        Whether linear layers have a bias.
    activation
        Makes the activation of a layer.

    Returns
    -------
    The layers, in order; one width gives none.

    Examples
    --------
    >>> import torch
    >>> blocks((6, 5, 4), 0.1).eval()(torch.ones(3, 6)).shape
    torch.Size([3, 4])
    """
    return nn.Sequential(
        *(
            nn.Sequential(nn.Linear(n_in, n_out, bias=bias), _norm(n_out, norm), activation(), nn.Dropout(dropout_rate))
            for n_in, n_out in pairwise(widths)
        )
    )


def batch_norm(width: int) -> nn.BatchNorm1d:
    """Batch norm whose statistics move by a hundredth with each batch, as scvi-tools has it.

    Parameters
    ----------
    width
        Number of units.

    Returns
    -------
    The layer.
    """
    return nn.BatchNorm1d(width, eps=_EPS, momentum=_MOMENTUM)


def _norm(width: int, norm: BlockNorm) -> nn.Module:
    if norm == "batch":
        return batch_norm(width)
    return nn.LayerNorm(width) if norm == "layer" else nn.Identity()

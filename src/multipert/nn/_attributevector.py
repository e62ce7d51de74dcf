"""Vectors of labels that differ from that of control by as much as their parts do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from multipert import _keys

from ._blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Sequence


class AttributeVector(nn.Module):
    r"""The vector of a condition, :math:`v_0 + \sum_k (v_k - v_0)` over its parts, with :math:`v_0` that of control.

    A part is a category with a learnt vector. Where an embedding is given or there are doses it is ordered: a network
    reads the part's row, with the dose appended, as a share of the largest trained dose. Rows are learnt, or given with an
    entry before them that is 1 for control alone.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    n_embedding
        Width of the given embedding; None learns the rows.
    doses
        Whether parts have doses.
    n_categorical
        Width of learnt rows.
    n_ordered
        Width of the network's output.
    hidden
        Widths of the network's hidden layers.
    dropout_rate
        Dropout after each of its layers.

    Examples
    --------
    >>> vector = AttributeVector(3, None, False, n_categorical=4, n_ordered=5, hidden=(), dropout_rate=0.0)
    >>> control, a, b, both = vector({"perturbation": torch.tensor([[-1, -1], [0, -1], [2, -1], [0, 2]])})
    >>> torch.allclose(both - a, b - control, atol=1e-6)
    True
    """

    table: torch.Tensor

    def __init__(
        self,
        n_perturbations: int,
        n_embedding: int | None,
        doses: bool,
        *,
        n_categorical: int,
        n_ordered: int,
        hidden: Sequence[int],
        dropout_rate: float,
    ) -> None:
        super().__init__()
        self.doses, self.ordered = doses, doses or n_embedding is not None
        self.width = n_ordered if self.ordered else n_categorical
        # control is the first row
        if n_embedding is None:
            self.table = nn.Parameter(torch.randn(n_perturbations + 1, n_categorical))
        else:
            self.register_buffer("table", torch.zeros(n_perturbations + 1, 1 + n_embedding))
        self.largest_dose: torch.Tensor
        self.register_buffer("largest_dose", torch.zeros(()))
        widths = [self.table.shape[1] + doses, *hidden, n_ordered]
        self.network = blocks(widths, dropout_rate, bias=False) if self.ordered else nn.Identity()

    def give(self, embedding: torch.Tensor) -> None:
        """Take the rows from an embedding, shape `(n_perturbations, n_embedding)`."""
        with torch.no_grad():
            self.table[0, 0] = 1
            self.table[1:, 1:] = embedding

    def start(self, doses: torch.Tensor) -> None:
        """Scale doses by the largest of the trained ones; a further call changes nothing."""
        if not self.largest_dose:
            self.largest_dose.copy_(doses.max())

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch's labels, shape `(B, width)`."""
        codes = tensors[_keys.PERTURBATION].long()
        inputs = self.table[codes + 1]
        if self.doses:
            scale = torch.where(self.largest_dose > 0, self.largest_dose, 1)
            inputs = torch.cat([inputs, (tensors[_keys.DOSE].to(inputs) / scale)[..., None]], dim=2)
        first, further = inputs[:, 0], codes[:, 1:] >= 0
        if not further.any():
            return self.network(first)
        control = inputs.new_zeros(1, inputs.shape[2])
        control[0, : self.table.shape[1]] = self.table[0]
        vectors = self.network(torch.cat([first, inputs[:, 1:][further], control]))
        added = vectors[len(first) : -1] - vectors[-1:]
        return vectors[: len(first)].index_add(0, further.nonzero()[:, 0], added)

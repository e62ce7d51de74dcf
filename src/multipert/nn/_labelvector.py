"""Labels as the input of a network that adds nothing to them."""

from __future__ import annotations

import torch
from torch import nn

from multipert import _keys

from ._condition import multi_hot


class LabelVector(nn.Module):
    """Sum of the parts' unit vectors, or of their given embeddings with a 1 behind; control is the zero vector.

    Without the 1 a perturbation in the middle of a centred embedding would be control, and so would parts that lie on
    opposite sides of it.

    With doses each part is scaled by `log1p` of its dose, so that the vector goes to control's as the dose goes to 0 and a
    hundredfold dose does not swamp the others. :class:`ConditionVector` has an entry for control and learns the scale.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    n_embedding
        Width of the given embedding; None takes unit vectors.
    doses
        Whether parts are scaled by their doses.

    Examples
    --------
    >>> labels = {"perturbation": torch.tensor([[0, 2], [-1, -1]]), "dose": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    >>> LabelVector(3)({**labels, "X": torch.zeros(2, 5)})
    tensor([[1., 0., 1.],
            [0., 0., 0.]])
    """

    embedding: torch.Tensor | None

    def __init__(self, n_perturbations: int, n_embedding: int | None = None, doses: bool = False) -> None:
        super().__init__()
        self.n_perturbations, self.doses = n_perturbations, doses
        table = None if n_embedding is None else torch.zeros(n_perturbations, n_embedding + 1)
        self.register_buffer("embedding", table)

    def fill(self, table: torch.Tensor) -> None:
        """Take the given embedding.

        Parameters
        ----------
        table
            Shape `(n_perturbations, n_embedding)`.
        """
        self.embedding = torch.cat([table, torch.ones_like(table[:, :1])], dim=1)

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.n_perturbations if self.embedding is None else self.embedding.shape[1]

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch's labels, shape `(B, width)`."""
        codes, dtype = tensors[_keys.PERTURBATION].long(), tensors[_keys.X].dtype
        present = (codes >= 0).to(dtype)
        weights = present * torch.log1p(tensors[_keys.DOSE].to(dtype)) if self.doses else present
        if self.embedding is None:
            return multi_hot(codes, weights, self.n_perturbations)
        return (self.embedding[codes.clamp(min=0)] * weights[..., None]).sum(dim=1)


def distinct_rows(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of each kind, and the kind of every row.

    Parameters
    ----------
    keys
        Numbers that say what a row is, shape `(B, n_keys)`; without columns all rows are of one kind.

    Returns
    -------
    Positions of one row of each kind, shape `(n_kinds,)`, and for every row the position of its kind among them,
    shape `(B,)`.

    Examples
    --------
    >>> rows, kind = distinct_rows(torch.tensor([[5, 1], [2, 0], [5, 1]]))
    >>> sorted(rows.tolist()) in ([0, 1], [1, 2]), bool(kind[0] == kind[2] != kind[1])
    (True, True)
    """
    if not keys.shape[1]:
        kind = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
        return kind[:1], kind
    kinds, kind = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.empty(len(kinds), dtype=torch.long, device=keys.device)
    return rows.scatter_(0, kind, torch.arange(len(keys), device=keys.device)), kind

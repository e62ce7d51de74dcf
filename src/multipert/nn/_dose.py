"""How strongly a perturbation acts at a dose, and latent vectors of labels made of that."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from multipert import _keys

from ._condition import multi_hot, shared_label

DoseCurveKind = Literal["logsigm", "sigm", "linear"]


class DoseCurve(nn.Module):
    r"""A curve of dose for each perturbation, 0 at dose 0 :cite:p:`Lotfollahi2023`.

    .. math::

        s_k(x) = \sigma\bigl(\beta_k\, u(x) + b_k\bigr) - \sigma(b_k)

    with :math:`u(x) = \log(1 + x)` for "logsigm" and :math:`x` for "sigm"; "linear" is :math:`s_k(x) = x` and learns nothing.
    Slopes start at 1 and offsets at 0; a perturbation that is never trained keeps them. A curve rises everywhere if its slope
    is positive.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    kind
        "logsigm", "sigm" or "linear".

    Raises
    ------
    ValueError
        If the kind is unknown.

    Examples
    --------
    >>> curve = DoseCurve(3, "logsigm")
    >>> curve(torch.tensor([[2, -1]]), torch.tensor([[0.0, 1.0]])).tolist()
    [[0.0, 0.0]]
    """

    def __init__(self, n_perturbations: int, kind: DoseCurveKind = "logsigm") -> None:
        super().__init__()
        if kind not in get_args(DoseCurveKind):
            raise ValueError(f"kind={kind!r} is unknown; known: {', '.join(map(repr, get_args(DoseCurveKind)))}.")
        self.kind = kind
        if kind != "linear":
            self.slope = nn.Parameter(torch.ones(n_perturbations))
            self.offset = nn.Parameter(torch.zeros(n_perturbations))

    def forward(self, codes: torch.Tensor, doses: torch.Tensor) -> torch.Tensor:
        """Strength of each part; 0 for control and padding.

        Parameters
        ----------
        codes
            Codes, shape `(B, n_slots)`, -1 for control and padding.
        doses
            Their doses, same shape, in the user's units.

        Returns
        -------
        Shape `(B, n_slots)`.
        """
        present, strength = codes >= 0, doses
        if self.kind != "linear":
            at = codes.long().clamp(min=0)
            scaled = torch.log1p(doses) if self.kind == "logsigm" else doses
            strength = torch.sigmoid(self.slope[at] * scaled + self.offset[at]) - torch.sigmoid(self.offset[at])
        return torch.where(present, strength, torch.zeros_like(strength))


class PerturbationEncoder(nn.Module):
    """Latent vector of a label: the sum of its parts' embeddings, or a network of their sum.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    n_latent
        Width of the latent representation.
    n_embedding
        Width of the given perturbation embedding; None learns one.
    curve
        Curves of dose, or None where there are no doses.
    network
        Network from the sum of one-hot (or given) vectors; None maps every part for itself.
    """

    def __init__(
        self,
        n_perturbations: int,
        n_latent: int,
        n_embedding: int | None,
        curve: DoseCurveKind | None,
        network: nn.Module | None,
    ) -> None:
        super().__init__()
        self.n_perturbations, self.network = n_perturbations, network
        self.curve = None if curve is None else DoseCurve(n_perturbations, curve)
        self.embedding: torch.Tensor | None
        self.register_buffer("embedding", None if n_embedding is None else torch.zeros(n_perturbations, n_embedding))
        if network is None:
            learnt = nn.Embedding(n_perturbations, n_latent)
            self.vectors = learnt if n_embedding is None else nn.Linear(n_embedding, n_latent)

    @property
    def learnt(self) -> list[torch.Tensor]:
        """The learnt embeddings of shape `(n_perturbations, n_latent)`, as the only one of a list; empty without them."""
        return [] if self.network is not None or self.embedding is not None else [self.vectors.weight]

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch's labels, shape `(B, n_latent)`; 0 for control unless there is a network."""
        n = len(tensors[_keys.PERTURBATION])
        tensors = shared_label(tensors)
        codes, doses = tensors[_keys.PERTURBATION].long(), tensors[_keys.DOSE].to(tensors[_keys.X].dtype)
        strength = (codes >= 0).to(doses.dtype) if self.curve is None else self.curve(codes, doses)
        at = codes.clamp(min=0)
        if self.network is None:
            parts = self.vectors(at if self.embedding is None else self.embedding[at])
        elif self.embedding is None:
            return self.network(multi_hot(codes, strength, self.n_perturbations)).expand(n, -1)
        else:
            parts = self.embedding[at]
        vectors = (parts * strength[..., None]).sum(dim=1)
        return (vectors if self.network is None else self.network(vectors)).expand(n, -1)

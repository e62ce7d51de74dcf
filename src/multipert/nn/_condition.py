"""Perturbation codes and doses of a batch to vectors; the multi-hot matrix exists per batch only."""

from __future__ import annotations

import torch
from torch import nn

from multipert import _keys

# vectors below this width are multiplied faster than searched
_WIDE = 1000


def multi_hot(codes: torch.Tensor, doses: torch.Tensor, n_perturbations: int) -> torch.Tensor:
    """Sum of the dose-scaled unit vectors of the parts; control is the zero vector.

    Parameters
    ----------
    codes
        Codes, shape `(B, n_slots)`, -1 for control and padding.
    doses
        Doses, same shape.
    n_perturbations
        Size of the vocabulary.

    Returns
    -------
    Shape `(B, n_perturbations)`, the dtype of `doses`.

    Examples
    --------
    >>> import torch
    >>> multi_hot(torch.tensor([[0, 2], [-1, -1]]), torch.tensor([[1.0, 5.0], [0.0, 0.0]]), 3)
    tensor([[1., 0., 5.],
            [0., 0., 0.]])
    """
    codes = codes.long()
    vectors = torch.zeros(len(codes), n_perturbations + 1, dtype=doses.dtype, device=codes.device)
    # code -1 falls on the extra column, which is cut off
    vectors.scatter_add_(1, torch.where(codes < 0, n_perturbations, codes), doses)
    return vectors[:, :n_perturbations]


def shared_label(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The labels of a batch, or one row of them where they are one row that was expanded, as when one target is predicted.

    What a network makes of one label has one row, which broadcasts over the cells; a vector of labels is as wide as the
    vocabulary, so that making it anew for each cell is what a prediction for many perturbations would take longest for.
    Rows that merely have equal values are not looked for.

    Parameters
    ----------
    tensors
        A batch.

    Returns
    -------
    The batch, with labels of shape `(1, n_slots)` if they are of one row.

    Examples
    --------
    >>> labels = {"perturbation": torch.tensor([[3]]).expand(2, -1), "dose": torch.ones(1, 1).expand(2, -1)}
    >>> shared_label(labels)["perturbation"]
    tensor([[3]])
    """
    labels = {key: tensors[key] for key in (_keys.PERTURBATION, _keys.DOSE)}
    if any(values.stride(0) for values in labels.values()):
        return tensors
    return {**tensors, **{key: values[:1] for key, values in labels.items()}}


class LabelLinear(nn.Linear):
    """A linear layer that reads vectors of labels: where no gradient is wanted, the weights of the labels that are there.

    It has a weight for every name of the vocabulary, of which a batch that is predicted names few. A narrow layer, or one
    whose input has few zeros, reads all.

    Parameters
    ----------
    in_features
        Width of the vectors.
    out_features
        Width of the output.

    Examples
    --------
    >>> LabelLinear(4, 3)(torch.eye(4)).shape
    torch.Size([4, 3])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output, shape `(B, out_features)`."""
        if torch.is_grad_enabled() or self.in_features < _WIDE:
            return super().forward(x)
        # a third of the time that `any` takes
        there = x.abs().sum(dim=0).nonzero()[:, 0]
        if 2 * len(there) > self.in_features:
            return super().forward(x)
        return nn.functional.linear(x.index_select(1, there), self.weight.index_select(1, there), self.bias)


class ConditionVector(nn.Module):
    r"""The vector of a condition: how much of it is control, then the sum of its parts' vectors, scaled by dose.

    .. math::

        v = \Bigl(\prod_k (1 - s_k),\ \sum_k s_k\, e_k\Bigr), \qquad
        s_k = \frac{1}{1 + (m_k / d_k)^{h_k}}

    with :math:`e_k` the unit vector or the given embedding of part k, :math:`d_k` its dose, and its midpoint :math:`m_k`
    and slope :math:`h_k` learnt (both from :math:`e_k`, starting at the geometric mean of the trained doses and at 1).
    Without doses :math:`s_k = 1`: the vector of control is then (1, 0), that of a perturbation (0, e). With doses the
    vector goes to that of control as the dose goes to 0.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    n_embedding
        Width of the given embedding; None takes unit vectors.
    doses
        Whether parts are scaled by their doses.
    """

    def __init__(self, n_perturbations: int, n_embedding: int | None = None, doses: bool = False) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_features = n_perturbations if n_embedding is None else n_embedding
        self.doses = doses
        self.embedding: torch.Tensor | None
        self.register_buffer("embedding", None if n_embedding is None else torch.zeros(n_perturbations, n_embedding))
        if doses:
            self.log_dose: torch.Tensor
            self.register_buffer("log_dose", torch.zeros(n_perturbations))
            # change of the log midpoint, and log slope
            self.curve = nn.Linear(self.n_features, 2)
            nn.init.zeros_(self.curve.weight)
            nn.init.zeros_(self.curve.bias)

    @property
    def width(self) -> int:
        """Width of the vectors, control's entry included."""
        return 1 + self.n_features

    def start(self, codes: torch.Tensor, doses: torch.Tensor) -> None:
        """Put the midpoints where the trained doses are; a further call changes nothing.

        Parameters
        ----------
        codes
            Codes of the trained conditions, shape `(n_conditions, n_slots)`, -1 for control and padding.
        doses
            Their doses, same shape.
        """
        at = codes >= 0
        # curves that were learnt around other midpoints keep them
        if not self.doses or not at.any() or self.log_dose.any():
            return
        log_dose, codes = doses[at].double().log(), codes[at].long()
        total = torch.zeros(self.n_perturbations, dtype=torch.float64, device=codes.device)
        total.index_add_(0, codes, log_dose)
        n = torch.bincount(codes, minlength=self.n_perturbations)
        mean = torch.where(n > 0, total / n.clamp(min=1), log_dose.mean())
        self.log_dose.copy_(mean)

    def strength(self, codes: torch.Tensor, doses: torch.Tensor) -> torch.Tensor:
        """How far each part is from control, in 0..1; 0 for control and padding.

        Parameters
        ----------
        codes
            Codes, shape `(B, n_slots)`.
        doses
            Doses, same shape.

        Returns
        -------
        Shape `(B, n_slots)`.
        """
        present = codes >= 0
        if not self.doses:
            return present.to(doses.dtype)
        at = codes.long().clamp(min=0)
        if self.embedding is not None:
            curve = self.curve(self.embedding[at])
        else:
            curve = nn.functional.embedding(at, self.curve.weight.T) + self.curve.bias
        shift, log_slope = curve.unbind(-1)
        log_dose = torch.where(present, doses, torch.ones_like(doses)).log()
        strength = torch.sigmoid(log_slope.exp() * (log_dose - self.log_dose[at] - shift))
        return torch.where(present, strength, torch.zeros_like(strength))

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch's labels, shape `(B, width)`."""
        codes = tensors[_keys.PERTURBATION].long()
        strength = self.strength(codes, tensors[_keys.DOSE].to(tensors[_keys.X].dtype))
        control = (1 - strength).prod(dim=1, keepdim=True)
        if self.embedding is None:
            return torch.cat([control, multi_hot(codes, strength, self.n_perturbations)], dim=1)
        parts = self.embedding[codes.clamp(min=0)] * strength[..., None]
        return torch.cat([control, parts.sum(dim=1)], dim=1)

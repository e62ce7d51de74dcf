"""Perturbation codes of a batch to vectors; the multi-hot matrix exists per batch only."""

from __future__ import annotations

import torch


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


def with_control(vectors: torch.Tensor) -> torch.Tensor:
    """Prepend the control column: 1 for control, 0 for any perturbation.

    Parameters
    ----------
    vectors
        What :func:`multi_hot` returns, shape `(B, n_perturbations)`.

    Returns
    -------
    Shape `(B, n_perturbations + 1)`.
    """
    control = (vectors == 0).all(dim=1, keepdim=True).to(vectors.dtype)
    return torch.cat([control, vectors], dim=1)

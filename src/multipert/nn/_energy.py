"""Distances between groups of cells that a network can be trained on."""

from __future__ import annotations

import torch


def energy_distance(predicted: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    r"""Unbiased energy distance of two sets of points :cite:p:`Szekely2013`, with gradient.

    :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` with Euclidean norms and no point compared with itself.

    Parameters
    ----------
    predicted
        Points, shape `(n, n_dimensions)`.
    observed
        Points, shape `(m, n_dimensions)`.

    Returns
    -------
    A scalar, near 0 for two samples of one distribution and then of either sign. A set of one point has no spread.

    Examples
    --------
    >>> points = torch.tensor([[0.0], [1.0]])
    >>> energy_distance(points, points + 3)
    tensor(4.)
    """
    n, m = len(predicted), len(observed)
    within = torch.cdist(predicted, predicted).sum() / max(1, n * (n - 1))
    within = within + torch.cdist(observed, observed).sum() / max(1, m * (m - 1))
    return 2 * torch.cdist(predicted, observed).mean() - within

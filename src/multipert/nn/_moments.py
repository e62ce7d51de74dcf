"""Means of groups of cells in one pass over a loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from multipert import _keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


# beyond any log-normalised value; keeps signed data such as extreme z-scores finite
_LARGEST = 80.0


@dataclass
class GroupMeans:
    """Means of every (context, condition) pair that has cells.

    Parameters
    ----------
    context
        Context code of each pair, shape `(n_pairs,)`; 0 where no context is set up.
    condition
        Condition of each pair, shape `(n_pairs,)`.
    n_cells
        Cells of each pair, shape `(n_pairs,)`.
    mean
        Mean expression, shape `(n_pairs, n_vars)`, float64.
    variance
        Population variance of the expression, same shape.
    mean_expm1
        Mean of `expm1` of the expression, same shape.
    """

    context: torch.Tensor
    condition: torch.Tensor
    n_cells: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    mean_expm1: torch.Tensor


def group_means(
    loader: Iterable[dict[str, torch.Tensor]], condition_of: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> GroupMeans:
    """Sum cells by context and condition; memory grows with the pairs present, not with the grid.

    Parameters
    ----------
    loader
        Batches of the cells.
    condition_of
        Gives for a batch the condition of each cell, shape `(B,)`.

    Returns
    -------
    The means, pairs sorted by context, then condition.
    """
    position: dict[tuple[int, int], int] = {}
    sums: list[np.ndarray] = []
    for batch in loader:
        x = batch[_keys.X].double().cpu().numpy()
        condition = condition_of(batch).cpu().numpy()
        context = batch[_keys.CONTEXT].reshape(-1).long().cpu().numpy() if _keys.CONTEXT in batch else 0 * condition
        pairs, inverse = np.unique(np.stack([context, condition], axis=1), axis=0, return_inverse=True)
        for i, pair in enumerate(map(tuple, pairs.tolist())):
            here = x[inverse.reshape(-1) == i]
            if pair not in position:
                position[pair] = len(sums)
                sums.append(np.zeros((4, x.shape[1])))
            total = sums[position[pair]]
            total[0] += here.sum(axis=0)
            total[1] += np.square(here).sum(axis=0)
            total[2] += np.expm1(np.minimum(here, _LARGEST)).sum(axis=0)
            total[3] += len(here)
    order = sorted(position)
    stacked = torch.from_numpy(np.stack([sums[position[pair]] for pair in order]))
    n_cells = stacked[:, 3, 0]
    mean, square, mean_expm1 = (stacked[:, i] / n_cells[:, None] for i in range(3))
    context, condition = torch.tensor(order).T
    return GroupMeans(context, condition, n_cells.long(), mean, (square - mean**2).clamp(min=0), mean_expm1)

"""The predictors that stand beside every prediction: context-free mean shift and ceiling."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ._cells import Cells
from ._comparison import Comparison, Truth

if TYPE_CHECKING:
    from ._groups import GroupedCells, Key

N_HALVINGS = 10


class MeanShift:
    """Control cells plus the mean over the other training contexts of (perturbed mean - control mean)."""

    def __init__(self, training: GroupedCells, control_label: str) -> None:
        self.control_label = control_label
        self.contexts: dict[str, list[Key]] = {}
        for perturbation, *context in training.rows:
            self.contexts.setdefault(perturbation, []).append(tuple(context))
        # a context's control mean serves every perturbation
        self._mean = cache(lambda *key: training[key].mean)

    def predict(self, key: Key, control: Cells, *, clip: bool) -> Cells | None:
        """Cells of a (perturbation, *context) from its control cells; None if no other context has the perturbation."""
        perturbation, *own = key
        with_control = self.contexts.get(self.control_label, [])
        shifts = [
            self._mean(perturbation, *context) - self._mean(self.control_label, *context)
            for context in self.contexts.get(perturbation, [])
            if context != tuple(own) and context in with_control
        ]
        if not shifts:
            return None
        cells = control.dense() + np.mean(shifts, axis=0)
        return Cells(np.maximum(cells, 0.0) if clip else cells)


def ceiling(truth: Truth) -> list[Comparison]:
    """Comparisons of random halves of the observed cells, one predicting the other; empty for a single cell."""
    n_observed = len(truth.observed)
    if n_observed < 2:
        return []
    comparisons = []
    for repeat in range(N_HALVINGS):
        order = np.random.default_rng([truth.seed, repeat]).permutation(n_observed)
        half, other = np.sort(order[: n_observed // 2]), np.sort(order[n_observed // 2 :])
        half_truth = Truth(truth.observed[other], truth.control, truth.seed, whole=truth)
        comparisons.append(Comparison(truth.observed[half], half_truth))
    return comparisons

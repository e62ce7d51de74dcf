"""Draw the cells of a simulated screen."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track
from scipy import sparse

from multipert.data._conditions import canonical_dose, canonical_label

from ._parameters import N_STATES

if TYPE_CHECKING:
    from multipert.data._conditions import Condition

    from ._truth import Truth

_BLOCK = 1000  # cells per random stream; part of what a seed means
_LONG = 20  # blocks from which on progress is shown
SIZE_SPREAD = 0.24  # of log size between the cells of a group
RESPONSE_SPREAD = 0.2  # of log responsiveness


def observed_conditions(truth: Truth, n_perturbations: int) -> list[tuple[str, str]]:
    """Observed (label, dose) texts; control is the first."""
    observed = truth.perturbations[:n_perturbations]
    doses = truth.doses.tolist()
    labels = [(name,) for name in observed] + [tuple(truth.perturbations[pair]) for pair in truth.pairs]
    conditions: list[Condition] = [()]
    for label in labels:
        for i, dose in enumerate(doses or [1.0]):
            # the second part of a pair is one dose ahead, so that the two parts can be told apart
            second = doses[(i + 1) % len(doses)] if doses else 1.0
            conditions.append(tuple(sorted(zip(label, (dose, second), strict=False))))
    return [(canonical_label(c), canonical_dose(c)) for c in conditions]


def assign_labels(
    n_cells: int, n_contexts: int, n_conditions: int, control_fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Context and condition code of every cell, groups as equal as can be, cells in random order."""
    n_control = round(control_fraction * n_cells)
    n_groups = n_contexts * (n_conditions - 1)
    group = np.arange(n_cells - n_control) % n_groups
    context = np.append(np.arange(n_control) % n_contexts, group % n_contexts)
    condition = np.append(np.zeros(n_control, dtype=np.int64), 1 + group // n_contexts)
    order = rng.permutation(n_cells)
    return context[order], condition[order]


def draw_cells(
    truth: Truth,
    conditions: list[tuple[str, str]],
    context: np.ndarray,
    condition: np.ndarray,
    covariate: np.ndarray | None,
    seed: np.random.SeedSequence,
) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Draw each cell's own parameters and its counts, one random stream per block of cells."""
    network = truth.network()
    has_doses = len(truth.doses) > 0
    effects = np.stack([truth.effect(truth.condition(p, d if has_doses else None), network) for p, d in conditions])
    shape = 1 / truth.dispersion

    def draw(block: tuple[slice, np.random.SeedSequence]) -> tuple[np.ndarray, sparse.csr_matrix]:
        rows, stream = block
        rng = np.random.default_rng(stream)
        n = len(context[rows])
        log_size = SIZE_SPREAD * rng.normal(size=(n, 1)) - SIZE_SPREAD**2 / 2
        responsiveness = np.exp(RESPONSE_SPREAD * rng.normal(size=(n, 1)) - RESPONSE_SPREAD**2 / 2)
        cells = np.hstack([log_size, responsiveness, rng.normal(size=(n, N_STATES))])
        levels = None if covariate is None else covariate[rows]
        mean = truth.expected_counts(cells, context[rows], levels, effects[condition[rows], context[rows]])
        rate = rng.standard_gamma(shape, size=mean.shape)
        rate *= mean
        rate *= truth.dispersion
        return cells, sparse.csr_matrix(rng.poisson(rate).astype(np.float32))

    starts = range(0, len(context), _BLOCK)
    blocks = zip((slice(s, s + _BLOCK) for s in starts), seed.spawn(len(starts)), strict=True)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        done = track(pool.map(draw, blocks), "Simulating cells", total=len(starts), disable=len(starts) < _LONG)
        drawn = list(done)
    return np.concatenate([cells for cells, _ in drawn]), sparse.vstack([counts for _, counts in drawn], format="csr")

"""Rank of every perturbation's prediction among all predictions, against a loop over pairs.

Used by the benchmark of the metrics; alone: python benchmarks/_metrics_rank.py [n_perturbations] [n_vars]
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from multipert import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

N_REPEATS = 3
N_TIMED_ROWS = 10


def rank(n_perturbations: int = 2_000, n_vars: int = 2_000) -> list[tuple[str, float, float, float, float]]:
    """Rows of (what, our seconds, seconds of the loop, ratio, largest difference of a rank).

    Ours is the best of three runs and includes the checks of the input. Two rows are against bare numpy, one expression
    for each pair with everything around it ready; that loop runs over all pairs. The third is against a loop over
    :func:`multipert.metrics.rmse`, which checks its input; it runs over all predictions for ten observations and is
    extrapolated to all of them, as the row says.
    """
    rng = np.random.default_rng(0)
    control = rng.gamma(1.0, 1.0, n_vars)
    observed = np.maximum(control + rng.normal(0, 0.3, (n_perturbations, n_vars)), 0)
    predicted = np.maximum(observed + rng.normal(0, 1.0, (n_perturbations, n_vars)), 0)
    folds = [np.log2(means + 0.1) - np.log2(control + 0.1) for means in (predicted, observed)]
    size = f"{n_perturbations:,} perturbations x {n_vars:,} genes"

    def by_rmse():
        return metrics.rank(metrics.pairwise(predicted, observed))

    def by_cosine():
        return metrics.rank(metrics.pairwise(predicted, observed, "cosine_logfc", control=control), better="higher")

    rows = []
    for what, ours, error, vectors, n_rows in (
        (f"rank of rmse, {size}, loop of numpy", by_rmse, _rmse, (predicted, observed), n_perturbations),
        (f"rank of cosine_logfc, {size}, loop of numpy", by_cosine, _one_minus_cosine, folds, n_perturbations),
        (
            f"rank of rmse, {size}, loop of metrics.rmse over {N_TIMED_ROWS} observations, extrapolated",
            by_rmse,
            lambda first, second: metrics.rmse(first[None], second[None]),
            (predicted, observed),
            N_TIMED_ROWS,
        ),
    ):
        seconds, result = _best_of(ours)
        start = time.perf_counter()
        expected = _rank_by_loop(error, *vectors, n_rows)
        of_loop = (time.perf_counter() - start) * n_perturbations / n_rows
        difference = float(np.abs(result[:n_rows] - expected).max())
        rows.append((what, seconds, of_loop, of_loop / seconds, difference))
    return rows


def _best_of(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    seconds = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def _rank_by_loop(
    error: Callable[[np.ndarray, np.ndarray], float], predicted: np.ndarray, observed: np.ndarray, n_rows: int
) -> np.ndarray:
    ranks = []
    for number, one in enumerate(observed[:n_rows]):
        errors = np.array([error(other, one) for other in predicted])
        n_equal = np.sum(errors == errors[number]) - 1
        ranks.append((np.sum(errors < errors[number]) + n_equal / 2) / (len(predicted) - 1))
    return np.array(ranks)


def _rmse(predicted: np.ndarray, observed: np.ndarray) -> float:
    return np.sqrt(np.mean((predicted - observed) ** 2))


def _one_minus_cosine(predicted: np.ndarray, observed: np.ndarray) -> float:
    return 1 - predicted @ observed / (np.linalg.norm(predicted) * np.linalg.norm(observed))


if __name__ == "__main__":
    for what, ours, theirs, ratio, difference in rank(*map(int, sys.argv[1:])):
        print(f"{what}: {ours:.3f} s, loop {theirs:.1f} s, {ratio:.0f} times; largest difference {difference:.1e}")

"""All groups of one context under one predictor: what ranks and pooled metrics are computed from."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from ._challenge import perturbation_discrimination
from ._error import correlation
from ._pairwise import pairwise
from ._pairwise_edistance import pairwise_edistance
from ._rank import rank
from ._weighted import de_weights, weighted_mse, weighted_r2_delta

if TYPE_CHECKING:
    from collections.abc import Collection

    from ._cells import Cells
    from ._comparison import Comparison
    from ._metric import Needs
    from ._pairwise import PairMetric


Ranked: TypeAlias = Literal["predictions", "observations"]


class Entry(NamedTuple):
    """What is kept of one group: means and variances, and the scores of the cells where a metric needs them."""

    predicted: np.ndarray
    observed: np.ndarray
    variance: np.ndarray | None
    n_observed: int
    control: np.ndarray
    target_genes: np.ndarray
    predicted_scores: Cells | None
    observed_scores: Cells | None


def entry(comparison: Comparison, needs: Collection[Needs], max_cells: int) -> Entry:
    """Keep of a comparison what metrics of all groups need.

    Parameters
    ----------
    comparison
        One group under one predictor.
    needs
        What they need.
    max_cells
        At most so many cells of a group, drawn by the seed of the truth.

    Returns
    -------
    The entry.
    """
    truth = comparison.truth
    genes = np.zeros(0, dtype=int) if truth.target_genes is None else truth.target_genes
    return Entry(
        comparison.predicted.mean,
        truth.observed.mean,
        truth.observed.variance if "variances" in needs else None,
        len(truth.observed),
        truth.control.mean,
        genes,
        comparison.scores.sample(max_cells, truth.seed) if "cells" in needs else None,
        truth.scores[0].sample(max_cells, truth.seed) if "cells" in needs else None,
    )


class Panel:
    """The groups of one context.

    Parameters
    ----------
    entries
        One per group, in the order of the groups.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.control = entries[0].control

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted means, shape `(n_groups, n_vars)`."""
        return np.stack([one.predicted for one in self.entries])

    @cached_property
    def observed(self) -> np.ndarray:
        """Observed means, shape `(n_groups, n_vars)`."""
        return np.stack([one.observed for one in self.entries])

    @cached_property
    def weights(self) -> np.ndarray:
        """Weight of every gene by its difference between a perturbation and all others, shape `(n_groups, n_vars)`."""
        variance = np.stack([one.variance for one in self.entries if one.variance is not None])
        return de_weights(self.observed, variance, np.array([one.n_observed for one in self.entries]))

    def undefined(self) -> np.ndarray:
        """`nan` for every group."""
        return np.full(len(self), np.nan)

    def rank_of_means(
        self, metric: PairMetric, better: Literal["lower", "higher"], of: Ranked = "predictions"
    ) -> np.ndarray:
        """Rank of the right pair by a metric of means."""
        if len(self) < 2:
            return self.undefined()
        values = pairwise(self.predicted, self.observed, metric, control=self.control)
        return rank(values, better=better, of=of)

    def rank_of_edistance(self, of: Ranked = "predictions") -> np.ndarray:
        """Rank of the right pair by energy distance in the basis."""
        if len(self) < 2:
            return self.undefined()
        predicted = [one.predicted_scores for one in self.entries if one.predicted_scores is not None]
        observed = [one.observed_scores for one in self.entries if one.observed_scores is not None]
        return rank(pairwise_edistance(observed, predicted), better="lower", of=of)

    def weighted_mse(self) -> np.ndarray:
        """Squared error of the means, genes weighted by `weights`."""
        return weighted_mse(self.predicted, self.observed, self.weights) if len(self) > 1 else self.undefined()

    def weighted_r2_delta(self) -> np.ndarray:
        """Weighted R2 of the changes from the mean over all perturbations."""
        return weighted_r2_delta(self.predicted, self.observed, self.weights) if len(self) > 1 else self.undefined()

    def discrimination(self) -> np.ndarray:
        """Perturbation discrimination score."""
        if len(self) < 2:
            return self.undefined()
        return perturbation_discrimination(
            self.predicted - self.control,
            self.observed - self.control,
            exclude=[one.target_genes.tolist() for one in self.entries],
        )

    def strongest(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Perturbations and genes that move most, the given share of each axis."""
        change = self.observed - self.control
        strength, movement = (np.sqrt(np.mean(change**2, axis=axis)) for axis in (1, 0))
        return tuple(  # type: ignore[return-value]
            np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))] for values in (strength, movement)
        )

    def pooled(self, kind: str, share: float = 1.0) -> np.ndarray:
        """One number over all (perturbation, gene) entries, repeated for every group."""
        rows, genes = self.strongest(share)
        predicted, observed = (values[np.ix_(rows, genes)].ravel() for values in (self.predicted, self.observed))
        error = predicted - observed
        if kind == "rmse":
            value = np.sqrt(np.mean(error**2))
        elif kind == "mae":
            value = np.mean(np.abs(error))
        elif kind == "pearson":
            value = correlation(predicted, observed)
        else:
            spread = np.sum((observed - observed.mean()) ** 2)
            value = 1 - np.sum(error**2) / spread if spread > 0 else np.nan
        return np.full(len(self), float(value))

"""What the metrics of one group share, each piece computed once and only when asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ._de import wilcoxon
from ._distribution import Basis, edistance, fit_basis
from ._error import correlation

if TYPE_CHECKING:
    from ._cells import Cells

N_DRAWS = 100
DRAWN_SHARE = 0.8


class Truth:
    """Observed cells, the control cells of their context, and what all predictors are measured with."""

    def __init__(self, observed: Cells, control: Cells, seed: int = 0, whole: Truth | None = None) -> None:
        self.observed, self.control, self.seed = observed, control, seed
        self.whole = whole
        """The truth of which this is one half, the other being the prediction; None if this is no half."""

    @cached_property
    def basis(self) -> Basis:
        """Principal components of control and observed cells, untouched by any prediction."""
        return fit_basis(self.control, self.observed) if self.whole is None else self.whole.basis

    @cached_property
    def scores(self) -> tuple[Cells, Cells]:
        """Observed and control cells in the basis."""
        return self.basis.project(self.observed), self.basis.project(self.control)

    @cached_property
    def edistance_to_control(self) -> float:
        """Energy distance of control to observed cells in the basis."""
        return edistance(*self.scores)

    @cached_property
    def ranking(self) -> np.ndarray:
        """Genes by the Wilcoxon score of observed against control, the most up-regulated first."""
        return np.argsort(-wilcoxon(self.observed, self.control), kind="stable")

    @cached_property
    def bootstrap_means(self) -> np.ndarray:
        """Means of the draws of observed cells."""
        return draw_means(self.observed, self.seed)


class Comparison:
    """One predictor's cells against the truth; what a metric of the table is computed from."""

    def __init__(self, predicted: Cells, truth: Truth) -> None:
        self.predicted, self.truth = predicted, truth
        self.observed, self.control = truth.observed, truth.control

    @cached_property
    def joint_basis(self) -> Basis:
        """Principal components of control, observed and predicted cells together."""
        if self.truth.whole is not None:
            return self.truth.whole.basis
        return fit_basis(self.control, self.observed, self.predicted)

    @cached_property
    def joint_scores(self) -> tuple[Cells, Cells, Cells]:
        """Predicted, observed and control cells in the joint basis."""
        project = self.joint_basis.project
        return project(self.predicted), project(self.observed), project(self.control)

    @cached_property
    def bootstrap_means(self) -> np.ndarray:
        """Means of the draws of predicted cells."""
        return draw_means(self.predicted, self.truth.seed)

    def edistance_ratio(self) -> float:
        """Energy distance of prediction to truth over control to truth, in the basis of control and truth."""
        predicted = self.truth.basis.project(self.predicted)
        return ratio(edistance(predicted, self.truth.scores[0]), self.truth.edistance_to_control)

    def edistance_ratio_joint(self) -> float:
        """Energy distance of prediction to truth over control to truth, in the joint basis."""
        predicted, observed, control = self.joint_scores
        return ratio(edistance(predicted, observed), edistance(control, observed))

    def mean_distance_ratio_joint(self) -> float:
        """Distance of the mean prediction to the mean truth over that of the mean control, in the joint basis."""
        predicted, observed, control = (group.mean for group in self.joint_scores)
        return ratio(float(np.linalg.norm(predicted - observed)), float(np.linalg.norm(control - observed)))

    def r2_pearson_bootstrap(self, n_top: int | None = None) -> float:
        """Mean over draws of the squared correlation of mean vectors, over all or the `n_top` first ranked genes."""
        genes = slice(None) if n_top is None else self.truth.ranking[:n_top]
        return float(np.mean(correlation(self.bootstrap_means[:, genes], self.truth.bootstrap_means[:, genes]) ** 2))


def draw_means(cells: Cells, seed: int) -> np.ndarray:
    """Mean vectors of the draws of 80 % of the cells without replacement, shape `(N_DRAWS, n_vars)`.

    Draw `i` uses generator `seed + i`, for predicted and observed cells alike.
    """
    n_drawn = max(1, round(DRAWN_SHARE * len(cells)))
    weights = np.zeros((N_DRAWS, len(cells)))
    for i, row in enumerate(weights):
        row[np.random.default_rng(seed + i).choice(len(cells), n_drawn, replace=False)] = 1 / n_drawn
    # transposed, because scipy multiplies sparse by dense and not the reverse; numpy is indifferent
    return np.asarray(cells.values.T @ weights.T).T


def ratio(numerator: float, denominator: float) -> float:
    """Quotient; `nan` where the denominator is 0 but for rounding."""
    return float(numerator / denominator) if denominator > 1e-12 else np.nan

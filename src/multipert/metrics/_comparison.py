"""What the metrics of one group share, each piece computed once and only when asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, get_args

import numpy as np

from ._de import Direction, _top_genes, de_genes, welch_t, wilcoxon
from ._distribution import Basis, edistance, fit_basis
from ._error import correlation
from ._genes import large_effect_genes
from ._retrieval import DERetrieval, retrieve_de

if TYPE_CHECKING:
    from typing import TypeAlias

    from ._cells import Cells

    Group: TypeAlias = tuple[Cells, np.ndarray]

N_DRAWS = 100
DRAWN_SHARE = 0.8
N_DE_GENES = 100
N_OBSERVED_COMPONENTS = 256
MAX_BASIS_CELLS = 2500
MAX_DISTANCE_CELLS = 1000
# control cells serve all perturbations of a context, other cells one
MAX_KEPT_SCORES = 64


class Bases:
    """Principal components that distances are measured in, fitted once for all groups and never on a prediction.

    Parameters
    ----------
    training
        Training cells: groups, each as the matrix that holds it and its rows there.
    observed
        Control and observed cells, likewise.
    seed
        Of the choice of cells where there are more than `MAX_BASIS_CELLS`.
    """

    def __init__(self, training: list[Group], observed: list[Group], seed: int = 0) -> None:
        self._training, self._observed, self._seed = training, observed, seed
        self._scores: dict[int, tuple[Cells, Cells]] = {}

    def scores(self, cells: Cells, seed: int) -> Cells:
        """Cells in the components of the training cells, at most `MAX_DISTANCE_CELLS` of them, projected once."""
        if id(cells) not in self._scores:
            # the cells are kept with their scores, since the identity of a freed object may be given to another
            self._scores[id(cells)] = cells, self.training.project(cells.sample(MAX_DISTANCE_CELLS, seed))
            while len(self._scores) > MAX_KEPT_SCORES:
                del self._scores[next(iter(self._scores))]
        return self._scores[id(cells)][1]

    @cached_property
    def training(self) -> Basis:
        """50 components of the training cells."""
        return fit_basis(*_sample(self._training, self._seed))

    @cached_property
    def observed(self) -> Basis:
        """256 components of control and observed cells."""
        return fit_basis(*_sample(self._observed, self._seed), n_components=N_OBSERVED_COMPONENTS)


def _sample(groups: list[Group], seed: int) -> list[Cells]:
    """At most `MAX_BASIS_CELLS` cells, as evenly from the groups as their sizes allow."""
    sizes = np.array([len(rows) for _, rows in groups])
    if sizes.sum() <= MAX_BASIS_CELLS:
        return [cells[rows] for cells, rows in groups]
    rng = np.random.default_rng([seed, len(groups)])
    # the largest quota that fits, then groups in random order take what is left
    quotas = np.arange(sizes.max() + 1)
    totals = np.minimum(sizes[:, None], quotas[None, :]).sum(axis=0)
    quota = int(np.flatnonzero(totals <= MAX_BASIS_CELLS)[-1])
    taken = np.minimum(sizes, quota)
    larger = rng.permutation(np.flatnonzero(sizes > quota))[: MAX_BASIS_CELLS - totals[quota]]
    taken[larger] += 1
    return [
        cells[np.sort(rng.choice(rows, n, replace=False))] for (cells, rows), n in zip(groups, taken, strict=True) if n
    ]


class Truth:
    """Observed cells, the control cells of their context, and what all predictors are measured with.

    Parameters
    ----------
    observed
        Perturbed cells that were measured.
    control
        Control cells of the same context.
    seed
        Of the draws.
    bases
        Spaces of the distances, the same for all groups; None fits them on control and observed cells.
    centroid
        Mean over the training perturbations of the context of their mean vectors, if there are any.
    target_genes
        Positions of the perturbation's own genes.
    whole
        The truth of which this is one half, the other being the prediction; None if this is no half.
    """

    def __init__(
        self,
        observed: Cells,
        control: Cells,
        seed: int = 0,
        *,
        bases: Bases | None = None,
        centroid: np.ndarray | None = None,
        target_genes: np.ndarray | None = None,
        whole: Truth | None = None,
    ) -> None:
        self.observed, self.control, self.seed, self.whole = observed, control, seed, whole
        self.centroid, self.target_genes = centroid, target_genes
        if bases is None:
            groups = [(cells, np.arange(len(cells))) for cells in (control, observed)]
            bases = Bases(groups, groups, seed)
        self.bases = bases

    def half(self, observed: Cells) -> Truth:
        """The truth of some of the observed cells, measured as the whole is."""
        return Truth(
            observed,
            self.control,
            self.seed,
            bases=self.bases,
            centroid=self.centroid,
            target_genes=self.target_genes,
            whole=self,
        )

    @cached_property
    def joint_basis(self) -> Basis:
        """Principal components of control and observed cells of this group alone."""
        return fit_basis(self.control, self.observed)

    @cached_property
    def scores(self) -> tuple[Cells, Cells]:
        """Observed and control cells in the basis."""
        control = self.bases.scores(self.control, self.seed) if self.whole is None else self.whole.scores[1]
        return self.bases.scores(self.observed, self.seed), control

    @cached_property
    def observed_components(self) -> Cells:
        """Observed cells in the components of control and observed cells."""
        return self.bases.observed.project(self.observed)

    @cached_property
    def edistance_to_control(self) -> float:
        """Energy distance of control to observed cells in the basis."""
        return edistance(*self.scores)

    @cached_property
    def ranking(self) -> np.ndarray:
        """Genes by the Wilcoxon score of observed against control, the most up-regulated first."""
        return np.argsort(-wilcoxon(self.observed, self.control), kind="stable")

    @cached_property
    def t(self) -> np.ndarray:
        """Welch's t of observed against control."""
        return welch_t(self.observed, self.control)

    @cached_property
    def top_genes(self) -> dict[Direction, np.ndarray]:
        """The most changed genes of every direction."""
        return {direction: _top_genes(self.t, N_DE_GENES, direction) for direction in get_args(Direction)}

    @cached_property
    def de_labels(self) -> np.ndarray:
        """Which genes are differentially expressed, by these observed cells."""
        return de_genes(self.observed, self.control)

    def most_changed(self, k: int) -> np.ndarray:
        """Positions of the `k` most changed genes by size of Welch's t, by these observed cells."""
        # those of the whole would be chosen with the other half too, which is the prediction
        return _top_genes(self.t, k, "absolute")

    @cached_property
    def large_effect(self) -> np.ndarray:
        """Positions of the genes with a large effect, by these observed cells."""
        return large_effect_genes(self.observed, self.control)

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
    def scores(self) -> Cells:
        """Predicted cells in the basis."""
        return self.truth.bases.scores(self.predicted, self.truth.seed)

    @cached_property
    def observed_components(self) -> Cells:
        """Predicted cells in the components of control and observed cells."""
        return self.truth.bases.observed.project(self.predicted)

    @cached_property
    def t(self) -> np.ndarray:
        """Welch's t of predicted against control."""
        return welch_t(self.predicted, self.control)

    @cached_property
    def retrieval(self) -> DERetrieval:
        """Differentially expressed genes found by predicted fold change."""
        return retrieve_de(self.predicted, self.observed, self.control, labels=self.truth.de_labels)

    @cached_property
    def joint_basis(self) -> Basis:
        """Principal components of control, observed and predicted cells together."""
        if self.truth.whole is not None:
            return self.truth.whole.joint_basis
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

    @cached_property
    def edistance(self) -> float:
        """Energy distance of prediction to truth in the basis."""
        return edistance(self.scores, self.truth.scores[0])

    def edistance_ratio(self) -> float:
        """Energy distance of prediction to truth over control to truth, in the basis."""
        return ratio(self.edistance, self.truth.edistance_to_control)

    def edistance_ratio_joint(self) -> float:
        """Energy distance of prediction to truth over control to truth, in the joint basis."""
        predicted, observed, control = self.joint_scores
        return ratio(edistance(predicted, observed), edistance(control, observed))

    def mean_distance_ratio_joint(self) -> float:
        """Distance of the mean prediction to the mean truth over that of the mean control, in the joint basis."""
        predicted, observed, control = (group.mean for group in self.joint_scores)
        return ratio(float(np.linalg.norm(predicted - observed)), float(np.linalg.norm(control - observed)))

    def de_overlap(self, direction: Direction) -> float:
        """Genes common to the most changed ones of prediction and truth."""
        if min(len(self.predicted), len(self.observed), len(self.control)) < 2:
            return np.nan
        top = _top_genes(self.t, N_DE_GENES, direction)
        return float(np.intersect1d(top, self.truth.top_genes[direction]).size)

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

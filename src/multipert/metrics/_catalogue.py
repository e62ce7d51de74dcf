"""Every metric that `evaluate` knows, and the named lists of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from ._centroid import centroid_accuracy, pearson_centroid
from ._challenge import de_overlap_at_n
from ._classifier import classifier_auc
from ._comparison import ratio
from ._de import de_direction_match, de_recall
from ._delta import cosine_fold_change, cosine_logfc, pearson_delta, sign_accuracy
from ._distribution import edistance, low_variance_share, mean_pairwise, variance_ratio
from ._error import correlation, mae, mse, r2, r2_pearson, rmse
from ._metric import Metric, of_correlation, of_distance, of_explained, of_square, of_squared_correlation
from ._mmd import mmd_linear, mmd_rbf
from ._transport import sinkhorn_cost, sinkhorn_divergence, wasserstein, wasserstein_genes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._cells import Cells
    from ._comparison import Comparison
    from ._metric import Better
    from ._pairwise import PairMetric
    from ._panel import Panel, Ranked

N_TOP = (20, 50)


def _of_means(function: Callable[..., float]) -> Callable[[Comparison], float]:
    return lambda c: function(c.predicted, c.observed)


def _of_change(function: Callable[..., float], **options: object) -> Callable[[Comparison], float]:
    return lambda c: function(c.predicted, c.observed, c.control, **options)


def _on_top(function: Callable[..., float], k: int, *, with_control: bool = False) -> Callable[[Comparison], float]:
    def compute(c: Comparison) -> float:
        groups = (c.predicted, c.observed, c.control) if with_control else (c.predicted, c.observed)
        return function(*groups, genes=c.truth.most_changed(k))

    return compute


def _on_large(function: Callable[..., float]) -> Callable[[Comparison], float]:
    def compute(c: Comparison) -> float:
        genes = c.truth.large_effect
        return function(c.predicted, c.observed, genes=genes) if len(genes) > 1 else np.nan

    return compute


def _in_basis(function: Callable[..., float], **options: object) -> Callable[[Comparison], float]:
    return lambda c: function(c.scores, c.truth.scores[0], **options)


def _over_control(distance: Callable[..., float]) -> Callable[[Comparison], float]:
    """Distance of prediction to truth over that of prediction to control, in the joint basis."""

    def compute(c: Comparison) -> float:
        predicted, observed, control = c.joint_scores
        return ratio(distance(predicted, observed), distance(predicted, control))

    return compute


def _between_means(first: Cells, second: Cells) -> float:
    return float(np.linalg.norm(first.mean - second.mean))


def _centroid(genes: int | None = None) -> Callable[[Comparison], float]:
    def compute(c: Comparison) -> float:
        if c.truth.centroid is None:
            return np.nan
        some = None if genes is None else c.truth.most_changed(genes)
        return pearson_centroid(c.predicted, c.observed, c.truth.centroid, genes=some)

    return compute


def _pearson(predicted: Cells, observed: Cells, *, genes: np.ndarray | slice = slice(None)) -> float:
    return float(correlation(predicted.mean[genes], observed.mean[genes]))


def _bootstrap_on_top(k: int) -> Callable[[Comparison], float]:
    return lambda c: c.r2_pearson_bootstrap(k)


def _precision_at(recall: float) -> Callable[[Comparison], float]:
    return lambda c: c.retrieval.precision_at_recall(recall)


def _rank(
    metric: PairMetric, better: Literal["lower", "higher"], of: Ranked = "predictions"
) -> Callable[[Panel], np.ndarray]:
    return lambda panel: panel.rank_of_means(metric, better, of)


def _pooled(kind: str, share: float = 1.0) -> Callable[[Panel], np.ndarray]:
    return lambda panel: panel.pooled(kind, share)


_POOLED: dict[str, tuple[str, Better, float]] = {
    "rmse": ("error", "lower", 0.0),
    "mae": ("absolute error", "lower", 0.0),
    "r2": ("R2", "higher", 1.0),
    "pearson": ("correlation", "higher", 1.0),
}

_lower = partial(Metric, better="lower", best=0.0)
_restated = partial(_lower, is_score=False)
_by_context = partial(Metric, by_context=True)
_among = partial(Metric, by_context=True, is_rank=True)

METRICS: dict[str, Metric] = {
    # error and fit of the means
    "rmse": _lower(_of_means(rmse), "error of the mean expression"),
    "mae": _lower(_of_means(mae), "absolute error of the mean expression"),
    "mse": _restated(_of_means(mse), "squared error of the mean expression"),
    "r2": Metric(_of_means(r2), "share of the spread of the mean expression explained"),
    "r2_pearson": Metric(
        _of_means(r2_pearson),
        "squared correlation of the mean expression; the baseline expression dominates it",
        is_score=False,
        published="R2",
    ),
    "pearson": Metric(
        _of_means(_pearson), "correlation of the mean expression; the baseline expression dominates it", is_score=False
    ),
    **{f"rmse_top{k}": _lower(_on_top(rmse, k), f"as rmse, over the {k} most changed genes") for k in N_TOP},
    **{f"r2_top{k}": Metric(_on_top(r2, k), f"as r2, over the {k} most changed genes") for k in N_TOP},
    **{
        f"pearson_top{k}": Metric(
            _on_top(_pearson, k),
            f"as pearson, over the {k} most changed genes",
            is_score=False,
        )
        for k in N_TOP
    },
    "rmse_large_effect": _lower(_on_large(rmse), "as rmse, over genes with a large effect"),
    "pearson_large_effect": Metric(_on_large(_pearson), "as pearson, over genes with a large effect", is_score=False),
    "r2_large_effect": Metric(_on_large(r2), "as r2, over genes with a large effect"),
    "r2_pearson_bootstrap": Metric(
        lambda c: c.r2_pearson_bootstrap(), "as r2_pearson, mean over 100 draws of 80 % of the cells", is_score=False
    ),
    **{
        f"r2_pearson_bootstrap_top{k}": Metric(
            _bootstrap_on_top(k),
            f"as r2_pearson_bootstrap, over the {k} most up-regulated genes",
            is_score=False,
            published=f"HVG{k}",
        )
        for k in (20, 100)
    },
    # effect: the change from control
    "pearson_delta": Metric(_of_change(pearson_delta), "correlation of the change from control", null=0.0),
    **{
        f"pearson_delta_top{k}": Metric(
            _on_top(pearson_delta, k, with_control=True), f"as pearson_delta, over the {k} most changed genes", null=0.0
        )
        for k in N_TOP
    },
    "cosine_logfc": Metric(_of_change(cosine_logfc), "cosine of the log fold change from control", null=0.0),
    "cosine_fold_change": Metric(
        _of_change(cosine_fold_change), "cosine of the log fold change of counts from control", null=0.0
    ),
    "sign_accuracy": Metric(_of_change(sign_accuracy), "share of the changed genes that change in the right direction"),
    "pearson_centroid": Metric(
        _centroid(), "correlation of the difference from the mean of the training perturbations", null=0.0
    ),
    "pearson_centroid_top20": Metric(_centroid(20), "as pearson_centroid, over the 20 most changed genes", null=0.0),
    # ranks among the perturbations of the context
    "rank_rmse": _among(_rank("rmse", "lower"), "rank of the own prediction by rmse", "lower", 0.0),
    "rank_mae": _among(_rank("mae", "lower"), "rank of the own prediction by mae", "lower", 0.0),
    "rank_r2": _among(_rank("r2", "higher"), "rank of the own prediction by r2", "lower", 0.0),
    "rank_r2_pearson": _among(_rank("r2_pearson", "higher"), "rank of the own prediction by r2_pearson", "lower", 0.0),
    "rank_pearson_delta": _among(
        _rank("pearson_delta", "higher"), "rank of the own prediction by pearson_delta", "lower", 0.0, 0.5
    ),
    "rank_cosine_logfc": _among(
        _rank("cosine_logfc", "higher"), "rank of the own prediction by cosine_logfc", "lower", 0.0, 0.5
    ),
    "rank_edistance": _among(
        lambda panel: panel.rank_of_edistance(),
        "rank of the own prediction by edistance",
        "lower",
        0.0,
        needs="cells",
    ),
    "discrimination_rmse": _among(
        _rank("rmse", "lower", "observations"), "rank of the own observation by rmse", "lower", 0.0
    ),
    "discrimination_pearson_delta": _among(
        _rank("pearson_delta", "higher", "observations"),
        "rank of the own observation by pearson_delta",
        "lower",
        0.0,
        0.5,
    ),
    "discrimination_cosine_logfc": _among(
        _rank("cosine_logfc", "higher", "observations"),
        "rank of the own observation by cosine_logfc",
        "lower",
        0.0,
        0.5,
    ),
    "discrimination_edistance": _among(
        lambda panel: panel.rank_of_edistance("observations"),
        "rank of the own observation by edistance",
        "lower",
        0.0,
        needs="cells",
    ),
    "centroid_accuracy": _among(
        lambda panel: centroid_accuracy(panel.predicted, panel.observed),
        "share of the other observed means that are farther from the prediction than its own",
    ),
    # weighted by what sets a perturbation apart from the others
    "weighted_mse": _by_context(
        lambda panel: panel.weighted_mse(),
        "as mse, genes weighted by what sets the perturbation apart",
        "lower",
        0.0,
        needs="variances",
    ),
    "weighted_r2_delta": _by_context(
        lambda panel: panel.weighted_r2_delta(),
        "R2 of the change from the mean of all perturbations, so weighted",
        needs="variances",
    ),
    # distribution of the cells
    "edistance": _lower(lambda c: c.edistance, "energy distance of predicted to observed cells"),
    "edistance_ratio": _restated(
        lambda c: c.edistance_ratio(), "energy distance to the observed cells over that of the control cells"
    ),
    "edistance_ratio_joint": _restated(
        lambda c: c.edistance_ratio_joint(), "as edistance_ratio, in principal components that see the prediction too"
    ),
    "edistance_genes": _lower(_of_means(edistance), "as edistance, in the space of all genes"),
    "mean_distance_ratio_joint": _restated(
        lambda c: c.mean_distance_ratio_joint(),
        "distance of the mean over that of the control mean, in the same components",
    ),
    "mmd_linear": _restated(_in_basis(mmd_linear), "squared distance of the means, in the components"),
    "mmd_rbf": _lower(_in_basis(mmd_rbf), "maximum mean discrepancy with Gaussian kernels, in the components"),
    "sinkhorn_divergence": _lower(
        _in_basis(sinkhorn_divergence), "debiased entropic transport cost, in the components"
    ),
    "wasserstein": _lower(_in_basis(wasserstein), "exact transport cost, in the components"),
    "wasserstein_genes": _lower(
        lambda c: float(np.mean(wasserstein_genes(c.predicted, c.observed))),
        "Wasserstein distance of each gene's values, mean over genes",
    ),
    "mean_pairwise": _restated(_in_basis(mean_pairwise), "mean distance of predicted to observed cells"),
    "classifier_auc": Metric(
        _in_basis(classifier_auc), "how well a classifier tells predicted from observed cells", "nearest", 0.5
    ),
    "variance_ratio": Metric(
        _of_means(variance_ratio), "predicted over observed variance of the genes", "nearest", 1.0, is_score=False
    ),
    "low_variance_share": _restated(
        _of_means(low_variance_share), "share of genes with under a tenth of the observed variance"
    ),
    # genes called differentially expressed
    "de_overlap_absolute": Metric(
        lambda c: c.de_overlap("absolute"), "genes shared among the 100 most changed", best=100.0
    ),
    "de_overlap_up": Metric(
        lambda c: c.de_overlap("up"), "genes shared among the 100 most raised", best=100.0, published="common DEGs"
    ),
    "de_overlap_down": Metric(lambda c: c.de_overlap("down"), "genes shared among the 100 most lowered", best=100.0),
    "de_recall20": Metric(
        _of_change(de_recall, k=20), "share of the 20 most changed genes found", published="DEG recall"
    ),
    "de_direction_match": Metric(
        lambda c: de_direction_match(c.predicted, c.observed, c.control, labels=c.truth.de_labels),
        "share of the significant genes that change in the right direction",
    ),
    "auprc_de": Metric(
        lambda c: c.retrieval.average_precision(), "average precision of finding the significant genes by fold change"
    ),
    **{
        f"precision_at_recall{recall}_de": Metric(
            _precision_at(recall / 100),
            f"precision where {recall} % of the significant genes are found by fold change",
        )
        for recall in (25, 50, 75)
    },
    # protocols of others
    "euclidean_over_control": _restated(
        _over_control(_between_means),
        "distance of the means to truth over that to control",
        published="E-dist",
    ),
    "edistance_squared_over_control": _restated(
        _over_control(partial(edistance, squared=True)),
        "squared energy distance to truth over that to control",
        published="Euc",
    ),
    "mmd_linear_over_control": _restated(
        _over_control(mmd_linear), "linear maximum mean discrepancy to truth over that to control", published="MMD"
    ),
    "mean_pairwise_over_control": _restated(
        _over_control(mean_pairwise), "mean distance of cells to truth over that to control", published="MPD"
    ),
    "sinkhorn_over_control": _restated(
        _over_control(sinkhorn_cost), "entropic transport cost to truth over that to control", published="Was"
    ),
    "edistance_half_observed": _restated(
        lambda c: edistance(c.observed_components, c.truth.observed_components, half=True),
        "half the energy distance, in up to 256 components of control and observed cells",
        published="MMD PCA",
    ),
    "des": Metric(
        _of_change(de_overlap_at_n),
        "share of the significant genes found among as many predicted ones",
        published="DES",
    ),
    "pds": _among(
        lambda panel: panel.discrimination(),
        "one minus the rank of the own observed change, target gene left out",
        published="PDS",
    ),
    **{
        f"pooled_{kind}{suffix}": _by_context(
            _pooled(kind, share),
            f"{name} over all perturbations and genes together{words}",
            better,
            best,
            is_score=False,
        )
        for kind, (name, better, best) in _POOLED.items()
        for share, suffix, words in (
            (1.0, "", ""),
            (0.25, "_strongest25", ", the strongest quarter of both"),
            (0.1, "_strongest10", ", the strongest tenth of both"),
        )
    },
}
"""Every metric that :func:`evaluate` knows, by name."""

_UNHALVED = {
    of_distance: ("rmse", "mae", "rmse_top20", "rmse_top50", "rmse_large_effect", "mean_distance_ratio_joint"),
    of_square: (
        "mse",
        "edistance",
        "edistance_ratio",
        "edistance_ratio_joint",
        "edistance_genes",
        "edistance_half_observed",
        "mmd_linear",
        "weighted_mse",
    ),
    of_explained: ("r2", "r2_top20", "r2_top50", "r2_large_effect", "weighted_r2_delta"),
    of_correlation: (
        "pearson",
        "pearson_top20",
        "pearson_top50",
        "pearson_large_effect",
        "pearson_delta",
        "pearson_delta_top20",
        "pearson_delta_top50",
        "cosine_logfc",
        "cosine_fold_change",
        "pearson_centroid",
        "pearson_centroid_top20",
    ),
    of_squared_correlation: ("r2_pearson",),
}
METRICS |= {name: replace(METRICS[name], unhalve=rule) for rule, names in _UNHALVED.items() for name in names}

PRESETS: dict[str, tuple[str, ...]] = {
    "default": (
        "rmse",
        "r2",
        "r2_pearson",
        "pearson_delta",
        "cosine_logfc",
        "rank_rmse",
        "edistance",
        "edistance_ratio",
        "de_overlap_absolute",
        "de_overlap_up",
        "de_overlap_down",
        "low_variance_share",
    ),
    "thesis": (
        "de_overlap_up",
        "r2_pearson_bootstrap",
        "r2_pearson_bootstrap_top20",
        "r2_pearson_bootstrap_top100",
        "edistance_squared_over_control",
        "sinkhorn_over_control",
        "euclidean_over_control",
        "mean_pairwise_over_control",
        "mmd_linear_over_control",
    ),
    "thesis-joint": (
        "r2_pearson_bootstrap",
        "r2_pearson_bootstrap_top20",
        "r2_pearson_bootstrap_top100",
        "pearson_delta",
        "edistance_ratio_joint",
        "mean_distance_ratio_joint",
        "de_overlap_up",
        "de_overlap_absolute",
    ),
    "perturbench": (
        "rmse",
        "cosine_logfc",
        "rank_rmse",
        "rank_cosine_logfc",
        "edistance_half_observed",
        "rank_edistance",
        "de_recall20",
    ),
    "perturbnet": ("r2", "pearson", "r2_top50", "pearson_top50", "r2_large_effect", "pearson_large_effect"),
    "lpm": tuple(name for name in METRICS if name.startswith("pooled_")) + ("pearson_delta", "pearson_delta_top20"),
    "vcc": ("des", "pds", "mae"),
}
"""Named lists of metrics."""

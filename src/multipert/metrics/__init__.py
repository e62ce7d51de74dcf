"""How close predicted cells are to observed ones, beside what is reached without a model."""

from ._adversaries import adversaries
from ._bootstrap import bootstrap
from ._calibrate import calibrate, leaderboard, summarise
from ._catalogue import METRICS, PRESETS
from ._centroid import centroid_accuracy, pearson_centroid
from ._challenge import (
    ChallengeScore,
    challenge_score,
    de_overlap_at_n,
    evaluate_challenge,
    perturbation_discrimination,
)
from ._classifier import classifier_auc
from ._collapse import Collapse, collapse
from ._de import (
    de_direction_match,
    de_genes,
    de_overlap,
    de_recall,
    log2_fold_change,
    t_undefined_share,
    welch_t,
    wilcoxon,
)
from ._delta import cosine_fold_change, cosine_logfc, pearson_delta, sign_accuracy
from ._distribution import edistance, low_variance_share, mean_pairwise, variance_ratio
from ._error import mae, mse, r2, r2_pearson, rmse
from ._genes import large_effect_genes, top_de_genes
from ._metric import Metric
from ._mmd import mmd_linear, mmd_rbf
from ._pairwise import pairwise
from ._pairwise_edistance import pairwise_edistance
from ._rank import rank
from ._rank_genes import GeneRanking, benjamini_hochberg, rank_genes
from ._references import REFERENCES
from ._retrieval import DERetrieval, auprc_de, average_precision, precision_at_recall, prevalence, retrieve_de
from ._table import evaluate
from ._transport import sinkhorn_cost, sinkhorn_divergence, wasserstein, wasserstein_genes
from ._weighted import de_weights, weighted_mse, weighted_r2_delta

__all__ = [
    "ChallengeScore",
    "Collapse",
    "DERetrieval",
    "GeneRanking",
    "METRICS",
    "Metric",
    "PRESETS",
    "REFERENCES",
    "adversaries",
    "auprc_de",
    "average_precision",
    "benjamini_hochberg",
    "bootstrap",
    "calibrate",
    "centroid_accuracy",
    "challenge_score",
    "classifier_auc",
    "collapse",
    "cosine_fold_change",
    "cosine_logfc",
    "de_direction_match",
    "de_genes",
    "de_overlap",
    "de_overlap_at_n",
    "de_recall",
    "de_weights",
    "edistance",
    "evaluate",
    "evaluate_challenge",
    "large_effect_genes",
    "leaderboard",
    "log2_fold_change",
    "low_variance_share",
    "mae",
    "mean_pairwise",
    "mmd_linear",
    "mmd_rbf",
    "mse",
    "pairwise",
    "pairwise_edistance",
    "pearson_centroid",
    "pearson_delta",
    "perturbation_discrimination",
    "precision_at_recall",
    "prevalence",
    "r2",
    "r2_pearson",
    "rank",
    "rank_genes",
    "retrieve_de",
    "rmse",
    "sign_accuracy",
    "sinkhorn_cost",
    "sinkhorn_divergence",
    "summarise",
    "t_undefined_share",
    "top_de_genes",
    "variance_ratio",
    "wasserstein",
    "wasserstein_genes",
    "weighted_mse",
    "weighted_r2_delta",
    "welch_t",
    "wilcoxon",
]

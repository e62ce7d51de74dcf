"""How close predicted cells are to observed ones, beside what is reached without a model."""

from ._de import de_overlap, welch_t, wilcoxon
from ._delta import cosine_logfc, pearson_delta
from ._distribution import edistance, low_variance_share
from ._error import r2, r2_pearson, rmse
from ._table import METRICS, PRESETS, evaluate

__all__ = [
    "METRICS",
    "PRESETS",
    "cosine_logfc",
    "de_overlap",
    "edistance",
    "evaluate",
    "low_variance_share",
    "pearson_delta",
    "r2",
    "r2_pearson",
    "rmse",
    "welch_t",
    "wilcoxon",
]

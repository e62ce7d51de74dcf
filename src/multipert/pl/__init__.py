"""Pictures: every function draws one and returns its Axes."""

from ._benchmark_table import benchmark_table
from ._dose_response import dose_response
from ._gene_distributions import gene_distributions
from ._gene_scores import gene_scores
from ._latent import latent
from ._mean_scatter import mean_scatter
from ._perturbations import perturbations
from ._precision_recall import precision_recall
from ._pseudo_dose import pseudo_dose
from ._rank_curves import rank_curves

__all__ = [
    "benchmark_table",
    "dose_response",
    "gene_distributions",
    "gene_scores",
    "latent",
    "mean_scatter",
    "perturbations",
    "precision_recall",
    "pseudo_dose",
    "rank_curves",
]

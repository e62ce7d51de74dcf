"""Parts of networks that models share; no AnnData inside."""

from ._adversary import ConditionAdversary, GaussianAdversary
from ._condition import ConditionVector, LabelLinear, multi_hot, shared_label
from ._covariates import CovariateVector, covariate_codes
from ._energy import energy_distance
from ._film import Encoder, FiLMDecoder, FiLMGenerator, linear
from ._labelvector import LabelVector, distinct_rows
from ._moments import GroupMeans, group_means
from ._perceptron import Perceptron, output_activation
from ._vae import VAEDecoder, VAEEncoder
from ._variational import GaussianLatent, kl_to_standard_normal, noise_of_cells

__all__ = [
    "ConditionAdversary",
    "ConditionVector",
    "CovariateVector",
    "Encoder",
    "FiLMDecoder",
    "FiLMGenerator",
    "GaussianAdversary",
    "GaussianLatent",
    "GroupMeans",
    "LabelLinear",
    "LabelVector",
    "Perceptron",
    "VAEDecoder",
    "VAEEncoder",
    "covariate_codes",
    "distinct_rows",
    "energy_distance",
    "group_means",
    "kl_to_standard_normal",
    "linear",
    "multi_hot",
    "noise_of_cells",
    "output_activation",
    "shared_label",
]

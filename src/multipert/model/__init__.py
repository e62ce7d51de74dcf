"""Models: one file each, one contract for all."""

from ._additive import Additive
from ._base import PerturbationModel as PerturbationModel
from ._baselines import NoPerturb
from ._biolord import Biolord
from ._contextshift import ContextShift
from ._cpa import CPA
from ._decoderonly import DecoderOnly
from ._files import ModelFileError as ModelFileError
from ._gears import GEARS
from ._knn import KNN
from ._latentadditive import LatentAdditive, LatentAdditiveOT
from ._linearadditive import LinearAdditive
from ._module import PerturbationModule as PerturbationModule
from ._mtae import MTAe, MTAeAdv, MTAeAdvG, MTAeOT, MTAePlusOT, MTVae, MTVaeOT, MTVaePlusOT
from ._mtaeed import MTAeED
from ._nearestperturbation import NearestPerturbation
from ._samsvae import SAMSVAE
from ._scbutterfly import ScButterfly
from ._scgen import ScGen
from ._scpregan import ScPreGAN
from ._scvidr import ScVIDR
from ._tags import ModelTags as ModelTags
from ._twofactor import TwoFactor

# the registry: what the contract tests, the table of models and the command line go through
__all__ = [
    "Additive",
    "Biolord",
    "CPA",
    "ContextShift",
    "DecoderOnly",
    "GEARS",
    "KNN",
    "LatentAdditive",
    "LatentAdditiveOT",
    "LinearAdditive",
    "MTAe",
    "MTAeAdv",
    "MTAeAdvG",
    "MTAeED",
    "MTAeOT",
    "MTAePlusOT",
    "MTVae",
    "MTVaeOT",
    "MTVaePlusOT",
    "NearestPerturbation",
    "NoPerturb",
    "SAMSVAE",
    "ScButterfly",
    "ScGen",
    "ScPreGAN",
    "ScVIDR",
    "TwoFactor",
]

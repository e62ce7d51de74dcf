"""Parts of networks that models share; no AnnData inside."""

from ._condition import multi_hot, with_control
from ._film import Encoder, FiLMDecoder, FiLMGenerator, linear
from ._moments import GroupMeans, group_means

__all__ = [
    "Encoder",
    "FiLMDecoder",
    "FiLMGenerator",
    "GroupMeans",
    "group_means",
    "linear",
    "multi_hot",
    "with_control",
]

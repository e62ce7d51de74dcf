"""Models: one file each, one contract for all."""

from ._mtae import MTAe

__all__ = ["MTAe"]

"""Checks that every model passes, for models of this package and of others."""

from ._check_model import CHECKS, check_model

__all__ = ["CHECKS", "check_model"]

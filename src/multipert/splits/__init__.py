"""Who is held out: each function returns train, val or test for every cell."""

from ._contexttransfer import context_transfer

__all__ = ["context_transfer"]

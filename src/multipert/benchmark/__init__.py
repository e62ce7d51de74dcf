"""Grids of models, splits and seeds that can be killed and go on."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._results import Results
    from ._run import run
    from ._spec import ModelSpec

__all__ = ["ModelSpec", "Results", "run"]

_HOMES = {"ModelSpec": "._spec", "Results": "._results", "run": "._run"}


def __getattr__(name: str) -> Any:
    """Import a name on first use: a process that only starts workers need not load the models."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

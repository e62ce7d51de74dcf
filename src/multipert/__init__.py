"""Predict how single cells respond to perturbations."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from . import benchmark, data, datasets, embedding, metrics, model, nn, pl, pp, splits, testing, train

__version__ = _version("multipert")
__all__ = [
    "__version__",
    "benchmark",
    "data",
    "datasets",
    "embedding",
    "metrics",
    "model",
    "nn",
    "pl",
    "pp",
    "splits",
    "testing",
    "train",
]


def __getattr__(name: str) -> "ModuleType":
    """Import a submodule on first use, so that `import multipert` stays cheap."""
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__

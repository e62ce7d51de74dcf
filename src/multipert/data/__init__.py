"""How labels and cells are read, checked, paired and batched."""

import importlib
from typing import TYPE_CHECKING, Any

from ._conditions import Condition, canonical_dose, canonical_label, parse_condition
from ._pairing import pair

if TYPE_CHECKING:
    from ._backed import read_backed
    from ._disk import DiskMatrix

__all__ = [
    "Condition",
    "DiskMatrix",
    "canonical_dose",
    "canonical_label",
    "pair",
    "parse_condition",
    "read_backed",
]

_HOMES = {"DiskMatrix": "._disk", "read_backed": "._backed"}


def __getattr__(name: str) -> Any:
    """Import what needs AnnData on first use: functions of arrays load without it."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

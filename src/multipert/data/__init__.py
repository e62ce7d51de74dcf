"""How labels and cells are read, checked, paired and batched."""

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


def __getattr__(name: str) -> Any:
    """Import what needs AnnData on first use, so that functions of arrays load without it."""
    if name == "read_backed":
        from ._backed import read_backed

        return read_backed
    if name == "DiskMatrix":
        from ._disk import DiskMatrix

        return DiskMatrix
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

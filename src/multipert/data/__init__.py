"""How labels and cells are read, checked, paired and batched."""

from ._conditions import Condition, canonical_dose, canonical_label, parse_condition
from ._pairing import pair

__all__ = ["Condition", "canonical_dose", "canonical_label", "pair", "parse_condition"]

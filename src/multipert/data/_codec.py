"""Labels of many cells to integer codes and doses, and back to a stable vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys

from ._conditions import Condition, close_matches, parse_condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class ConditionCodec:
    """The vocabulary of one data set and how its labels are written.

    Parameters
    ----------
    vocabulary
        Names of the perturbations without control; a code is a position here.
    control
        Name of the control label.
    delimiter
        What separates the parts of a combination; None reads labels whole.
    """

    vocabulary: tuple[str, ...]
    control: str = _keys.CONTROL
    delimiter: str | None = "+"
    _position: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_position", {name: i for i, name in enumerate(self.vocabulary)})

    def __contains__(self, name: str) -> bool:
        """Whether a name is in the vocabulary."""
        return name in self._position

    def parse(self, label: str, dose: str | float | None = None) -> Condition:
        """Read one label; see :func:`multipert.data.parse_condition`.

        Parameters
        ----------
        label
            One perturbation or a combination.
        dose
            Its dose, in the user's units.

        Returns
        -------
        The condition.
        """
        return parse_condition(label, dose, control=self.control, delimiter=self.delimiter)

    def encode_one(self, condition: Condition, n_slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes and doses of one condition.

        Parameters
        ----------
        condition
            What :meth:`parse` returns.
        n_slots
            Width of the result.

        Returns
        -------
        Codes, shape `(n_slots,)`, int32, padded with -1; doses, shape `(n_slots,)`, float32, padded with 0.

        Raises
        ------
        ValueError
            If a perturbation is not in the vocabulary.
        """
        codes = np.full(n_slots, _keys.PAD, dtype=np.int32)
        doses = np.zeros(n_slots, dtype=np.float32)
        for slot, (name, dose) in enumerate(condition):
            if name not in self._position:
                raise ValueError(
                    f"Perturbation {name!r} is not in the vocabulary{close_matches(name, self.vocabulary)}"
                )
            codes[slot], doses[slot] = self._position[name], dose
        return codes, doses

    def encode(self, conditions: Sequence[Condition], inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and doses of many cells.

        Parameters
        ----------
        conditions
            The distinct conditions.
        inverse
            For each cell its position in `conditions`, shape `(n_cells,)`.

        Returns
        -------
        Codes, shape `(n_cells, n_slots)`, int32, padded with -1; doses of the same shape, float32, padded with 0.

        Raises
        ------
        ValueError
            If a perturbation is not in the vocabulary.
        """
        n_slots = max([1, *(len(condition) for condition in conditions)])
        rows = [self.encode_one(condition, n_slots) for condition in conditions]
        codes = np.stack([codes for codes, _ in rows])
        doses = np.stack([doses for _, doses in rows])
        return codes[inverse], doses[inverse]


def parse_column(
    labels: pd.Series, doses: pd.Series | None, *, control: str, delimiter: str | None
) -> tuple[list[Condition], np.ndarray]:
    """Read the labels of all cells, each distinct (label, dose) pair once.

    Parameters
    ----------
    labels
        Label of each cell.
    doses
        Dose of each cell, a number or a text such as "1+5"; None is dose 1.
    control
        Name of the control label.
    delimiter
        What separates the parts of a combination.

    Returns
    -------
    The distinct conditions in sorted order, and for each cell its position among them, shape `(n_cells,)`.

    Raises
    ------
    ValueError
        As :func:`multipert.data.parse_condition`.
    """
    frame = pd.DataFrame({"label": labels.astype(str).to_numpy()})
    if doses is not None:
        if isinstance(doses.dtype, pd.CategoricalDtype):
            doses = doses.astype(doses.cat.categories.dtype)
        # the shortest text of a float32 is the number that was meant, 0.1 and not 0.10000000149
        narrow = pd.api.types.is_float_dtype(doses.dtype) and doses.dtype.itemsize < 8
        frame["dose"] = (doses.astype(str) if narrow else doses).astype(object).to_numpy()
    codes, pairs = pd.factorize(pd.MultiIndex.from_frame(frame) if doses is not None else frame["label"])
    parsed = [
        parse_condition(*(pair if doses is not None else (pair,)), control=control, delimiter=delimiter)
        for pair in pairs
    ]
    distinct = sorted(set(parsed))
    position = {condition: i for i, condition in enumerate(distinct)}
    return distinct, np.array([position[condition] for condition in parsed], dtype=np.int64)[codes]


def tokens(conditions: Iterable[Condition]) -> tuple[str, ...]:
    """Names of all perturbations in some conditions.

    Parameters
    ----------
    conditions
        What :func:`multipert.data.parse_condition` returns.

    Returns
    -------
    The distinct names, sorted.
    """
    return tuple(sorted({name for condition in conditions for name, _ in condition}))

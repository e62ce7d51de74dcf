"""The label grammar: "A+B" with dose "1+5" is one condition, however it is written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from multipert import _keys

# doses are held as float32
_SMALLEST, _LARGEST = 1e-37, 1e38

Condition = tuple[tuple[str, float], ...]
"""A condition: (perturbation, dose) pairs sorted by perturbation; `()` is control."""


def parse_condition(
    label: str,
    dose: str | float | None = None,
    *,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
) -> Condition:
    """Read a label, and its dose if any, as a condition.

    The label is split on `delimiter`, stripped, freed of control tokens and of zero doses, and sorted, so that
    "B + A", "A+B" and "A+control+B" are one condition.

    Parameters
    ----------
    label
        One perturbation or a combination.
    dose
        A number, or one number per token of the label joined by `delimiter` ("1+5", in the label's order). One number
        for a combination applies to each part. None is dose 1. Units are the user's.
    control
        Name of the control label.
    delimiter
        What separates the parts of a combination; None reads every label as one perturbation.

    Returns
    -------
    (perturbation, dose) pairs sorted by perturbation; `()` is control.

    Raises
    ------
    ValueError
        If a part is empty or repeated, the number of doses fits neither the label nor one, or a dose is negative or
        not finite.

    Examples
    --------
    >>> parse_condition("B + A", "5+1")
    (('A', 1.0), ('B', 5.0))
    >>> parse_condition("A+control", 2)
    (('A', 2.0),)
    >>> parse_condition("A", 0)
    ()
    """
    label, control = str(label), str(control).strip()
    whole = not delimiter or label.strip() == control
    tokens = [label.strip()] if whole else [token.strip() for token in label.split(delimiter)]
    if any(not token for token in tokens):
        raise ValueError(
            f"Perturbation label {label!r} has an empty part; write parts as 'A{delimiter or ''}B', or pass another "
            "`delimiter` (None reads every label whole)."
        )
    doses = _parse_dose(dose, tokens, label, control, delimiter)
    parts = [(t, d) for t, d in zip(tokens, doses, strict=True) if t != control and d > 0]
    names = [token for token, _ in parts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"Perturbation label {label!r} names {', '.join(repeated)} more than once; name each part once."
        )
    return tuple(sorted(parts))


def _parse_dose(
    dose: str | float | None, tokens: list[str], label: str, control: str, delimiter: str | None
) -> list[float]:
    if dose is None:
        return [1.0] * len(tokens)
    text = str(dose)
    if isinstance(dose, Real) or not delimiter:
        values = [_as_float(text)]
    else:
        values = [_as_float(part) for part in text.split(delimiter)]
        if None in values:
            # "1e+05" is one number although it holds the delimiter
            values = [_as_float(text)]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        raise ValueError(
            f"Dose {dose!r} of label {label!r} is not a number; write a number, or one number per part as "
            f"'1{delimiter or ''}5'."
        )
    for value in numbers:
        if not math.isfinite(value) or value < 0:
            raise ValueError(
                f"Dose {dose!r} of label {label!r} is negative or not finite; doses are finite numbers >= 0 and control "
                "cells have dose 0."
            )
        if value and not _SMALLEST <= value <= _LARGEST:
            raise ValueError(
                f"Dose {dose!r} of label {label!r} is outside {_SMALLEST:g}..{_LARGEST:g}, the range of 32-bit numbers; "
                "use another unit."
            )
    if len(numbers) == 1:
        return numbers * len(tokens)
    if len(numbers) == len(tokens):
        return numbers
    treated = [token != control for token in tokens]
    if len(numbers) == sum(treated):
        rest = iter(numbers)
        return [next(rest) if is_treated else 0.0 for is_treated in treated]
    raise ValueError(
        f"Label {label!r} has {len(tokens)} part(s) but dose {dose!r} has {len(numbers)}; give one dose, or one per part "
        "in the label's order."
    )


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def canonical_label(condition: Condition, *, control: str = _keys.CONTROL, delimiter: str | None = "+") -> str:
    """Write a condition's perturbations in their one order.

    Parameters
    ----------
    condition
        What :func:`parse_condition` returns.
    control
        Name of the control label.
    delimiter
        What separates the parts of a combination.

    Returns
    -------
    The label, parts sorted; `control` for the empty condition.

    Examples
    --------
    >>> canonical_label(parse_condition("B + A"))
    'A+B'
    """
    return (delimiter or "").join(token for token, _ in condition) or control


def canonical_dose(condition: Condition, *, delimiter: str | None = "+") -> str:
    """Write a condition's doses in the order of its canonical label.

    Parameters
    ----------
    condition
        What :func:`parse_condition` returns.
    delimiter
        What separates the parts of a combination.

    Returns
    -------
    The doses, "0" for control. Reading the text back gives the same numbers.

    Examples
    --------
    >>> canonical_dose(parse_condition("B+A", "5+0.5"))
    '0.5+5'
    """
    return (delimiter or "").join(_format_number(dose) for _, dose in condition) or "0"


def _format_number(value: float) -> str:
    # without the "+" of "1e+16", which would read as a delimiter
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value).replace("e+", "e")


def as_list(values: Any) -> list:
    """One name or several, as a list.

    Parameters
    ----------
    values
        A text or a number, or an iterable of such.

    Returns
    -------
    The names.

    Examples
    --------
    >>> as_list("A"), as_list(0), as_list(("A", "B"))
    (['A'], [0], ['A', 'B'])
    """
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def close_matches(value: str, known: Iterable[str], n: int = 3) -> str:
    """Name the known values nearest to a misspelt one, for an error message.

    Parameters
    ----------
    value
        What was asked for.
    known
        The legal values.
    n
        How many to name at most.

    Returns
    -------
    A phrase such as `"; did you mean 'IFNB'?"`, or the first legal values when none is near.

    Examples
    --------
    >>> close_matches("IFNb", ["IFNB", "TGFB"])
    "; did you mean 'IFNB'?"
    """
    value, known = str(value), sorted(map(str, known))
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[m] for m in difflib.get_close_matches(value.lower(), by_lower, n=n, cutoff=0.6)]
    if near:
        return f"; did you mean {' or '.join(repr(name) for name in near)}?"
    shown = ", ".join(repr(name) for name in known[:10])
    return f"; known: {shown}{', ...' if len(known) > 10 else ''}."

"""What models are told: arguments that were left out are the preset's, and none is used unchecked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from multipert.data._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._base import PerturbationModel

    Check = Callable[[str, Any], None]


def checked(model: PerturbationModel, checks: Mapping[str, Check], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a constructor's arguments; those that were left out, as None, are the preset's.

    Parameters
    ----------
    model
        The model, for its preset.
    checks
        By the name of an argument, what refuses values that make no model.
    given
        What the constructor was called with, by name; names without a check are left alone.

    Returns
    -------
    Values by name, in the order of the checks.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If it is out of range, or unknown.
    """
    values = {name: model._preset.get(name) if given[name] is None else given[name] for name in checks}
    for name, check in checks.items():
        check(name, values[name])
    return values


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What it was given.

    Raises
    ------
    TypeError
        If the value is of another type; a text such as "no" would count as True.

    Examples
    --------
    >>> check_switch("sparse", "no")
    Traceback (most recent call last):
    TypeError: sparse='no' must be True or False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} must be True or False.")


def one_of(kind: Any) -> Check:
    """Make the check of an argument that names one of several things.

    Parameters
    ----------
    kind
        Literal type of the known names.

    Returns
    -------
    A check; it raises `ValueError` with the nearest known names.

    Examples
    --------
    >>> from typing import Literal
    >>> one_of(Literal["adam", "lstsq"])("solver", "adan")
    Traceback (most recent call last):
    ValueError: solver='adan' is unknown; did you mean 'adam'?
    """
    known = get_args(kind)

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name}={value!r} is unknown{close_matches(str(value), known)}")

    return check


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Refuse what is no whole number of at least 0.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What it was given.
    least
        The least that is legal.

    Raises
    ------
    TypeError
        If the value is no whole number; True and False are none.
    ValueError
        If it is too small.

    Examples
    --------
    >>> check_count("n_updates", "64")
    Traceback (most recent call last):
    TypeError: n_updates='64' must be a whole number of at least 0.
    """
    if not _is_whole(value):
        raise TypeError(f"{name}={value!r} must be a whole number of at least {least}.")
    if value < least:
        raise ValueError(f"{name}={value} must be a whole number of at least {least}.")


def check_width(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1; see :func:`check_count`."""
    check_count(name, value, least=1)


def check_widths(name: str, value: Any) -> None:
    """Refuse what is no list of widths, which may be empty.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What it was given.

    Raises
    ------
    TypeError
        If the value is no list, or holds what is no whole number.
    ValueError
        If a width is below 1.

    Examples
    --------
    >>> check_widths("hidden", 8)
    Traceback (most recent call last):
    TypeError: hidden=8 must be a list of widths, such as (8,).
    >>> check_widths("hidden", (8, None))
    Traceback (most recent call last):
    TypeError: hidden=(8, None) holds None; widths are whole numbers of at least 1.
    """
    if not is_list(value):
        raise TypeError(f"{name}={value!r} must be a list of widths, such as ({value if _is_whole(value) else 64},).")
    for width in value:
        if not _is_whole(width) or width < 1:
            error = ValueError if _is_whole(width) else TypeError
            raise error(f"{name}={value!r} holds {width!r}; widths are whole numbers of at least 1.")


def check_hidden(name: str, value: Any) -> None:
    """Refuse what is neither a width nor a list of widths; see :func:`check_widths`."""
    if is_list(value):
        check_widths(name, value)
    elif not _is_whole(value):
        raise TypeError(f"{name}={value!r} must be a whole number of at least 1, or a list of such numbers.")
    else:
        check_width(name, value)


def check_number(name: str, value: Any) -> None:
    """Refuse what is no finite number.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What it was given.

    Raises
    ------
    TypeError
        If the value is no number; True and False are none.
    ValueError
        If it is infinite, or not a number in the sense of floating point.

    Examples
    --------
    >>> check_number("threshold", float("nan"))
    Traceback (most recent call last):
    ValueError: threshold=nan must be a finite number.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a number.")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number.")


def check_weight(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0; see :func:`check_number`."""
    check_number(name, value)
    if value < 0:
        raise ValueError(f"{name}={value} must be a finite number of at least 0.")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no finite number above 0; see :func:`check_number`."""
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name}={value} must be a finite number above 0.")


def check_rate(name: str, value: Any) -> None:
    """Refuse what is no number of at least 0 and below 1; see :func:`check_number`."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must be at least 0 and below 1.")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in 0..1, both of which are legal; see :func:`check_number`."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in 0..1.")


def is_list(value: Any) -> bool:
    """Whether a value holds several others, one after the other; a text does not.

    Parameters
    ----------
    value
        Any.

    Returns
    -------
    True for lists, tuples, and arrays of one dimension.

    Examples
    --------
    >>> is_list(("x", "y")), is_list("xy")
    (True, False)
    """
    is_plain = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return is_plain and getattr(value, "ndim", 1) == 1


def hidden_widths(width: Any, depth: int, n_layers: int | None) -> tuple[int, ...]:
    """Width of every hidden layer.

    Parameters
    ----------
    width
        `n_hidden`, the width of all layers or a list of widths.
    depth
        Number of layers, where there is one width for all.
    n_layers
        `n_layers` as it was given; None agrees with any list.

    Returns
    -------
    One width per layer.

    Raises
    ------
    ValueError
        If there is no layer, or a list and `n_layers` disagree.

    Examples
    --------
    >>> hidden_widths(64, 2, None), hidden_widths((64, 32), 3, None)
    ((64, 64), (64, 32))
    """
    hidden = tuple(width) if is_list(width) else (width,) * depth
    if not hidden or (n_layers is not None and len(hidden) != n_layers):
        raise ValueError(f"n_hidden={width} holds {len(hidden)} width(s), but n_layers={depth}; give one of them.")
    return hidden


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)

"""What all pictures share: new axes, and colours and lines that read on white and on near-black."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY: Final = "#8b929c"
PALETTE: Final = ("#2f7fc1", "#e0752d", "#2f9e6e", "#7648c9", "#cfa21c", "#96364f", "#c97fbf")
"""Told apart with the common kinds of colour blindness too; lines and markers vary besides."""
GROUPS: Final = {"control": GREY, "observed": PALETTE[0], "predicted": PALETTE[1]}
"""The groups of cells that have the same colour in every picture."""
LINES: Final = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v")
SMALL: Final = 0.85
"""Size of what is said beside, as a share of the font size."""


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or those of a new pyplot figure, which notebooks display.

    Parameters
    ----------
    ax
        Axes to draw on.
    width
        Width of the new figure in inches.
    height
        Height of the new figure in inches.

    Returns
    -------
    The axes.
    """
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def root_figure(ax: Axes) -> Figure:
    """The whole figure, also where the axes are in a subfigure."""
    return ax.figure.canvas.figure


def ink() -> str:
    """Colour of text, which a dark style has made light."""
    from matplotlib import rcParams

    return rcParams["text.color"]


def font_size(share: float = 1.0) -> float:
    """Points of text, from what the user has set.

    Parameters
    ----------
    share
        Share of the set size.

    Returns
    -------
    The size.
    """
    from matplotlib import rcParams

    return share * rcParams["font.size"]


def point_styles(names: Iterable[str], *, grey: Iterable[str] = ()) -> dict[str, tuple[str, str]]:
    """Colour and marker of every name: those of :data:`GROUPS` keep theirs, the others take them in turn.

    Parameters
    ----------
    names
        What is drawn.
    grey
        Names to draw in grey.

    Returns
    -------
    Colour and marker by name; another marker where the colours begin again.
    """
    names, fixed = list(names), GROUPS | dict.fromkeys(grey, GREY)
    free = [colour for colour in PALETTE if colour not in {fixed.get(name) for name in names}]
    others = iter([(colour, marker) for marker in MARKERS for colour in free] * len(names))
    return {name: (fixed[name], MARKERS[0]) if name in fixed else next(others) for name in names}


def colours(names: Iterable[str], *, grey: Iterable[str] = ()) -> dict[str, str]:
    """Colours alone of :func:`point_styles`.

    Parameters
    ----------
    names
        What is drawn.
    grey
        Names to draw in grey.

    Returns
    -------
    Colours by name.
    """
    return {name: colour for name, (colour, _) in point_styles(names, grey=grey).items()}


def line_styles(names: Iterable[str], *, grey: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Colour, dashes and width of every curve, so that none is told by its colour alone.

    Parameters
    ----------
    names
        What is drawn.
    grey
        Names to draw thin and in grey.

    Returns
    -------
    Keyword arguments of a line by name.
    """
    names, grey = list(names), set(grey)
    colour_of = colours(names, grey=grey)
    return {
        name: {"color": colour_of[name], "linestyle": LINES[i % len(LINES)], "linewidth": 1.3 if name in grey else 2.0}
        for i, name in enumerate(names)
    }

"""Names beside points, none over another."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ._axes import ink, root_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Box: TypeAlias = tuple[float, ...]
"""Left, lower, right and upper edge in pixels."""
_RADII = (9, 14, 20, 28, 38, 52, 70, 90, 120)
_N_ANGLES = 12
_COST_OF_COVERING, _MOST_COST, _COST_OF_CROSSING = 2.0, 40.0, 40.0
"""A name goes that many points farther away rather than cover one more point, or tie itself across another name."""
_PADDING = 1.12
"""Room for a page that shows the text in a wider font of its own."""


def name_points(
    ax: Axes,
    points: np.ndarray,
    names: Sequence[str],
    *,
    size: float,
    others: np.ndarray,
    avoid: Sequence[Artist] = (),
) -> None:
    """Write names beside points where they cover neither one another nor a named point.

    A name goes to the nearest free place that covers few of the other points, tied to its point by a thin line. Without a
    free place it is left out. The layout is the one that the figure has now.

    Parameters
    ----------
    ax
        Axes with their final limits.
    points
        Places of the points in data coordinates, shape `(n_points, 2)`.
    names
        One per point.
    size
        Font size in points.
    others
        Places of points without a name, shape `(n_others, 2)`.
    avoid
        Artists that stay free.
    """
    figure = root_figure(ax)
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    anchors = ax.transData.transform(points) if len(points) else points
    crowd = ax.transData.transform(others) if len(others) else np.empty((0, 2))
    frame: Box = tuple(ax.get_window_extent().extents)
    taken: list[Box] = [(x - 3 * pixels, y - 3 * pixels, x + 3 * pixels, y + 3 * pixels) for x, y in anchors]
    taken += [tuple(artist.get_window_extent().extents) for artist in avoid]
    written: list[Box] = []
    for (x, y), at, name in zip(anchors, points, names, strict=True):
        width, height = _extent(ax, name, size)
        best, least = None, np.inf
        for radius, centre in _places(x, y, width, pixels, 135 if at[1] > at[0] else -45):
            box = _around(*centre, width, height)
            if radius >= least or not _is_within(box, frame) or any(_overlap(box, other) for other in taken):
                continue
            cost = radius + min(_COST_OF_COVERING * _n_inside(crowd, box), _MOST_COST)
            line = _line((x, y), centre)
            cost += _COST_OF_CROSSING * sum(_n_inside(line, other) > 0 for other in written)
            if cost < least:
                best, least = centre, cost
        if best is not None:
            written.append(_around(*best, width, height))
            taken.append(written[-1])
            crowd = np.vstack([crowd, _line((x, y), best)])
            ax.annotate(
                name, at, ((best[0] - x) / pixels, (best[1] - y) / pixels), textcoords="offset points", ha="center",
                va="center", fontsize=size, parse_math=False, zorder=5,
                arrowprops={"arrowstyle": "-", "color": ink(), "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 1},
            )  # fmt: skip


def _places(
    x: float, y: float, width: float, pixels: float, start: float
) -> Iterator[tuple[float, tuple[float, float]]]:
    """Distances in points, and centres for a name, from near to far and by turns to both sides of an angle."""
    for radius, turn in itertools.product(_RADII, range(_N_ANGLES)):
        angle = np.deg2rad(start + 360 / _N_ANGLES * ((turn + 1) // 2) * (-1) ** turn)
        beside = np.sign(np.cos(angle)) if abs(np.cos(angle)) > 0.3 else 0
        yield (
            radius,
            (x + pixels * radius * np.cos(angle) + width / 2 * beside, y + pixels * radius * np.sin(angle)),
        )


def _extent(ax: Axes, name: str, size: float) -> tuple[float, float]:
    """Width and height of a name in pixels."""
    text = ax.text(0, 0, name, fontsize=size, parse_math=False)
    box = text.get_window_extent()
    text.remove()
    return _PADDING * box.width, box.height


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _line(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Some points between two."""
    return np.linspace(start, end, 10)[1:-1]


def _n_inside(points: np.ndarray, box: Box) -> int:
    x, y = points.T
    return int(np.sum((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])))


def _is_within(box: Box, frame: Box) -> bool:
    return box[0] > frame[0] and box[1] > frame[1] and box[2] < frame[2] and box[3] < frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

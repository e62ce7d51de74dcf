from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches

from ._axes import GREY, PALETTE, SMALL, axes_or_new, font_size, ink, point_styles, root_figure
from ._names import name_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["pca", "mds"]

_MOST_GROUPS: Final = 25
_MOST_NAMES: Final = 40
"""More names than this make a list of a map."""
_APART: Final = 0.06
"""Of points nearer to one another than this share of the map only one is named, as long as others wait."""
_LONGEST: Final = 30
"""A name farther from its point, in points, is harder to follow than to do without."""
_CLOSE: Final = 3
"""A line to a name that passes another named point as near as this, in points, seems to be that one's."""
_MOST_COVERED: Final = 8
_MOST_MDS: Final = 2000
"""A step costs all pairs."""
_N_STEPS: Final = 300
_LEAST_GAIN: Final = 1e-4
_NO_GROUP: Final = "no group"


def perturbations(
    embedding: pd.DataFrame,
    *,
    groups: Mapping[str, str] | pd.Series | None = None,
    method: Method = "pca",
    n_labels: int | None = None,
    control: str = _keys.CONTROL,
    dose_delimiter: str | None = "@",
    ax: Axes | None = None,
) -> Axes:
    """Map of perturbations by their vectors, such as a model has learnt.

    Both axes have one scale, so that distances mean what they seem to, as far as the axes say: for "pca" they give the
    share of the variance that they hold, for "mds" how far the distances are off. Control is a star. Labels that end in
    a dose, such as "A@10", are joined in the order of the dose, starting from control; the points grow with the dose.

    Parameters
    ----------
    embedding
        One row per perturbation, index = label, such as `model.get_perturbation_embedding()`. Columns weigh as they are.
        A table of changes has no row of control; `table.loc["control"] = 0` adds it.
    groups
        Group by label, such as a pathway: its colour, and an entry with the number of perturbations in the legend. A dose
        without a group has that of its perturbation. Labels without one are grey; labels that are not drawn are ignored.
    method
        "pca": the first two principal components. "mds": the map with distances as near as can be to those of the rows
        (metric scaling :cite:p:`DeLeeuw1977`, starting from the components), for where two components hold little of the
        variance; at most 2,000 rows.
    n_labels
        How many perturbations to name, control aside, which is named whenever it is there. Those farthest from it on the
        map come first (from the middle, if it is not there); where some lie close together, or are doses of one
        perturbation, the farthest of them, and the others only after all the rest. A name without a free place near its
        point is left out, so there may be fewer. None: up to 40.
    control
        Label of control.
    dose_delimiter
        What stands between a label and its dose; None reads no doses.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    TypeError
        If `embedding` is no DataFrame, a column holds no numbers, or `groups` is neither a mapping nor a Series.
    ValueError
        If there are fewer than two rows or no columns, values are NaN or infinite, labels repeat, all rows are the same,
        no label has a group, there are more groups than can be told apart (25), there are too many rows for "mds", or
        `method` or `n_labels` is not legal.

    See Also
    --------
    multipert.pl.latent : a map of cells.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame([[0, 0, 0], [3, 0, 0], [6, 1, 0], [0, 2, 1.0]], index=["control", "A@1", "A@10", "B"])
    >>> ax = perturbations(table, groups={"A": "kinase", "B": "receptor"})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['kinase (2)', 'receptor (1)']
    >>> ax.get_xlabel()
    'PC1 (88%)'
    """
    if method not in get_args(Method):
        raise ValueError(f"`method` is {method!r}; it must be one of {', '.join(get_args(Method))}.")
    if n_labels is not None and n_labels < 0:
        raise ValueError(f"`n_labels` is {n_labels}; it must be at least 0, or None.")
    names, space = _vectors(embedding)
    if method == "mds" and len(names) > _MOST_MDS:
        raise ValueError(f"`embedding` has {len(names)} rows; method 'mds' takes at most {_MOST_MDS}, so use 'pca'.")
    is_control = np.array(names) == control
    group_of, levels = _groups(names, is_control, groups, dose_delimiter)
    series = _dose_series(names, is_control, dose_delimiter)

    points, axis_labels = _map(space, method)
    paths = [points[np.concatenate([np.flatnonzero(is_control), rows])] for rows in series]
    colour_of, marker_of = _styles(group_of, levels, series)
    ax = _axes(ax, points, has_legend=bool(levels))
    for rows, path in zip(series, paths, strict=True):
        ax.plot(*path.T, color=colour_of[rows[-1]], linewidth=1.1, alpha=0.55, zorder=1)
    sizes = float(np.clip(2400 / len(points), 6, 40)) * _growth(len(points), series)
    _scatter(ax, points, is_control, sizes, colour_of, marker_of)
    ax.set(xlabel=axis_labels[0], ylabel=axis_labels[1], xticks=[], yticks=[])
    ax.margins(0.1)
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
    if levels:
        _legend(ax, group_of[~is_control], levels, getattr(groups, "name", None))

    named = _named(points, is_control, series, _MOST_NAMES if n_labels is None else n_labels)
    others = np.concatenate([np.delete(points, named, axis=0), *map(_along, paths)])
    _name(ax, points[named], [names[i] for i in named], others, control)
    return ax


def _vectors(embedding: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Labels and vectors, checked."""
    if not isinstance(embedding, pd.DataFrame):
        raise TypeError(
            f"`embedding` is a {type(embedding).__name__}; it must be a DataFrame, one row per perturbation."
        )
    n_rows, n_columns = embedding.shape
    if n_rows < 2 or not n_columns:
        raise ValueError(
            f"`embedding` has {n_rows} rows and {n_columns} columns; a map needs at least 2 rows and 1 column."
        )
    texts = [name for name, dtype in embedding.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if texts:
        raise TypeError(f"`embedding` has {len(texts)} columns that hold no numbers, first {texts[0]!r}; drop them.")
    names = [str(name) for name in embedding.index]
    repeated = np.flatnonzero(pd.Index(names).duplicated())
    if len(repeated):
        raise ValueError(
            f"`embedding` has {len(repeated)} rows whose label an earlier row has, first {names[repeated[0]]!r}; give one "
            "row per perturbation, such as their means."
        )
    space = embedding.to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(space).all(axis=1))
    if len(bad):
        raise ValueError(
            f"`embedding` has NaN or infinite values in {len(bad)} of {n_rows} rows, first {names[bad[0]]!r}; drop these "
            "rows, or the columns if they are the cause."
        )
    if not np.ptp(space, axis=0).any():
        raise ValueError(f"All {n_rows} rows of `embedding` are the same, so there is nothing to draw.")
    return names, space


def _split(name: str, delimiter: str | None) -> tuple[str, float | None]:
    """Perturbation and dose of a label; the whole label and None if it does not end in a dose."""
    perturbation, _, dose = name.rpartition(delimiter) if delimiter else ("", "", "")
    try:
        value = float(dose)
    except ValueError:
        return name, None
    return (perturbation, value) if perturbation and np.isfinite(value) else (name, None)


def _dose_series(names: list[str], is_control: np.ndarray, delimiter: str | None) -> list[np.ndarray]:
    """Rows of every perturbation with several doses, the lowest dose first."""
    doses: dict[str, list[tuple[float, int]]] = {}
    for row in np.flatnonzero(~is_control).tolist():
        perturbation, dose = _split(names[row], delimiter)
        if dose is not None:
            doses.setdefault(perturbation, []).append((dose, row))
    return [np.array([row for _, row in sorted(found)]) for found in doses.values() if len(found) > 1]


def _groups(
    names: list[str], is_control: np.ndarray, groups: Mapping[str, str] | pd.Series | None, delimiter: str | None
) -> tuple[np.ndarray, list[str]]:
    """Group of every row, and the groups of the legend in order; none if no groups are given."""
    if groups is None:
        return np.full(len(names), _NO_GROUP), []
    if not isinstance(groups, (Mapping, pd.Series)):
        raise TypeError(f"`groups` is a {type(groups).__name__}; it must be a mapping or a Series from label to group.")
    known = {str(label): str(group) for label, group in groups.items() if not pd.isna(group)}
    found = np.array([known.get(name, known.get(_split(name, delimiter)[0], _NO_GROUP)) for name in names])
    levels = sorted(set(found[~is_control]))
    if levels == [_NO_GROUP]:
        first = names[int(np.argmin(is_control))]
        raise ValueError(
            f"`groups` has none of the {int(np.sum(~is_control))} perturbations, first {first!r}{close_matches(first, known)}"
        )
    if len(levels) > _MOST_GROUPS:
        raise ValueError(
            f"`groups` has {len(levels)} groups; {_MOST_GROUPS} can be told apart. Leave out the smaller ones, whose "
            "perturbations are then grey."
        )
    if isinstance(groups, pd.Series) and isinstance(groups.dtype, pd.CategoricalDtype):
        levels.sort(key=[*map(str, groups.cat.categories), _NO_GROUP].index)
    return found, sorted(levels, key=_NO_GROUP.__eq__)


def _map(space: np.ndarray, method: Method) -> tuple[np.ndarray, list[str]]:
    """Two coordinates of every row, and what they are."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(2, *space.shape), random_state=0)
    points, share = pca.fit_transform(space), pca.explained_variance_ratio_
    if points.shape[1] < 2:
        points, share = np.column_stack([points, np.zeros(len(points))]), np.append(share, 0.0)
    if method == "pca":
        return points, [f"PC{i} ({part:.0%})" for i, part in zip((1, 2), share, strict=True)]
    points, error = _keep_distances(space, points)
    return points, [f"MDS 1 (distances off by {error:.0%})", "MDS 2"]


def _keep_distances(space: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Points moved until their distances are as near as they come to those of the rows, and how far they are off.

    Every step puts a point at the mean of the places where the others would have it, which never raises the sum of the
    squared differences.
    """
    from scipy.spatial.distance import pdist, squareform

    wanted = squareform(pdist(space))
    total, before = np.sum(wanted**2), np.inf
    for _ in range(_N_STEPS):
        current = squareform(pdist(points))
        left = np.sum((wanted - current) ** 2) / total
        if before - left < _LEAST_GAIN * before:
            break
        pull = np.divide(wanted, current, out=np.zeros_like(wanted), where=current > 0)
        points, before = (pull.sum(axis=1, keepdims=True) * points - pull @ points) / len(points), left
    return points, float(np.sqrt(left))


def _styles(group_of: np.ndarray, levels: list[str], series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Colour and marker of every row: those of its group or, without groups, of the perturbation with its doses."""
    style = point_styles(levels, grey=[_NO_GROUP]) if levels else {_NO_GROUP: (GREY if series else PALETTE[0], "o")}
    pairs = [style.get(group, (GREY, "o")) for group in group_of]
    colour_of, marker_of = (np.array(column) for column in zip(*pairs, strict=True))
    for i, rows in enumerate(() if levels else series):
        colour_of[rows] = PALETTE[i % len(PALETTE)]
    return colour_of, marker_of


def _axes(ax: Axes | None, points: np.ndarray, *, has_legend: bool) -> Axes:
    """Axes given, or new ones as flat or high as the map."""
    width, height = np.ptp(points, axis=0)
    return axes_or_new(
        ax, 6.4 if has_legend else 5.0, 0.6 + 4.4 * float(np.clip(height / max(width, 1e-9), 0.55, 1.05))
    )


def _growth(n_points: int, series: list[np.ndarray]) -> np.ndarray:
    """Factor of the area of every point, which grows with the dose."""
    factor = np.ones(n_points)
    for rows in series:
        factor[rows] = np.linspace(0.35, 1.35, len(rows))
    return factor


def _scatter(
    ax: Axes,
    points: np.ndarray,
    is_control: np.ndarray,
    sizes: np.ndarray,
    colour_of: np.ndarray,
    marker_of: np.ndarray,
) -> None:
    # in a fixed disorder, so that no group hides another as a whole
    order = np.random.default_rng(0).permutation(np.flatnonzero(~is_control))
    style: dict[str, Any] = {"alpha": 0.8, "linewidths": 0, "zorder": 2, "rasterized": True}
    for marker in dict.fromkeys(marker_of[order]):
        rows = order[marker_of[order] == marker]
        ax.scatter(points[rows, 0], points[rows, 1], s=sizes[rows], c=colour_of[rows], marker=marker, **style)
    if is_control.any():
        x, y = points[is_control].T
        ax.scatter(x, y, s=130, marker="*", color=GREY, edgecolors=ink(), linewidths=0.8, zorder=4)


def _legend(ax: Axes, group_of: np.ndarray, levels: list[str], title: str | None) -> None:
    for level, (colour, marker) in point_styles(levels, grey=[_NO_GROUP]).items():
        label = f"{level} ({int(np.sum(group_of == level))})"
        ax.plot([], [], marker, color=colour, markersize=5.5, markeredgewidth=0, label=label)
    ax.legend(
        title=title, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, handletextpad=0.2,
        ncols=1 + len(levels) // 15, fontsize=font_size(SMALL), title_fontsize=font_size(SMALL), alignment="left",
    )  # fmt: skip


def _named(points: np.ndarray, is_control: np.ndarray, series: list[np.ndarray], n: int) -> np.ndarray:
    """Control and the rows to name, in the order in which their names take places."""
    far = np.linalg.norm(points - (points[is_control] if is_control.any() else points).mean(axis=0), axis=1)
    can_wait = np.zeros(len(points), dtype=bool)
    for rows in series:
        can_wait[np.delete(rows, np.argmax(far[rows]))] = True
    least = _APART * np.linalg.norm(np.ptp(points, axis=0))
    first: list[int] = []
    for row in np.argsort(-far, kind="stable").tolist():
        if len(first) == n:
            break
        if not can_wait[row] and not is_control[row]:
            first.append(row)
            can_wait |= np.linalg.norm(points - points[row], axis=1) < least
    can_wait[first] = False
    return np.lexsort([-far, can_wait, ~is_control])[: n + int(is_control.sum())]


def _name(ax: Axes, points: np.ndarray, names: list[str], others: np.ndarray, control: str) -> None:
    """Names beside points, without those that would be hard to read or to follow."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    before = set(ax.texts)
    name_points(ax, points, names, size=font_size(SMALL), others=others)
    root_figure(ax).draw_without_rendering()
    place, crowd = (ax.transData.transform(some) if len(some) else np.empty((0, 2)) for some in (points, others))
    pixels = root_figure(ax).dpi / 72
    for text in [text for text in ax.texts if text not in before]:
        # without the line that an annotation draws
        box = Text.get_window_extent(text)
        own = names.index(text.get_text())
        end = np.clip(place[own], box.min, box.max)
        line = np.linspace(place[own], end, 8)[:, None]
        is_far = np.linalg.norm(end - place[own]) > _LONGEST * pixels
        # a point at the same place cannot be told apart anyway
        rest = place[np.linalg.norm(place - place[own], axis=1) > 2 * _CLOSE * pixels]
        is_astray = (np.linalg.norm(line - rest, axis=2) < _CLOSE * pixels).any()
        n_covered = int(np.sum((crowd > box.min).all(axis=1) & (crowd < box.max).all(axis=1)))
        if names[own] != control and (is_far or is_astray or n_covered > _MOST_COVERED):
            text.remove()
        else:
            text.set_path_effects([withStroke(linewidth=2, foreground=ax.get_facecolor())])


def _along(path: np.ndarray) -> np.ndarray:
    """Some points on the lines between those of a path."""
    shares = np.linspace(0, 1, 8)[1:-1, None]
    return np.concatenate([start + shares * (end - start) for start, end in zip(path[:-1], path[1:], strict=True)])

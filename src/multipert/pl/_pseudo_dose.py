from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multipert import _keys

from ._axes import GROUPS, SMALL, axes_or_new, font_size, ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pseudo_dose(values: pd.Series, doses: pd.Series, *, dose_key: str = _keys.DOSE, ax: Axes | None = None) -> Axes:
    """How far the cells of each measured dose have moved along the vector of the perturbation.

    The shape over each dose is the distribution of its cells, the bar their middle half, the point their mean. Doses stand
    side by side, not to scale, control (dose 0) first and in grey. Dotted lines are at the mean of control and 1 above it,
    where the cells at the highest dose lie on average in a context that the vector was measured in.

    Parameters
    ----------
    values
        Pseudo-doses of cells of one context, as :meth:`multipert.model.ScVIDR.pseudo_dose` returns them.
    doses
        Measured doses of these cells, numbers, control 0; cells are matched by name.
    dose_key
        What to call the doses.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If a cell of `values` has no dose.
    ValueError
        If there are no cells, names repeat, a value is not finite, or a dose is no number or negative.

    Examples
    --------
    >>> import pandas as pd
    >>> values = pd.Series([0.1, -0.1, 0.6, 0.4, 1.1, 0.9], index=list("abcdef"))
    >>> ax = pseudo_dose(values, pd.Series([0, 0, 1, 1, 30, 30], index=list("abcdef")))
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['control', '1', '30']
    """
    numbers = _numbers(values, doses)
    y = values.to_numpy(dtype=float)
    shown = np.unique(numbers)
    groups = [y[numbers == dose] for dose in shown]
    colours = [GROUPS["observed"] if dose > 0 else GROUPS["control"] for dose in shown]
    ax = axes_or_new(ax, 1.6 + 0.62 * len(shown), 3.6)
    for place, (cells, colour) in enumerate(zip(groups, colours, strict=True)):
        if len(cells) > 1 and np.ptp(cells) > 0:
            shapes: Any = ax.violinplot([cells], [place], widths=0.85, showextrema=False)["bodies"]
            shapes[0].set(facecolor=colour, edgecolor="none", alpha=0.45)
        ax.vlines(place, *np.quantile(cells, [0.25, 0.75]), color=colour, linewidth=4)
        ax.plot(place, cells.mean(), "o", color=ink(), markersize=4.5, zorder=3)
    if shown[0] == 0:
        origin = groups[0].mean()
        for level, text in ((origin, "mean of control"), (origin + 1, "1 above")):
            ax.axhline(level, color=ink(), linestyle=":", linewidth=0.8, alpha=0.7, zorder=0)
            ax.annotate(
                text, (1, level), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=font_size(SMALL), annotation_clip=False,
            )  # fmt: skip
        ax.set_ylim(min(ax.get_ylim()[0], origin - 0.1), max(ax.get_ylim()[1], origin + 1.1))
    ax.set_xticks(range(len(shown)), [f"{dose:g}" if dose > 0 else "control" for dose in shown])
    ax.set_xlim(-0.6, len(shown) - 0.4)
    ax.set_xlabel(dose_key)
    ax.set_ylabel("pseudo-dose")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _numbers(values: pd.Series, doses: pd.Series) -> np.ndarray:
    """The dose of every cell."""
    if not len(values):
        raise ValueError("`values` has no cells, so there is nothing to draw.")
    for name, series in (("values", values), ("doses", doses)):
        if not series.index.is_unique:
            raise ValueError(f"`{name}` names {int(series.index.duplicated().sum())} cell(s) more than once.")
    n_bad = int((~np.isfinite(values.to_numpy(dtype=float))).sum())
    if n_bad:
        raise ValueError(f"`values` holds {n_bad} NaN or infinite value(s); leave these cells out.")
    absent = values.index.difference(doses.index)
    if len(absent):
        raise KeyError(f"`doses` lacks {len(absent)} cell(s) of `values`, first {absent[0]!r}.")
    given = doses.loc[values.index]
    numbers = pd.to_numeric(given.astype(str), errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    if wrong.any():
        raise ValueError(f"`doses` holds {int(wrong.sum())} value(s) that are no dose, first {given[wrong].iloc[0]!r}.")
    return numbers

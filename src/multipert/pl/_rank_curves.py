from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multipert.metrics import REFERENCES

from ._axes import SMALL, axes_or_new, font_size, ink, line_styles
from ._checks import check_frame, check_known

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


_MOST_WITHIN: Final = 5
"""More curves than this leave no room for a legend among them."""


def rank_curves(
    frame: pd.DataFrame, *, metric: str | None = None, model_key: str = "model", ax: Axes | None = None
) -> Axes:
    """Share of the perturbations whose rank is at most r, for every model.

    A rank of 0 says that no wrong pair is nearer than the right one, 0.5 is chance (the diagonal). The area above a
    curve is the mean rank, which the legend gives, best model first, with the number of
    perturbations whose rank is defined. References are grey.

    Parameters
    ----------
    frame
        One row per model and perturbation (and seed, if there are several) with the rank in `value`.
    metric
        Which rank, where `frame` has a column `metric` with several values.
    model_key
        Column of the models, such as "predictor" in a frame of :func:`multipert.metrics.evaluate`.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If there are no rows, `metric` is unknown or needed, or values lie outside 0 to 1.

    See Also
    --------
    multipert.metrics.rank : the ranks.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"model": ["A", "A", "B", "B"], "value": [0.5, 0.7, 0.0, 0.2]})
    >>> ax = rank_curves(frame)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['B: 0.100 (n = 2)', 'A: 0.600 (n = 2)', 'chance: 0.500']
    """
    check_frame(frame, [model_key, "value", *([] if metric is None else ["metric"])])
    known = list(dict.fromkeys(frame["metric"])) if "metric" in frame else []
    if metric is not None:
        check_known("metric", [metric], known)
        frame = frame[frame["metric"] == metric]
    elif len(known) > 1:
        raise ValueError(
            f"`frame` holds {len(known)} metrics ({', '.join(map(str, known[:5]))}); name one as `metric`."
        )
    if frame["value"].isna().all():
        raise ValueError(f"All {len(frame)} values of `frame` are undefined, so there is nothing to draw.")
    outside = frame["value"][(frame["value"] < 0) | (frame["value"] > 1)]
    if len(outside):
        raise ValueError(f"{len(outside)} of {len(frame)} values are no rank in 0 to 1, first {outside.iloc[0]:g}.")

    groups = frame.groupby(model_key, sort=False, observed=True)["value"]
    ranks = {str(name): np.sort(values.dropna()) for name, values in groups}
    mean = {name: values.mean() if len(values) else np.inf for name, values in ranks.items()}
    style = line_styles(ranks, grey=REFERENCES)
    is_beside = len(ranks) > _MOST_WITHIN
    ax = axes_or_new(ax, 7.4 if is_beside else 5.2, 4.2)
    for name in sorted(ranks, key=lambda name: mean[name]):
        values = ranks[name]
        if not len(values):
            ax.plot([], [], label=f"{name}: undefined", **style[name])
            continue
        share = np.arange(1, len(values) + 1) / len(values)
        label = f"{name}: {mean[name]:.3f} (n = {len(values)})"
        # references below the models, whose order is that of the legend
        height = 2 if name in REFERENCES else 3
        ax.step([0, *values, 1], [0, *share, 1], where="post", label=label, zorder=height, **style[name])
    ax.plot([0, 1], [0, 1], color=ink(), linewidth=0.8, alpha=0.6, zorder=1, label="chance: 0.500")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=f"{metric or (known or ['rank'])[0]}, r")
    ax.set_ylabel("share of perturbations with rank ≤ r")
    small = font_size(SMALL)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)} if is_beside else {"loc": "lower right"}
    ax.legend(title="mean rank", fontsize=small, title_fontsize=small, frameon=False, **place)
    ax.spines[["top", "right"]].set_visible(False)
    return ax

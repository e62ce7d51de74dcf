from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from multipert.metrics import METRICS, REFERENCES

from ._axes import SMALL, axes_or_new, font_size, ink, root_figure
from ._checks import as_list, check_frame, check_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

Value = Literal["calibrated", "value"]

_ARROWS: Final = {"higher": "↑", "lower": "↓", "nearest": "→"}
_COLOURS: Final = ("#b5561b", "#e9a877", "#f1f1f1", "#86b6de", "#1f66a8")
"""From -1 over 0 to 1; orange and blue are told apart by everyone."""
_GAP: Final = 0.55
_MEAN: Final = "mean"


def benchmark_table(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    value: Value = "calibrated",
    better: Mapping[str, str] | None = None,
    model_key: str = "model",
    ax: Axes | None = None,
) -> Axes:
    """Models by metrics, coloured by what they gain over the baselines.

    A cell holds the mean over seeds (each the mean of its rows, such as splits) and, if there are several seeds, their
    standard deviation. The colour is the calibrated value, limited to -1 to 1: 0 is the better of no change and the mean
    baselines, 1 the ceiling. The models stand in the order of their mean over the metrics shown, each limited likewise,
    which the last column holds; references and the ceiling stand below, apart. A dash is undefined; a star marks a mean
    from which undefined values are left out.

    Parameters
    ----------
    frame
        One row per model, metric and, if there are such columns, `seed`, split or group, with the column `calibrated`,
        as :func:`multipert.metrics.summarise` makes it, or `value`, or both.
    metrics
        Metrics to show, in order; None shows all.
    value
        What is written in the cells: "calibrated", or the raw "value". Without the column `calibrated` raw values are not
        coloured, and the models keep their order.
    better
        "higher", "lower" or "nearest" by metric, for the arrows; None takes it from `multipert.metrics.METRICS`.
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
        If there are no rows, or a metric, a direction or `value` is unknown.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("A", 0, 0.5), ("A", 1, 0.7), ("no_change", 0, -0.2), ("no_change", 1, -0.2), ("ceiling", 0, 1.0)]
    >>> frame = pd.DataFrame(rows, columns=["model", "seed", "calibrated"]).assign(metric="pearson_delta")
    >>> ax = benchmark_table(frame)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['A', 'ceiling', 'no_change']
    """
    if value not in get_args(Value):
        raise ValueError(f"`value` is {value!r}; it must be one of {', '.join(get_args(Value))}.")
    check_frame(frame, [model_key, "metric", value])
    known = list(dict.fromkeys(frame["metric"]))
    metrics = known if metrics is None else as_list(metrics)
    check_known("metrics", metrics, known)
    labels = [_heading(metric, better or {}) for metric in metrics]

    frame = frame[frame["metric"].isin(metrics)]
    mean, sd, is_partial = _summary(frame, model_key, metrics, value)
    colour = None
    if "calibrated" in frame:
        colour = _summary(frame, model_key, metrics, "calibrated")[0].clip(-1, 1)
        average = colour.mean(axis=1)
        order = average.sort_values(ascending=False, kind="stable", na_position="last").index
        mean, sd, is_partial, colour = mean.loc[order], sd.loc[order], is_partial.loc[order], colour.loc[order]

    models = [name for name in mean.index if name not in REFERENCES]
    references = [name for name in mean.index if name in REFERENCES]
    rows = dict(zip([*models, *references], _places(len(models), len(references)), strict=True))
    columns = [float(i) for i in range(len(metrics))]
    has_average = colour is not None and len(metrics) > 1
    height = 0.42 if sd.notna().to_numpy().any() else 0.32
    ax = axes_or_new(ax, 1.9 + 0.82 * (len(metrics) + has_average), 1.5 + height * (len(rows) + 0.5))
    scale = _scale()
    for column, metric in zip(columns, metrics, strict=True):
        digits = 2 if value == "calibrated" else _digits(mean[metric])
        for name, row in rows.items():
            fill = None if colour is None else scale.to_rgba(colour.loc[name, metric])
            star = "*" if is_partial.loc[name, metric] else ""
            _cell(ax, column, row, mean.loc[name, metric], sd.loc[name, metric], fill, digits, star)
    if has_average:
        assert colour is not None
        columns, labels = [*columns, len(metrics) - 1 + 1.25], [*labels, _MEAN]
        for name, row in rows.items():
            number, is_whole = colour.loc[name].mean(), not (colour.loc[name].isna() | is_partial.loc[name]).any()
            star = "" if is_whole else "*"
            _cell(ax, columns[-1], row, number, np.nan, scale.to_rgba(number), 2, star, weight="bold")
    if models and references:
        ax.axhline(len(models) - 0.5 + _GAP / 2, color=ink(), linewidth=0.8, alpha=0.6)
    ax.set(xlim=(-0.5, columns[-1] + 0.5), ylim=(max(rows.values()) + 0.5, -0.5))
    ax.set_xticks(columns, labels, rotation=35, ha="left", rotation_mode="anchor", fontsize=font_size(0.95))
    ax.set_yticks(list(rows.values()), list(rows))
    for label in ax.get_yticklabels()[len(models) :]:
        label.set(style="italic", alpha=0.8)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    if any(text.get_text().endswith("*") for text in ax.texts):
        ax.set_xlabel("* without what is undefined", fontsize=font_size(SMALL))
    if colour is not None:
        _key(ax, scale)
    return ax


def _summary(
    frame: pd.DataFrame, model_key: str, metrics: Sequence[str], column: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Mean and standard deviation over seeds, and whether undefined values were left out: models by metrics."""
    keys = [model_key, "metric"]
    by_seed = frame.groupby([*keys, *(["seed"] if "seed" in frame else [])], sort=False, observed=True)[column].mean()
    over_seeds = by_seed.groupby(level=[0, 1], sort=False, observed=True)
    n_defined = frame[column].notna().groupby([frame[key] for key in keys], sort=False, observed=True)
    is_partial = n_defined.any() & ~n_defined.all()
    models = list(dict.fromkeys(frame[model_key]))
    mean, sd = (
        series.unstack("metric").reindex(index=models, columns=list(metrics))
        for series in (over_seeds.mean(), over_seeds.std(ddof=1))
    )
    partial = is_partial.unstack("metric", fill_value=False).reindex(
        index=models, columns=list(metrics), fill_value=False
    )
    return mean, sd, partial


def _heading(metric: str, better: Mapping[str, str]) -> str:
    known = METRICS.get(metric)
    direction = better.get(metric, known.better if known else None)
    if direction is None:
        return metric
    if direction not in _ARROWS:
        raise ValueError(f"`better[{metric!r}]` is {direction!r}; it must be one of {', '.join(_ARROWS)}.")
    target = f" {known.best:g}" if known and direction == "nearest" else ""
    return f"{metric} {_ARROWS[direction]}{target}"


def _places(n_models: int, n_references: int) -> list[float]:
    gap = _GAP if n_models and n_references else 0.0
    return [*map(float, range(n_models)), *(n_models + gap + i for i in range(n_references))]


def _scale() -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    return ScalarMappable(Normalize(-1, 1), LinearSegmentedColormap.from_list("calibrated", _COLOURS))


def _cell(
    ax: Axes, x: float, y: float, mean: float, sd: float, fill: Any, digits: int, star: str, weight: str = "normal"
) -> None:
    from matplotlib.patches import Rectangle

    text = ink()
    if fill is not None and np.isfinite(mean):
        ax.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=fill, linewidth=0))
        # the cell keeps its colour on a dark page, so its text must not follow the page
        text = "#15181d" if _luminance(fill) > 0.2 else "#ffffff"
    # adding 0 takes the sign off a rounded -0
    written = "–" if np.isnan(mean) else f"{round(mean, digits) + 0.0:.{digits}f}".replace("-", "−") + star
    has_sd = np.isfinite(sd)
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": text}
    ax.text(x, y - 0.14 * has_sd, written, fontsize=font_size(0.95), weight=weight, **style)
    if has_sd:
        ax.text(x, y + 0.25, f"± {sd:.{digits}f}", fontsize=font_size(0.68), **style)


def _digits(values: pd.Series) -> int:
    largest = values.abs().max()
    return 3 if np.isnan(largest) or largest < 1 else 2 if largest < 10 else 1 if largest < 100 else 0


def _luminance(colour: Any) -> float:
    """Relative luminance of a colour as WCAG defines it."""
    channels = np.asarray(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _key(ax: Axes, scale: ScalarMappable) -> None:
    width = ax.get_window_extent().width / root_figure(ax).dpi
    bar = ax.figure.colorbar(scale, ax=ax, orientation="horizontal", shrink=0.6, aspect=max(5, 6 * width), pad=0.03)
    bar.set_ticks([-1, 0, 1], labels=["≤ −1", "0", "≥ 1"], fontsize=font_size(SMALL))
    bar.set_label("0: better baseline, 1: ceiling", fontsize=font_size(SMALL))
    bar.ax.tick_params(length=2)
    bar.outline.set_visible(False)

"""Figures of the report as SVG that takes the colours of the page around it."""

from __future__ import annotations

import html
import io
import itertools
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multipert._jobs._summary import mean_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from multipert._jobs._job import Result

COLOURS: Final = {"control": "#8b929c", "observed": "#2f7fc1", "predicted": "#e0752d"}
"""Legible on white and on near-black."""
_INK: Final = "#010203"  # replaced by currentColor, so it must be a colour that nothing else has
_N_NAMED: Final = 10
_N_DISTRIBUTIONS: Final = 5
_MAX_CELLS: Final = 1500
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.dpi": 72,  # one pixel is one point, as text and offsets are
}


@dataclass(frozen=True)
class Panel:
    """Cells of one perturbation in the held-out context, dense, shape `(n_cells, n_vars)` each."""

    label: str
    genes: np.ndarray
    control: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    true_mean: np.ndarray | None = None

    @classmethod
    def of(cls, result: Result, label: str) -> Panel:
        """The cells of a perturbation.

        Parameters
        ----------
        result
            What a job made.
        label
            The perturbation, as `result.predicted` writes it.

        Returns
        -------
        The panel.
        """
        job = result.job
        conditions, inverse = job.setup.conditions(result.observed)
        rows = np.array([job.label(condition) == label for condition in conditions])[inverse]
        predicted = (result.predicted.obs[job.perturbation_key].astype(str) == label).to_numpy()
        return cls(
            label,
            result.predicted.var_names.to_numpy(dtype=str),
            _dense(job.setup.expression(result.control)),
            _dense(job.setup.expression(result.observed)[rows]),
            _dense(result.predicted.X[predicted]),
            None if result.truth is None else result.truth.loc[label].to_numpy(),
        )

    @property
    def top(self) -> np.ndarray:
        """Genes by size of the observed change of the mean, largest first."""
        return np.argsort(-np.abs(mean_of(self.observed) - mean_of(self.control)), kind="stable")


def mean_scatter(panel: Panel) -> str:
    """Mean of every gene, predicted against observed.

    Parameters
    ----------
    panel
        The cells.

    Returns
    -------
    SVG.
    """
    title = f"{panel.label}: mean expression"
    return _scatter(panel, mean_of(panel.observed), mean_of(panel.predicted), title, "observed mean", "predicted mean")


def delta_scatter(panel: Panel) -> str:
    """Change of every gene from control, predicted against observed.

    Parameters
    ----------
    panel
        The cells.

    Returns
    -------
    SVG.
    """
    control = mean_of(panel.control)
    observed, predicted = mean_of(panel.observed) - control, mean_of(panel.predicted) - control
    title = f"{panel.label}: change from control"
    return _scatter(panel, observed, predicted, title, "observed change", "predicted change")


def truth_scatter(panel: Panel) -> str:
    """Mean of every gene, predicted against true.

    Parameters
    ----------
    panel
        The cells, with their true mean.

    Returns
    -------
    SVG.
    """
    assert panel.true_mean is not None
    title = f"{panel.label}: against the truth"
    return _scatter(panel, panel.true_mean, mean_of(panel.predicted), title, "true mean", "predicted mean")


def distributions(panel: Panel) -> str:
    """Expression of the five genes that change most, in control, observed and predicted cells.

    Parameters
    ----------
    panel
        The cells.

    Returns
    -------
    SVG.
    """
    with _style():
        figure = _new_figure(14.5, 3.1)
        groups = {"control": panel.control, "observed": panel.observed, "predicted": panel.predicted}
        genes = panel.top[:_N_DISTRIBUTIONS]
        for ax, gene in zip(np.ravel(figure.subplots(1, len(genes), squeeze=False)), genes, strict=True):
            values = [cells[:, gene].astype(float) for cells in groups.values()]
            parts = ax.violinplot(values, widths=0.85, showextrema=False)
            for body, colour in zip(parts["bodies"], COLOURS.values(), strict=True):
                body.set(facecolor=colour, edgecolor=colour, alpha=0.55)
            for at, (group, colour) in enumerate(zip(values, COLOURS.values(), strict=True), start=1):
                ax.plot([at - 0.3, at + 0.3], [group.mean()] * 2, color=colour, linewidth=2)
            ax.set_title(panel.genes[gene], fontsize=9)
            ax.set_xticks(range(1, len(groups) + 1), list(groups), rotation=35, ha="right", rotation_mode="anchor")
            ax.tick_params(length=2)
        figure.axes[0].set_ylabel("expression")
        return _svg(figure, f"{panel.label}: distribution of the genes that change most")


def joint_components(panel: Panel, seed: int) -> str:
    """Control, observed and predicted cells in their joint first two principal components.

    Parameters
    ----------
    panel
        The cells; of each group at most 1,500 are drawn.
    seed
        Seed of the draw.

    Returns
    -------
    SVG; nothing if there are too few cells or genes for two components.
    """
    import scanpy
    from anndata import AnnData

    groups = {"control": panel.control, "observed": panel.observed, "predicted": panel.predicted}
    if min(len(panel.genes), sum(map(len, groups.values()))) < 3:
        return ""
    drawn = {name: _subset(cells, seed) for name, cells in groups.items()}
    joint = AnnData(np.concatenate(list(drawn.values())).astype(np.float32))
    scanpy.pp.pca(joint, n_comps=2, random_state=seed)
    scores, share = joint.obsm["X_pca"], joint.uns["pca"]["variance_ratio"]
    of = np.repeat(list(drawn), [len(cells) for cells in drawn.values()])
    # the groups would hide one another if each were drawn as a whole
    order = np.random.default_rng(seed).permutation(len(of))
    with _style():
        figure = _new_figure(3.9, 3.6)
        ax = figure.subplots()
        colours = np.array([COLOURS[name] for name in of])
        ax.scatter(scores[order, 0], scores[order, 1], c=colours[order], s=7, alpha=0.6, linewidths=0, rasterized=True)
        for name, colour in COLOURS.items():
            ax.plot([], [], "o", color=colour, markersize=5, label=f"{name} ({len(groups[name])})")
            ax.plot(*scores[of == name].mean(axis=0), "P", color=colour, markersize=10, markeredgecolor=_INK, zorder=3)
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1,
                  handletextpad=0.2)  # fmt: skip
        ax.set(xlabel=f"PC1 ({share[0]:.0%})", ylabel=f"PC2 ({share[1]:.0%})", xticks=[], yticks=[])
        ax.set_title(f"{panel.label}: joint principal components", fontsize=10, loc="left")
        return _svg(figure, f"{panel.label}: cells in joint principal components")


def _scatter(panel: Panel, x: np.ndarray, y: np.ndarray, title: str, x_label: str, y_label: str) -> str:
    with _style():
        figure = _new_figure(3.9, 3.6)
        ax = figure.subplots()
        named = panel.top[:_N_NAMED]
        rest = np.setdiff1d(np.arange(len(x)), named)
        ax.scatter(x[rest], y[rest], s=8, color=COLOURS["control"], alpha=0.5, linewidths=0, rasterized=True)
        ax.scatter(x[named], y[named], s=16, color=COLOURS["predicted"], linewidths=0)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        margin = 0.06 * (high - low or 1.0)
        ax.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), xlabel=x_label, ylabel=y_label)
        ax.set_aspect("equal")
        ax.axline((low, low), slope=1, color=_INK, linewidth=0.7, alpha=0.6, linestyle=(0, (4, 3)))
        ax.set_title(title, fontsize=10, loc="left")
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.corrcoef(x, y)[0, 1]
        if np.isfinite(correlation):
            ax.text(0.98, 0.03, f"r = {correlation:.3f}", transform=ax.transAxes, ha="right", fontsize=8.5)
        figure.canvas.draw()  # settles the layout that the labels are placed in
        _name_points(ax, x[named], y[named], panel.genes[named])
        return _svg(figure, title)


def _name_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str] | np.ndarray, size: float = 7.5) -> None:
    """Write names beside points where they cover neither another name nor a named point, each with a thin line."""
    points = ax.transData.transform(np.column_stack([x, y]))
    frame = ax.get_window_extent()
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in points]
    taken.append((frame.x1 - 60, frame.y0, frame.x1, frame.y0 + 16))  # the correlation
    for (px, py), at, name in zip(points, zip(x, y, strict=True), names, strict=True):
        width, height = 0.62 * size * len(name) + 2, size + 2
        above = at[1] > at[0]
        for radius, turn in itertools.product((9, 16, 26, 38, 52, 70, 90), range(12)):
            # away from the diagonal first, then by turns to both sides
            angle = np.deg2rad((135 if above else -45) + 30 * ((turn + 1) // 2) * (-1) ** turn)
            cx, cy = px + radius * np.cos(angle), py + radius * np.sin(angle)
            left = cx if np.cos(angle) > 0.3 else cx - width if np.cos(angle) < -0.3 else cx - width / 2
            box = (left, cy - height / 2, left + width, cy + height / 2)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                ax.annotate(
                    name, at, (left + width / 2 - px, cy - py), textcoords="offset points", ha="center", va="center",
                    fontsize=size, arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.4, "alpha": 0.6,
                                               "shrinkA": 0, "shrinkB": 1},
                )  # fmt: skip
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _svg(figure: Figure, title: str) -> str:
    """The figure as one SVG element whose ids are its own, so that several can stand in one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=160, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    prefix = f"f{zlib.crc32(title.encode()):08x}"
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _subset(cells: np.ndarray, seed: int) -> np.ndarray:
    if len(cells) <= _MAX_CELLS:
        return cells
    return cells[np.sort(np.random.default_rng(seed).choice(len(cells), _MAX_CELLS, replace=False))]


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if hasattr(x, "toarray") else np.asarray(x)


def labels_of(result: Result) -> list[str]:
    """Predicted perturbations, those with most observed cells first.

    Parameters
    ----------
    result
        What a job made.

    Returns
    -------
    Their labels.
    """
    job = result.job
    counts: pd.Series = (
        result.scores[result.scores["predictor"] == job.model].groupby(job.perturbation_key)["n_observed"].first()
    )
    return list(counts.sort_values(ascending=False, kind="stable").index)

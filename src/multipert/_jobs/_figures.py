"""Figures of the report as SVG that takes the colours of the page around it."""

from __future__ import annotations

import html
import io
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multipert import pl
from multipert._jobs._summary import mean_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from multipert._jobs._job import Result

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
    """Cells of one perturbation in the held-out context, dense in `X`."""

    label: str
    control: AnnData
    observed: AnnData
    predicted: AnnData
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
        from anndata import AnnData

        job = result.job
        conditions, inverse = job.setup.conditions(result.observed)
        rows = np.array([job.label(condition) == label for condition in conditions])[inverse]
        predicted = (result.predicted.obs[job.perturbation_key].astype(str) == label).to_numpy()
        values = {
            "control": job.setup.expression(result.control),
            "observed": job.setup.expression(result.observed)[rows],
            "predicted": result.predicted.X[predicted],
        }
        var = result.predicted.var[[]]
        groups = {name: AnnData(_dense(cells), var=var) for name, cells in values.items()}
        return cls(label, **groups, true_mean=None if result.truth is None else result.truth.loc[label].to_numpy())

    @property
    def groups(self) -> dict[str, AnnData]:
        """The three groups of cells."""
        return {"control": self.control, "observed": self.observed, "predicted": self.predicted}

    @property
    def top(self) -> list[str]:
        """Genes by size of the observed change of the mean, largest first."""
        change = np.abs(mean_of(self.observed.X) - mean_of(self.control.X))
        return self.observed.var_names[np.argsort(-change, kind="stable")].tolist()


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
    return _scatter(panel, panel.observed, f"{panel.label}: mean expression", "observed mean")


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
    return _scatter(panel, panel.observed, f"{panel.label}: change from control", "observed change", delta=True)


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
    return _scatter(panel, panel.true_mean, f"{panel.label}: against the truth", "true mean")


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
        figure = _new_figure(12.5, 3.4)
        pl.gene_distributions(panel.groups, panel.top[:_N_DISTRIBUTIONS], ax=figure.subplots())
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
    from anndata import concat

    groups = panel.groups
    if min(panel.observed.n_vars, sum(map(len, groups.values()))) < 3:
        return ""
    drawn = {name: _subset(cells, seed) for name, cells in groups.items()}
    joint = concat(drawn, label="group", index_unique="-")
    joint.obsm["expression"] = joint.X
    with _style():
        figure = _new_figure(3.9, 3.6)
        ax = figure.subplots()
        ax.set_title(f"{panel.label}: joint principal components", fontsize=10, loc="left")
        pl.latent(joint, "expression", "group", centres=True, seed=seed, ax=ax)
        handles, _ = ax.get_legend_handles_labels()
        ax.legend(handles, [f"{name} ({len(cells)})" for name, cells in groups.items()], frameon=False, fontsize=8,
                  loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, columnspacing=1, handletextpad=0.2)  # fmt: skip
        return _svg(figure, f"{panel.label}: cells in joint principal components")


def _scatter(panel: Panel, observed: AnnData | np.ndarray, title: str, x_label: str, *, delta: bool = False) -> str:
    with _style():
        figure = _new_figure(3.9, 3.6)
        ax = figure.subplots()
        ax.set_title(title, fontsize=10, loc="left")
        pl.mean_scatter(
            panel.predicted, observed, panel.control, delta=delta, genes=panel.top[:_N_NAMED], ax=ax
        ).set_xlabel(x_label)
        return _svg(figure, title)


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


def _subset(cells: AnnData, seed: int) -> AnnData:
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

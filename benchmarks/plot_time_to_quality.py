"""Picture of what `time_to_quality.py` stored.

Run: python benchmarks/plot_time_to_quality.py [--metric r2_pearson_bootstrap]
Writes docs/_static/time_to_quality.png: score against processor seconds for the MTAe family, one row per model and one column
per data set; and time_to_quality_others.png, the other models on simulated cells.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from _kang import RESULTS
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from time_to_quality import FAMILY, MARGINS, METRICS, MOST_SECONDS, OTHERS, PAIRS, SIMULATED

if TYPE_CHECKING:
    import numpy as np

COLOURS = {"long": "C0", "published": "C1", "default": "C3"}
N_COLUMNS = 4
STATIC = Path(__file__).resolve().parents[1] / "docs" / "_static"


def mean_course(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Seconds and score along one schedule, means over its trainings, counted from their last update."""
    from_end = table.groupby(["held", "seed"])["n_updates"].rank(ascending=False)
    points = table.groupby(from_end)
    course = points[["seconds", metric]].mean()[points.size() == table.groupby(["held", "seed"]).ngroups]
    return course.sort_index(ascending=False)


def draw(axis: plt.Axes, table: pd.DataFrame, metric: str) -> None:
    """The schedules of one model and data set, the end of each is marked."""
    if table.empty:
        axis.set_axis_off()
        return
    for schedule, colour in COLOURS.items():
        along = mean_course(table[table["schedule"] == schedule], metric)
        if along.empty:
            continue
        axis.plot(along["seconds"], along[metric], color=colour, lw=1.2, label=schedule)
        axis.plot(along["seconds"].iloc[-1], along[metric].iloc[-1], "o", color=colour, ms=4.5, mew=0)
        if schedule == "long" and metric == "r2_pearson_bootstrap":
            label = f"{MARGINS['long']:.0%} below the end of long"
            axis.axhline((1 - MARGINS["long"]) * along[metric].iloc[-1], color="0.5", lw=0.8, ls=":", label=label)
    if metric == "r2_pearson_bootstrap":
        axis.axhline(table["r2_no_change"].mean(), color="0.3", lw=0.8, ls="--", label="no change")
    if table["data"].iloc[0] != SIMULATED:
        axis.axvline(MOST_SECONDS, color="0.75", lw=0.8, label=f"{MOST_SECONDS} s", zorder=0)


def tidy(axis: plt.Axes) -> None:
    """Seconds on a logarithmic axis, no frame."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: plt.Figure, axes: np.ndarray, path: Path) -> None:
    """Write a picture with one legend."""
    figure.supxlabel("processor seconds of training, one thread", fontsize=10)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_family(table: pd.DataFrame, metric: str, path: Path) -> None:
    """One row per model and one column per data set."""
    data = [name for name in PAIRS if name in set(table["data"])]
    models = [name for name in FAMILY if name in set(table["model"])]
    figure, axes = plt.subplots(
        len(models),
        len(data),
        sharex="col",
        sharey="col",
        squeeze=False,
        figsize=(max(8, 3.4 * len(data) + 0.6), 1.5 * len(models) + 1),
        layout="constrained",
    )
    for axis, (model, name) in zip(axes.flat, itertools.product(models, data), strict=True):
        draw(axis, table[(table["data"] == name) & (table["model"] == model)], metric)
        tidy(axis)
    for axis, name in zip(axes[0], data, strict=True):
        axis.set_title(f"{name}: {metric}", fontsize=10)
    for axis, model in zip(axes[:, 0], models, strict=True):
        axis.set_ylabel(model, fontsize=10)
    save(figure, axes, path)


def draw_others(table: pd.DataFrame, metric: str, path: Path) -> None:
    """One panel per model, simulated cells only, each with a scale of its own."""
    models = [name for name in OTHERS if name in set(table["model"])]
    n_rows = -(-len(models) // N_COLUMNS)
    figure, axes = plt.subplots(
        n_rows, N_COLUMNS, sharex=True, squeeze=False, figsize=(10, 1.9 * n_rows + 0.9), layout="constrained"
    )
    for axis, model in itertools.zip_longest(axes.flat, models):
        if model is None:
            axis.set_axis_off()
            continue
        draw(axis, table[table["model"] == model], metric)
        tidy(axis)
        axis.set_title(model, fontsize=10)
    save(figure, axes, path)


def main() -> int:
    """Draw the pictures from the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0])
    parser.add_argument("--out", type=Path, default=STATIC, help="folder of the pictures")
    args = parser.parse_args()
    path = args.tables / "time_to_quality.csv"
    if not path.exists():
        raise SystemExit(f"{args.tables} has no {path.name}; run `python benchmarks/time_to_quality.py` first")
    table = pd.read_csv(path)
    draw_family(table[table["model"].isin(FAMILY)], args.metric, args.out / "time_to_quality.png")
    if table["model"].isin(OTHERS).any():
        draw_others(table[table["model"].isin(OTHERS)], args.metric, args.out / "time_to_quality_others.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

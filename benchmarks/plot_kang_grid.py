"""Picture of what `kang_family.py` or `kang_baselines.py` stored.

Run: python benchmarks/plot_kang_grid.py kang_family
Writes docs/_static/kang_family.png: mean over seeds and held-out types, and the range of the types, three metrics.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from _kang import RESULTS
from _kang_grid import FILES, REALISATIONS, REFERENCES
from matplotlib.ticker import NullFormatter, ScalarFormatter

PANELS = {
    "pearson_delta": "pearson_delta\n(higher is better)",
    "edistance_ratio_joint": "edistance_ratio_joint\n(lower is better)",
    "de_overlap_absolute": "de_overlap_absolute\n(higher is better)",
}
LINES = {"NoPerturb": ("0.3", "--"), "ceiling": ("0.3", ":"), "ContextShift (similarity)": ("C3", "-")}
COLOURS = {"plain": "C0", "residual": "C1", "counts": "C2"}
MARKERS = {"plain": "o", "residual": "s", "counts": "D"}
STATIC = Path(__file__).resolve().parents[1] / "docs" / "_static"


def is_reference(model: str) -> bool:
    """Whether a row is of a model without a network."""
    return model.split(" ")[0] in {name for name, _, _ in REFERENCES}


def draw(axis: plt.Axes, table: pd.DataFrame, metric: str) -> list[str]:
    """One panel; the models from top to bottom."""
    by_type = table.groupby(["model", "realise", "held_out"], sort=False, dropna=False)[metric].mean()
    models = [name for name in dict.fromkeys(table["model"]) if name not in ("NoPerturb", "ceiling")]
    # references last, below the models that the picture is about
    models.sort(key=is_reference)
    for row, name in enumerate(models):
        for offset, realise in zip((-0.25, 0, 0.25), REALISATIONS, strict=True):
            if realise not in by_type[name]:
                continue
            values, y = by_type[name, realise], row + offset
            axis.plot([values.min(), values.max()], [y, y], lw=1, color=COLOURS[realise], alpha=0.45)
            label = realise if row == 0 else None
            axis.plot(values.mean(), y, MARKERS[realise], ms=4.5, mew=0, color=COLOURS[realise], label=label, ls="none")
    for name, (colour, style) in LINES.items():
        # the mean over held-out types of the plain prediction; the change predicted by NoPerturb has no correlation
        mean = by_type[name].groupby(level="realise", sort=False, dropna=False).mean().iloc[0]
        if pd.notna(mean):
            plain = ", plain" if name in models else ""
            axis.axvline(mean, color=colour, ls=style, lw=0.9, label=name + plain, zorder=0)
    axis.axhspan(sum(not is_reference(name) for name in models) - 0.5, len(models) - 0.5, color="0.94", zorder=-1, lw=0)
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return models


def main() -> int:
    """Draw the picture from the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("kang_family", "kang_baselines"))
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--out", type=Path, help="docs/_static/<benchmark>.png where nothing is given")
    args = parser.parse_args()
    files = [file for file in FILES if (args.tables / f"{args.benchmark}_{file}.csv").exists()]
    if not files:
        raise SystemExit(
            f"{args.tables} has no table of this benchmark; run `python benchmarks/{args.benchmark}.py` first"
        )
    shape = (len(files), len(PANELS))
    figure, axes = plt.subplots(
        *shape, sharex="col", sharey=True, squeeze=False, figsize=(11, 5 * len(files)), layout="constrained"
    )
    for row, file in zip(axes, files, strict=True):
        table = pd.read_csv(args.tables / f"{args.benchmark}_{file}.csv")
        for axis, (metric, title) in zip(row, PANELS.items(), strict=True):
            models = draw(axis, table, metric)
            axis.set_title(title if file == files[0] else "", fontsize=10)
        row[1].set_xscale("log")
        row[1].set_xticks([0.2, 0.5, 1, 2])
        row[1].xaxis.set_major_formatter(ScalarFormatter())
        row[1].xaxis.set_minor_formatter(NullFormatter())
        row[0].set_yticks(range(len(models)), models, fontsize=9)
        row[0].set_ylabel(file, fontsize=10)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(args.out or STATIC / f"{args.benchmark}.png", dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Picture of what `speed.py` stored.

Run: python benchmarks/plot_speed.py
Writes docs/_static/speed.png: cells per second by batch size and way of training, and seconds and peak memory of one epoch by
number of cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS, STATIC = ROOT / "benchmarks" / "results", ROOT / "docs" / "_static"
COLOURS = {
    "multipert": "C0",
    "multipert, bf16": "C9",
    "scvi-tools plan": "C1",
    "plain loop": "0.55",
    "LatentAdditive (re-stated)": "C4",
    "pertpy Scgen": "C2",
}
PLACES = {
    "memory": ("C0", "o", "in memory"),
    "disk": ("C1", "s", 'backed="r"'),
    "read_backed": ("C2", "D", "read_backed"),
}


def bars(axis: plt.Axes, table: pd.DataFrame) -> None:
    """Cells per second, with the range of the turns."""
    batches, variants = list(dict.fromkeys(table["batch_size"])), list(dict.fromkeys(table["variant"]))
    width = 0.8 / len(variants)
    for i, name in enumerate(variants):
        rows = table[table["variant"] == name].set_index("batch_size").reindex(batches)
        x = [at - 0.4 + (i + 0.5) * width for at in range(len(batches))]
        value = rows["cells_per_second"]
        spread = [(value - rows["slowest"]).clip(lower=0), (rows["fastest"] - value).clip(lower=0)]
        axis.bar(x, value, width * 0.92, color=COLOURS.get(name, "C7"), label=name)
        axis.errorbar(x, value, yerr=spread, fmt="none", ecolor="0.2", elinewidth=0.8)
    axis.set_xticks(range(len(batches)), batches)
    axis.set_xlabel("batch size")
    axis.set_ylabel("cells per second of training")
    axis.set_title("6,998 genes, widths 512 and 100", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.margins(y=0.35)


def curve(axis: plt.Axes, table: pd.DataFrame, column: str, label: str) -> None:
    """One quantity by number of cells."""
    for where, (colour, marker, name) in PLACES.items():
        rows = table[table["where"] == where]
        if len(rows):
            axis.loglog(rows["cells"], rows[column], color=colour, marker=marker, ms=5, lw=1.3, label=name)
    axis.set_xlabel("cells, 2,000 genes each")
    axis.set_ylabel(label)


def main() -> int:
    """Draw the picture from the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--out", type=Path, default=STATIC / "speed.png")
    args = parser.parse_args()
    steps, growth = args.tables / "speed_steps.csv", args.tables / "speed_scaling.csv"
    for path in (steps, growth):
        if not path.exists():
            raise SystemExit(f"{path} is not there; run `python benchmarks/speed.py --part steps scaling` first")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(2, 1, 1), layout="constrained")
    bars(axes[0], pd.read_csv(steps))
    table = pd.read_csv(growth)
    curve(axes[1], table, "epoch_s", "seconds of an epoch")
    curve(axes[2], table, "peak_mb", "peak memory above the opened data, MB")
    rows = table.drop_duplicates("cells")
    axes[2].loglog(rows["cells"], rows["bound_mb"], color="0.4", ls="--", lw=1, label="bound")
    axes[2].loglog(rows["cells"], rows["csr_mb"], color="0.4", ls=":", lw=1, label="sparse matrix")
    axes[2].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())

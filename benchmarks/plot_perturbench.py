"""Draw the tables of perturbench.py: for each part how far every model is from no change, in error and direction.

Run: python benchmarks/plot_perturbench.py
Reads benchmarks/results/perturbench_<part>.csv, writes docs/_static/perturbench.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from _kang import RESULTS

PARTS = {
    "norman_doubles": "pairs of genes,\nparts measured",
    "norman_unseen": "unseen genes\nby gene sets",
    "mcfaline": "held-out\ncell lines",
    "papalexi": "unseen knock-outs\nby gene sets",
    "tggates": "unseen drugs\nby fingerprints",
}
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "_static" / "perturbench.png"
NETWORKS = {
    "LatentAdditive",
    "LatentAdditiveOT",
    "CPA",
    "SAMSVAE",
    "Biolord",
    "GEARS",
    "MTAe",
    "DecoderOnly",
    "LinearAdditive",
}
# closed-form references of the metrics that are models too, and what changes nothing
LEFT_OUT = {"no_change", "additive", "mean_shift", "similarity_shift", "ridge_shift", "nearest", "knn"}
NAMES = {"context_mean": "mean of all", "ceiling": "ceiling", "NoPerturb": "no change"}


def main() -> int:
    """Read the tables and draw one panel for each."""
    fig, axes = plt.subplots(2, len(PARTS), figsize=(15, 8), layout="constrained", sharey="row")
    tables = {}
    for part in PARTS:
        table = pd.read_csv(RESULTS / f"perturbench_{part}.csv", index_col=0)
        table["relative"] = table["rmse"] / table.loc["no_change", "rmse"]
        tables[part] = table.drop(index=[name for name in table.index if name in LEFT_OUT])
    order = pd.concat([t["relative"].clip(upper=2) for t in tables.values()], axis=1).mean(axis=1).sort_values().index
    names = ["ceiling", *(name for name in order if name != "ceiling")]
    places = {name: -i for i, name in enumerate(names)}
    for column, (part, title) in enumerate(PARTS.items()):
        for row, (score, label, reference) in enumerate(
            (("relative", "RMSE over that of no change", 1.0), ("pearson_delta", "correlation of the change", 0.0))
        ):
            ax = axes[row, column]
            values = tables[part][score].dropna()
            shown = values.clip(upper=2.0)
            for name, value in shown.items():
                colour = "0.45" if name == "ceiling" else "tab:blue" if name in NETWORKS else "tab:orange"
                beyond = values[name] > 2.0
                ax.plot(value, places[name], ">" if beyond else "o", color=colour)
            ax.axvline(reference, color="0.7", linewidth=1, zorder=0)
            ax.set_yticks(list(places.values()), [NAMES.get(name, name) for name in places])
            ax.set_xlabel(label)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="0.92")
            ax.set_axisbelow(True)
            if not row:
                ax.set_title(f"{title}\n({int(tables[part]['groups'].max())} groups)", fontsize=11)
    fig.legend(
        handles=[
            plt.Line2D([], [], marker="o", linestyle="", color=colour, label=label)
            for colour, label in (
                ("tab:blue", "trained by gradients"),
                ("tab:orange", "needs no gradients"),
                ("0.45", "ceiling"),
            )
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    fig.savefig(PICTURE, dpi=110)
    print(PICTURE.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

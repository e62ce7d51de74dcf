"""Picture and per-type tables of what `kang_foundation.py` stored.

Run: python benchmarks/plot_kang_foundation.py
Writes docs/_static/kang_foundation.png and, for the documentation, kang_foundation_<file>_types.csv (three metrics by
held-out type) and kang_foundation_<file>_short.csv (means under short headings) in benchmarks/results. Prints the means without
the types that were scored when the number of updates of MTAe was chosen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from _kang import RESULTS, TYPES

FILES = ("kang18_scgen_valid", "kang18_ifnb2800")
PANELS = {
    "pearson_delta": "pearson_delta (higher is better)",
    "edistance_ratio_joint": "edistance_ratio_joint (lower is better)",
    "de_overlap_absolute": "de_overlap_absolute (higher is better)",
}
SHORT = {
    "r2_pearson_bootstrap": "R2",
    "r2_pearson_bootstrap_top20": "R2-20",
    "r2_pearson_bootstrap_top100": "R2-100",
    "pearson_delta": "delta",
    "edistance_ratio_joint": "E",
    "mean_distance_ratio_joint": "Eu",
    "de_overlap_up": "DEG up",
    "de_overlap_absolute": "DEG abs",
    "seconds": "s",
}
# scored as held-out training contexts by choose_mtae_default.py
SEEN = {"kang18_scgen_valid": ("CD8T", "Dendritic"), "kang18_ifnb2800": ("CD14+Mono",)}
STATIC = Path(__file__).resolve().parents[1] / "docs" / "_static"


def named(table: pd.DataFrame) -> pd.Series:
    suffix = table["realise"].fillna("").map(lambda realise: f", {realise}" if realise else "")
    return table["model"] + suffix


def main() -> int:
    figure, axes = plt.subplots(len(FILES), len(PANELS), figsize=(11, 8.5), sharey=True, layout="constrained")
    for row, name in zip(axes, FILES, strict=True):
        table = pd.read_csv(RESULTS / f"kang_foundation_{name}.csv")
        table["name"] = named(table)
        short = table.groupby("name", sort=False)[list(SHORT)].mean().rename(columns=SHORT)
        short.round({**dict.fromkeys(SHORT.values(), 3), "DEG up": 1, "DEG abs": 1, "s": 1}).to_csv(
            RESULTS / f"kang_foundation_{name}_short.csv"
        )
        unseen = table[~table["held_out"].isin(SEEN[name])]
        print(f"{name} without {', '.join(SEEN[name])}")
        print(unseen.groupby("name", sort=False)[list(SHORT)].mean().rename(columns=SHORT).round(3).to_string())
        order = [label for label in dict.fromkeys(table["name"]) if label != "ceiling"] + ["ceiling"]
        blocks = []
        for axis, (metric, title) in zip(row, PANELS.items(), strict=True):
            wide = table.pivot(index="name", columns="held_out", values=metric).loc[order, list(TYPES)]
            wide.insert(0, "mean", wide.mean(axis=1, skipna=False))
            blocks.append(wide.round(3).reset_index().assign(metric=SHORT[metric]))
            for i, label in enumerate(order):
                colour = {"ceiling": "0.45"}.get(label, "C1" if label.startswith("MTAe") else "C0")
                axis.plot(wide.loc[label, list(TYPES)], [i] * len(TYPES), "o", ms=3.5, alpha=0.45, color=colour, mew=0)
                axis.plot(wide.loc[label, "mean"], i, "|", ms=15, mew=2.5, color=colour)
            axis.axvline(wide.loc["ceiling", "mean"], color="0.45", lw=0.8, ls=":")
            axis.set_title(title if name == FILES[0] else "", fontsize=9)
            axis.grid(axis="x", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_yticks(range(len(order)), order, fontsize=8)
        row[0].invert_yaxis()
        row[0].set_ylabel(name, fontsize=9)
        columns = ["metric", "name", "mean", *TYPES]
        pd.concat(blocks)[columns].to_csv(RESULTS / f"kang_foundation_{name}_types.csv", index=False)
    figure.savefig(STATIC / "kang_foundation.png", dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())

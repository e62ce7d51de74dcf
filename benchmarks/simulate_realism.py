"""Does the default simulated screen look like real cells? Zeros and variance at equal mean, beside Kang et al. (2018).

Run from anywhere: `python benchmarks/simulate_realism.py`. Needs `../shared/data`; says so and stops without it.
Prints the table, stores it and the picture of the docs, and fails if a checked bin is outside the limits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from multipert.datasets import simulate

PROJECT = Path(__file__).parents[1]
DATA = PROJECT.parent / "shared" / "data"
TABLE = PROJECT / "benchmarks" / "results" / "simulate_realism.csv"
PICTURE = PROJECT / "docs" / "_static" / "simulate_realism.png"

# Quarter decades where genes are many, wider where they are few: a bin of 30 genes moves by more than the limits
# from one seed to the next.
EDGES = 10.0 ** np.array([-1, -0.75, -0.5, -0.25, 0, 0.5, 1.5])
ZERO_LIMIT, VARIANCE_LIMIT = 0.05, 0.20
SEEDS = range(10)


def gene_statistics(adata: ad.AnnData) -> pd.DataFrame:
    counts = adata.layers["counts"].toarray().astype(float)
    return pd.DataFrame(
        {"mean": counts.mean(axis=0), "variance": counts.var(axis=0, ddof=1), "zero": (counts == 0).mean(axis=0)}
    )


def by_bin(genes: pd.DataFrame) -> pd.DataFrame:
    """Number of genes, mean zero fraction and median variance per count of mean, for each bin of mean expression."""
    genes = genes.assign(low=pd.cut(genes["mean"], EDGES, right=False, labels=EDGES[:-1]))
    genes["fano"] = genes["variance"] / genes["mean"]
    table = genes.groupby("low", observed=False).agg(n=("zero", "size"), zero=("zero", "mean"), fano=("fano", "median"))
    return table.astype(float)


def groups_of(adata: ad.AnnData, context_key: str, contexts: list[str]) -> list[ad.AnnData]:
    is_control = adata.obs["perturbation"] == "control"
    return [adata[is_control & (adata.obs[context_key] == context)] for context in contexts]


def average(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return sum(tables) / len(tables)


def compare(real: pd.DataFrame, simulated: pd.DataFrame, **columns: str) -> pd.DataFrame:
    table = pd.DataFrame(columns, index=range(len(real)))
    table["mean_from"], table["mean_to"] = EDGES[:-1].round(3), EDGES[1:].round(3)
    table["genes_real"] = real["n"].to_numpy()
    table["genes_simulated"] = simulated["n"].to_numpy().round(1)
    table["zero_real"] = real["zero"].to_numpy()
    table["zero_simulated"] = simulated["zero"].to_numpy()
    table["zero_difference"] = table["zero_simulated"] - table["zero_real"]
    table["variance_ratio"] = simulated["fano"].to_numpy() / real["fano"].to_numpy()
    return table.round(3)


def draw(real: pd.DataFrame, simulated: pd.DataFrame, real_totals: np.ndarray, totals: np.ndarray) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    kinds = [("Kang et al. 2018", real, "0.6"), ("simulated, seed 0", simulated, "tab:blue")]
    for column, axis in zip(["zero", "variance"], axes, strict=False):
        for label, genes, colour in kinds:
            shown = genes[genes["mean"] > 0.01]
            axis.scatter(shown["mean"], shown[column], s=4, alpha=0.35, color=colour, label=label, linewidths=0)
            trend = by_bin(genes)
            centre = np.sqrt(EDGES[:-1] * EDGES[1:])
            values = trend["zero"] if column == "zero" else trend["fano"] * centre
            axis.plot(centre, values, color="black" if colour == "0.6" else "navy", lw=1.5)
        axis.set(xscale="log", xlabel="mean count of a gene")
    axes[0].set(ylabel="fraction of zeros")
    axes[0].legend(markerscale=4, frameon=False, fontsize=8)
    axes[1].set(yscale="log", ylabel="variance")
    for (label, _, colour), values in zip(kinds, [real_totals, totals], strict=True):
        bins = np.linspace(-1.5, 1.5, 41)
        log_total = np.log(values / np.median(values))
        axes[2].hist(log_total, bins, density=True, color=colour, alpha=0.6, label=label)
    axes[2].set(xlabel="log of a cell's counts over the median", ylabel="density")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> int:
    names = ["kang18_ifnb2800", "kang18_scgen_valid"]
    missing = [name for name in names if not (DATA / f"{name}.h5ad").exists()]
    if missing:
        print(f"Skipped: {', '.join(missing)} not in ../shared/data.")
        return 0
    screens = {seed: simulate(seed=seed) for seed in SEEDS}
    genes = {seed: gene_statistics(screen) for seed, screen in screens.items()}
    pooled = {seed: by_bin(table) for seed, table in genes.items()}
    within = {
        seed: average(
            [by_bin(gene_statistics(g)) for g in groups_of(s, "context", list(s.obs["context"].cat.categories))]
        )
        for seed, s in screens.items()
    }
    tables = []
    for name in names:
        kang = ad.read_h5ad(DATA / f"{name}.h5ad")
        real = gene_statistics(kang)
        group = by_bin(gene_statistics(groups_of(kang, "cell_type", ["CD4T"])[0]))
        for cells, binned, simulated in [("all", by_bin(real), pooled), ("one control group", group, within)]:
            tables.append(compare(binned, simulated[0], reference=name, cells=cells, seed="0"))
            mean = average(list(simulated.values()))
            tables.append(compare(binned, mean, reference=name, cells=cells, seed="mean of 10"))
        if name == names[0]:
            totals = [np.asarray(x.layers["counts"].sum(axis=1)).ravel() for x in (kang, screens[0])]
            draw(real, genes[0], *totals)
            print(
                "spread (sd) of log counts per cell: real {:.2f}, simulated {:.2f}".format(
                    *(np.log(t).std() for t in totals)
                )
            )
    table = pd.concat(tables, ignore_index=True)
    TABLE.parent.mkdir(exist_ok=True)
    table.to_csv(TABLE, index=False)
    print(table.to_string(index=False))
    # the file of selected variable genes is shown for orientation: at equal mean its genes vary more than all genes do
    checked = table[(table["reference"] == names[0]) & (table["seed"] == "0")]
    zero, variance = checked["zero_difference"].abs().max(), (checked["variance_ratio"] - 1).abs().max()
    passed = zero <= ZERO_LIMIT and variance <= VARIANCE_LIMIT
    print(f"worst bin: zeros {zero:.3f} (limit {ZERO_LIMIT}), variance {variance:.0%} (limit {VARIANCE_LIMIT:.0%})")
    print("within the limits" if passed else "OUTSIDE the limits")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""PerturBench's models and the simple ones on real screens: unseen combinations, contexts and perturbations.

Run from anywhere: `python benchmarks/perturbench.py [norman_doubles] [norman_unseen] [mcfaline] [papalexi] [tggates]`;
without a part, all. Each part is one `multipert.benchmark.run`, whose records lie in `build/perturbench/<part>`, so the run may
be stopped and goes on. Writes `benchmarks/results/perturbench_<part>.csv`: means over held-out groups, of the raw values
and of those between null and ceiling, and the number of groups that were scored. Needs `../shared/data` beside the project.

"norman_doubles": the five doubles of `norman19_subset` whose parts were measured alone are held out.
"norman_unseen": genes of that file with hallmark gene sets, in three parts, each held out in turn with all its combinations.
"mcfaline": each of three cell lines of `mcfaline23_subset` held out in turn.
"papalexi": knock-outs of `papalexi21_eccite_299genes` with hallmark gene sets, in three parts, each held out in turn.
"tggates": drugs of the bulk liver arrays with SMILES at their highest dose for 24 hours, in three parts, by fingerprints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from _kang import DATA, RESULTS
from conditioning import aligned

import multipert as mp
from multipert.benchmark import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = Path(__file__).resolve().parents[1] / "build" / "perturbench"
METRICS = ["cosine_logfc", "pearson_delta", "rmse", "rank_cosine_logfc", "rank_rmse", "edistance", "r2_pearson"]
SIMPLE = [
    "NoPerturb",
    "Additive",
    "ContextShift",
    "TwoFactor",
    "NearestPerturbation",
    "KNN",
    "DecoderOnly",
    "LinearAdditive",
]
DEEP = ["LatentAdditive", "LatentAdditiveOT", "CPA", "SAMSVAE", "Biolord", "GEARS", "MTAe"]
N_PARTS = 3
# means of replicated arrays, and perturbed cells that are too few for a distribution
BULK = {"metrics": [name for name in METRICS if name != "edistance"]}


def read(name: str) -> ad.AnnData:
    """One of the optional files."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"skipped: the optional data folder has no {path.name} (../shared/data beside the project)")
    adata = ad.read_h5ad(path)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str)
    return adata


def parts_of(adata: ad.AnnData, label: str = "perturbation") -> list[set[str]]:
    """The perturbations, drawn into parts."""
    names = sorted({part for one in set(adata.obs[label].astype(str)) - {"control"} for part in one.split("+")})
    drawn = np.random.default_rng(0).permutation(names)
    return [set(drawn[i::N_PARTS].tolist()) for i in range(N_PARTS)]


def held_out(adata: ad.AnnData) -> dict[str, pd.Series]:
    """A split for each part; whatever has a perturbation of it is a test cell."""
    labels = adata.obs["perturbation"].astype(str)
    return {
        f"part {i}": pd.Series(
            np.where([bool(part & set(label.split("+"))) for label in labels], "test", "train"), index=adata.obs_names
        )
        for i, part in enumerate(parts_of(adata))
    }


def annotated(adata: ad.AnnData) -> ad.AnnData:
    """The cells whose perturbed genes have hallmark gene sets, and the table of these."""
    labels = adata.obs["perturbation"].astype(str)
    genes = sorted({part for label in set(labels) - {"control"} for part in label.split("+")})
    table = mp.embedding.annotation_table(DATA / "hallmark_gene_sets.gmt.gz")
    known = [gene for gene in genes if gene in table.index]
    is_known = labels.map(lambda label: label == "control" or set(label.split("+")) <= set(known))
    adata = adata[is_known.to_numpy()].copy()
    table = table.loc[known]
    adata.uns["sets"] = table.loc[:, table.sum() > 0].astype(np.float32)
    print(f"{len(known)} of {len(genes)} genes have hallmark gene sets, {int(is_known.sum())} of {len(labels)} cells")
    return adata


def norman_doubles() -> dict[str, Any]:
    adata = read("norman19_subset.h5ad")
    labels = set(adata.obs["perturbation"])
    doubles = [label for label in labels if "+" in label and set(label.split("+")) <= labels]
    split = pd.Series(np.where(adata.obs["perturbation"].isin(doubles), "test", "train"), index=adata.obs_names)
    return {"adata": adata, "split": {"doubles": split}, "models": [*SIMPLE, *DEEP], "context_key": None}


def norman_unseen() -> dict[str, Any]:
    adata = annotated(read("norman19_subset.h5ad"))
    setup = {"perturbation_embedding_key": "sets"}
    return {"adata": adata, "split": held_out(adata), "models": [*SIMPLE, *DEEP], "context_key": None, "setup": setup}


def mcfaline() -> dict[str, Any]:
    adata = read("mcfaline23_subset.h5ad")
    adata.obs["context"] = adata.obs["context"].astype(str)
    return {"adata": adata, "split": "context", "models": [*SIMPLE, *DEEP]}


def papalexi() -> dict[str, Any]:
    adata = annotated(read("papalexi21_eccite_299genes.h5ad"))
    # at most 200 cells of a knock-out and of control
    rng = np.random.default_rng(0)
    groups = adata.obs.reset_index(drop=True).groupby("perturbation", observed=True).indices
    kept = np.sort(
        np.concatenate([rng.permutation(rows)[: 1000 if name == "control" else 200] for name, rows in groups.items()])
    )
    adata = adata[kept].copy()
    setup = {"perturbation_embedding_key": "sets"}
    return {"adata": adata, "split": held_out(adata), "models": [*SIMPLE, *DEEP], "context_key": None, "setup": setup}


def tggates() -> dict[str, Any]:
    adata = read("tggates_human_hepatocyte_196genes.h5ad")
    obs = adata.obs
    kept = (obs["duration_h"] == 24) & obs["dose_level"].isin(["Control", "High"]) & (obs["smiles"].astype(str) != "")
    adata = adata[kept.to_numpy()].copy()
    adata.obs["context"] = "24 h"
    adata = aligned(adata)
    smiles = adata.obs.groupby("drug", observed=True)["smiles"].first().astype(str)
    adata.uns["fingerprint"] = mp.embedding.fingerprints(smiles, n_bits=512)
    print(f"{len(smiles)} drugs have SMILES, {adata.n_obs} arrays")
    setup = {"perturbation_embedding_key": "fingerprint"}
    models = [*SIMPLE, *DEEP]
    return {"adata": adata, "split": held_out(adata), "models": models, "context_key": None, "setup": setup, **BULK}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "norman_doubles": norman_doubles,
    "norman_unseen": norman_unseen,
    "mcfaline": mcfaline,
    "papalexi": papalexi,
    "tggates": tggates,
}


def table_of(results: mp.benchmark.Results, metrics: list[str]) -> pd.DataFrame:
    """Means over groups and seeds, the best cosine first; models that were scored on a part of the groups are told apart."""
    means = results.mean()
    table = means.pivot(index="model", columns="metric", values="value")[metrics]
    table.insert(0, "groups", means.groupby("model")["n_groups"].max())
    return table.sort_values(metrics[0], ascending=False)


def main() -> int:
    """Run the parts and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all where nothing is given")
    parser.add_argument("--models", nargs="+", help="some of the models; the tables then go to the work folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    n_failed = 0
    for name in args.parts or PARTS:
        plan = PARTS[name]()
        models = [ModelSpec(model) for model in plan.pop("models") if not args.models or model in args.models]
        metrics = plan.pop("metrics", METRICS)
        adata = plan.pop("adata")
        results = mp.benchmark.run(
            adata, models, out=WORK / name, metrics=metrics, seeds=args.seeds, n_jobs=args.jobs, **plan
        )
        table = table_of(results, metrics)
        folder = WORK if args.models else RESULTS
        table.to_csv(folder / f"perturbench_{name}.csv", float_format="%.4g")
        print(f"\n{name}\n{table.round(3).to_string()}\n", flush=True)
        for row in results.skipped.itertuples():
            print(f"skipped {row.model} ({row.split}): {row.reason}")
        n_failed += len(results.failed)
    return min(n_failed, 1)


if __name__ == "__main__":
    sys.exit(main())

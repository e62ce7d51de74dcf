"""ScButterfly between two modalities beside ridge regression, on simulated cells that share a nonlinear state.

Cells are held out at random. Each modality is predicted from the other by ScButterfly (default schedule, true pairs or also
pairs within types) and by ridge regression whose penalty is chosen on validation cells. Scored on test cells: Pearson
correlation of each feature over cells, and for peaks the area under the ROC curve of each peak against open or closed.

Run: python benchmarks/translation.py [--cells 2000] [--seeds 2]
Writes benchmarks/results/translation.csv, one row per data set, direction and method, means over seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from _kang import RESULTS
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

import multipert as mp

ALPHAS = 10.0 ** np.arange(0, 6)
N_GENES = 500
N_TARGET = {"protein": 40, "atac": 1000}


def cells(target: str, n_cells: int, seed: int):
    """A MuData whose modalities are processed on training cells, and the counts of the target."""
    mdata = mp.datasets.simulate_multimodal(n_cells, N_GENES, N_TARGET[target], target=target, seed=seed)
    level = np.random.default_rng(seed).choice(["train", "val", "test"], n_cells, p=[0.64, 0.16, 0.2])
    for adata in mdata.mod.values():
        adata.obs["split"] = level
    mp.pp.normalise(mdata["rna"])
    (mp.pp.clr if target == "protein" else mp.pp.tfidf)(mdata[target])
    mdata.update()
    mdata.obs = mdata["rna"].obs[["context", "split"]].copy()
    return mdata


def dense(x) -> np.ndarray:
    return x.toarray() if hasattr(x, "toarray") else np.asarray(x)


def ridge(x: np.ndarray, y: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Prediction for all cells, the penalty that is best on validation cells."""
    train, val = split == "train", split == "val"
    fits = [Ridge(alpha).fit(x[train], y[train]) for alpha in ALPHAS]
    errors = [np.square(fit.predict(x[val]) - y[val]).mean() for fit in fits]
    return fits[int(np.argmin(errors))].predict(x)


def scores(found: np.ndarray, truth: np.ndarray, is_open: np.ndarray | None) -> dict[str, float]:
    """Medians over features that vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pearson = [np.corrcoef(f, t)[0, 1] for f, t in zip(found.T, truth.T, strict=True) if t.std()]
    rows = {"pearson": float(np.median(np.nan_to_num(pearson)))}
    if is_open is not None:
        both = np.flatnonzero(is_open.any(axis=0) & ~is_open.all(axis=0))
        rows["auroc"] = float(np.median([roc_auc_score(is_open[:, i], found[:, i]) for i in both]))
    return rows


def run(target: str, n_cells: int, seed: int) -> list[dict]:
    mdata = cells(target, n_cells, seed)
    split = mdata.obs["split"].to_numpy().astype(str)
    test = split == "test"
    x = {name: dense(adata.X) for name, adata in mdata.mod.items()}
    is_open = {"atac": dense(mdata[target].layers["counts"])[test] > 0} if target == "atac" else {}
    rows = []

    def add(method: str, to: str, found: np.ndarray, seconds: float) -> None:
        scored = scores(found[test], x[to][test], is_open.get(to))
        rows.append({"data": f"rna, {target}", "to": to, "method": method, "seed": seed, **scored, "s": seconds})

    for to, source in ((target, "rna"), ("rna", target)):
        start = time.process_time()
        found = ridge(x[source], x[to], split)
        add("ridge", to, found, time.process_time() - start)
    for method, pairing_key in (("ScButterfly", None), ("ScButterfly, pairs within types", "context")):
        mp.model.ScButterfly.setup_mudata(
            mdata,
            modalities={"expression": "rna", "target": target},
            context_key="context",
            pairing_key=pairing_key,
            chromosome_key="chrom" if target == "atac" else None,
        )
        model = mp.model.ScButterfly(mdata, target_kind="accessibility" if target == "atac" else "protein")
        start = time.process_time()
        model.train(split_key="split", seed=seed, accelerator="cpu", enable_progress_bar=False)
        seconds = time.process_time() - start
        for to in (target, "rna"):
            add(method, to, model.predict(perturbation=to).X, seconds)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("ignore", FutureWarning)
    rows = []
    for seed in range(arguments.seeds):
        for target in N_TARGET:
            rows += run(target, arguments.cells, seed)
            print(pd.DataFrame(rows[-6:]).round(3).to_string(index=False), flush=True)
    keys = ["data", "to", "method"]
    table = pd.DataFrame(rows).groupby(keys, sort=False)[["pearson", "auroc", "s"]].mean().round(3)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "translation.csv")
    print(f"\nMean over {arguments.seeds} seed(s)\n{table.to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

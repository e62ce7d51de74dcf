"""Memory of 9,000 perturbations x 1,000,000 cells: the codes of the labels, and a batch of each model.

Run: python benchmarks/many_perturbations.py [--cells 1000000] [--perturbations 9000] [--models CPA LatentAdditive]
Expression has few genes and few non-zero values, so that labels are what takes memory. A tenth of the cells have one of 1,000 combinations. Prints
and writes benchmarks/results/many_perturbations.csv: MB that the setup left in the AnnData, by how much the highest
resident memory lay above that before, and the same for the updates of a probe (`model.estimate`). Linux only.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _kang import RESULTS
from scipy import sparse
from training_cost import highest, resident

import multipert as mp

N_VARS = 50


def screen(n_cells: int, n_perturbations: int) -> ad.AnnData:
    """Cells with random labels."""
    rng = np.random.default_rng(0)
    names = np.array([f"P{i}" for i in range(n_perturbations)], dtype=object)
    labels = names[rng.integers(n_perturbations, size=n_cells)]
    # a thousand pairs, each of two names
    first = rng.integers(n_perturbations - 1, size=1000)
    second = rng.integers(first + 1, n_perturbations)
    combined = names[first] + "+" + names[second]
    is_pair = rng.random(n_cells) < 0.1
    labels[is_pair] = combined[rng.integers(1000, size=int(is_pair.sum()))]
    labels[rng.random(n_cells) < 0.05] = "control"
    x = sparse.random(n_cells, N_VARS, density=0.05, format="csr", dtype=np.float32, random_state=rng)
    x.data += 0.5
    return ad.AnnData(
        x, obs=pd.DataFrame({"perturbation": pd.Categorical(labels)}, index=np.arange(n_cells).astype(str))
    )


def measured(function) -> tuple[float, float]:
    """Seconds of a call, and MB of the highest resident memory above that before."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest back to the present
    start = time.perf_counter()
    function()
    return time.perf_counter() - start, highest() - before


def main() -> int:
    """Measure each model in turn, on one AnnData."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--perturbations", type=int, default=9_000)
    parser.add_argument(
        "--models", nargs="+", default=["MTAe", "LatentAdditive", "DecoderOnly", "CPA", "SAMSVAE", "GEARS"]
    )
    args = parser.parse_args()
    adata = screen(args.cells, args.perturbations)
    rows = []
    for name in args.models:
        cls = getattr(mp.model, name)
        seconds, setup_mb = measured(lambda cls=cls: cls.setup_anndata(adata))
        codes_mb = sum(value.nbytes for key, value in adata.obsm.items() if key.startswith("_")) / 1e6
        _, model_mb = measured(lambda cls=cls: cls(adata).estimate(accelerator="cpu"))
        rows.append(
            {"model": name, "codes_mb": codes_mb, "setup_seconds": seconds, "setup_mb": setup_mb, "probe_mb": model_mb}
        )
        print(
            {key: round(value, 1) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
    pd.DataFrame(rows).round(1).to_csv(RESULTS / "many_perturbations.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

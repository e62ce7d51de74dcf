"""Peak memory of one epoch and of the means of 500 targets: 200,000 cells x 2,000 genes, a tenth non-zero.

Run: python benchmarks/memory.py
Prints the seconds of each step and the peak resident memory; exits with 1 above 4 GB.
"""

from __future__ import annotations

import resource
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

N_CELLS, N_VARS, DENSITY, N_PERTURBATIONS, N_CONTROL = 200_000, 2_000, 0.1, 500, 2_000
LIMIT = 4e9


def made_up_cells(seed: int = 0) -> ad.AnnData:
    """Random sparse expression with the same number of non-zero genes in each cell; only its size matters here."""
    rng = np.random.default_rng(seed)
    per_cell = int(DENSITY * N_VARS)
    indices = np.empty((N_CELLS, per_cell), dtype=np.int32)
    for start in range(0, N_CELLS, 10_000):
        keys = rng.random((min(10_000, N_CELLS - start), N_VARS), dtype=np.float32)
        indices[start : start + len(keys)] = np.sort(np.argpartition(keys, per_cell, axis=1)[:, :per_cell], axis=1)
    data = rng.gamma(2.0, 0.7, size=N_CELLS * per_cell).astype(np.float32)
    indptr = np.arange(0, N_CELLS * per_cell + 1, per_cell, dtype=np.int32)
    x = sparse.csr_matrix((data, indices.ravel(), indptr), shape=(N_CELLS, N_VARS))
    labels = np.array([f"P{i}" for i in rng.integers(0, N_PERTURBATIONS, N_CELLS)], dtype=object)
    labels[:N_CONTROL] = "control"
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell{i}" for i in range(N_CELLS)])
    return ad.AnnData(x, obs=obs)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    import multipert as mp

    adata = made_up_cells()
    print(
        f"data ready: {adata.X.data.nbytes * 2 / 1e9:.2f} GB of sparse values and indices, peak {peak() / 1e9:.2f} GB"
    )
    steps = {}

    def timed(name: str, step):
        start = time.perf_counter()
        result = step()
        steps[name] = time.perf_counter() - start
        print(f"{name}: {steps[name]:.1f} s, peak {peak() / 1e9:.2f} GB", flush=True)
        return result

    timed("setup", lambda: mp.model.MTAe.setup_anndata(adata))
    model = mp.model.MTAe(adata)
    timed(
        "one epoch",
        lambda: model.train(max_epochs=1, train_size=1.0, batch_size=512, enable_progress_bar=False, accelerator="cpu"),
    )
    means = timed("means of 500 targets", lambda: model.predict(returns="mean"))
    print(f"{means.n_obs} targets from {means.obs['n_cells'].iloc[0]} control cells")
    print(f"peak memory {peak() / 1e9:.2f} GB (limit {LIMIT / 1e9:.0f} GB)")
    return int(peak() > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

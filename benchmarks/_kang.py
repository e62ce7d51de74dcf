"""The two Kang files as the benchmarks read them."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"
TYPES = ("B", "CD14+Mono", "CD4T", "CD8T", "Dendritic", "FCGR3A+Mono", "NK")


def read(name: str, n_top_genes: int | None = None) -> ad.AnnData:
    """One of the files, its seven main types, and the genes of highest variance over control cells if asked."""
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        raise SystemExit(f"skipped: the optional data folder has no {path.name} (../shared/data beside the project)")
    adata = ad.read_h5ad(path)
    adata = adata[adata.obs["cell_type"].isin(TYPES)].copy()
    if n_top_genes is not None:
        x = sparse.csr_matrix(adata[adata.obs["perturbation"] == "control"].X).astype(np.float64)
        variance = np.asarray(x.multiply(x).mean(axis=0) - np.square(x.mean(axis=0))).ravel()
        adata = adata[:, np.sort(np.argsort(-variance)[:n_top_genes])].copy()
    return adata


def select(adata: ad.AnnData, context: str, perturbation: str) -> ad.AnnData:
    """Cells of one context and label."""
    return adata[((adata.obs["cell_type"] == context) & (adata.obs["perturbation"] == perturbation)).to_numpy()].copy()

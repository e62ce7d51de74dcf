"""Seconds of ranking genes beside scanpy, on made-up cells of the size of the Kang data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable

N_CELLS, N_VARS = 18_868, 6_998
SCANPY_NAMES = {"t": "t-test", "t_overestimated_variance": "t-test_overestim_var", "wilcoxon": "wilcoxon"}


class Row(NamedTuple):
    what: str
    ours_s: float
    theirs_s: float
    ratio: float
    largest_difference: float
    """Of the scores, which scanpy keeps in float32."""


def made_up_cells(n_groups: int, seed: int = 0) -> ad.AnnData:
    """Negative binomial counts, log1p of 10,000 per cell, about 7 % non-zero, with groups that differ a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_groups, N_CELLS)
    share = rng.lognormal(0, 2.0, N_VARS) * rng.lognormal(0, 0.3, (n_groups, N_VARS))
    share /= share.sum(axis=1, keepdims=True)
    depth = rng.lognormal(np.log(900), 0.4, N_CELLS)
    blocks = []
    for start in range(0, N_CELLS, 1_000):
        rows = slice(start, start + 1_000)
        mean = depth[rows, None] * share[labels[rows]]
        blocks.append(sparse.csr_matrix(rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float32)))
    x = sparse.vstack(blocks, format="csr")
    x.data *= np.repeat(1e4 / np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1), np.diff(x.indptr)).astype(np.float32)
    x.data = np.log1p(x.data)
    names = pd.Categorical([f"g{label:02d}" for label in labels])
    return ad.AnnData(x, pd.DataFrame({"group": names}, index=[f"c{i}" for i in range(N_CELLS)]))


def compare(
    n_groups: int, method: str, *, reference: str = "rest", n_repeats: int = 3, n_scanpy_repeats: int = 1
) -> Row:
    """Best of the repeats of either; scores, p and q values of all groups, from a matrix of cells by genes."""
    import scanpy as sc

    from multipert.metrics import rank_genes

    adata = made_up_cells(n_groups)

    def ours() -> np.ndarray:
        ranking = rank_genes(adata.X, adata.obs["group"], reference=reference, method=method)
        _ = ranking.q_values
        return ranking.scores

    def theirs() -> None:
        sc.tl.rank_genes_groups(adata, "group", reference=reference, method=SCANPY_NAMES[method])

    for compiles in (ours, theirs) if n_scanpy_repeats > 1 else (ours,):
        compiles()
    ours_s, theirs_s = best(ours, n_repeats), best(theirs, n_scanpy_repeats)
    groups = [name for name in adata.obs["group"].cat.categories if name != reference]
    expected = [
        sc.get.rank_genes_groups_df(adata, name).set_index("names").loc[adata.var_names, "scores"] for name in groups
    ]
    difference = float(np.abs(ours() - np.array(expected)).max())
    what = f"{method}, {n_groups} groups against {reference}, {adata.X.nnz / adata.X.shape[0] / N_VARS:.1%} non-zero"
    return Row(what, ours_s, theirs_s, theirs_s / ours_s, difference)


def best(run: Callable[[], object], n_repeats: int) -> float:
    seconds = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wilcoxon_rows() -> list[Row]:
    """Rank-sum tests of 2 and of 7 groups; scanpy's first call also loads its compiled ranks."""
    return [
        compare(2, "wilcoxon"),
        compare(2, "wilcoxon", reference="g00"),
        compare(7, "wilcoxon"),
    ]


def t_rows() -> list[Row]:
    """Welch's t of 14 groups."""
    return [
        compare(14, "t", n_repeats=5, n_scanpy_repeats=5),
        compare(14, "t", reference="g00", n_repeats=5, n_scanpy_repeats=5),
    ]


if __name__ == "__main__":
    print(pd.DataFrame([*t_rows(), *wilcoxon_rows()]).to_string(index=False, float_format=lambda value: f"{value:.3g}"))

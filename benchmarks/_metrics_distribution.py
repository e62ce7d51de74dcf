"""Time of the Sinkhorn cost and of pairwise energy distances, beside pertpy's in the same process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from multipert.metrics._mmd import mmd_linear
from multipert.metrics._pairwise_edistance import pairwise_edistance
from multipert.metrics._transport import sinkhorn_cost

if TYPE_CHECKING:
    from collections.abc import Callable

N_PCS = 50


class Row(NamedTuple):
    """One comparison; `theirs_s`, `ratio` and `largest_difference` are nan where there is no counterpart."""

    what: str
    ours_s: float
    theirs_s: float
    ratio: float
    largest_difference: float


def sinkhorn(n_cells: int = 5000, repeats: int = 3) -> list[Row]:
    """Cost of `n_cells` against `n_cells` in 50 components at the strength that pertpy's solver chooses.

    The difference is relative to pertpy's value.
    """
    from pertpy.tools import Distance

    rows = []
    theirs = Distance("wasserstein")
    for name, deviations in (("decaying", np.linspace(5, 0.5, N_PCS)), ("equal", np.ones(N_PCS))):
        rng = np.random.default_rng(0)
        predicted = rng.normal(size=(n_cells, N_PCS)) * deviations
        observed = rng.normal(size=(n_cells, N_PCS)) * deviations + 0.3 * rng.normal(size=N_PCS)
        # compilation is not part of the time: the solver is compiled for these shapes by the first of the repeats
        ours_s, cost = _shortest(lambda x=predicted, y=observed: sinkhorn_cost(x, y, epsilon="std"), repeats)
        theirs_s, reference = _shortest(lambda x=predicted, y=observed: theirs(x, y), repeats)
        what = f"Sinkhorn cost, {n_cells} x {n_cells} cells, {N_PCS} components of {name} variance"
        rows.append(Row(what, ours_s, theirs_s, theirs_s / ours_s, abs(cost / reference - 1)))
    return rows


def edistance(n_rank: int = 200, repeats: int = 3) -> list[Row]:
    """Energy distances of 30 groups of 100 cells in components and genes, of a rank, and the linear MMD.

    The difference is the largest of any entry, relative to the largest entry.
    """
    rows = [_pairwise(n_vars, repeats) for n_vars in (N_PCS, 2000)]
    rng = np.random.default_rng(0)
    observed = [rng.normal(size=(200, N_PCS)) + 0.3 * rng.normal(size=N_PCS) for _ in range(n_rank)]
    predicted = [cells + 0.1 * rng.normal(size=cells.shape) for cells in observed]
    seconds, _ = _shortest(lambda: pairwise_edistance(predicted, observed), 1)
    rows.append(_alone(f"E-distance rank, {n_rank} x {n_rank} groups of 200 cells, {N_PCS} components", seconds))
    for n_cells in (5_000, 20_000):
        first, second = (rng.normal(size=(n_cells, 2000)) for _ in range(2))
        seconds, _ = _shortest(lambda x=first, y=second: mmd_linear(x, y), repeats)
        rows.append(_alone(f"linear MMD, {n_cells} x {n_cells} cells, 2000 genes", seconds))
    return rows


def _pairwise(n_vars: int, repeats: int, n_groups: int = 30, n_cells: int = 100) -> Row:
    from pertpy.tools import Distance

    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(n_cells, n_vars)) + 0.3 * rng.normal(size=n_vars) for _ in range(n_groups)]
    names = [f"p{number}" for number in range(n_groups)]
    cells = np.vstack(groups)
    obs = pd.DataFrame({"perturbation": np.repeat(names, n_cells)}, index=[str(i) for i in range(len(cells))])
    adata = ad.AnnData(cells, obs=obs, obsm={"X_pca": cells}, layers={"expression": cells})
    adata.obs["perturbation"] = adata.obs["perturbation"].astype("category")
    key = {"obsm_key": "X_pca"} if n_vars == N_PCS else {"layer_key": "expression"}

    def theirs() -> pd.DataFrame:
        # pertpy keeps the distances between cells in obsp and would not compute them again
        adata.obsp.clear()
        return Distance("edistance", **key).pairwise(adata, groupby="perturbation", show_progressbar=False)

    ours_s, distances = _shortest(lambda: pairwise_edistance(groups), repeats)
    theirs_s, frame = _shortest(theirs, repeats)
    reference = frame.loc[names, names].to_numpy()
    difference = np.abs(distances - reference).max() / reference.max()
    what = f"pairwise E-distance, {n_groups} groups of {n_cells} cells, {n_vars} {'components' if n_vars == N_PCS else 'genes'}"
    return Row(what, ours_s, theirs_s, theirs_s / ours_s, difference)


def _alone(what: str, seconds: float) -> Row:
    return Row(what, seconds, np.nan, np.nan, np.nan)


def _shortest(function: Callable, repeats: int) -> tuple[float, object]:
    """Shortest time of the repeats, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result

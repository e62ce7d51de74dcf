"""Simulated cells that were measured twice: RNA beside proteins or accessible peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from multipert import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_N_STATES = 6
_N_HIDDEN = 24


def simulate_multimodal(
    n_cells: int = 1000,
    n_vars: int = 300,
    n_target_vars: int | None = None,
    *,
    target: Literal["protein", "atac"] = "protein",
    n_types: int = 5,
    seed: int = 0,
) -> MuData:
    r"""Simulate cells with two modalities that share a state.

    Each cell has a state of six numbers around that of its type. Logarithms of the rates of genes and proteins, and logits of
    the rates of peaks, are :math:`a + B \tanh(C z)` of the state :math:`z`, with weights of their own, so that neither
    modality is a linear function of the other. Counts are Poisson around rates times a size of the cell.

    Parameters
    ----------
    n_cells
        Cells.
    n_vars
        Genes.
    n_target_vars
        Proteins or peaks; None takes 40 proteins or 600 peaks.
    target
        The second modality.
    n_types
        Types of cells.
    seed
        Same seed, same cells.

    Returns
    -------
    Modalities `"rna"` and `target`, raw counts in `X` and `layers["counts"]` (CSR, float32), obs column `context` (the type)
    in both and in the whole, and for peaks the var column `chrom`. `obsm["simulation"]` of the RNA holds the state.

    Raises
    ------
    ValueError
        If a size is not positive, or the target is unknown.

    Examples
    --------
    >>> mdata = simulate_multimodal(n_cells=50, target="atac")
    >>> mdata["rna"].shape, mdata["atac"].shape, list(mdata["atac"].var)
    ((50, 300), (50, 600), ['chrom'])
    """
    from mudata import MuData

    if target not in ("protein", "atac"):
        raise ValueError(f"target={target!r} is unknown; known: 'protein', 'atac'.")
    if n_target_vars is None:
        n_target_vars = 40 if target == "protein" else 600
    for name, value in (
        ("n_cells", n_cells),
        ("n_vars", n_vars),
        ("n_target_vars", n_target_vars),
        ("n_types", n_types),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    rng = np.random.default_rng(seed)
    kind = rng.integers(n_types, size=n_cells)
    state = rng.normal(0, 1.2, (n_types, _N_STATES))[kind] + rng.normal(0, 0.6, (n_cells, _N_STATES))
    obs = pd.DataFrame(
        {_keys.CONTEXT: pd.Categorical([f"type_{i + 1}" for i in kind])},
        index=[f"cell_{i + 1:0{len(str(n_cells))}d}" for i in range(n_cells)],
    )
    size = rng.lognormal(0, 0.25, (n_cells, 1))
    rna = _measured(rng, size * np.exp(_linked(rng, state, n_vars, mean=-0.3, spread=1.2)), obs, "gene")
    rna.obsm[_keys.SIMULATION] = state
    if target == "protein":
        rates = np.exp(_linked(rng, state, n_target_vars, mean=3.0, spread=1.0))
        other = _measured(rng, rng.lognormal(0, 0.25, (n_cells, 1)) * rates, obs, "protein")
    else:
        # an open peak has a rate near 1, a closed one near 0
        rates = 1 / (1 + np.exp(-_linked(rng, state, n_target_vars, mean=-1.8, spread=1.0)))
        other = _measured(rng, rng.lognormal(0, 0.25, (n_cells, 1)) * rates, obs, "peak")
        chromosome = np.sort(rng.integers(1, 6, n_target_vars))
        other.var["chrom"] = pd.Categorical([f"chr{i}" for i in chromosome])
    mdata = MuData({"rna": rna, target: other})
    mdata.obs[_keys.CONTEXT] = obs[_keys.CONTEXT]
    return mdata


def _linked(rng: np.random.Generator, state: np.ndarray, n: int, *, mean: float, spread: float) -> np.ndarray:
    """Features as a nonlinear function of the state, shape `(n_cells, n)`."""
    hidden = np.tanh(state @ rng.normal(0, 1 / np.sqrt(_N_STATES), (_N_STATES, _N_HIDDEN)) * 1.5)
    weights = rng.normal(0, 1, (_N_HIDDEN, n)) * (rng.random((_N_HIDDEN, n)) < 0.3)
    return rng.normal(mean, spread, n) + 0.7 * hidden @ weights


def _measured(rng: np.random.Generator, rates: np.ndarray, obs: pd.DataFrame, name: str) -> AnnData:
    from anndata import AnnData

    n = rates.shape[1]
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    var = pd.DataFrame(index=[f"{name}_{i + 1:0{len(str(n))}d}" for i in range(n)])
    return AnnData(counts, obs=obs.copy(), var=var, layers={_keys.COUNTS_LAYER: counts.copy()})

"""Pairs of cells that were measured in one modality each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column, check_names

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger(__name__)


def pair_by_label(
    rna: AnnData,
    other: AnnData,
    key: str,
    *,
    names: tuple[str, str] = ("rna", "atac"),
    n_pairs: int | None = None,
    seed: int = 0,
) -> MuData:
    """Draw pairs of cells of the same label from two AnnData, with replacement.

    The share of pairs of a label is the mean of its shares among the cells of either side, both taken over the labels
    that the two sides share. Cells of other labels are left out: they are the ones to predict. Give training cells only.

    Parameters
    ----------
    rna
        Cells of the first modality.
    other
        Cells of the second.
    key
        obs column of labels of both, such as the cell type.
    names
        Names of the modalities.
    n_pairs
        Pairs to draw; None draws as many as the larger side has cells.
    seed
        Seed of the draws.

    Returns
    -------
    A MuData of the pairs, with the label in `obs[key]` of both modalities and of the whole and the names of the drawn cells
    in `obs["source_cell"]` of each modality.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If the two share no label, or `n_pairs` is below 1.

    Examples
    --------
    >>> import multipert as mp
    >>> mdata = mp.datasets.simulate_multimodal(n_cells=60, target="atac")
    >>> pairs = pair_by_label(mdata["rna"][:30].copy(), mdata["atac"][30:].copy(), "context")
    >>> bool((pairs["rna"].obs["context"] == pairs["atac"].obs["context"]).all())
    True
    """
    from anndata import AnnData
    from mudata import MuData

    if n_pairs is not None and n_pairs < 1:
        raise ValueError(f"n_pairs={n_pairs} must be at least 1.")
    sides = (rna, other)
    for adata in sides:
        check_names(adata)
    labels = [check_column(adata.obs, key, "key").astype(str).to_numpy(dtype=object) for adata in sides]
    shared = sorted(set(labels[0]) & set(labels[1]))
    if not shared:
        seen = " and ".join(", ".join(map(repr, sorted(set(of_side))[:5])) for of_side in labels)
        raise ValueError(f"obs[{key!r}] of the two sides share no label: {seen}.")
    for name, of_side in zip(names, labels, strict=True):
        n_alone = int((~np.isin(of_side.astype(str), shared)).sum())
        if n_alone:
            logger.info("%d cell(s) of %s have labels that the other side lacks, and are left out.", n_alone, name)
    n_cells = np.array([[(of_side == label).sum() for label in shared] for of_side in labels])
    shares = (n_cells / n_cells.sum(axis=1, keepdims=True)).mean(axis=0)
    total = max(adata.n_obs for adata in sides) if n_pairs is None else n_pairs
    n_of_label = np.maximum(1, np.round(shares * total).astype(int))
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, adata, of_side in zip(names, sides, labels, strict=True):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(of_side == label), n) for label, n in zip(shared, n_of_label, strict=True)]
        )
        obs = adata.obs.iloc[rows].assign(**{_keys.SOURCE_CELL: adata.obs_names[rows].astype(str)})
        obs.index = pd.Index([f"pair_{i + 1}" for i in range(len(rows))])
        layers = {layer: values[rows] for layer, values in adata.layers.items()}
        drawn[name] = AnnData(adata.X[rows], obs=obs, var=adata.var.copy(), layers=layers)
    mdata = MuData(drawn)
    mdata.obs[key] = pd.Categorical(np.repeat(shared, n_of_label))
    return mdata

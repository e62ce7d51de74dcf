"""Simulated cells of two modalities that share a state."""

import numpy as np
import pytest

from multipert import datasets


@pytest.mark.parametrize(("target", "n"), [("protein", 40), ("atac", 600)])
def test_both_modalities_are_counts_of_the_same_cells(target, n):
    mdata = datasets.simulate_multimodal(80, 50, target=target, seed=1)
    assert mdata[target].n_vars == n
    assert list(mdata["rna"].obs_names) == list(mdata[target].obs_names)
    for adata in mdata.mod.values():
        x = adata.X.toarray()
        assert (x == np.rint(x)).all()
        assert (x >= 0).all()
        np.testing.assert_array_equal(adata.layers["counts"].toarray(), x)
        assert list(adata.obs["context"]) == list(mdata.obs["context"])
    assert ("chrom" in mdata[target].var) == (target == "atac")


def test_the_seed_decides():
    first, again, other = (datasets.simulate_multimodal(30, seed=seed) for seed in (1, 1, 2))
    for name in ("rna", "protein"):
        assert (first[name].X != again[name].X).nnz == 0
        assert (first[name].X != other[name].X).nnz > 0


def test_the_modalities_share_more_than_the_type():
    mdata = datasets.simulate_multimodal(1500, 60, 30, n_types=1, seed=0)
    rna, protein = (np.log1p(mdata[name].X.toarray()) for name in ("rna", "protein"))
    half = 750
    weights = np.linalg.lstsq(np.c_[np.ones(half), rna[:half]], protein[:half], rcond=None)[0]
    found = np.c_[np.ones(half), rna[half:]] @ weights
    correlations = [np.corrcoef(f, t)[0, 1] for f, t in zip(found.T, protein[half:].T, strict=True)]
    assert np.median(correlations) > 0.3


@pytest.mark.parametrize(("arguments", "message"), [({"target": "adt"}, "target='adt'"), ({"n_types": 0}, "n_types=0")])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.simulate_multimodal(10, **arguments)

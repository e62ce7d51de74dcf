import hashlib

import numpy as np
import pytest
from scipy import sparse

from multipert import datasets
from multipert.datasets import _cells


def digest(adata):
    """Hash of the counts and of every label; the layout of the sparse matrix does not matter."""
    counts = adata.layers["counts"].tocsr().sorted_indices()
    text = adata.obs.astype(str).to_csv()
    state = hashlib.sha256(text.encode())
    for array in (counts.data.astype("<i4"), counts.indices.astype("<i4"), counts.indptr.astype("<i4")):
        state.update(array.tobytes())
    return state.hexdigest()[:16]


FROZEN = {"small": "5fe32ffa4da105a4", "doses": "f8708a0c3a804aae", "combinations": "82e59ee041f9a576"}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_screens_have_not_changed(name):
    found = digest(datasets.screen(name))
    assert found == FROZEN[name], (
        f"screen({name!r}) is no longer the frozen one (digest {found}). Every stored table rests on it: undo the "
        "change, or make all stored tables again and say so in the changelog."
    )


def test_layout_of_small():
    adata = datasets.screen("small")
    assert adata.shape == (2500, 500)
    for matrix in (adata.X, adata.layers["counts"]):
        assert sparse.isspmatrix_csr(matrix)
        assert matrix.dtype == np.float32
    assert sorted(adata.obs["perturbation"].unique()) == ["P1", "P2", "P3", "P4", "control"]
    sizes = adata.obs.groupby(["context", "perturbation"], observed=False).size()
    assert len(sizes) == 25
    assert sizes.min() >= 80
    assert list(adata.obs.columns) == ["perturbation", "context"]


def test_x_is_log1p_of_counts_at_the_stated_total():
    adata = datasets.screen("small")
    counts = adata.layers["counts"].toarray()
    assert np.array_equal(counts, counts.round())
    target = adata.uns["simulation"]["target_sum"]
    assert target == np.median(counts.sum(axis=1))
    np.testing.assert_allclose(np.expm1(adata.X.toarray()).sum(axis=1), target, rtol=1e-4)
    np.testing.assert_allclose(
        adata.X.toarray(), np.log1p(counts / counts.sum(axis=1, keepdims=True) * target), rtol=1e-5
    )


def test_zeros_come_from_sampling():
    adata = datasets.simulate(n_cells=400, n_vars=60, n_contexts=1, n_perturbations=1, seed=3)
    mean = datasets.true_mean(adata, "control").astype(float)
    control = (adata.obs["perturbation"] == "control").to_numpy()
    dispersion = adata.uns["simulation"]["dispersion"]
    expected = ((1 + mean * dispersion) ** (-1 / dispersion))[control]
    observed = adata.layers["counts"].toarray()[control] == 0
    z = (observed.sum() - expected.sum()) / np.sqrt((expected * (1 - expected)).sum())
    assert abs(z) < 4


def test_same_seed_same_screen_on_any_number_of_cores(monkeypatch):
    size = {"n_cells": 2300, "n_vars": 30, "n_contexts": 2, "n_perturbations": 2}
    first = datasets.simulate(**size, seed=5)
    monkeypatch.setattr(_cells.os, "cpu_count", lambda: 1)
    again = datasets.simulate(**size, seed=5)
    assert digest(first) == digest(again)
    assert np.array_equal(first.obsm["simulation"], again.obsm["simulation"])
    other = datasets.simulate(**size, seed=6)
    assert digest(first) != digest(other)
    assert not np.allclose(first.uns["simulation"]["log_rate"], other.uns["simulation"]["log_rate"])


def test_more_cells_are_more_of_the_same_screen():
    few, many = (datasets.simulate(n_cells=n, n_vars=30, n_contexts=2, n_perturbations=2) for n in (100, 1500))
    assert few.uns["simulation"].keys() == many.uns["simulation"].keys()
    for key in few.uns["simulation"].keys() - {"target_sum"}:
        assert np.array_equal(few.uns["simulation"][key], many.uns["simulation"][key]), key


def test_cells_of_different_blocks_differ():
    adata = datasets.simulate(n_cells=2000, n_vars=20, n_contexts=1, n_perturbations=1)
    cells = adata.obsm["simulation"]
    assert len(np.unique(cells[:, 0])) == 2000


def test_doses_are_columns_of_numbers():
    adata = datasets.screen("doses")
    assert adata.obs["dose"].dtype == float
    is_control = adata.obs["perturbation"] == "control"
    assert set(adata.obs.loc[is_control, "dose"]) == {0}
    groups = adata.obs[~is_control].groupby(["context", "perturbation", "dose"], observed=True).size()
    assert len(groups) == 4 * 3 * 5
    assert set(adata.obs.loc[~is_control, "dose"]) == {0.1, 0.5, 2, 10, 50}


def test_combinations_with_doses_are_text_in_the_label_order():
    adata = datasets.simulate(
        n_cells=600, n_vars=20, n_contexts=1, n_perturbations=3, combinations=2, doses=(1, 5), covariates=3
    )
    doses = adata.obs.groupby("perturbation", observed=True)["dose"].unique()
    assert set(doses["control"]) == {"0"}
    assert set(doses["P1"]) == {"1", "5"}
    pairs = [label for label in doses.index if "+" in label]
    assert len(pairs) == 2
    for pair in pairs:
        assert set(doses[pair]) <= {"1+1", "1+5", "5+1", "5+5"}
        assert len(doses[pair]) == 2
    assert sorted(adata.obs["covariate"].unique()) == ["covariate_1", "covariate_2", "covariate_3"]


def test_combinations_screen_has_every_kind_and_unseen_names():
    adata = datasets.screen("combinations")
    kinds = adata.uns["simulation"]["pair_kind"].tolist()
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"additive": 6, "synergistic": 6, "masking": 6}
    embedding = adata.uns["perturbation_embedding"]
    assert embedding.shape == (15, 4)
    observed = {part for label in adata.obs["perturbation"].unique() for part in label.split("+")} - {"control"}
    assert observed < set(embedding.index)
    assert len(set(embedding.index) - observed) == 3
    # every part of a pair is also seen alone
    assert observed <= set(adata.obs["perturbation"].unique())


def test_control_fraction():
    adata = datasets.simulate(n_cells=1000, n_vars=20, n_contexts=4, n_perturbations=2, control_fraction=0.5)
    controls = adata.obs.loc[adata.obs["perturbation"] == "control", "context"].value_counts()
    assert controls.tolist() == [125] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells=0 is too small"),
        ({"n_vars": 5}, "n_vars=5 is too small"),
        ({"n_contexts": 0}, "n_contexts=0"),
        ({"n_perturbations": 0}, "n_perturbations=0"),
        ({"features": 3, "feature_density": 0.0}, "feature_density=0.0 must be above 0 and at most 1"),
        ({"features": 3, "feature_density": float("nan")}, "feature_density=nan must be above 0"),
        ({"feature_density": 0.2}, "feature_density=0.2 needs features"),
        ({"n_cells": 20}, "every group needs one"),
        ({"doses": (0, 1)}, "must be positive"),
        ({"doses": (-1, 1)}, "must be positive"),
        ({"doses": (1, np.inf)}, "finite"),
        ({"doses": (1, 1)}, "distinct"),
        ({"doses": ()}, "empty"),
        ({"combinations": 11}, "only 10 pairs"),
        ({"combinations": -1}, "combinations=-1"),
        ({"covariates": 1}, "one level"),
        ({"control_fraction": 0}, "control_fraction=0"),
        ({"control_fraction": 1}, "control_fraction=1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.simulate(**arguments)


def test_sparse_features_are_few_programmes_of_equal_reach():
    arguments = {"n_cells": 600, "n_vars": 100, "n_contexts": 1, "n_perturbations": 200, "features": 6}
    adata = datasets.simulate(**arguments, feature_density=0.2)
    table = adata.uns["perturbation_embedding"].to_numpy()
    on = table != 0
    # a sixth of the values is kept whatever is drawn
    assert abs(on.mean() - (1 - 0.8 * 5 / 6)) < 0.03
    assert on.any(axis=1).all()
    assert (on.sum(axis=0) > 40).all()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1.5)
    # of two values that are on the smaller is at least a third of the other
    sizes = np.abs(table[on.sum(axis=1) == 2])
    assert (np.sort(sizes)[:, -2] > np.sort(sizes)[:, -1] / 3.01).all()
    # perturbations of one and the same programme push the same genes, up to their strength and sign
    alone = [f"P{i + 1:03}" for i in np.flatnonzero(on[:200].sum(axis=1) == 1)]
    programme = on[:200][on[:200].sum(axis=1) == 1].argmax(axis=1)
    effects = np.array([datasets.true_effects(adata, name).to_numpy().ravel() for name in alone[:40]])
    likeness = np.abs(np.corrcoef(effects))
    same = programme[:40, None] == programme[:40]
    assert same.sum() > 100
    np.testing.assert_allclose(likeness[same], 1)
    assert likeness[~same].max() < 0.9


def test_all_features_act_unless_asked_otherwise():
    arguments = {"n_cells": 200, "n_vars": 40, "n_contexts": 1, "n_perturbations": 5, "features": 3, "seed": 4}
    dense = datasets.simulate(**arguments)
    assert (dense.uns["perturbation_embedding"] != 0).to_numpy().all()
    assert digest(dense) == digest(datasets.simulate(**arguments, feature_density=1.0))


def test_unknown_screen():
    with pytest.raises(ValueError, match="small, doses, combinations"):
        datasets.screen("big")


def test_a_shift_learnt_elsewhere_transfers_in_part():
    """Context transfer on the small screen can be learnt, is not trivial, and tells perturbations apart."""
    adata = datasets.screen("small")
    names = ["control", "P1", "P2", "P3", "P4"]
    mean = adata.to_df().groupby([adata.obs["context"], adata.obs["perturbation"]], observed=True).mean()
    own, other = [], []
    for context in adata.obs["context"].cat.categories:
        cells = adata[adata.obs["context"] == context]
        truth = {p: datasets.true_mean(cells, p, space="log1p").mean(axis=0) for p in names}
        shift = mean.drop(context, level="context").groupby(level="perturbation").mean()
        for p in names[1:]:
            delta = truth[p] - truth["control"]
            for q in names[1:]:
                correlation = np.corrcoef(delta, shift.loc[q] - shift.loc["control"])[0, 1]
                (own if p == q else other).append(correlation)
    assert 0.6 < np.mean(own) < 0.9
    assert max(other) < min(own)

"""Sums of parts: exact on group means, wherever and at whatever dose each part was measured."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.model import Additive, TwoFactor

G = 6
# X and the prediction are float32 of values below 16
SINGLE = 4e-6


def screen(means, *, n=4, n_cells=None, seed=0):
    """Cells spread evenly around group means {(context, label): vector}, so that each mean is exact, in random order."""
    rng = np.random.default_rng(seed)
    x, obs = [], []
    for key, mean in means.items():
        size = (n_cells or {}).get(key, n)
        spread = rng.choice([-0.5, 0.5], (size // 2, G))
        x.append(mean + np.concatenate([spread, -spread]))
        obs += [key] * size
    order = rng.permutation(len(obs))
    frame = pd.DataFrame(obs, columns=["context", "perturbation"]).iloc[order]
    frame.index = [f"cell{i}" for i in range(len(obs))]
    frame["split"] = "train"
    return AnnData(np.concatenate(x)[order].astype(np.float32), frame)


def group_means(contexts="abc", labels=("A", "B", "C", "A+B"), seed=0):
    """Means without structure, so that no part, context or combination can stand in for another."""
    rng = np.random.default_rng(seed)
    return {(c, p): rng.integers(24, 72, G) / 8 for c in contexts for p in ("control", *labels)}


def hold_out(adata, *pairs):
    keys = zip(adata.obs["context"], adata.obs["perturbation"], strict=True)
    adata.obs["split"] = np.where([key in pairs for key in keys], "test", "train")
    return adata


def fit(adata, cls=Additive, **setup):
    cls.setup_anndata(adata, **{"context_key": "context", **setup})
    model = cls(adata)
    model.train(split_key="split", accelerator="cpu")
    return model


def mean(model, label, context, **arguments):
    return model.predict(perturbation=label, context=context, returns="mean", clip=False, **arguments).X[0]


def delta(means, context, label):
    return means[context, label] - means[context, "control"]


# ------------------------------------------------------------------ the sum


@pytest.mark.parametrize("label", ["A+B", "A+C", "A+B+C"])
def test_parts_measured_in_the_context_are_added_up_there(label):
    means = group_means()
    model = fit(screen(means))
    for context in "abc":
        expected = means[context, "control"] + sum(delta(means, context, part) for part in label.split("+"))
        np.testing.assert_allclose(mean(model, label, context), expected, atol=SINGLE)


def test_a_part_that_the_context_lacks_is_its_mean_shift_with_equal_weight_of_contexts():
    means = group_means()
    adata = hold_out(screen(means, n_cells={("b", "B"): 40, ("b", "control"): 20}), ("a", "B"))
    found = mean(fit(adata), "A+B", "a") - means["a", "control"]
    shift = (delta(means, "b", "B") + delta(means, "c", "B")) / 2
    np.testing.assert_allclose(found, delta(means, "a", "A") + shift, atol=SINGLE)


def test_one_part_is_its_own_change():
    means = group_means()
    adata = hold_out(screen(means), ("a", "A"))
    model, rival = fit(adata), fit(adata.copy(), TwoFactor)
    np.testing.assert_allclose(mean(model, "A", "b"), means["b", "A"], atol=SINGLE)
    np.testing.assert_allclose(mean(model, "A", "a"), mean(rival, "A", "a"), atol=SINGLE)
    assert np.abs(mean(model, "A", "b") - mean(rival, "A", "b")).max() > 0.1


def test_the_order_of_parts_changes_nothing():
    model = fit(screen(group_means()))
    np.testing.assert_array_equal(model.predict(perturbation="B+A").X, model.predict(perturbation="A+B").X)


def test_a_measured_combination_is_the_sum_of_its_parts_all_the_same():
    means = group_means()
    other = {key: value + (key[1] == "A+B") for key, value in means.items()}
    np.testing.assert_array_equal(
        fit(screen(other)).predict(perturbation="A+B").X, fit(screen(means)).predict(perturbation="A+B").X
    )
    assert np.abs(mean(fit(screen(means)), "A+B", "a") - means["a", "A+B"]).max() > 0.1


def test_cells_are_the_control_cells_moved_as_one():
    adata = screen(group_means())
    predicted = fit(adata).predict(perturbation="A+B", context="a", clip=False)
    moved = predicted.X - adata[predicted.obs["source_cell"]].X
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=SINGLE)
    assert np.abs(moved[0]).max() > 0.1


# ------------------------------------------------------------------ contexts


def test_a_new_context_gets_the_mean_shifts():
    means = group_means()
    adata = screen(means)
    model = fit(adata)
    renamed = adata.copy()
    renamed.obs["context"] = renamed.obs["context"].replace({"a": "new"})
    shift = sum(np.mean([delta(means, c, part) for c in "abc"], axis=0) for part in "AB")
    found = model.predict(renamed, perturbation="A+B", context="new", returns="mean", clip=False).X[0]
    np.testing.assert_allclose(found, means["a", "control"] + shift, atol=SINGLE)


def test_contexts_without_training_controls_say_nothing():
    means = group_means()
    model = fit(hold_out(screen(means), ("a", "control")))
    shift = sum((delta(means, "b", part) + delta(means, "c", part)) / 2 for part in "AB")
    np.testing.assert_allclose(mean(model, "A+B", "a"), means["a", "control"] + shift, atol=SINGLE)
    np.testing.assert_allclose(mean(model, "A", "b"), means["b", "A"], atol=SINGLE)


def test_without_contexts_all_cells_are_one():
    means = {("a", label): values for (_, label), values in group_means("a").items()}
    found = fit(screen(means), context_key=None).predict(perturbation="A+B", returns="mean", clip=False).X[0]
    np.testing.assert_allclose(found, means["a", "A"] + means["a", "B"] - means["a", "control"], atol=SINGLE)


# ------------------------------------------------------------------ doses


def with_doses(means):
    """Labels "A@1" become the label "A" and the dose 1."""
    adata = screen(means)
    parts = adata.obs["perturbation"].str.split("@")
    adata.obs["perturbation"], adata.obs["dose"] = parts.str[0], parts.str[1].fillna("0").astype(float)
    return adata


def test_every_part_takes_its_own_dose():
    means = group_means(labels=("A@1", "A@5", "B@1", "B@2"))
    model = fit(with_doses(means), dose_key="dose")
    for dose, parts in {"5+2": ("A@5", "B@2"), "1+2": ("A@1", "B@2"), "1": ("A@1", "B@1")}.items():
        expected = means["a", "control"] + sum(delta(means, "a", part) for part in parts)
        np.testing.assert_allclose(mean(model, "A+B", "a", dose=dose), expected, atol=SINGLE)


def test_a_dose_that_was_not_measured_is_refused_with_those_that_were():
    model = fit(with_doses(group_means(labels=("A@1", "A@5", "B@2"))), dose_key="dose")
    with pytest.raises(ValueError, match=r"'A' alone at dose 2 .*doses that are: 1, 5"):
        model.predict(perturbation="A+B", dose="2+2")


# ------------------------------------------------------------------ refusals


def test_a_part_never_seen_alone_is_refused():
    model = fit(screen(group_means(labels=("A", "B", "D+E"))))
    with pytest.raises(ValueError, match="The change of 'D' alone is not known"):
        model.predict(perturbation="B+D")


def test_a_part_without_controls_beside_it_is_refused():
    adata = hold_out(screen(group_means()), ("c", "control"), ("a", "B"), ("b", "B"))
    with pytest.raises(ValueError, match="The change of 'B' alone is not known"):
        fit(adata).predict(perturbation="A+B")


# ------------------------------------------------------------------ invariances


def test_test_cells_change_no_bit():
    adata = hold_out(screen(group_means()), ("a", "A"), ("a", "A+B"))
    spoiled = adata.copy()
    spoiled.X[(adata.obs["split"] == "test").to_numpy()] += 3
    one, other = fit(adata), fit(spoiled)
    assert all(torch.equal(a, b) for a, b in zip(one.module.buffers(), other.module.buffers(), strict=True))
    np.testing.assert_array_equal(one.predict(perturbation="A+B").X, other.predict(perturbation="A+B").X)


def test_the_order_of_cells_and_a_constant_change_no_shift():
    means = group_means()
    adata = hold_out(screen(means), ("a", "B"))
    shuffled = adata[np.random.default_rng(3).permutation(adata.n_obs)].copy()
    raised = adata.copy()
    raised.X = adata.X + np.linspace(0, 4, G, dtype=np.float32)
    expected = mean(fit(adata), "A+B", "a")
    np.testing.assert_allclose(mean(fit(shuffled), "A+B", "a"), expected, atol=SINGLE)
    np.testing.assert_allclose(mean(fit(raised), "A+B", "a") - np.linspace(0, 4, G), expected, atol=SINGLE)


def test_the_embedding_is_the_mean_change():
    means = group_means()
    table = fit(screen(means)).get_perturbation_embedding()
    assert table.index.tolist() == ["A", "A+B", "B", "C"]
    for label in table.index:
        np.testing.assert_allclose(table.loc[label], np.mean([delta(means, c, label) for c in "abc"], 0), atol=SINGLE)


# ------------------------------------------------------------------ real cells


def test_the_figures_on_pairs_of_activated_genes(shared_data):
    path = shared_data / "norman19_subset.h5ad"
    if not path.exists():
        pytest.skip("needs shared/data/norman19_subset.h5ad beside the project")
    adata = anndata.read_h5ad(path)
    x, label = adata.X.toarray(), adata.obs["perturbation"].astype(str).to_numpy()
    adata.obs["split"] = np.where([("+" in name) for name in label], "test", "train")
    model = fit(adata)
    singles = model.get_perturbation_embedding()
    pairs = [name for name in sorted(set(label)) if "+" in name and set(name.split("+")) <= set(singles.index)]
    assert (len(pairs), len(singles)) == (5, 18)
    control = x[label == "control"].mean(axis=0)
    found, rival = [], []
    for pair in pairs:
        observed = x[label == pair].mean(axis=0) - control
        found.append(np.corrcoef(mean(model, pair, "k562") - control, observed)[0, 1])
        rival.append(np.corrcoef(singles.mean(axis=0), observed)[0, 1])
    assert np.mean(found) == pytest.approx(0.870, abs=0.005)
    assert np.mean(rival) == pytest.approx(0.280, abs=0.005)

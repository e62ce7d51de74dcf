"""Whose change is taken: nearness restated by numpy, ties, contexts, and the search by effect."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.model import NearestPerturbation

G = 6
SINGLE = 4e-6
# A and TWIN share a place, E is nearest to B, F to A+C, and FAR to C
TABLE = {
    "A": (0.0, 0.0),
    "B": (3.0, 0.0),
    "C": (0.0, 4.0),
    "E": (2.5, 0.5),
    "F": (0.1, 3.9),
    "FAR": (-50.0, 90.0),
    "TWIN": (0.0, 0.0),
}


def screen(labels=("A", "B", "C", "TWIN", "B+C"), contexts="ab", *, seed=0, n=4):
    """Cells around group means without structure, each mean exact; and the means."""
    rng = np.random.default_rng(seed)
    means = {(c, p): rng.integers(24, 72, G) / 8 for c in contexts for p in ("control", *labels)}
    spread = np.repeat([[0.5], [-0.5]], n // 2, axis=0) * rng.choice([-1, 1], G)
    frame = pd.DataFrame(np.repeat(list(means), n, axis=0), columns=["context", "perturbation"])
    frame.index = [f"cell{i}" for i in range(len(frame))]
    frame["split"] = "train"
    adata = AnnData(np.concatenate([mean + spread for mean in means.values()]).astype(np.float32), frame)
    adata.uns["table"] = pd.DataFrame.from_dict(TABLE, orient="index", columns=["x", "y"])
    return adata, means


def hold_out(adata, *pairs):
    keys = zip(adata.obs["context"], adata.obs["perturbation"], strict=True)
    adata.obs["split"] = np.where([key in pairs for key in keys], "test", "train")
    return adata


def set_up(adata):
    NearestPerturbation.setup_anndata(adata, context_key="context", perturbation_embedding_key="table")
    return NearestPerturbation(adata)


def fit(adata):
    model = set_up(adata)
    model.train(split_key="split", accelerator="cpu")
    return model


def shift(model, label, context, means):
    predicted = model.predict(perturbation=label, context=context, returns="mean", clip=False).X[0]
    return predicted - means[context, "control"]


def delta(means, context, label):
    return means[context, label] - means[context, "control"]


# ------------------------------------------------------------------ whose change


@pytest.mark.parametrize(
    ("label", "nearest"), [("E", "B"), ("F", "C"), ("FAR", "C"), ("E+F", "B+C"), ("A+E", "B"), ("C+TWIN", "C")]
)
def test_an_unseen_target_moves_as_its_nearest_in_the_own_context(label, nearest):
    adata, means = screen()
    model = fit(adata)
    for context in "ab":
        np.testing.assert_allclose(shift(model, label, context, means), delta(means, context, nearest), atol=SINGLE)


@pytest.mark.parametrize("seed", range(5))
def test_nearness_is_the_distance_of_summed_embeddings(seed):
    adata, means = screen()
    rng = np.random.default_rng(seed)
    adata.uns["table"] = table = pd.DataFrame(rng.normal(size=(7, 4)), index=list(TABLE))
    model, trained = fit(adata), ["A", "B", "C", "TWIN", "B+C"]
    for label in ("E", "F", "FAR", "E+F", "A+FAR"):
        wanted = table.loc[label.split("+")].sum(axis=0)
        distance = [np.linalg.norm(table.loc[other.split("+")].sum(axis=0) - wanted) for other in trained]
        nearest = trained[int(np.argmin(distance))]
        np.testing.assert_allclose(shift(model, label, "a", means), delta(means, "a", nearest), atol=SINGLE)


def test_a_trained_condition_is_its_own_nearest_and_equals_go_by_label():
    adata, means = screen()
    model = fit(adata)
    for label in ("A", "TWIN", "B+C"):
        np.testing.assert_allclose(shift(model, label, "a", means), delta(means, "a", label), atol=SINGLE)
    adata.uns["table"].loc["E"] = TABLE["A"]
    np.testing.assert_allclose(shift(fit(adata), "E", "a", means), delta(means, "a", "A"), atol=SINGLE)


def test_the_order_of_parts_changes_nothing():
    model = fit(screen()[0])
    np.testing.assert_array_equal(model.predict(perturbation="F+E").X, model.predict(perturbation="E+F").X)


def test_a_neighbour_that_the_context_lacks_moves_by_its_mean_shift():
    adata, means = screen(contexts="abc")
    model = fit(hold_out(adata, ("a", "B")))
    expected = (delta(means, "b", "B") + delta(means, "c", "B")) / 2
    for label in ("E", "B"):
        np.testing.assert_allclose(shift(model, label, "a", means), expected, atol=SINGLE)


def test_perturbations_without_controls_beside_them_are_nobodys_neighbour():
    adata, means = screen()
    hold_out(adata, ("b", "control"), ("a", "B"))
    np.testing.assert_allclose(shift(fit(adata), "B", "a", means), delta(means, "a", "A"), atol=SINGLE)


def test_no_change_at_all_is_refused():
    adata, _ = screen()
    adata.obs["split"] = np.where(
        (adata.obs["context"] == "a") == (adata.obs["perturbation"] == "control"), "train", "test"
    )
    with pytest.raises(ValueError, match="No training context has both"):
        fit(adata).predict(perturbation="E")


# ------------------------------------------------------------------ the table


def test_rows_are_matched_by_name_and_must_stay():
    adata, means = screen()
    model = set_up(adata)
    adata.uns["table"] = adata.uns["table"].iloc[::-1]
    model.train(split_key="split", accelerator="cpu")
    np.testing.assert_allclose(shift(model, "E", "a", means), delta(means, "a", "B"), atol=SINGLE)
    other = set_up(adata)
    adata.uns["table"] = adata.uns["table"].drop(index=["E", "F"])
    with pytest.raises(ValueError, match="lacks 2 perturbation"):
        other.train(split_key="split", accelerator="cpu")


def test_a_saved_model_knows_the_embedding(tmp_path):
    adata, _ = screen()
    model = fit(adata)
    model.save(tmp_path)
    adata.uns["table"].loc["E"] = TABLE["C"]
    loaded = NearestPerturbation.load(tmp_path, False, accelerator="cpu")
    expected = model.predict(adata, perturbation=["E", "E+F"]).X
    np.testing.assert_array_equal(loaded.predict(adata, perturbation=["E", "E+F"]).X, expected)


def test_test_cells_change_no_bit():
    adata = hold_out(screen()[0], ("a", "B"), ("b", "C"))
    spoiled = adata.copy()
    spoiled.X[(adata.obs["split"] == "test").to_numpy()] += 3
    one, other = fit(adata), fit(spoiled)
    assert all(torch.equal(a, b) for a, b in zip(one.module.buffers(), other.module.buffers(), strict=True))
    np.testing.assert_array_equal(one.predict(perturbation="E").X, other.predict(perturbation="E").X)


# ------------------------------------------------------------------ nearest effect


def test_a_described_effect_finds_the_condition_that_has_it():
    adata, means = screen()
    model = fit(adata)
    mean_change = {label: (delta(means, "a", label) + delta(means, "b", label)) / 2 for label in ("A", "B", "C", "B+C")}
    for label, values in mean_change.items():
        found = model.nearest(values)
        assert found.index[0] == label
        assert found.iloc[0] == pytest.approx(0, abs=1e-5)
    found = model.nearest(mean_change["A"] + 0.3)
    assert sorted(found.index) == ["A", "B", "B+C", "C", "TWIN"]
    assert found.is_monotonic_increasing
    for label, values in mean_change.items():
        assert found[label] == pytest.approx(np.linalg.norm(values - mean_change["A"] - 0.3), abs=1e-4)


def test_equal_effects_go_by_label():
    adata, _ = screen()
    rows = {label: (adata.obs["perturbation"] == label).to_numpy() for label in ("A", "TWIN")}
    adata.X[rows["TWIN"]] = adata.X[rows["A"]]
    model = fit(adata)
    found = model.nearest(model.get_perturbation_embedding().loc["TWIN"].to_numpy())
    assert found.index[:2].tolist() == ["A", "TWIN"]


def test_an_effect_must_be_whole():
    adata, _ = screen()
    with pytest.raises(RuntimeError, match="train"):
        set_up(adata).nearest(np.zeros(G))
    model = fit(adata)
    with pytest.raises(ValueError, match=r"delta has shape \(5,\).*6 genes"):
        model.nearest(np.zeros(G - 1))
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        model.nearest(np.array([0, 0, np.nan, 0, 0, 0]))

"""Drawn neighbours: which perturbations, which cells, how often, and nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.model import KNN, NearestPerturbation

G = 8
LABELS = ("A", "B", "C", "D")
# distances from E: A 0.5, B 1, C 2, D 3
TABLE = {"A": 0.5, "B": -1.0, "C": 2.0, "D": -3.0, "E": 0.0, "TWIN": 0.5, "FAR": 4000.0}


def screen(n_control=200, n=6, labels=LABELS, contexts="ab", seed=0):
    """Cells that are all different, so that a row tells which cell it is."""
    rng = np.random.default_rng(seed)
    sizes = {(c, p): n_control if p == "control" else n for c in contexts for p in ("control", *labels)}
    frame = pd.DataFrame([key for key, size in sizes.items() for _ in range(size)], columns=["context", "perturbation"])
    frame.index = [f"cell{i}" for i in range(len(frame))]
    frame["split"] = "train"
    x = rng.gamma(2, 1, (len(frame), G)) * (rng.random((len(frame), G)) < 0.6)
    adata = AnnData(x.astype(np.float32), frame)
    adata.uns["table"] = pd.DataFrame({"x": TABLE})
    return adata


def fit(adata, setup=None, **init):
    KNN.setup_anndata(adata, **{"context_key": "context", "perturbation_embedding_key": "table", **(setup or {})})
    model = KNN(adata, **init)
    model.train(split_key="split", accelerator="cpu")
    return model


def drawn_from(predicted, adata):
    """Label, context and name of the cell that each predicted row is."""
    at = {row.tobytes(): i for i, row in enumerate(np.asarray(adata.X, dtype=np.float32))}
    assert len(at) == adata.n_obs
    found = [at[row.tobytes()] for row in predicted.X]
    return adata.obs.iloc[found][["perturbation", "context", "split"]].assign(name=adata.obs_names[found])


def weights(label, among, k=5):
    """Neighbours and weights by numpy."""
    place = {name: sum(TABLE[part] for part in name.split("+")) for name in (label, *among)}
    distance = pd.Series({name: abs(place[name] - place[label]) for name in among}).sort_values(kind="stable")[:k]
    w = np.exp(-(distance - distance.min()))
    return w / w.sum()


# ------------------------------------------------------------------ which cells


def test_rows_are_real_cells_of_the_neighbours_in_the_own_context():
    adata = screen()
    found = drawn_from(fit(adata, k=3).predict(perturbation="E"), adata)
    assert set(found["perturbation"]) == {"A", "B", "C"}
    assert (found["context"].to_numpy() == np.repeat(["a", "b"], 200)).all()
    assert found["name"].nunique() == 36


def test_a_neighbour_that_the_context_lacks_gives_cells_of_all_its_contexts():
    adata = screen(contexts="abc")
    adata.obs.loc[(adata.obs["context"] == "a") & (adata.obs["perturbation"] == "B"), "split"] = "test"
    found = drawn_from(fit(adata).predict(perturbation="E", context="a"), adata)
    assert (found["split"] == "train").all()
    of_b = found["perturbation"] == "B"
    assert set(found["context"][~of_b]) == {"a"}
    assert set(found["context"][of_b]) == {"b", "c"}
    renamed = adata.copy()
    renamed.obs["context"] = renamed.obs["context"].replace({"a": "new"})
    found = drawn_from(fit(adata).predict(renamed, perturbation="E", context="new"), adata)
    assert set(found["context"]) == {"a", "b", "c"}


def test_neighbours_are_drawn_by_weight_and_their_cells_evenly():
    adata = screen(n_control=3000, contexts="a")
    found = drawn_from(fit(adata).predict(perturbation="E"), adata)
    expected = weights("E", LABELS)
    share = found["perturbation"].value_counts(normalize=True)
    for label, w in expected.items():
        assert abs(share[label] - w) < 4.5 * np.sqrt(w * (1 - w) / 3000)
    # neighbour and cell are drawn independently
    within = found[found["perturbation"] == "A"]["name"].value_counts()
    n = within.sum()
    assert len(within) == 6
    assert np.abs(within / n - 1 / 6).max() < 4.5 * np.sqrt(5 / 36 / n)


def test_a_trained_perturbation_is_its_own_first_neighbour():
    adata = screen(labels=("A", "B", "TWIN"))
    for label in ("A", "TWIN"):
        found = drawn_from(fit(adata, k=1).predict(perturbation=label), adata)
        assert set(found["perturbation"]) == {label}
    model = fit(adata, k=2)
    codes, doses = torch.tensor([model._codec.vocabulary.index("TWIN")]), torch.ones(1)
    positions, shares = model.module.neighbours(codes, doses)
    assert [model.trained_conditions_[i][0][0] for i in positions] == ["TWIN", "A"]
    np.testing.assert_allclose(shares, 0.5)


@pytest.mark.parametrize("label", ["E", "FAR", "A", "A+B", "E+FAR"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_weights_fall_with_distance_and_sum_to_one(label, k):
    model = fit(screen(labels=(*LABELS, "A+C")), k=k)
    parts = label.split("+")
    codes = torch.tensor([model._codec.vocabulary.index(part) for part in parts])
    positions, found = model.module.neighbours(codes, torch.ones(len(parts)))
    names = ["+".join(part for part, _ in model.trained_conditions_[i]) for i in positions]
    expected = weights(label, ("A", "A+C", "B", "C", "D"), k)
    assert names == expected.index.tolist()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(), 1)


def test_far_neighbours_leave_all_cells_to_one_at_no_distance():
    adata = screen()
    adata.uns["table"] *= 1e4
    assert set(drawn_from(fit(adata).predict(perturbation="C"), adata)["perturbation"]) == {"C"}


def test_one_neighbour_is_the_nearest_perturbation():
    adata = screen(contexts="a")
    model = fit(adata, k=1, mode="mean")
    NearestPerturbation.setup_anndata(adata, context_key="context", perturbation_embedding_key="table")
    rival = NearestPerturbation(adata)
    rival.train(split_key="split", accelerator="cpu")
    for label in ("A", "E", "FAR", "B+E"):
        means = [m.predict(perturbation=label, returns="mean", clip=False).X for m in (model, rival)]
        np.testing.assert_allclose(*means, atol=1e-5)


# ------------------------------------------------------------------ means


def test_the_mean_is_the_weighted_mean_of_cells():
    adata = screen(n=8, contexts="abc")
    of_b = (adata.obs["perturbation"] == "B").to_numpy()
    context = adata.obs["context"].to_numpy()
    # B is gone from a, and c has a quarter as many of its cells as b
    adata.obs.loc[of_b & ((context == "a") | ((context == "c") & (np.arange(adata.n_obs) % 4 > 0))), "split"] = "test"
    train = (adata.obs["split"] == "train").to_numpy()
    predicted = fit(adata, mode="mean", k=3).predict(perturbation="E", context="a")
    expected = np.zeros(G)
    for label, w in weights("E", LABELS, 3).items():
        rows = train & (adata.obs["perturbation"] == label).to_numpy()
        expected += w * adata.X[rows & (of_b | (context == "a"))].mean(axis=0)
    np.testing.assert_allclose(predicted.X, np.broadcast_to(expected, predicted.shape), atol=1e-5)


def test_draws_average_to_the_mean():
    adata = screen(n_control=4000)
    for label, context in (("E", "a"), ("A+E", "b")):
        drawn = fit(adata).predict(perturbation=label, context=context, returns="mean")
        expected = fit(adata, mode="mean").predict(perturbation=label, context=context, returns="mean")
        error = np.sqrt(drawn.layers["variance"][0] / 4000)
        assert (np.abs(drawn.X[0] - expected.X[0]) < 5 * error + 1e-6).all()


# ------------------------------------------------------------------ draws


def test_the_draw_depends_on_seed_and_cell_only():
    adata = screen()
    model = fit(adata)
    predicted = model.predict(perturbation=["E", "A"])
    np.testing.assert_array_equal(model.predict(perturbation=["E", "A"], batch_size=13).X, predicted.X)
    alone = model.predict(perturbation="A", indices=np.arange(150, 160))
    np.testing.assert_array_equal(alone.X, predicted[alone.obs_names].X)
    other = model.predict(perturbation=["E", "A"], seed=1)
    assert (other.X != predicted.X).any(axis=1).mean() > 0.5


def test_the_order_of_training_cells_changes_no_draw():
    adata = screen()
    shuffled = adata[np.random.default_rng(3).permutation(adata.n_obs)].copy()
    expected = fit(adata).predict(adata, perturbation=["E", "A+B"])
    np.testing.assert_array_equal(fit(shuffled).predict(adata, perturbation=["E", "A+B"]).X, expected.X)


def test_the_order_of_parts_changes_nothing():
    model = fit(screen())
    np.testing.assert_array_equal(model.predict(perturbation="B+A").X, model.predict(perturbation="A+B").X)


def test_under_control_a_cell_is_itself():
    adata = screen()
    predicted = fit(adata).predict(perturbation="control")
    np.testing.assert_array_equal(predicted.X, adata[predicted.obs["source_cell"]].X)


def test_test_cells_are_never_drawn():
    adata = screen()
    adata.obs["split"] = np.where(
        (adata.obs["perturbation"] != "control") & (np.arange(adata.n_obs) % 2 == 0), "test", "train"
    )
    spoiled = adata.copy()
    spoiled.X[(adata.obs["split"] == "test").to_numpy()] += 3
    predicted = fit(adata).predict(perturbation=["E", "A", "C"])
    assert (drawn_from(predicted, adata)["split"] == "train").all()
    np.testing.assert_array_equal(fit(spoiled).predict(perturbation=["E", "A", "C"]).X, predicted.X)


@pytest.mark.parametrize("mode", ["sample", "mean"])
def test_a_saved_model_predicts_the_same(tmp_path, mode):
    adata = screen()
    model = fit(adata, mode=mode, k=2)
    model.save(tmp_path)
    loaded = KNN.load(tmp_path, False, accelerator="cpu")
    expected = model.predict(perturbation=["E", "A+E"])
    np.testing.assert_array_equal(loaded.predict(adata, perturbation=["E", "A+E"]).X, expected.X)


def test_signed_cells_and_cells_without_contexts_are_drawn_whole():
    adata = screen()
    adata.X -= 1
    found = fit(adata, {"signed": True, "context_key": None}).predict(perturbation="E")
    assert found.X.min() < 0
    assert set(drawn_from(found, adata)["context"]) == {"a", "b"}


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"k": 0}, "k=0 must be a whole number"),
        ({"k": 2.5}, "k=2.5 must be a whole number"),
        ({"mode": "men"}, "mode='men' is unknown.*did you mean 'mean'"),
    ],
)
def test_bad_arguments_are_named(init, message):
    with pytest.raises(ValueError, match=message):
        fit(screen(), **init)

"""What a prediction is: which cells, which labels, which rows, and that the input stays as it is."""

import logging
from copy import deepcopy

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import multipert
from multipert import _keys
from multipert.model import MTAe

COMBINED = {"perturbation_key": "combination", "dose_key": "dose", "context_key": "context"}


@pytest.fixture(scope="module")
def mtae(toys):
    return toys.trained(MTAe, toys.screen(), setup={"context_key": "context"})


@pytest.fixture(scope="module")
def linear(toys):
    return toys.trained(toys.Linear, toys.screen(), setup=COMBINED, train_size=1.0)


def control_of(adata):
    return adata[adata.obs["perturbation"] == "control"]


# ------------------------------------------------------------------ rows and labels


def test_every_control_cell_under_every_target(mtae, adata):
    control = control_of(adata)
    found = mtae.predict(adata, ["B", "A"])
    assert found.shape == (60, 20)
    assert found.X.dtype == np.float32
    assert found.obs_names.tolist() == [f"{cell}:{label}" for label in "BA" for cell in control.obs_names]
    assert found.obs["perturbation"].tolist() == ["B"] * 30 + ["A"] * 30
    assert found.obs[_keys.SOURCE_CELL].tolist() == 2 * control.obs_names.tolist()
    assert found.obs["context"].tolist() == 2 * control.obs["context"].tolist()
    assert found.obs["batch"].tolist() == 2 * control.obs["batch"].tolist()
    pd.testing.assert_frame_equal(found.var, adata.var)
    provenance = found.uns[_keys.UNS]
    assert (provenance["model"], provenance["seed"], provenance["realise"]) == ("MTAe", 0, "plain")
    assert provenance["setup"]["context_key"] == "context"


def test_combinations_and_doses_are_written_canonically(linear, adata):
    found = linear.predict(adata, ["B + A", "control+A"], dose=["5+1", 2])
    control = control_of(adata).obs_names
    assert found.obs_names.tolist() == [f"{cell}:{label}" for label in ("A+B@1+5", "A@2") for cell in control]
    assert set(zip(found.obs["combination"], found.obs["dose"], strict=True)) == {("A+B", "1+5"), ("A", "2")}
    assert found.obs["perturbation"].eq("control").all()


def test_doses_of_single_perturbations_are_numbers(linear, adata):
    found = linear.predict(adata, "A", dose=[1, 0.5, 0])
    assert found.obs["dose"].dtype == float
    assert found.obs.groupby("dose", sort=False)["combination"].agg(["first", "size"]).to_dict("index") == {
        1.0: {"first": "A", "size": 30},
        0.5: {"first": "A", "size": 30},
        0.0: {"first": "control", "size": 30},
    }
    assert [name.partition(":")[2] for name in found.obs_names[::30]] == ["A@1", "A@0.5", "control@0"]


@pytest.mark.parametrize("returns", ["cells", "mean"])
def test_results_go_through_a_file(linear, adata, returns, tmp_path):
    """Also where one context has a combination and another has not, so that doses are texts and numbers."""
    targets = pd.DataFrame({"perturbation": ["A+B", "A"], "dose": ["1+2", 3.0], "context": ["a", "b"]})
    found = linear.predict(adata, targets, returns=returns)
    found.write_h5ad(tmp_path / "found.h5ad")
    again = anndata.read_h5ad(tmp_path / "found.h5ad")
    np.testing.assert_array_equal(again.X, found.X)
    assert again.obs["dose"].astype(str).unique().tolist() == ["1+2", "3"]
    assert again.uns[_keys.UNS]["setup"]["dose_key"] == "dose"


def test_a_prediction_can_be_read_as_data(linear, adata, toys):
    found = linear.predict(adata, ["A+B", "control"], dose=["1+2", 0])
    again = linear.predict(found, "A", dose=1)
    assert again.n_obs == 30
    assert again.obs[_keys.SOURCE_CELL].str.endswith(":control@0").all()
    toys.trained(toys.Linear, found, setup=COMBINED)


@pytest.mark.parametrize("labels", [None, ["A", "B", "C"]])
def test_without_labels_every_trained_label_but_control(mtae, adata, labels, toys):
    toys.assert_same(mtae.predict(adata), mtae.predict(adata, labels))


def test_a_label_asked_for_twice_is_predicted_once(linear, adata):
    assert linear.predict(adata, ["A+B", "B + A", "A+control+B"]).n_obs == 30


def test_the_dose_applies_to_each_part(linear, adata):
    np.testing.assert_array_equal(linear.predict(adata, "A+B", dose=3).X, linear.predict(adata, "B+A", dose="3+3").X)


def test_doses_scale_a_linear_model(linear, adata):
    """Prediction = cell + dose-weighted sum of the parts."""
    x = control_of(adata).X.toarray()
    effects = linear.get_perturbation_embedding()
    found = linear.predict(adata, "B+A", dose="0.25+2", clip=False).X
    np.testing.assert_allclose(
        found, x + 2 * effects.loc["A"].to_numpy() + 0.25 * effects.loc["B"].to_numpy(), atol=1e-5
    )


def test_unit_and_zero_doses_need_no_column(mtae, adata):
    np.testing.assert_array_equal(mtae.predict(adata, "A", dose=1).X, mtae.predict(adata, "A").X)
    np.testing.assert_array_equal(mtae.predict(adata, "A", dose=0).X, mtae.predict(adata, "control").X)


@pytest.mark.parametrize("dtype", ["float32", "category"])
def test_the_dose_column_may_be_of_any_type(adata, dtype, toys):
    adata.obs["single_dose"] = adata.obs["single_dose"].replace(5.0, 0.1).astype(dtype)
    model = toys.trained(toys.Linear, adata, setup={"dose_key": "single_dose"})
    assert {"A@0.1", "A@1", "B@2", "C@3"} == set(model.predict(returns="mean").obs_names)
    np.testing.assert_array_equal(model.predict(perturbation="A", dose=0.1).X, model.predict().X[:30])


# ------------------------------------------------------------------ choice of cells


def test_context_and_indices_restrict_and_never_relabel(mtae, adata):
    every = mtae.predict(adata, ["A", "B"])
    some = mtae.predict(adata, ["A", "B"], context=["c", "a"], indices=np.arange(0, 120, 2))
    chosen = control_of(adata[::2])
    chosen = chosen[chosen.obs["context"] != "b"]
    assert 0 < chosen.n_obs < 30
    assert some.obs_names.tolist() == [f"{cell}:{label}" for label in "AB" for cell in chosen.obs_names]
    np.testing.assert_allclose(some.X, every[some.obs_names].X, atol=1e-6)
    pd.testing.assert_frame_equal(
        some.obs[["perturbation", "context"]], every[some.obs_names].obs[["perturbation", "context"]]
    )


@pytest.mark.parametrize("as_mask", [True, False])
def test_indices_are_rows_or_a_mask(mtae, adata, as_mask):
    mask = np.arange(120) % 3 == 0
    found = mtae.predict(adata, "A", indices=mask if as_mask else [*np.flatnonzero(mask), -120, 0])
    assert found.obs[_keys.SOURCE_CELL].tolist() == control_of(adata[mask]).obs_names.tolist()


def test_labels_that_are_numbers_may_be_asked_for_as_such(adata, toys):
    adata.obs["context"] = adata.obs["context"].map({"a": 0, "b": 1, "c": 2})
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"A": "7"})
    model = toys.trained(MTAe, adata, setup={"context_key": "context"})
    found = model.predict(perturbation=7, context=0)
    assert set(found.obs["context"].astype(str)) == {"0"}
    toys.assert_same(found, model.predict(perturbation=["7"], context=["0"]))
    with pytest.raises(ValueError, match="Context '3' is not in the data"):
        model.predict(perturbation=7, context=3)


def test_a_frame_of_targets_names_contexts_and_doses(linear, adata):
    targets = pd.DataFrame({"perturbation": ["A", "B", "A"], "dose": [1, 2, 3], "context": ["a", "b", "a"]})
    found = linear.predict(adata, targets)
    triples = found.obs[["combination", "dose", "context"]].astype(str).drop_duplicates()
    assert set(map(tuple, triples.to_numpy())) == {("A", "1.0", "a"), ("A", "3.0", "a"), ("B", "2.0", "b")}
    for row in targets.itertuples():
        one = linear.predict(adata, row.perturbation, dose=row.dose, context=row.context)
        np.testing.assert_array_equal(found[one.obs_names].X, one.X)


def test_a_frame_without_contexts_means_all_of_them(linear, adata):
    frame = pd.DataFrame({"perturbation": pd.Categorical(["A", "B"])})
    pd.testing.assert_frame_equal(linear.predict(adata, frame).obs, linear.predict(adata, ["A", "B"]).obs)


def test_a_context_of_a_target_outside_the_chosen_is_refused(linear, adata):
    with pytest.raises(ValueError, match="Context 'a' has no control cell among those chosen"):
        linear.predict(adata, pd.DataFrame({"perturbation": ["A"], "context": ["a"]}), context="b")


def test_an_unseen_context_is_predicted_where_the_tags_allow(mtae, adata):
    renamed = adata.copy()
    renamed.obs["context"] = renamed.obs["context"].replace("a", "new")
    np.testing.assert_allclose(mtae.predict(renamed, "A").X, mtae.predict(adata, "A").X, atol=1e-6)


@pytest.mark.parametrize("copied", [True, False], ids=["copy", "view"])
def test_a_subset_of_data_that_were_set_up_is_legal(mtae, copied):
    own = mtae.adata
    subset = own[own.obs["context"] != "b"]
    assert _keys.CODES_OBSM in subset.obsm
    found = mtae.predict(subset.copy() if copied else subset, "A")
    np.testing.assert_allclose(found.X, mtae.predict(own, "A")[found.obs_names].X, atol=1e-6)


def test_cells_may_come_without_setup_and_in_another_order(mtae, adata):
    order = np.random.default_rng(0).permutation(120)
    found = mtae.predict(adata[order].copy(), "A")
    np.testing.assert_allclose(found.X, mtae.predict(adata, "A")[found.obs_names].X, atol=1e-6)


def test_names_of_cells_that_are_no_text(mtae, adata):
    adata.obs_names = range(120)
    assert mtae.predict(adata, "A").obs_names[0] == f"{control_of(adata).obs_names[0]}:A"


# ------------------------------------------------------------------ the input stays


@pytest.mark.parametrize("name", ["MTAe", "Linear", "ContextMean", "Net"])
@pytest.mark.parametrize("arguments", [{}, {"returns": "mean"}, {"realise": "counts"}, {"realise": "residual"}])
def test_predict_changes_no_input(name, arguments, toys):
    cls = MTAe if name == "MTAe" else getattr(toys, name)
    model = toys.trained(cls, toys.screen(), setup={"context_key": "context", "cell_embedding_key": "X_emb"})
    new = toys.screen()
    for adata in (new, model.adata):
        before, weights = adata.copy(), deepcopy(model.module.state_dict())
        model.predict(adata, **arguments)
        if cls.tags.latent:
            model.get_latent_representation(adata)
        toys.assert_same(adata, before)
        assert all(torch.equal(value, weights[key]) for key, value in model.module.state_dict().items())
    assert "_scvi_uuid" not in new.uns


def test_prediction_is_in_evaluation_mode_and_leaves_the_random_states_alone(mtae, adata):
    mtae.module.train()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = mtae.predict(adata, realise="counts", seed=3)
    np.testing.assert_array_equal(first.X, mtae.predict(adata, realise="counts", seed=3).X)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


# ------------------------------------------------------------------ means


@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
@pytest.mark.parametrize("batch_size", [7, 512])
def test_means_are_those_of_the_cells(mtae, adata, realise, batch_size):
    cells = mtae.predict(adata, ["A", "C"], realise=realise)
    means = mtae.predict(adata, ["A", "C"], realise=realise, returns="mean", batch_size=batch_size)
    assert means.obs_names.tolist() == ["a:A", "b:A", "c:A", "a:C", "b:C", "c:C"]
    for name, row in means.obs.iterrows():
        here = (cells.obs["perturbation"] == row["perturbation"]) & (cells.obs["context"] == row["context"])
        x = cells.X[here.to_numpy()].astype(float)
        assert row[_keys.N_CELLS] == len(x) == 10
        np.testing.assert_allclose(means[name].X[0], x.mean(0), atol=1e-5)
        np.testing.assert_allclose(means[name].layers[_keys.VARIANCE_LAYER][0], x.var(0), atol=1e-5)


def test_means_without_contexts_are_one_row_per_target(toys):
    model = toys.trained(toys.Linear, toys.screen())
    means = model.predict(returns="mean")
    assert means.obs_names.tolist() == ["A", "B", "C"]
    assert list(means.obs.columns) == ["perturbation", _keys.N_CELLS]
    assert means.obs[_keys.N_CELLS].tolist() == [30, 30, 30]


def test_means_do_not_depend_on_the_size_of_the_accumulator(mtae, adata, monkeypatch, toys):
    expected = mtae.predict(adata, returns="mean")
    monkeypatch.setattr("multipert.model._predict._ACCUMULATOR_BYTES", 1)
    toys.assert_same(mtae.predict(adata, returns="mean"), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_the_batch_size_changes_nothing(mtae, adata, batch_size, realise):
    found = mtae.predict(adata, realise=realise, batch_size=batch_size)
    np.testing.assert_allclose(found.X, mtae.predict(adata, realise=realise).X, atol=1e-5)


# ------------------------------------------------------------------ what the tags promise


@pytest.mark.parametrize("name", ["Linear", "Net"])
def test_names_of_the_table_that_were_never_measured_are_legal(name, adata, toys):
    adata.uns["table"].loc["control"] = 9.0
    model = toys.trained(getattr(toys, name), adata, setup={"perturbation_embedding_key": "table"})
    assert model.summary_stats.n_perturbations == 4
    found = model.predict(perturbation=["D", "A"], clip=False)
    assert found.obs["perturbation"].unique().tolist() == ["D", "A"]
    if name == "Linear":
        x, effects = control_of(adata).X.toarray(), model.get_perturbation_embedding()
        table = adata.uns["table"].loc[list("ABCD")].to_numpy()
        np.testing.assert_allclose(found.X[:30], x + effects.loc["D"].to_numpy(), atol=1e-5)
        np.testing.assert_allclose(effects, table @ model.module.effects.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="'E' is unknown to this model"):
        model.predict(perturbation="E")


def test_a_label_of_test_cells_only_is_unseen(adata, toys):
    adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"
    seen_all = toys.trained(toys.Net, adata.copy(), split_key="split")
    assert seen_all.predict(perturbation="C").n_obs == 30
    model = toys.trained(toys.ContextMean, adata, split_key="split")
    with pytest.raises(ValueError, match="'C' has no training cells .*tag unseen_perturbations is False"):
        model.predict(perturbation="C")
    assert model.predict().obs["perturbation"].unique().tolist() == ["A", "B"]


def test_context_covariates_and_embedding_of_each_cell_reach_the_module(adata, toys):
    setup = {"context_key": "context", "categorical_covariate_keys": ["batch", "split"], "cell_embedding_key": "X_emb"}
    model = toys.trained(toys.Net, adata, setup=setup, train_size=1.0, batch_size=30)
    training = [batch for batch in model.module.log if batch["training"]]
    row_of = {row.tobytes(): i for i, row in enumerate(adata.X.toarray())}

    def check(batches) -> int:
        for batch in batches:
            rows = [row_of[row.tobytes()] for row in batch[_keys.X].numpy()]
            obs = adata.obs.iloc[rows]
            codes = obs["context"].map({"a": 0, "b": 1, "c": 2})
            np.testing.assert_array_equal(batch[_keys.CONTEXT][:, 0], codes)
            np.testing.assert_array_equal(batch[_keys.CATEGORICAL_COVARIATES][:, 0], obs["batch"].map({"x": 0, "y": 1}))
            np.testing.assert_array_equal(batch[_keys.CATEGORICAL_COVARIATES][:, 1], 0)
            np.testing.assert_allclose(batch[_keys.CELL_EMBEDDING], adata.obsm["X_emb"][rows], rtol=1e-6)
            assert batch[_keys.CELL_EMBEDDING].dtype == torch.float32
        return sum(len(batch[_keys.X]) for batch in batches)

    assert check(training) == 120
    model.module.log.clear()
    model.predict(adata[::-1].copy())
    assert check(model.module.log) == 30
    model.module.log.clear()
    other = adata.copy()
    other.obs["batch"] = "new"
    model.predict(other)
    assert (model.module.log[0][_keys.CATEGORICAL_COVARIATES][:, 0] == -1).all()


def test_context_means_are_over_all_control_cells_of_the_context(adata, toys):
    model = toys.trained(toys.ContextMean, adata, setup={"context_key": "context"})
    control = control_of(adata)
    expected = {c: control[control.obs["context"] == c].X.toarray().mean(0) for c in "abc"}
    found = model.predict(adata, "A", indices=control.obs_names.get_indexer(adata.obs_names) >= 0, batch_size=3)
    one = model.predict(adata, "A", indices=[int(np.flatnonzero(adata.obs["perturbation"] == "control")[0])])
    for result in (found, one):
        for context, x in zip(result.obs["context"], result.X, strict=True):
            np.testing.assert_allclose(x, expected[context], rtol=1e-5)


def partners(model):
    """Names of (cell, partner) of all batches that were paired."""
    x = {row.tobytes(): name for name, row in zip(model.adata.obs_names, model.adata.X.toarray(), strict=True)}
    batches = [batch for batch in model.module.log if _keys.X_CONTROL in batch]
    return [
        (x[a.tobytes()], x[b.tobytes()])
        for batch in batches
        for a, b in zip(batch[_keys.X].numpy(), batch[_keys.X_CONTROL].numpy(), strict=True)
    ]


@pytest.mark.parametrize("name", ["RandomNet", "TwoStageNet"])
def test_random_pairs_are_of_one_context_and_of_training_cells(name, adata, toys, caplog):
    adata.obs.loc[adata.obs_names[::3], "split"] = "test"
    adata.obs.loc[adata.obs_names[1::6], "split"] = "val"
    lonely = (adata.obs["context"] == "b") & (adata.obs["perturbation"] == "control")
    adata.obs.loc[lonely, "split"] = "test"
    with caplog.at_level(logging.WARNING, "multipert"):
        model = toys.trained(getattr(toys, name), adata, setup={"context_key": "context"}, split_key="split")
    assert "have no control cell in their context and are left out" in caplog.text
    pairs = partners(model)
    assert len({cell for cell, _ in pairs}) > 10
    obs = adata.obs
    for cell, partner in pairs:
        assert obs.loc[partner, "perturbation"] == "control"
        assert obs.loc[cell, "context"] == obs.loc[partner, "context"] != "b"
        assert obs.loc[cell, "split"] != "test"
        assert obs.loc[partner, "split"] != "test"
        assert cell == partner or obs.loc[cell, "perturbation"] != "control"


def test_the_validation_loss_of_a_paired_stage_is_of_pairs(adata, toys):
    adata.obs.loc[adata.obs_names[::4], "split"] = "val"
    model = toys.trained(
        toys.RandomNet, adata, setup={"context_key": "context"}, split_key="split", check_val_every_n_epoch=1
    )
    assert "validation_loss" in model.history_
    assert all(_keys.X_CONTROL in batch for batch in model.module.log if batch["training"])
    val = set(adata.obs_names[::4])
    assert {cell for cell, _ in partners(model)} & val


def test_given_partners_are_used(adata, toys):
    model = toys.trained(
        toys.RandomNet, adata, setup={"context_key": "context", "pairing_key": "partner"}, train_size=1.0, batch_size=30
    )
    pairs = partners(model)
    assert len(pairs) == 120
    is_control = adata.obs["perturbation"] == "control"
    assert all(partner == (cell if is_control[cell] else adata.obs.loc[cell, "partner"]) for cell, partner in pairs)


def test_given_partners_that_are_test_cells_are_not_used(adata, toys):
    held_out = adata.obs_names[adata.obs["perturbation"] == "control"][::3]
    adata.obs.loc[held_out, "split"] = "test"
    setup = {"context_key": "context", "pairing_key": "partner"}
    model = toys.trained(toys.RandomNet, adata, setup=setup, split_key="split", batch_size=10)
    pairs = partners(model)
    assert len({cell for cell, _ in pairs}) > 40
    assert not {partner for _, partner in pairs} & set(held_out)


def test_signed_data_are_not_clipped(adata, toys):
    adata.X = adata.X.toarray() - 1
    with pytest.raises(ValueError, match="signed=True"):
        toys.Linear.setup_anndata(adata.copy())
    model = toys.trained(toys.Linear, adata, setup={"signed": True})
    assert (model.predict().X < 0).any()
    assert (model.predict(clip=True).X >= 0).all()
    with pytest.raises(ValueError, match="realise='counts' needs expression made from counts"):
        model.predict(realise="counts")


def test_predictions_are_clipped_unless_told_otherwise(linear, adata):
    free = linear.predict(adata, "A", dose=9, clip=False).X
    assert (free < 0).any()
    np.testing.assert_array_equal(linear.predict(adata, "A", dose=9).X, np.maximum(free, 0))


# ------------------------------------------------------------------ annotate


def test_annotate_pairs_by_context_and_never_reads_a_perturbed_cell(adata, toys):
    model = toys.trained(toys.Linear, adata, setup=COMBINED)
    model.annotate()
    found = adata.layers["Linear_predicted"]
    effects, control = model.get_perturbation_embedding(), control_of(adata)
    codes = {"A": ["A"], "B": ["B"], "A+B": ["A", "B"], "B + A": ["B", "A"], "control": []}
    for i, (name, row) in enumerate(adata.obs.iterrows()):
        parts = codes[row["combination"]]
        doses = [float(dose) for dose in row["dose"].split("+")] if parts else []
        shift = sum((dose * effects.loc[p].to_numpy() for p, dose in zip(parts, doses, strict=True)), np.zeros(20))
        pool = control[name] if row["perturbation"] == "control" else control[control.obs["context"] == row["context"]]
        candidates = np.maximum(pool.X.toarray() + shift, 0)
        assert np.abs(candidates - found[i]).max(1).min() < 1e-5
    changed = adata.copy()
    perturbed = (adata.obs["perturbation"] != "control").to_numpy()
    x = changed.X.toarray()
    x[perturbed] = 7.25
    changed.X = x
    model.annotate(changed)
    np.testing.assert_array_equal(changed.layers["Linear_predicted"], found)


def test_annotate_survives_a_file_and_names_its_keys(mtae, tmp_path, toys):
    new = toys.screen()
    mtae.annotate(new, key="m", realise="residual", seed=4)
    assert new.obsm["X_m"].shape == (120, 6)
    assert (new.uns["m"]["realise"], new.uns["m"]["seed"]) == ("residual", 4)
    new.write_h5ad(tmp_path / "new.h5ad")
    again = anndata.read_h5ad(tmp_path / "new.h5ad")
    np.testing.assert_array_equal(again.layers["m_predicted"], new.layers["m_predicted"])
    np.testing.assert_array_equal(again.obsm["X_m"], mtae.get_latent_representation(new))
    mtae.annotate(new, prediction=False, key="n")
    assert "n_predicted" not in new.layers
    mtae.annotate(new, latent=False, key="o")
    assert "X_o" not in new.obsm


def test_cells_that_cannot_be_predicted_are_nan_with_a_warning(adata, toys):
    adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"
    adata.obs.loc[adata.obs["context"] == "c", "split"] = "test"
    model = toys.trained(toys.ContextNet, adata, setup={"context_key": "context"}, split_key="split")
    with pytest.warns(UserWarning, match="predicted rows are NaN") as caught:
        model.annotate(latent=False)
    messages = [str(w.message) for w in caught if "NaN" in str(w.message)]
    assert any(m.startswith("40 cell(s) are in contexts that the model was not trained on (c)") for m in messages)
    assert any(m.startswith("30 cell(s) have labels that the model cannot predict (C)") for m in messages)
    missing = (adata.obs["context"] == "c") | (adata.obs["perturbation"] == "C")
    np.testing.assert_array_equal(np.isnan(adata.layers["ContextNet_predicted"]).all(1), missing)
    np.testing.assert_array_equal(np.isnan(adata.layers["ContextNet_predicted"]).any(1), missing)


def test_a_context_without_control_cells_is_nan(mtae, adata):
    kept = adata[(adata.obs["context"] != "b") | (adata.obs["perturbation"] != "control")].copy()
    with pytest.warns(UserWarning, match=r"30 cell\(s\) are in contexts without control cells \(b\)"):
        mtae.annotate(kept)
    np.testing.assert_array_equal(np.isnan(kept.layers["MTAe_predicted"]).all(1), kept.obs["context"] == "b")


@pytest.mark.parametrize("setup", [{"context_key": "context"}, COMBINED], ids=["labels", "doses"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MTAe", {}),
        ("LatentAdditive", {}),
        ("LatentAdditive", {"sparse": True}),
        ("LinearAdditive", {"inject_covariates": False}),
        ("LinearAdditive", {}),
        ("CPA", {"perturbation_layers": 1}),
        ("Biolord", {}),
    ],
)
def test_a_label_alone_in_a_batch_predicts_what_it_does_among_others(name, arguments, setup, adata, toys):
    cls = getattr(multipert.model, name)
    model = toys.trained(cls, adata, setup=setup, init=arguments or None)
    key = setup.get("perturbation_key", "perturbation")
    labels = adata.obs[[key, *(["dose"] if "dose_key" in setup else [])]].drop_duplicates()
    model.annotate(latent=False)
    among = adata.layers[f"{name}_predicted"]
    partners = model._partners(adata, np.arange(adata.n_obs), 0)
    for _, label in labels.iterrows():
        alone = model.predict(adata, label[key], dose=label.get("dose"))
        alone.obs_names = alone.obs[_keys.SOURCE_CELL]
        own = np.flatnonzero((adata.obs[label.index] == label).all(axis=1))
        np.testing.assert_allclose(alone[adata.obs_names[partners[own]]].X, among[own], rtol=1e-5, atol=1e-5)


def test_annotate_seeks_no_matches_for_labels_that_it_leaves_out(adata, toys, monkeypatch):
    adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"
    model = toys.trained(MTAe, adata, setup={"context_key": "context"}, split_key="split")

    def sought(*_):
        raise AssertionError("a search through the vocabulary for every label")

    monkeypatch.setattr("multipert.model._targets.close_matches", sought)
    with pytest.warns(UserWarning, match=r"30 cell\(s\) have labels that the model cannot predict \(C\)"):
        model.annotate()


def test_annotate_refuses_unknown_labels_before_it_writes(mtae, adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].replace("B", "Q")
    with pytest.raises(ValueError, match="'Q' is not in the vocabulary"):
        mtae.annotate(adata)
    assert "MTAe" not in adata.uns
    assert "X_MTAe" not in adata.obsm

"""MTAe under doses, combinations and given embeddings: what changes a prediction and what must not."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from multipert.model import MTAe, MTVaePlusOT

DOSED = {"perturbation_key": "combination", "dose_key": "dose", "context_key": "context"}
GIVEN = {"perturbation_embedding_key": "table", "context_key": "context"}
EVERY = {**DOSED, **GIVEN}


@pytest.fixture(scope="module")
def fit(toys):
    """A briefly trained MTAe of the screen, after a change of the data."""

    def run(setup, change=None, cls=MTAe, **arguments):
        adata = toys.screen()
        if change is not None:
            change(adata)
        init = {**toys.tiny, "film_hidden": (8,)}
        return toys.trained(cls, adata, setup=setup, init=init, **{"max_epochs": 4, "lr": 0.01, **arguments})

    return run


@pytest.fixture(scope="module")
def dosed(fit):
    return fit(DOSED)


@pytest.fixture(scope="module")
def given(fit):
    return fit(GIVEN)


def table(change):
    """Change the given embedding."""

    def run(adata):
        adata.uns["table"] = change(adata.uns["table"])

    return run


def predicted(model, labels=("A", "B", "C", "D"), **arguments):
    return model.predict(perturbation=list(labels), clip=False, **arguments).X


# ------------------------------------------------------------------ doses


def test_the_prediction_goes_to_that_of_control_as_the_dose_goes_to_zero(dosed):
    control = dosed.predict(perturbation="control", clip=False).X
    for label in ("A", "A+B"):
        tiny = dosed.predict(perturbation=label, dose=1e-9, clip=False).X
        np.testing.assert_allclose(tiny, control, atol=1e-5)
        assert np.abs(dosed.predict(perturbation=label, dose=1, clip=False).X - control).max() > 1e-3
    np.testing.assert_array_equal(dosed.predict(perturbation="A", dose=0, clip=False).X, control)
    # and to a limit at large ones
    large = [dosed.predict(perturbation="A", dose=dose, clip=False).X for dose in (1e9, 1e12)]
    np.testing.assert_allclose(*large, atol=1e-5)


def test_one_part_without_dose_leaves_the_other(dosed):
    alone = dosed.predict(perturbation="A", dose=2, clip=False).X
    np.testing.assert_array_equal(dosed.predict(perturbation="A+B", dose="2+0", clip=False).X, alone)
    np.testing.assert_allclose(dosed.predict(perturbation="A+B", dose="2+1e-9", clip=False).X, alone, atol=1e-5)


@pytest.mark.parametrize("setup", [DOSED, EVERY], ids=["one-hot", "embedding"])
def test_the_curves_learn(setup, fit):
    start, model = (fit(setup, max_epochs=n) for n in (0, 4))
    before, after = start.module.condition.curve, model.module.condition.curve
    assert (before.weight == 0).all()
    assert (after.weight[:, :2] != 0).any(dim=1).all()
    assert (after.bias != 0).all()
    np.testing.assert_array_equal(start.module.condition.log_dose, model.module.condition.log_dose)


def test_midpoints_start_at_the_trained_doses(fit):
    def hide(adata):
        adata.obs.loc[adata.obs["dose"] == "5", "split"] = "test"

    every, fewer = fit(DOSED, max_epochs=0), fit(DOSED, hide, max_epochs=0, split_key="split")
    # conditions of A: alone at 1 and at 5, and at 1 beside B at 2, which is written in two ways
    np.testing.assert_allclose(every.module.condition.log_dose, [np.log(5) / 3, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(fewer.module.condition.log_dose, [0, np.log(2)], atol=1e-7)


def monotone(doses=(1.0, 10.0, 100.0), n=80, n_vars=40, seed=0):
    """One context; the change grows as dose / (dose + 10); the cells of the middle dose are test cells."""
    rng = np.random.default_rng(seed)
    shift = np.zeros(n_vars)
    shift[:10] = np.array([1, -1] * 5) * rng.uniform(0.8, 1.4, 10)
    dose = np.repeat([0.0, *doses], n)
    strength = dose / (dose + 10)
    x = rng.uniform(1.5, 3, n_vars) + strength[:, None] * shift + rng.normal(0, 0.2, (len(dose), n_vars))
    obs = pd.DataFrame(
        {
            "perturbation": np.where(dose > 0, "A", "control"),
            "dose": dose,
            "split": np.where(dose == doses[1], "test", "train"),
        },
        index=[f"c{i}" for i in range(len(dose))],
    )
    return AnnData(x.clip(0).astype(np.float32), obs), shift


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dose_between_the_trained_ones_gives_an_effect_between(seed, toys):
    adata, shift = monotone(seed=seed)
    model = toys.trained(
        MTAe,
        adata,
        setup={"dose_key": "dose"},
        init={"n_hidden": 32, "n_latent": 8, "dropout_rate": 0.1},
        max_epochs=40,
        lr=0.01,
        split_key="split",
        plan_kwargs={"n_warmup_steps": 20},
    )
    control = adata.X[adata.obs["dose"] == 0].mean(0)
    truth = adata.X[adata.obs["dose"] == 10].mean(0) - control
    means = model.predict(perturbation="A", dose=[1, 4, 10, 25, 100], returns="mean", realise="residual")
    change = means.X - control
    along = change @ shift / (shift @ shift)
    assert (np.diff(along) > 0.05).all()
    assert along[0] < 0.25
    assert 0.5 < along[-1] < 1.1
    error = np.linalg.norm(change - truth, axis=1)
    middle, neighbours = error[2], error[[0, -1]]
    assert middle < 0.7 * np.linalg.norm(truth)
    assert (middle < neighbours).all()


# ------------------------------------------------------------------ combinations


def test_a_combination_never_measured_is_legal_where_its_parts_are_known(fit):
    model = fit({"perturbation_key": "combination"})
    assert model.predict(perturbation=["A+B", "A", "B"]).n_obs == 90
    found = fit({}).predict(perturbation=["B+C", "A + B+C"], clip=False)
    assert found.obs["perturbation"].unique().tolist() == ["B+C", "A+B+C"]
    assert np.isfinite(found.X).all()
    assert np.abs(found.X[:30] - found.X[30:]).max() > 1e-3


def test_the_vector_of_a_combination_is_seen_in_training(fit):
    """A+B is trained on as the sum of its parts: leaving its cells out changes the weights of both."""

    def hide(adata):
        adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"

    every, alone = (fit({"perturbation_key": "combination"}, change, split_key="split") for change in (None, hide))
    columns = [model.module.decoder.films[0].trunk[0].weight.detach() for model in (every, alone)]
    assert columns[0].shape[1] == 3
    assert ((columns[0] - columns[1]).abs() > 1e-4).any(dim=0).all()


# ------------------------------------------------------------------ given embeddings


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (lambda t: t.loc[list("DBCA")], 1e-4),
        (lambda t: 1000 * t, 1e-4),
        (lambda t: 1e-3 * t, 1e-4),
        (lambda t: t + [5.0, -3.0, 0.5], 1e-4),
        (lambda t: pd.concat([t, pd.DataFrame([[50.0] * 3], index=["control"], columns=t.columns)]), 0),
        (lambda t: t.rename(columns=str.upper), 0),
    ],
    ids=["order of rows", "scale", "small scale", "a row added to all", "a row of control", "names of columns"],
)
@pytest.mark.parametrize("setup", [GIVEN, EVERY], ids=["labels", "doses"])
def test_what_a_given_embedding_says_is_where_perturbations_lie_to_one_another(change, tolerance, setup, given, fit):
    expected, model = (given if setup is GIVEN else fit(setup)), fit(setup, table(change))
    labels = "ABCD" if setup is GIVEN else "ABD"
    np.testing.assert_allclose(predicted(model, labels), predicted(expected, labels), atol=tolerance, rtol=0)


def test_where_perturbations_lie_changes_predictions(given, fit):
    moved = fit(GIVEN, table(lambda t: t * [1.0, 1.0, 5.0]))
    assert np.abs(predicted(moved) - predicted(given)).max() > 1e-2
    renamed = fit(GIVEN, table(lambda t: t.set_axis(list("BACD"))))
    assert np.abs(predicted(renamed) - predicted(given)).max() > 1e-2


@pytest.mark.parametrize("setup", [GIVEN, EVERY], ids=["labels", "doses"])
def test_equal_rows_give_equal_predictions(setup, fit):
    def equal(t):
        t.loc["D"] = t.loc["A"]
        return t

    model = fit(setup, table(equal))
    if setup is EVERY:
        # D was never trained, so its midpoint is that of all perturbations
        model.module.condition.log_dose[-1] = model.module.condition.log_dose[0]
    blocks = predicted(model, "ADB").reshape(3, 30, 20)
    np.testing.assert_array_equal(blocks[1], blocks[0])
    assert np.abs(blocks[2] - blocks[0]).max() > 1e-3


def test_the_table_in_the_network_is_centred_and_of_unit_size(given, adata):
    found = given.module.condition.embedding.double().numpy()
    raw = adata.uns["table"].to_numpy()
    centred = raw - raw.mean(0)
    np.testing.assert_allclose(found, centred / np.sqrt((centred**2).sum(1).mean()), atol=1e-6)


@pytest.mark.parametrize("change", [lambda t: 3 * t, lambda t: t.assign(x=0, y=0, z=0)], ids=["scale", "zeros"])
def test_a_table_of_one_perturbation(change, toys):
    """There is nothing to centre it by."""
    models = []
    for one in (None, change):
        adata = toys.screen()
        adata = adata[adata.obs["perturbation"].isin(["control", "A"])].copy()
        adata.uns["table"] = adata.uns["table"].loc[["A"]]
        if one is not None:
            adata.uns["table"] = one(adata.uns["table"])
        models.append(toys.trained(MTAe, adata, setup=GIVEN))
    norms = [float(model.module.condition.embedding.norm()) for model in models]
    zero = change(adata.uns["table"]).to_numpy().any() == 0
    np.testing.assert_allclose(norms, [1, 0 if zero else 1], rtol=1e-6)
    assert np.isfinite(predicted(models[1], "A")).all()


def test_unseen_perturbations_are_legal_with_the_table_and_refused_without(given, fit):
    def hide(adata):
        adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"

    assert np.isfinite(given.predict(perturbation=["D", "A+D"]).X).all()
    for setup, trained in ((GIVEN, "A"), (EVERY, "A")):
        model = fit(setup, hide, split_key="split")
        label = "C" if setup is GIVEN else "D"
        unseen, seen = (model.predict(perturbation=name, clip=False).X for name in (label, trained))
        assert np.isfinite(unseen).all()
        assert np.abs(unseen - seen).max() > 1e-3
    without = fit({}, hide, split_key="split")
    for label in ("C", "A+C"):
        with pytest.raises(
            ValueError, match="'C' has no training cells and MTAe .*perturbation_embedding_key .*unseen_needs_embedding"
        ):
            without.predict(perturbation=label)
    with pytest.raises(ValueError, match="'D' is unknown to this model"):
        without.predict(perturbation="D")


def test_annotate_predicts_unseen_perturbations_with_the_table_only(fit):
    def hide(adata):
        adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"

    model = fit(GIVEN, hide, split_key="split")
    model.annotate()
    assert np.isfinite(model.adata.layers["MTAe_predicted"]).all()
    model = fit({}, hide, split_key="split")
    with pytest.warns(UserWarning, match=r"30 cell\(s\) have labels that the model cannot predict \(C\)"):
        model.annotate()
    missing = np.isnan(model.adata.layers["MTAe_predicted"]).all(axis=1)
    np.testing.assert_array_equal(missing, model.adata.obs["perturbation"] == "C")


def test_the_table_is_saved_and_needs_no_data(fit, toys, tmp_path):
    model = fit(EVERY, cls=MTVaePlusOT)
    targets = {"perturbation": ["A", "D", "A+D"], "dose": ["3", "2", "1+2"], "clip": False}
    expected = model.predict(toys.screen(), **targets, n_samples=2).X
    model.save(tmp_path)
    loaded = MTVaePlusOT.load(tmp_path, False, accelerator="cpu")
    bare = toys.screen()
    del bare.uns["table"]
    np.testing.assert_array_equal(loaded.predict(bare, **targets, n_samples=2).X, expected)
    pd.testing.assert_frame_equal(loaded.get_perturbation_embedding(), model.get_perturbation_embedding())
    other = toys.screen()
    other.uns["table"] = -7 * other.uns["table"].loc[list("CADB")]
    bound = MTVaePlusOT.load(tmp_path, other, accelerator="cpu")
    np.testing.assert_array_equal(bound.predict(**targets, n_samples=2).X, expected)


def test_a_change_of_the_table_after_training_changes_nothing(fit):
    model = fit(GIVEN)
    before, embedding = predicted(model), model.get_perturbation_embedding()
    model.adata.uns["table"] *= -3.0
    model.adata.uns["table"].loc["A"] = 100.0
    np.testing.assert_array_equal(predicted(model), before)
    pd.testing.assert_frame_equal(model.get_perturbation_embedding(), embedding)
    # nor does further training read it
    rows = model.module.condition.embedding.clone()
    model.train(max_epochs=1, seed=0, accelerator="cpu", enable_progress_bar=False)
    assert torch.equal(model.module.condition.embedding, rows)


def test_rows_and_columns_that_went_after_the_setup_are_an_error(toys):
    for change, message in (
        (lambda t: t.drop("D"), r"lacks 1 perturbation\(s\) that it had at the setup: D"),
        (lambda t: t.drop(columns="z"), r"uns\['table'\] has 2 columns, the model was set up with 3"),
    ):
        adata = toys.screen()
        MTAe.setup_anndata(adata, **GIVEN)
        model = MTAe(adata, **toys.tiny)
        adata.uns["table"] = change(adata.uns["table"])
        with pytest.raises(ValueError, match=message):
            model.train(max_epochs=1, **toys.quiet)


# ------------------------------------------------------------------ what was learnt of perturbations


def generated(model, codes, doses):
    """Scale and shift of the modulated layer, by the module's own parts."""
    tensors = {"X": torch.zeros(len(codes), 1), "perturbation": torch.tensor(codes), "dose": torch.tensor(doses)}
    with torch.inference_mode():
        return torch.cat(model.module.decoder.films[0](model.module.condition(tensors)), dim=1).numpy()


def test_the_perturbation_embedding_has_a_row_for_each_perturbation(given, fit):
    found = given.get_perturbation_embedding()
    assert found.index.tolist() == ["control", "A", "B", "C", "D"]
    expected = generated(given, [[-1], [0], [1], [2], [3]], [[0.0], [1.0], [1.0], [1.0], [1.0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    combined = fit({"perturbation_key": "combination"})
    assert combined.get_perturbation_embedding().index.tolist() == ["control", "A", "B"]

    def hide(adata):
        adata.obs.loc[adata.obs["perturbation"] == "B", "split"] = "test"

    assert fit({}, hide, split_key="split").get_perturbation_embedding().index.tolist() == ["control", "A", "C"]
    with_table = fit(GIVEN, hide, split_key="split").get_perturbation_embedding()
    assert with_table.index.tolist() == ["control", "A", "B", "C", "D"]


@pytest.mark.parametrize("setup", [DOSED, EVERY], ids=["one-hot", "embedding"])
def test_the_perturbation_embedding_has_a_row_for_each_trained_condition_with_its_dose(setup, fit):
    model = fit(setup)
    found = model.get_perturbation_embedding()
    assert found.index.tolist() == ["control", "A@1", "A+B@1+2", "A@5", "B@2"]
    expected = generated(
        model, [[-1, -1], [0, -1], [0, 1], [0, -1], [1, -1]], [[0.0, 0], [1, 0], [1, 2], [5, 0], [2, 0]]
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found.loc["A@1"] - found.loc["A@5"]).max() > 1e-4


# ------------------------------------------------------------------ files of before


def without(node, key):
    """A registry without a member, however it is nested."""
    if isinstance(node, dict):
        return {name: without(value, key) for name, value in node.items() if name != key}
    if isinstance(node, list):
        return [without(item, key) for item in node if not (isinstance(item, list) and item[:1] == [key])]
    return node


def test_a_registry_without_the_width_of_the_embedding_still_loads(fit, toys, tmp_path):
    model = fit({"context_key": "context"})
    model.save(tmp_path)
    path = tmp_path / "model.json"
    assert '"n_embedding"' in path.read_text(encoding="utf-8")
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["sha256"]
    body = json.dumps(without(document, "n_embedding")).removesuffix("}").encode() + b',\n"sha256": "'
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
    assert '"n_embedding"' not in path.read_text(encoding="utf-8")
    for data in (False, toys.screen()):
        loaded = MTAe.load(tmp_path, data, accelerator="cpu")
        np.testing.assert_array_equal(loaded.predict(toys.screen()).X, model.predict(toys.screen()).X)
    loaded.train(max_epochs=1, **toys.quiet)

"""Training: which cells are read, what the seed fixes, what survives a failure, and traps of scvi-tools."""

import dataclasses
import functools
import logging
import warnings

import numpy as np
import pytest
import scvi
import torch
from scvi.dataloaders import DataSplitter
from scvi.train import TrainingPlan, TrainRunner

from multipert import _keys
from multipert.model import ContextShift, MTAe, TwoFactor, _training
from multipert.train import PerturbationTrainingPlan, Stage
from multipert.train._fit import fit

CONTEXT = {"context_key": "context"}
CLOSED = ["TwoFactor", "ContextShift", "Linear"]
GRADIENT = ["MTAe", "Net", "RandomNet", "AdversaryNet"]


def model_class(toys, name):
    return {"MTAe": MTAe, "TwoFactor": TwoFactor, "ContextShift": ContextShift}.get(name) or getattr(toys, name)


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key], equal_nan=True) for key in left)


# ------------------------------------------------------------------ seeds


@pytest.mark.parametrize("name", GRADIENT)
def test_the_seed_fixes_everything(name, toys):
    cls = model_class(toys, name)
    first, second, other = (toys.trained(cls, toys.screen(), setup=CONTEXT, seed=seed) for seed in (1, 1, 2))
    assert same(weights(first), weights(second))
    np.testing.assert_array_equal(first.train_indices, second.train_indices)
    assert not same(weights(first), weights(other))
    assert not np.array_equal(first.train_indices, other.train_indices)


def test_the_weights_depend_on_the_seed_of_train_and_not_on_what_ran_before(toys):
    models = []
    for state in (0, 1):
        torch.manual_seed(state)
        adata = toys.screen()
        MTAe.setup_anndata(adata)
        model = MTAe(adata, **toys.tiny)
        torch.rand(5)
        model.train(max_epochs=1, seed=4, **toys.quiet)
        models.append(model)
    assert same(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("name", ["MTAe", "AdversaryNet", "Linear"])
def test_the_global_random_states_stay(name, toys):
    adata = toys.screen()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = toys.trained(model_class(toys, name), adata, setup=CONTEXT)
    model.predict(realise="counts")
    model.annotate()
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_without_a_seed_that_of_scvi_is_taken(toys, monkeypatch):
    models = []
    for seed in (3, None):
        monkeypatch.setattr(type(scvi.settings), "seed", property(lambda self, seed=seed: seed))
        models.append(toys.trained(MTAe, toys.screen(), seed=None))
    assert same(weights(models[0]), weights(toys.trained(MTAe, toys.screen(), seed=3)))
    assert same(weights(models[1]), weights(toys.trained(MTAe, toys.screen(), seed=0)))
    assert not same(weights(models[0]), weights(models[1]))


# ------------------------------------------------------------------ which cells


@pytest.mark.parametrize("name", ["MTAe", "RandomNet", "AdversaryNet", "TwoFactor", "ContextShift", "Linear"])
def test_test_cells_are_never_read(name, toys):
    """Their expression changes nothing, that of training cells does."""
    cls, models = model_class(toys, name), []
    for changed in ("none", "test", "train"):
        adata = toys.screen()
        adata.obs.loc[adata.obs_names[::3], "split"] = "test"
        if changed != "none":
            rows = (adata.obs["split"] == changed).to_numpy()
            x = adata.X.toarray()
            x[rows] = x[rows] * 1.5 + 0.25
            adata.X = x
        models.append(toys.trained(cls, adata, setup=CONTEXT, split_key="split"))
    none, test, train = (weights(model) for model in models)
    assert same(none, test)
    assert not same(none, train)
    clean = toys.screen()
    np.testing.assert_array_equal(models[0].predict(clean).X, models[1].predict(clean).X)


def test_indices_of_the_split_are_kept(adata, toys):
    adata.obs.loc[adata.obs_names[::3], "split"] = "test"
    adata.obs.loc[adata.obs_names[1::3], "split"] = "val"
    model = toys.trained(toys.Net, adata, split_key="split")
    for found, level in (
        (model.train_indices, "train"),
        (model.validation_indices, "val"),
        (model.test_indices, "test"),
    ):
        np.testing.assert_array_equal(found, np.flatnonzero(adata.obs["split"] == level))


@pytest.mark.parametrize("name", ["MTAe", "Linear"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda obs: obs.drop(columns="split"), KeyError, "split_key='split' is not a column"),
        (lambda obs: obs.assign(split=["valid", *obs["split"][1:]]), ValueError, r"1 cell\(s\) with 'valid'"),
        (lambda obs: obs.assign(split=[None, *obs["split"][1:]]), ValueError, "1 missing value"),
        (lambda obs: obs.assign(split="test"), ValueError, "marks no cell as 'train'"),
        (
            lambda obs: obs.assign(split=np.where(obs["perturbation"] == "control", "test", "train")),
            ValueError,
            "No training cell is a control cell",
        ),
        (
            lambda obs: obs.assign(split=np.where(obs["perturbation"] == "control", "train", "test")),
            ValueError,
            "Every training cell is a control cell",
        ),
    ],
)
def test_an_incomplete_split_is_refused(name, change, error, message, adata, toys):
    cls = model_class(toys, name)
    cls.setup_anndata(adata)
    model = cls(adata, **(toys.tiny if cls is MTAe else {}))
    adata.obs = change(adata.obs)
    with pytest.raises(error, match=message):
        model.train(split_key="split", max_epochs=1, **toys.quiet)
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict()


def test_early_stopping_needs_validation_cells(adata, toys):
    with pytest.raises(ValueError, match="early_stopping needs validation cells"):
        toys.trained(toys.Net, adata, train_size=1.0, early_stopping=True)
    model = toys.trained(toys.Net, toys.screen(), early_stopping=True)
    assert {"train_loss", "validation_loss"} <= set(model.history_)


@pytest.mark.parametrize("change", ["label", "X", "context"])
def test_data_that_changed_after_the_setup_are_read_anew_or_refused(change, adata, toys):
    toys.Linear.setup_anndata(adata, context_key="context")
    model = toys.Linear(adata)
    if change == "X":
        x = adata.X.toarray()
        x[0, 0] = np.nan
        adata.X = x
        with pytest.raises(ValueError, match="X has 1 NaN"):
            model.train(**toys.quiet)
        return
    if change == "context":
        adata.obs["context"] = adata.obs["context"].replace("a", "z")
        with pytest.raises(ValueError, match=r"40 cell\(s\) have a category of context"):
            model.train(**toys.quiet)
        return
    swap = {"A": "B", "B": "A"}
    adata.obs["perturbation"] = adata.obs["perturbation"].replace(swap)
    model.train(seed=0, **toys.quiet)
    expected = toys.trained(toys.Linear, toys.screen(), setup=CONTEXT).get_perturbation_embedding()
    np.testing.assert_allclose(model.get_perturbation_embedding().loc["A"], expected.loc["B"], atol=1e-5)


# ------------------------------------------------------------------ history and further training


def test_history_is_appended_by_stages_and_calls(adata, toys):
    model = toys.trained(toys.TwoStageNet, adata, setup=CONTEXT, max_epochs=2, check_val_every_n_epoch=1)
    assert model.history_["train_loss"].index.tolist() == [0, 1, 2, 3]
    first = model.history_["train_loss"].copy()
    model.train(max_epochs=1, **toys.quiet)
    assert model.history["train_loss"].index.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(model.history_["train_loss"].iloc[:4], first)
    assert model.history_["validation_loss"].index.tolist() == [0, 1, 2, 3]


def test_further_training_goes_on_from_the_weights(adata, toys):
    model = toys.trained(toys.Net, adata)
    before = weights(model)
    model.train(max_epochs=1, lr=0.0, **toys.quiet)
    after = weights(model)
    assert all(torch.equal(before[key], after[key]) for key in before if "encoder" in key or "decoder" in key)


def test_losses_fall(adata, toys):
    model = toys.trained(toys.Net, adata, max_epochs=20, batch_size=30, lr=0.01, plan_kwargs={"n_warmup_steps": 0})
    losses = model.history_["train_loss"].iloc[:, 0]
    assert losses.iloc[-1] < 0.6 * losses.iloc[0]


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_models_ignore_epochs_and_have_no_history(name, toys):
    cls = model_class(toys, name)
    one, two = (toys.trained(cls, toys.screen(), setup=CONTEXT, max_epochs=n) for n in (1, None))
    assert one.history_ == {}
    assert same(weights(one), weights(two))


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize("name", ["MTAe", "Linear"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan_kwargs": {"warmup": 3}}, TypeError, "plan_kwargs has an unexpected key 'warmup'"),
        ({"plan_kwargs": {"lr": 3}}, TypeError, "pass it to train"),
        ({"max_epoch": 3}, TypeError, "unexpected keyword argument 'max_epoch'.*'max_epochs'"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"max_epochs": -1}, ValueError, "max_epochs=-1"),
        ({"train_size": 0.0}, ValueError, "train_size=0.0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(name, arguments, error, message, adata, toys):
    cls = model_class(toys, name)
    cls.setup_anndata(adata)
    model = cls(adata, **(toys.tiny if cls is MTAe else {}))
    before = weights(model)
    with pytest.raises(error, match=message):
        model.train(**{**toys.quiet, **arguments})
    assert same(before, weights(model))
    assert not model.is_trained_


def test_arguments_reach_the_plan(adata, toys, monkeypatch):
    seen = {}
    init = PerturbationTrainingPlan.__init__

    @functools.wraps(init)
    def spy(self, module, **kwargs):
        seen.update(kwargs)
        init(self, module, **kwargs)

    monkeypatch.setattr(PerturbationTrainingPlan, "__init__", spy)
    toys.trained(MTAe, adata, lr=0.5e-3, weight_decay=0.25, plan_kwargs={"eps": 1e-4})
    assert seen == {"lr": 0.5e-3, "weight_decay": 0.25, "eps": 1e-4, "trains": "all"}
    toys.trained(MTAe, toys.screen(), init={**toys.tiny, "preset": "published"})
    assert seen["lr"] == 1e-5


def test_the_first_step_of_the_warm_up_changes_no_weight(adata, toys):
    model = toys.trained(toys.Net, adata, batch_size=120, train_size=1.0)
    after = weights(model)
    model._start_module(0)
    assert all(torch.equal(value, after[key]) for key, value in weights(model).items())
    moved = toys.trained(toys.Net, toys.screen(), batch_size=120, train_size=1.0, plan_kwargs={"n_warmup_steps": 0})
    assert not torch.equal(weights(moved)["decoder.weight"], after["decoder.weight"])


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("batch_size", [30, 500])
def test_a_loss_that_is_not_finite_stops_with_finite_weights(batch_size, adata, toys):
    """Expression so large that squares overflow: finite in X, not in the loss."""
    MTAe.setup_anndata(adata, signed=True)
    model = MTAe(adata, **toys.tiny)
    x = adata.X.toarray()
    x[7, 3] = 3e38
    adata.X = x
    with pytest.raises(
        FloatingPointError, match="The loss became (inf|nan) at epoch 0, batch .*smaller lr.*extreme values"
    ):
        model.train(max_epochs=2, batch_size=batch_size, train_size=1.0, **toys.quiet)
    assert all(torch.isfinite(value).all() for value in weights(model).values() if value.is_floating_point())
    assert not model.is_trained_
    adata.X = toys.screen().X
    model.train(max_epochs=1, **toys.quiet)
    assert np.isfinite(model.predict().X).all()


def test_a_failed_second_training_leaves_the_model_as_it_was_trained(adata, toys):
    model = toys.trained(MTAe, adata, setup={"signed": True}, split_key="split")
    conditions, before = model.trained_conditions_, model.predict()
    x = adata.X.toarray()
    x[7, 3] = 3e38
    adata.X = x
    adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"
    with pytest.raises(FloatingPointError):
        model.train(split_key="split", max_epochs=1, batch_size=500, **toys.quiet)
    assert model.trained_conditions_ == conditions
    np.testing.assert_allclose(model.predict(toys.screen()).X, before.X, atol=1e-5)


@pytest.mark.parametrize("name", ["MTAe", "AdversaryNet"])
def test_an_interruption_leaves_finite_weights_and_training_can_go_on(name, adata, toys, monkeypatch):
    cls = model_class(toys, name)
    model = toys.trained(cls, adata)
    module = type(model.module)
    loss, calls = module.loss, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(module, "loss", interrupted)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=3, batch_size=30, plan_kwargs={"n_warmup_steps": 0}, **toys.quiet)
    monkeypatch.undo()
    after = weights(model)
    assert not same(before, after)
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert not model.module.training
    assert np.isfinite(model.predict().X).all()
    model.train(max_epochs=1, **toys.quiet)
    assert np.isfinite(model.predict().X).all()


def test_an_interrupted_first_training_leaves_the_model_untrained_but_trainable(adata, toys, monkeypatch):
    MTAe.setup_anndata(adata)
    model = MTAe(adata, **toys.tiny)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.module), "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=1, **toys.quiet)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict()
    model.train(max_epochs=1, seed=0, **toys.quiet)
    np.testing.assert_array_equal(model.predict().X, toys.trained(MTAe, toys.screen()).predict().X)


# ------------------------------------------------------------------ traps of scvi-tools


def test_two_setups_of_one_anndata_do_not_mix(adata, toys):
    """The second setup overwrites the first one's codes; training must put them back."""
    first_setup, second_setup = {}, {"perturbation_key": "combination", "dose_key": "dose", "context_key": "batch"}
    toys.Linear.setup_anndata(adata, **first_setup)
    first = toys.Linear(adata)
    toys.Linear.setup_anndata(adata, **second_setup)
    second = toys.Linear(adata)
    toys.Net.setup_anndata(adata, perturbation_key="batch", control="x")
    for model, setup in ((first, first_setup), (second, second_setup), (first, first_setup)):
        model.train(seed=0, **toys.quiet)
        expected = toys.trained(toys.Linear, toys.screen(), setup=setup)
        np.testing.assert_array_equal(model.get_perturbation_embedding(), expected.get_perturbation_embedding())
        np.testing.assert_array_equal(model.predict().X, expected.predict().X)


def test_setting_up_a_copy_leaves_the_model_of_the_original_usable(adata, toys):
    toys.Linear.setup_anndata(adata)
    model = toys.Linear(adata)
    copy = adata.copy()
    toys.Linear.setup_anndata(copy, perturbation_key="combination", dose_key="dose")
    model.train(seed=0, **toys.quiet)
    np.testing.assert_array_equal(model.predict().X, toys.trained(toys.Linear, toys.screen()).predict().X)
    assert toys.trained(toys.Linear, copy).predict().n_obs == 90


def test_genes_that_were_reordered_after_the_setup_are_refused(adata, toys):
    toys.Linear.setup_anndata(adata)
    model = toys.Linear(adata)
    adata.var_names = adata.var_names[::-1]
    with pytest.raises(ValueError, match="another order"):
        model.train(**toys.quiet)


def test_validation_runs_when_asked_only(adata, toys):
    assert "validation_loss" not in toys.trained(toys.Net, adata).history_
    assert "validation_loss" in toys.trained(toys.Net, toys.screen(), check_val_every_n_epoch=1).history_


@pytest.mark.parametrize("n_train", [31, 61, 121 - 30])
def test_a_last_batch_of_one_cell_does_not_break_batch_norm(n_train, adata, toys):
    model = toys.trained(MTAe, adata, train_size=n_train / 120, batch_size=30)
    assert len(model.train_indices) == n_train
    assert np.isfinite(model.predict().X).all()


def test_batches_keep_their_types(adata, toys):
    setup = {"context_key": "context", "categorical_covariate_keys": ["batch"], "cell_embedding_key": "X_emb"}
    model = toys.trained(toys.Net, adata, setup=setup)
    for batch in model.module.log:
        for key in (_keys.PERTURBATION, _keys.CONTEXT, _keys.CATEGORICAL_COVARIATES):
            assert not batch[key].is_floating_point()
        for key in (_keys.X, _keys.DOSE, _keys.CELL_EMBEDDING):
            assert batch[key].dtype == torch.float32


@pytest.mark.parametrize("name", ["MTAe", "Net"])
@pytest.mark.filterwarnings("ignore")
def test_a_module_trains_under_the_plan_of_scvi_too(name, adata, toys):
    cls = model_class(toys, name)
    adata.X = adata.X.toarray()
    cls.setup_anndata(adata, context_key="context")
    model = cls(adata, **(toys.tiny if cls is MTAe else {}))
    before = weights(model)
    splitter = DataSplitter(model.adata_manager, train_size=0.75, batch_size=30)
    plan = TrainingPlan(model.module)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    runner = TrainRunner(
        model,
        training_plan=plan,
        data_splitter=splitter,
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
    )
    runner()
    assert not same(before, weights(model))
    assert all(np.isfinite(frame.to_numpy(dtype=float)).all() for frame in model.history_.values())


# ------------------------------------------------------------------ what a batch of a pass holds


def logged(toys, **attributes):
    """Batches that a training of one epoch read, one dict each."""
    cls = type("Net", (toys.Net,), attributes)
    model = toys.trained(cls, toys.screen(), setup=CONTEXT)
    return model, [batch for batch in model.module.log if batch["training"] and _keys.X_CONTROL in batch]


def test_a_pass_of_any_partners_reads_perturbed_cells_beside_controls_of_all_contexts(toys):
    _, batches = logged(toys, stages=("any",))
    codes, contexts, partners = (
        torch.cat([batch[key] for batch in batches]).numpy().ravel()
        for key in (_keys.PERTURBATION, _keys.CONTEXT, _keys.CONTEXT_CONTROL)
    )
    assert (codes >= 0).all()
    assert set(partners) == {0, 1, 2}
    # drawn over the contexts: about a third of the pairs are of one context
    assert 0.1 < (contexts == partners).mean() < 0.6
    adata = toys.screen()
    controls = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    x = {
        name: set(map(tuple, here.X.toarray()))
        for name, here in ((c, controls[controls.obs.context == c]) for c in "abc")
    }
    for batch in batches:
        for row, code in zip(batch[_keys.X_CONTROL].numpy(), batch[_keys.CONTEXT_CONTROL].numpy().ravel(), strict=True):
            assert tuple(row) in x["abc"[code]]


@pytest.mark.parametrize("itself", [True, False])
def test_transported_controls_meet_themselves_unless_the_stage_says_no(toys, itself):
    _, batches = logged(toys, stages=(Stage("ot", itself=itself),))
    codes = torch.cat([batch[_keys.PERTURBATION] for batch in batches]).numpy().ravel()
    assert (codes < 0).any() == itself
    assert (codes >= 0).any()


def test_a_module_knows_its_pass_and_the_preset_its_length_and_plan(toys, monkeypatch):
    seen = []

    def spy(plan, *args, **kwargs):
        seen.append((plan.module.stage, kwargs["max_epochs"], plan.eps, plan.n_warmup_steps))
        return fit(plan, *args, **kwargs)

    monkeypatch.setattr(_training, "fit", spy)
    preset = {"batch_size": 60, "max_epochs": 4, "shares": (0.5, 2), "plan_kwargs": {"eps": 0.01, "n_warmup_steps": 7}}
    stages = (Stage(name="one"), Stage("random", name="other"))
    cls = type("Net", (toys.Net,), {"stages": stages, "presets": {"default": preset}})
    adata = toys.screen()
    cls.setup_anndata(adata, **CONTEXT)
    model = cls(adata)
    model.train(seed=0, plan_kwargs={"n_warmup_steps": 3}, **toys.quiet)
    assert seen == [("one", 2, 0.01, 3), ("other", 8, 0.01, 3)]
    # 108 training cells: 1 batch of 60 an epoch, the rest dropped
    assert model.estimate(accelerator="cpu").n_updates == 2 + 8


@pytest.mark.parametrize("itself", [True, False])
def test_random_controls_are_of_the_context_and_drawn_anew_each_epoch(itself, toys):
    cls = type("Net", (toys.Net,), {"stages": (Stage("random", itself=itself),)})
    adata = toys.screen()
    cls.setup_anndata(adata, context_key="context", cell_embedding_key="X_emb")
    model = cls(adata)
    model.train(max_epochs=6, train_size=1.0, batch_size=40, seed=0, **toys.quiet)
    batches = [batch for batch in model.module.log if batch["training"] and _keys.X_CONTROL in batch]
    cell, code, context, of_control, embedding, at = (
        torch.cat([batch[key].reshape(len(batch[_keys.X]), -1) for batch in batches]).numpy()
        for key in (
            _keys.X,
            _keys.PERTURBATION,
            _keys.CONTEXT,
            _keys.CONTEXT_CONTROL,
            _keys.CELL_EMBEDDING_CONTROL,
            _keys.X_CONTROL,
        )  # fmt: skip
    )
    assert (context == of_control).all()
    is_control = (code < 0).all(axis=1)
    assert is_control.any() == itself
    np.testing.assert_array_equal(cell[is_control], at[is_control])
    # expression and embedding of one and the same control cell
    names = {tuple(row): i for i, row in enumerate(adata.X.toarray())}
    rows = np.array([names[tuple(row)] for row in at])
    np.testing.assert_array_equal(embedding, adata.obsm["X_emb"][rows].astype(np.float32))
    assert (adata.obs["perturbation"].to_numpy()[rows] == "control").all()
    partners = {}
    for name, row in zip(map(tuple, cell[~is_control]), rows[~is_control], strict=True):
        partners.setdefault(name, set()).add(row)
    assert np.mean([len(found) for found in partners.values()]) > 2


def count_reader(toys):
    def new_module(model):
        module = toys.Net._new_module(model)
        module.reads_counts = module.indexed_training = True
        return module

    return type("Net", (toys.Net,), {"_new_module": new_module})


class Watched:
    """Counts of cells that note which rows are read, and take increasing row numbers only, as files do."""

    def __init__(self, counts):
        self.counts, self.shape, self.rows = counts, counts.shape, set()

    def __getitem__(self, rows):
        assert (np.diff(rows) > 0).all()
        self.rows |= set(rows.tolist())
        return self.counts[rows]


def test_size_factors_are_of_the_cells_that_are_trained_or_predicted_and_of_no_other(toys, monkeypatch):
    adata, cls = toys.screen(), count_reader(toys)
    held = np.arange(0, 120, 4)
    adata.obs.iloc[held, adata.obs.columns.get_loc("split")] = "test"
    adata.obs.iloc[held + 1, adata.obs.columns.get_loc("split")] = "val"
    counts = adata.layers["counts"].toarray()
    counts[held[3]] += 0.5
    adata.layers["counts"] = counts
    watched = Watched(counts)
    monkeypatch.setattr(cls, "_counts", staticmethod(lambda source, reader: watched))
    cls.setup_anndata(adata)
    model = cls(adata)
    model.train(max_epochs=1, split_key="split", batch_size=40, seed=0, check_val_every_n_epoch=1, **toys.quiet)
    assert watched.rows == set(range(120)) - set(held.tolist())
    assert all(torch.isfinite(batch[_keys.SIZE_FACTOR]).all() for batch in model.module.log)
    assert len(model.history["validation_loss"]) == 1
    watched.rows = set()
    model.estimate(split_key="split", batch_size=40, accelerator="cpu")
    assert watched.rows == set(model.train_indices.tolist())
    watched.rows = set()
    controls = np.flatnonzero(adata.obs["perturbation"] == "control")
    chosen = np.setdiff1d(controls, held)[:7]
    predicted = model.predict(perturbation=["A", "B"], indices=chosen)
    assert watched.rows == set(chosen.tolist())
    # any order, and again
    some = np.array([chosen[2], chosen[0], chosen[2]])
    watched.rows = set()
    z = model.get_latent_representation(indices=some)
    assert watched.rows == set(some.tolist())
    np.testing.assert_array_equal(z[0], z[2])
    np.testing.assert_array_equal(model.predict(perturbation=["A", "B"], indices=chosen).X, predicted.X)
    name = adata.obs_names[held[3]]
    with pytest.raises(ValueError, match=r"layers\['counts'\] must hold raw counts"):
        model.get_latent_representation(indices=[held[3]])
    watched.counts = np.array(adata.layers["counts"])
    watched.counts[held[3]] = np.roll(np.floor(watched.counts[held[3]]), 1)
    with pytest.raises(ValueError, match=rf"1 cell\(s\) differ, first '{name}'"):
        model.get_latent_representation(indices=[held[3]])
    adata.obs["split"] = "train"
    with pytest.raises(ValueError, match=rf"1 cell\(s\) differ, first '{name}'"):
        model.train(max_epochs=1, split_key="split", **toys.quiet)


def test_a_module_that_reads_counts_gets_the_size_factors_everywhere(toys):
    adata, cls = toys.screen(), count_reader(toys)
    cls.setup_anndata(adata)
    model = cls(adata)
    model.train(max_epochs=1, train_size=1.0, batch_size=40, seed=0, **toys.quiet)
    counts = adata.layers["counts"].toarray()
    batch = next(batch for batch in model.module.log if batch["training"] and _keys.ROW in batch)
    found = torch.expm1(batch[_keys.X]) / batch[_keys.SIZE_FACTOR][:, None]
    np.testing.assert_allclose(found.numpy(), counts[batch[_keys.ROW].numpy()], atol=1e-4)
    model.module.log.clear()
    model.predict(perturbation="A")
    batch = model.module.log[0]
    assert not batch["training"]
    found = torch.expm1(batch[_keys.X]) / batch[_keys.SIZE_FACTOR][:, None]
    np.testing.assert_allclose(found.numpy(), found.round().numpy(), atol=1e-4)
    del adata.layers["counts"]
    with pytest.raises(ValueError, match=r"Net needs raw counts in layers\['counts'\]"):
        model.predict(perturbation="A")
    with pytest.raises(ValueError, match=r"Net needs raw counts in layers\['counts'\]"):
        model.train(max_epochs=1, **toys.quiet)


def test_a_row_of_zeros_in_the_embedding_is_told(toys):
    adata = toys.screen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toys.Net.setup_anndata(adata, perturbation_embedding_key="table")
    adata.uns["table"].loc["B"] = 0
    with pytest.warns(UserWarning, match=r"1 perturbation\(s\) have a row of zeros in uns\['table'\]: B;") as told:
        toys.Net.setup_anndata(adata, perturbation_embedding_key="table")
    # of control's row nothing is said: a model that centres the table moves it and not control
    assert "as control" not in str(told[0].message)
    assert "some models for control" in str(told[0].message)


def test_covariates_never_seen_are_refused_where_the_model_reads_them(toys):
    cls = type("Net", (toys.Net,), {"tags": dataclasses.replace(toys.Net.tags, uses_covariates=True)})
    adata = toys.screen()
    cls.setup_anndata(adata, context_key="context", categorical_covariate_keys=["batch"])
    model = cls(adata)
    assert model._covariate_sizes == (3, 2)
    model.train(max_epochs=1, **toys.quiet)
    # a value that the setup knew and no training cell had is as unknown as a new one
    held = toys.screen()
    held.obs["split"] = np.where(held.obs["batch"] == "y", "test", "train")
    cls.setup_anndata(held, categorical_covariate_keys=["batch"])
    part = cls(held)
    part.train(max_epochs=1, split_key="split", **toys.quiet)
    with pytest.raises(ValueError, match="was not trained on: y"):
        part.predict(perturbation="A")
    unseen = (held.obs["batch"] == "y").to_numpy()
    for batch in (held.obs["batch"], held.obs["batch"].astype("category"), held.obs["batch"].replace({"y": "z"})):
        held.obs["batch"] = batch
        # what is refused cell by cell is what annotate leaves out
        np.testing.assert_array_equal(part._has_unseen_covariate(held), unseen)
        for row in range(0, 120, 7):
            if unseen[row]:
                with pytest.raises(ValueError, match=rf"1 cell\(s\) have values .*: {batch.iloc[row]}"):
                    part.get_latent_representation(held, indices=[row])
            else:
                assert part.get_latent_representation(held, indices=[row]).shape == (1, 6)
    held.obs["batch"] = held.obs["batch"].replace({"z": "y"})
    with pytest.warns(UserWarning, match="covariates that the model was not trained on"):
        part.annotate(held, latent=False)
    assert np.isnan(held.layers["Net_predicted"][unseen]).all()
    other = toys.screen()
    other.obs["batch"] = other.obs["batch"].replace({"y": "z"})
    n = int(((other.obs["batch"] == "z") & (other.obs["perturbation"] == "control")).sum())
    with pytest.raises(ValueError, match=rf"{n} cell\(s\) have values of obs\['batch'\].*: z"):
        model.predict(other, perturbation="A")
    kept = np.flatnonzero(other.obs["batch"] == "x")
    assert model.predict(other, perturbation="A", indices=kept).n_obs

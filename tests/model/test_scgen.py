"""ScGen keeps the invariants of its published equations, learns, and corrects batches."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi.train import Trainer

from multipert.data._loaders import CellLoader
from multipert.model import ScGen
from multipert.model._scgen import ScGenModule

SMALL = {"n_hidden": 12, "n_latent": 5}
CONTEXT = {"context_key": "context"}


@pytest.fixture
def uneven(adata):
    """Contexts of different sizes, the last without perturbed training cells."""
    drop = (adata.obs["context"] == "a") & (np.arange(adata.n_obs) % 2 == 0)
    some = adata[~drop.to_numpy()].copy()
    some.obs["split"] = np.where(
        (some.obs["context"] == "c") & (some.obs["perturbation"] != "control"), "test", "train"
    )
    return some


def untrained(toys, adata, *, setup=CONTEXT, **init):
    """Weights as drawn, deltas fitted."""
    split = "split" if "split" in adata.obs else None
    return toys.trained(
        ScGen, adata, setup=setup, init={**SMALL, **init}, max_epochs=0, split_key=split, train_size=1.0
    )


def latent_means(model, adata):
    """Mean latent representation of every (context, label) pair of the training cells."""
    z, train = model.get_latent_representation(adata).astype(np.float64), model.train_indices
    frame = pd.DataFrame(z).iloc[train]
    return frame.groupby([adata.obs["context"].to_numpy()[train], adata.obs["perturbation"].to_numpy()[train]]).mean()


def delta_of(model, label):
    return model.get_perturbation_embedding().loc[label].to_numpy()


def linear_codec(model, adata):
    """Put a rotation of the genes in the place of both networks and fit the deltas anew."""
    n_vars = adata.n_vars
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(n_vars, n_vars)))[0]).float()

    class Rotate(torch.nn.Module):
        def forward(self, x):
            return x @ rotation, torch.full_like(x, 1e-4)

    class RotateBack(torch.nn.Module):
        def forward(self, z):
            return z @ rotation.T

    model.module.encoder, model.module.decoder = Rotate(), RotateBack()
    with torch.no_grad():
        model.module.conclude(CellLoader(model._training_store(adata, 0), model.train_indices, 16))
    return model


# ------------------------------------------------------------------ loss


def test_the_unweighted_bound_is_noted_beside_the_loss(adata, toys):
    histories = {}
    for kl_weight in (2.0, 1e-3):
        init = {**SMALL, "kl_weight": kl_weight}
        model = toys.trained(ScGen, adata, init=init, max_epochs=3, batch_size=40, check_val_every_n_epoch=1)
        histories[kl_weight] = {key: frame.to_numpy(float) for key, frame in model.history.items()}
    for part in ("train", "validation"):
        # half of a weight of 2 is none
        for kl_weight, same in ((2.0, True), (1e-3, False)):
            bound, loss = (histories[kl_weight][f"{part}_{name}"] for name in ("negative_elbo", "loss"))
            assert bound.shape == (3, 1)
            assert np.allclose(bound, loss, rtol=1e-5) == same
            assert (bound >= loss - 1e-3).all()


# ------------------------------------------------------------------ deltas


def test_with_a_linear_autoencoder_the_prediction_is_control_plus_the_mean_difference(uneven, toys):
    model = linear_codec(untrained(toys, uneven), uneven)
    found = model.predict(perturbation="A", clip=False)
    x, obs = uneven.X.toarray(), uneven.obs
    changes = [
        x[(obs["context"] == c) & (obs["perturbation"] == "A")].mean(0)
        - x[(obs["context"] == c) & (obs["perturbation"] == "control")].mean(0)
        for c in "ab"
    ]
    control = x[(obs["perturbation"] == "control").to_numpy()]
    np.testing.assert_allclose(found.X, control + np.mean(changes, axis=0), atol=1e-5)


def test_delta_is_the_mean_over_shared_contexts_of_context_mean_differences(uneven, toys):
    model = untrained(toys, uneven)
    means = latent_means(model, uneven)
    for label in "ABC":
        expected = np.mean([means.loc[c, label] - means.loc[c, "control"] for c in "ab"], axis=0)
        np.testing.assert_allclose(delta_of(model, label), expected, atol=1e-6)


def test_legacy_delta_mixes_in_the_contexts_without_perturbed_cells(uneven, toys):
    model = untrained(toys, uneven, legacy_delta=True)
    means = latent_means(model, uneven)
    expected = np.mean([means.loc[c, "A"] for c in "ab"], axis=0) - np.mean(
        [means.loc[c, "control"] for c in "abc"], axis=0
    )
    np.testing.assert_allclose(delta_of(model, "A"), expected, atol=1e-6)
    assert np.abs(delta_of(model, "A") - delta_of(untrained(toys, uneven), "A")).max() > 1e-3


def test_legacy_delta_is_what_the_published_resampling_comes_to(uneven, toys):
    model = untrained(toys, uneven, legacy_delta=True)
    z, obs, rng = model.get_latent_representation(uneven), uneven.obs, np.random.default_rng(0)
    means = {}
    for label in ("control", "A"):
        rows = [
            np.flatnonzero((obs["context"] == c) & (obs["perturbation"] == label) & (obs["split"] == "train"))
            for c in "abc"
        ]
        most = max(map(len, rows))
        drawn = [z[rng.choice(r, (4000, most))].mean((0, 1)) for r in rows if len(r)]
        means[label] = np.mean(drawn, axis=0)
    error = np.abs(delta_of(model, "A") - (means["A"] - means["control"])).max()
    assert error < 5 * z.std() / np.sqrt(4000 * 5)


def test_swapping_control_and_perturbation_swaps_the_sign(adata, toys):
    some = adata[adata.obs["perturbation"].isin(["control", "A"])].copy()
    one = untrained(toys, some)
    other = untrained(toys, some, setup={**CONTEXT, "control": "A"})
    assert np.abs(delta_of(one, "A")).max() > 1e-3
    np.testing.assert_allclose(delta_of(other, "control"), -delta_of(one, "A"), atol=1e-7)


def test_delta_is_zero_where_both_conditions_hold_the_same_cells(adata, toys):
    control = adata[adata.obs["perturbation"] == "control"].copy()
    twin = control.copy()
    twin.obs_names = [f"{name}-twin" for name in twin.obs_names]
    both = AnnData(
        np.concatenate([control.X.toarray(), twin.X.toarray()]),
        obs=pd.concat([control.obs, twin.obs.assign(perturbation="A")]),
        var=control.var,
    )
    np.testing.assert_allclose(delta_of(untrained(toys, both), "A"), 0, atol=1e-6)


def test_a_context_moved_by_its_own_delta_has_the_latent_mean_of_its_perturbed_cells(adata, toys):
    model = untrained(toys, adata, delta_contexts=["b"])
    means = latent_means(model, adata)
    at = ((adata.obs["context"] == "b") & (adata.obs["perturbation"] == "control")).to_numpy()
    z = torch.from_numpy(model.get_latent_representation(adata)[at])
    label = {key: value.expand(len(z), -1) for key, value in model._label_tensors([(("A", 1.0),)]).items()}
    moved = (z + model.module.shift({**label, "X": z}, z)).double().mean(0)
    np.testing.assert_allclose(moved, means.loc["b", "A"], atol=1e-6)


def test_delta_contexts_restrict_both_kinds_of_cells(uneven, toys):
    means = latent_means(untrained(toys, uneven), uneven)
    for legacy in (False, True):
        model = untrained(toys, uneven, delta_contexts=["a"], legacy_delta=legacy)
        np.testing.assert_allclose(delta_of(model, "A"), means.loc["a", "A"] - means.loc["a", "control"], atol=1e-6)
    with pytest.raises(ValueError, match="'A' is in no training context of delta_contexts that has control cells"):
        untrained(toys, uneven, delta_contexts=["c"]).predict(perturbation="A")


def test_without_contexts_there_is_one_difference_of_means(uneven, toys):
    model = untrained(toys, uneven, setup={})
    z, train = model.get_latent_representation(), model.train_indices
    label = uneven.obs["perturbation"].to_numpy()[train]
    expected = z[train][label == "A"].mean(0) - z[train][label == "control"].mean(0)
    np.testing.assert_allclose(delta_of(model, "A"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("init", "setup", "error", "message"),
    [
        ({"delta_contexts": ["a", "d"]}, CONTEXT, ValueError, "'d', which is no context.*known: 'a', 'b', 'c'"),
        ({"delta_contexts": "a"}, CONTEXT, TypeError, "must be a list of contexts"),
        ({"delta_contexts": 0}, CONTEXT, TypeError, "must be a list of contexts"),
        ({"delta_contexts": []}, CONTEXT, ValueError, "delta_contexts is empty"),
        ({"delta_contexts": ["a"]}, {}, ValueError, "without context_key"),
        ({"n_hidden": (8, 4), "n_layers": 3}, CONTEXT, ValueError, r"holds 2 width\(s\), but n_layers=3"),
        ({"n_latent": 0}, CONTEXT, ValueError, "n_latent=0"),
        ({"dropout_rate": 1.0}, CONTEXT, ValueError, "dropout_rate=1.0"),
        ({"kl_weight": -1.0}, CONTEXT, ValueError, "kl_weight=-1.0"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, setup, error, message):
    ScGen.setup_anndata(adata, **setup)
    with pytest.raises(error, match=message):
        ScGen(adata, **init)


# ------------------------------------------------------------------ loss and module


def batch(n=6, n_vars=20):
    codes = torch.tensor([[-1], [0], [1]]).repeat(n // 3, 1)
    x = torch.rand(n, n_vars, generator=torch.Generator().manual_seed(1)) * 3
    return {"X": x, "perturbation": codes, "dose": (codes >= 0).float()}


def module(kl_weight, n_vars=20):
    torch.manual_seed(0)
    return ScGenModule(n_vars, (12, 9), 5, 0.2, kl_weight, delta_contexts=None, legacy_delta=False)


@pytest.mark.parametrize("kl_weight", [0.0, 5e-5, 0.3])
def test_the_loss_is_half_the_summed_squared_error_and_half_the_weighted_divergence(kl_weight):
    made, tensors = module(kl_weight).eval(), batch()
    mean, variance = (values.detach().numpy() for values in made.encoder(tensors["X"]))
    error = 0.5 * np.square((made.decoder(torch.from_numpy(mean)) - tensors["X"]).detach().numpy()).sum(1)
    divergence = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1)
    found = made.loss(tensors, *made(tensors, compute_loss=False))
    np.testing.assert_allclose(found.loss.item(), (error + 0.5 * kl_weight * divergence).mean(), rtol=1e-5)
    if kl_weight == 0:
        np.testing.assert_allclose(found.loss.item(), error.mean(), rtol=1e-6)


def test_training_draws_the_latent_representation_from_the_posterior():
    made = module(0.0).train()
    tensors = batch(3000)
    for norm in (part for part in made.modules() if isinstance(part, torch.nn.BatchNorm1d | torch.nn.Dropout)):
        norm.eval()
    out = made.inference(tensors)
    noise = ((out["z"] - out["mean"]) / out["variance"].sqrt()).detach().numpy()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert torch.equal(made.eval().inference(tensors)["z"], made.inference(tensors)["mean"])


def test_labels_are_no_input_of_the_network():
    made, tensors = module(0.0).eval(), batch()
    other = {**tensors, "perturbation": tensors["perturbation"].flip(0)}
    one, two = (made(x, compute_loss=False)[1]["px"] for x in (tensors, other))
    assert torch.equal(one, two)


# ------------------------------------------------------------------ training and prediction


def test_held_out_cells_change_no_bit_and_two_calls_agree(uneven, toys):
    changed = uneven.copy()
    x = changed.X.toarray()
    held_out = (uneven.obs["split"] == "test").to_numpy()
    x[held_out] = 7 - x[held_out].clip(max=7)
    changed.X, uneven.X = x, uneven.X.toarray()
    models = [
        toys.trained(ScGen, data, setup=CONTEXT, init=SMALL, max_epochs=3, split_key="split", batch_size=16)
        for data in (uneven, changed)
    ]
    states = [model.module.state_dict() for model in models]
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])
    found = [model.predict(perturbation=["A", "B"]).X for model in (*models, models[0])]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_planted_shift_of_five_genes_is_found(toys):
    rng, n = np.random.default_rng(0), 60
    shift = np.zeros(40)
    shift[:5] = [1.2, -1.0, 1.5, 0.9, -1.1]
    context, label = np.repeat(np.arange(4), 2 * n), np.tile(np.repeat([0, 1], n), 4)
    base = rng.uniform(1.5, 4, 40) + rng.normal(0, 0.3, (4, 40))
    x = base[context] + label[:, None] * shift + rng.normal(0, 0.2, (len(context), 40))
    held_out = (context == 3) & (label == 1)
    obs = pd.DataFrame(
        {
            "perturbation": np.array(["control", "A"])[label],
            "context": np.array(list("abcd"))[context],
            "split": np.where(held_out, "test", "train"),
        },
        index=[f"cell{i}" for i in range(len(x))],
    )
    adata = AnnData(x.clip(0).astype(np.float32), obs)
    model = toys.trained(
        ScGen,
        adata,
        setup=CONTEXT,
        init={"n_hidden": 64, "n_latent": 10, "dropout_rate": 0.1},
        max_epochs=80,
        batch_size=32,
        lr=3e-3,
        split_key="split",
        plan_kwargs={"eps": 1e-8, "decay_every": None},
    )
    predicted, control = (
        model.predict(perturbation=label, context="d", returns="mean").X[0] for label in ("A", "control")
    )
    assert np.corrcoef(predicted, adata.X[held_out].mean(0))[0, 1] ** 2 > 0.95
    assert np.corrcoef(predicted - control, shift)[0, 1] > 0.95
    table = model.similarity_to_control(perturbation="A")
    assert table["context"].tolist() == list("abcd")
    np.testing.assert_allclose(table["r2"][3], np.corrcoef(predicted, control)[0, 1] ** 2, atol=1e-6)
    np.testing.assert_allclose(table["change"][3], np.sqrt(np.square(predicted - control).mean()), rtol=1e-5)


def test_similarity_to_control_is_one_where_nothing_moves(uneven, toys):
    model = untrained(toys, uneven)
    table = model.similarity_to_control(context=["a", "c"])
    assert list(table.columns) == ["perturbation", "context", "r2", "change"]
    assert len(table) == 6
    model.module.delta[:] = 0
    still = model.similarity_to_control(context=["a", "c"])
    np.testing.assert_allclose(still["r2"], 1, atol=1e-9)
    np.testing.assert_allclose(still["change"], 0, atol=1e-7)
    assert (table["change"] > 1e-4).all()


def test_a_perturbation_that_no_context_has_beside_control_is_refused(adata, toys):
    lonely = adata[(adata.obs["perturbation"] != "C") | (adata.obs["context"] == "c")].copy()
    lonely.obs["split"] = np.where(
        (lonely.obs["context"] == "c") & (lonely.obs["perturbation"] == "control"), "test", "train"
    )
    model = untrained(toys, lonely)
    assert sorted(model.get_perturbation_embedding().index) == ["A", "B"]
    with pytest.raises(ValueError, match="'C' is in no training context that has control cells"):
        model.predict(perturbation="C")


def test_presets_are_the_default_and_the_published_schedule(adata, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = (plan.lr, plan.weight_decay, plan.eps, plan.n_warmup_steps, train.loader.batch_size)
        seen.epochs = trainer.max_epochs

    monkeypatch.setattr(Trainer, "fit", fit)
    ScGen.setup_anndata(adata, **CONTEXT)
    model = ScGen(adata, preset="published")
    linears = [part for part in model.module.modules() if isinstance(part, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [800, 800, 100, 100, 800, 800, 20]
    assert {part.p for part in model.module.modules() if isinstance(part, torch.nn.Dropout)} == {0.2}
    assert model.module.kl_weight == 5e-5
    model.train(accelerator="cpu")
    assert (seen.found, seen.epochs) == ((1e-3, 1e-6, 0.01, 0, 32), 100)


# ------------------------------------------------------------------ batches


@pytest.fixture
def batched(adata):
    """Two batches in the contexts a and b, one of them larger; one batch only in c."""
    large = np.random.default_rng(0).random(adata.n_obs) < 0.7
    adata.obs["batch"] = np.where(large | (adata.obs["context"] == "c").to_numpy(), "y", "x")
    adata.obs["batch"] = adata.obs["batch"].where(
        adata.obs["context"] != "b", adata.obs["batch"].map({"x": "y", "y": "x"})
    )
    shift = np.where(adata.obs["batch"] == "x", 0.8, 0.0)[:, None] * (np.arange(20) < 7)
    adata.X = (adata.X.toarray() + shift).astype(np.float32)
    return adata


def test_batch_means_coincide_after_the_removal(batched, toys):
    model = untrained(toys, batched)
    z, found = model.get_latent_representation(batched), model.remove_batch(batched, batch_key="batch")
    corrected = found.obsm["X_ScGen_corrected"]
    for context, largest in {"a": "y", "b": "x", "c": "y"}.items():
        here = (batched.obs["context"] == context).to_numpy()
        target = z[here & (batched.obs["batch"] == largest).to_numpy()].mean(0)
        for name in batched.obs["batch"][here].unique():
            at = here & (batched.obs["batch"] == name).to_numpy()
            np.testing.assert_allclose(corrected[at].mean(0), target, atol=1e-6)
            # cells of one batch keep their places among each other
            np.testing.assert_allclose(corrected[at] - corrected[at].mean(0), z[at] - z[at].mean(0), atol=1e-6)
        moved = here & (batched.obs["batch"] != largest).to_numpy()
        assert (context == "c") == (not moved.any())
        assert (np.abs(corrected[moved] - z[moved]).max(1) > 1e-3).all()
    unmoved = (batched.obs["context"] == "c") | (
        batched.obs["batch"] == batched.obs["context"].map({"a": "y", "b": "x"})
    )
    np.testing.assert_array_equal(corrected[unmoved.to_numpy()], z[unmoved.to_numpy()])


def test_removed_batches_are_decoded_and_the_input_is_untouched(batched, toys):
    model = untrained(toys, batched)
    before = batched.copy()
    found = model.remove_batch(batched, batch_key="batch", clip=False)
    toys.assert_same(batched, before)
    with torch.no_grad():
        expected = model.module.decoder(torch.from_numpy(found.obsm["X_ScGen_corrected"]))
    np.testing.assert_allclose(found.X, expected, atol=1e-6)
    pd.testing.assert_frame_equal(found.obs, before.obs)
    pd.testing.assert_frame_equal(found.var, before.var)
    assert found.X.min() < 0
    assert model.remove_batch(batched, batch_key="batch").X.min() == 0
    json.dumps(found.uns["multipert"])
    order = np.random.default_rng(1).permutation(batched.n_obs)
    shuffled = model.remove_batch(batched[order].copy(), batch_key="batch", clip=False)
    np.testing.assert_allclose(shuffled.X, found.X[order], atol=1e-5)


def test_batch_removal_names_what_is_wrong(batched, toys):
    model = untrained(toys, batched)
    with pytest.raises(KeyError, match="batch_key"):
        model.remove_batch(batched, batch_key="bach")
    batched.obs["batch"] = batched.obs["batch"].where(np.arange(batched.n_obs) != 3)
    with pytest.raises(ValueError, match="batch"):
        model.remove_batch(batched, batch_key="batch")
    ScGen.setup_anndata(batched, **CONTEXT)
    with pytest.raises(RuntimeError, match="train"):
        ScGen(batched, **SMALL).remove_batch(batch_key="context")

"""DecoderOnly reads names only, learns group means, and tells what it has seen."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi.train import Trainer
from torch import nn

from multipert.data._loaders import CellLoader
from multipert.metrics import pairwise, rank
from multipert.model import DecoderOnly
from multipert.model._decoderonly import DecoderOnlyModule

CONTEXT = {"context_key": "context"}
COMBINED = {"perturbation_key": "combination", **CONTEXT}
SMALL = {"n_hidden": 16}
# enough for a network of 48 units to hold eight groups
EXACT = {"max_epochs": 160, "lr": 2e-2, "weight_decay": 0.0, "batch_size": 1000, "split_key": "split"}
PLAN = {"n_warmup_steps": 0, "decay_every": 40, "decay_factor": 0.5}


def batch(n=8, n_vars=9):
    codes = torch.tensor([[0, -1], [1, 2], [-1, -1], [2, -1]]).repeat(n // 4, 1)
    x = torch.rand(n, n_vars, generator=torch.Generator().manual_seed(1)) * 3
    context = torch.arange(n)[:, None] // 4
    return {"X": x, "perturbation": codes, "dose": (codes >= 0).float(), "context": context}


def groups(seed=0, n_vars=6):
    """Two contexts, three perturbations and control, each pair with a mean of its own and cells around it."""
    rng = np.random.default_rng(seed)
    pairs = [(c, p) for c in "ab" for p in ("control", "A", "B", "C")]
    sizes = rng.integers(4, 12, len(pairs))
    means = rng.uniform(0.5, 4, (len(pairs), n_vars))
    x = np.concatenate([rng.normal(mean, 0.1, (size, n_vars)) for mean, size in zip(means, sizes, strict=True)])
    obs = pd.DataFrame(np.repeat(pairs, sizes, axis=0), columns=["context", "perturbation"])
    obs.index = [f"c{i}" for i in obs.index]
    obs["split"] = "train"
    return AnnData(x.clip(0).astype(np.float32), obs)


def group_means_of(adata):
    frame = pd.DataFrame(adata.X, index=adata.obs_names)
    return frame.groupby([adata.obs["perturbation"].to_numpy(), adata.obs["context"].to_numpy()]).mean()


# ------------------------------------------------------------------ network


@pytest.mark.parametrize("use", ["both", "perturbations", "covariates"])
@pytest.mark.parametrize("variant", ["linear_first", "standard"])
def test_the_module_is_a_plain_network_with_its_weights(variant, use):
    torch.manual_seed(0)
    labels, covariates = use != "covariates", use != "perturbations"
    made = DecoderOnlyModule(9, 3 if labels else None, (2,) if covariates else (), 7, 2, variant=variant).eval()
    tensors = batch()
    hot = torch.zeros(8, 3)
    for row, codes in enumerate(tensors["perturbation"]):
        hot[row, codes[codes >= 0]] = 1
    read = torch.cat([hot[:, : 3 * labels], torch.eye(2)[tensors["context"][:, 0]][:, : 2 * covariates]], dim=1)
    layers = [nn.Linear(read.shape[1], 7)] if variant == "linear_first" else []
    for _ in range(2):
        layers += [nn.Linear(7 if layers else read.shape[1], 7), nn.LayerNorm(7, elementwise_affine=False), nn.ReLU()]
    chain = nn.Sequential(*layers, nn.Linear(7, 9), nn.Softplus())
    chain.load_state_dict(dict(zip(chain.state_dict(), made.decoder.state_dict().values(), strict=True)))
    expected = chain(read).detach()
    np.testing.assert_allclose(made.counterfactual(tensors).detach(), expected, atol=1e-6)
    np.testing.assert_allclose(made.generative(tensors["X"], tensors)["px"].detach(), expected, atol=1e-6)


def test_the_loss_weighs_cells_equally_and_there_is_no_dropout():
    torch.manual_seed(0)
    made, tensors = DecoderOnlyModule(9, 3, (2,), 7, 2).train(), batch()
    found = made.loss(tensors, *made(tensors, compute_loss=False))
    decoded = made.counterfactual(tensors)
    np.testing.assert_allclose(found.loss.item(), torch.square(decoded - tensors["X"]).mean().item(), rtol=1e-6)
    assert not any(part.p for part in made.modules() if isinstance(part, nn.Dropout))


def test_over_all_cells_means_and_cells_have_the_same_gradient(toys):
    adata = groups()
    gradients = []
    for train_on in ("cells", "pseudobulk"):
        DecoderOnly.setup_anndata(adata, **CONTEXT)
        model = DecoderOnly(adata, **SMALL, train_on=train_on)
        loader = CellLoader(model._training_store(adata, 0), np.arange(adata.n_obs), 1000)
        model.module.known_codes = torch.tensor([[-1], [0], [1], [2]])
        model.module.known_doses = torch.tensor([[0.0], [1], [1], [1]])
        with torch.no_grad():
            model.module.prepare(loader)
        (tensors,) = loader
        module = model.module.train()
        module.loss(tensors, *module(tensors, compute_loss=False)).loss.backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    np.testing.assert_allclose(*gradients, atol=1e-6)


# ------------------------------------------------------------------ trained models


@pytest.mark.parametrize("train_on", ["cells", "pseudobulk"])
def test_a_saturated_network_learns_the_mean_of_every_group(toys, train_on):
    adata = groups()
    init = {"n_hidden": 48, "n_layers": 1, "train_on": train_on}
    model = toys.trained(DecoderOnly, adata, setup=CONTEXT, init=init, plan_kwargs=PLAN, **EXACT)
    expected = group_means_of(adata)
    # control, an all-zero label, among them
    found = model.predict(perturbation=["A", "B", "C", "control"], returns="mean")
    for row, label, context in zip(found.X, found.obs["perturbation"], found.obs["context"], strict=True):
        np.testing.assert_allclose(row, expected.loc[(label, context)], atol=1e-2)


def test_no_cell_is_an_input(adata, toys):
    model = toys.trained(DecoderOnly, adata, setup=CONTEXT, init=SMALL)
    control = np.flatnonzero(adata.obs["perturbation"] == "control")
    everything = model.predict(perturbation=["A", "B"])
    by_context = {
        (label, context): everything.X[
            ((everything.obs["perturbation"] == label) & (everything.obs["context"] == context)).to_numpy()
        ]
        for label in "AB"
        for context in "abc"
    }
    for rows in by_context.values():
        np.testing.assert_array_equal(rows, np.tile(rows[0], (10, 1)))
    other = adata.copy()
    other.X = other.X * 3
    for rows, size in (([control[0]], None), (control[4:20], 7), (control[::-1], 1)):
        found = model.predict(other, ["A", "B"], indices=rows, batch_size=size)
        for x, label, context in zip(found.X, found.obs["perturbation"], found.obs["context"], strict=True):
            np.testing.assert_array_equal(x, by_context[label, context][0])
    assert not np.array_equal(by_context["A", "a"], by_context["A", "b"])
    assert not np.array_equal(by_context["A", "a"], by_context["B", "a"])


def test_without_labels_all_perturbations_tie(adata, toys):
    model = toys.trained(DecoderOnly, adata, setup=CONTEXT, init={**SMALL, "use_perturbations": False})
    found = model.predict(context="a", returns="mean")
    assert len(found) == 3
    np.testing.assert_array_equal(found.X, np.tile(found.X[0], (3, 1)))
    observed = np.stack(
        [
            adata.X.toarray()[((adata.obs["context"] == "a") & (adata.obs["perturbation"] == label)).to_numpy()].mean(0)
            for label in found.obs["perturbation"]
        ]
    )
    distances = pairwise(found.X, observed, metric="rmse")
    np.testing.assert_array_equal(rank(distances), 0.5)


def test_the_order_of_a_label_does_not_matter(adata, toys):
    model = toys.trained(DecoderOnly, adata, setup=COMBINED, init=SMALL)
    one, other = (model.predict(perturbation=label).X for label in ("A+B", "B + A"))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (30, 20)


def test_control_residuals_give_the_mean_and_the_spread_of_control_cells(adata, toys):
    models = [
        toys.trained(DecoderOnly, adata, setup=CONTEXT, init={**SMALL, "residuals": kind})
        for kind in ("none", "control")
    ]
    plain, spread = (model.predict(perturbation="A", context="b", clip=False).X for model in models)
    control = adata.X.toarray()[((adata.obs["context"] == "b") & (adata.obs["perturbation"] == "control")).to_numpy()]
    np.testing.assert_allclose(spread - plain, control - control.mean(0), atol=1e-5)
    np.testing.assert_array_equal(plain, np.tile(plain[0], (10, 1)))


def test_pseudobulks_are_of_what_the_network_is_told(adata):
    """Means over contexts where no context is read; held-out cells are in none."""
    DecoderOnly.setup_anndata(adata, **CONTEXT)
    model = DecoderOnly(adata, **SMALL, use_covariates=False)
    rows = np.flatnonzero(np.arange(120) % 5 > 0)
    loader = CellLoader(model._training_store(adata, 0), rows, 32)
    model.module.known_codes, model.module.known_doses = (
        torch.tensor([[-1], [0], [1], [2]]),
        torch.tensor([[0.0], [1], [1], [1]]),
    )
    model.module.prepare(loader)
    group = model.module.group_of_row
    assert (group[np.arange(120) % 5 == 0] == -1).all()
    x, label = adata.X.toarray()[rows], adata.obs["perturbation"].to_numpy()[rows]
    assert len(model.module.group_mean) == 4
    for name in ("control", "A", "B", "C"):
        (number,) = group[rows[label == name]].unique()
        np.testing.assert_allclose(model.module.group_mean[number], x[label == name].mean(0), atol=1e-5)
    model.module.conclude(loader)
    assert "group_mean" not in model.module.state_dict()
    assert model.module.group_mean is None


# ------------------------------------------------------------------ what was seen


def test_what_was_seen_is_told(adata, toys, tmp_path):
    held_out = (adata.obs["context"] == "c") & (adata.obs["perturbation"] == "A")
    never = adata.obs["perturbation"] == "C"
    adata.obs["split"] = np.where(held_out | never, "test", "train")
    setup = {**CONTEXT, "perturbation_embedding_key": "table"}
    for train_on in ("pseudobulk", "cells"):
        init = {**SMALL, "train_on": train_on}
        model = toys.trained(DecoderOnly, adata, setup=setup, init=init, split_key="split")
        table = model.is_seen(["A", "C", "control"])
        assert list(table.columns) == ["perturbation", "context", "label_seen", "context_seen", "pair_seen"]
        assert table["perturbation"].tolist() == ["A"] * 3 + ["C"] * 3 + ["control"] * 3
        assert table["context"].tolist() == list("abc") * 3
        assert table["label_seen"].tolist() == [True] * 3 + [False] * 3 + [True] * 3
        assert table["context_seen"].all()
        assert table["pair_seen"].tolist() == [True, True, False, False, False, False, True, True, True]
    frame = pd.DataFrame({"perturbation": ["A", "A", "B"], "context": ["c", "b", "z"]})
    table = model.is_seen(frame)
    assert table[["context", "context_seen", "pair_seen"]].to_numpy().tolist() == [
        ["c", True, False],
        ["b", True, True],
        ["z", False, False],
    ]
    assert model.is_seen("B", context="a")["pair_seen"].tolist() == [True]
    assert len(model.is_seen()) == 2 * 3
    model.save(tmp_path)
    loaded = DecoderOnly.load(tmp_path, False, accelerator="cpu")
    pd.testing.assert_frame_equal(loaded.is_seen(["A", "C"]), model.is_seen(["A", "C"]))
    np.testing.assert_array_equal(loaded.predict(adata, "D").X, model.predict(adata, "D").X)


def test_doses_and_combinations_are_seen_one_by_one(adata, toys):
    setup = {"perturbation_key": "combination", "dose_key": "dose"}
    model = toys.trained(DecoderOnly, adata, setup=setup, init=SMALL)
    table = model.is_seen(["A", "A", "A+B", "A+B"], dose=[5, 3, "1+2", "2+1"])
    assert list(table.columns) == ["combination", "dose", "label_seen", "context_seen", "pair_seen"]
    assert table["pair_seen"].tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="without context_key"):
        model.is_seen("A", dose=1, context="a")
    one, five = (model.predict(perturbation="A", dose=dose, returns="mean").X for dose in (1, 5))
    assert not np.array_equal(one, five)


def test_nothing_is_seen_before_training(adata):
    DecoderOnly.setup_anndata(adata, **CONTEXT)
    with pytest.raises(RuntimeError, match="train"):
        DecoderOnly(adata, **SMALL).is_seen("A")


# ------------------------------------------------------------------ setups


@pytest.mark.parametrize(
    ("init", "setup", "message"),
    [
        ({"use_perturbations": False, "use_covariates": False}, CONTEXT, "nothing is left to predict from"),
        ({"use_perturbations": False}, {}, "nothing is left to predict from"),
        ({"n_layers": 0}, CONTEXT, "n_layers=0"),
        ({"train_on": "bulk"}, CONTEXT, "train_on='bulk' is unknown.*pseudobulk"),
        ({"residuals": "cells"}, CONTEXT, "residuals='cells' is unknown"),
        ({"mlp_variant": "first"}, CONTEXT, "mlp_variant='first' is unknown"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, setup, message):
    DecoderOnly.setup_anndata(adata, **setup)
    with pytest.raises(ValueError, match=message):
        DecoderOnly(adata, **init)


def test_without_covariates_any_context_can_be_predicted(adata, toys):
    setup = {**CONTEXT, "categorical_covariate_keys": ["batch"]}
    model = toys.trained(DecoderOnly, adata, setup=setup, init={**SMALL, "use_covariates": False})
    elsewhere = adata.copy()
    elsewhere.obs["context"], elsewhere.obs["batch"] = "elsewhere", "z"
    np.testing.assert_array_equal(model.predict(elsewhere, "A").X, model.predict(adata, "A").X)
    full = toys.trained(DecoderOnly, adata, setup=setup, init=SMALL)
    elsewhere.obs["batch"] = "x"
    with pytest.raises(ValueError, match="unseen_context"):
        full.predict(elsewhere, "A")


def test_there_is_nothing_to_realise(adata, toys):
    model = toys.trained(DecoderOnly, adata, setup=CONTEXT, init=SMALL)
    with pytest.raises(ValueError, match="tag output is 'mean'"):
        model.predict(perturbation="A", realise="residual")


def test_presets_are_the_published_ones(adata, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = plan.lr, plan.weight_decay, plan.n_warmup_steps, train.loader.batch_size, trainer.max_epochs

    monkeypatch.setattr(Trainer, "fit", fit)
    DecoderOnly.setup_anndata(adata, **CONTEXT)
    model = DecoderOnly(adata, preset="norman19", n_hidden=8)
    model.train(accelerator="cpu", train_size=1.0)
    assert seen.found == (1.375e-4, 4.42e-5, 0, 4000, 500)
    widths = [layer.in_features for layer in model.module.modules() if isinstance(layer, nn.Linear)]
    # three hidden layers, no linear layer before them, no covariates, no softplus, cells as targets
    assert widths == [3, 8, 8, 8]
    assert isinstance(model.module.activation, nn.Identity)
    assert not model.module.indexed_training
    for name in DecoderOnly.presets:
        assert DecoderOnly(adata, preset=name, n_hidden=8).module.keeps_best == (name != "default")

"""ScButterfly on perturbations: restated equations, who moves when, pairs, and a planted shift."""

import math

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import nn

from multipert import _keys
from multipert.model import ScButterfly
from multipert.model._passes import Pass
from multipert.model._scbutterfly import A, R, TwoSideModule
from multipert.nn._translator import Side
from multipert.train import Stage
from multipert.train._plan import PerturbationTrainingPlan

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
TINY = {"n_hidden": (12,), "n_hidden_target": (8,), "n_latent": 6}
N, G, H = 10, 9, 6
NO_NOISE = {"dropout_rate": 0.0}


def sides(**changes):
    args = {"mask_rate": 0.0, "output": "leaky", "weight": 1.0, "kl_weight": 20 / G, "zero_below": 1e-4} | changes
    return Side(G, (12,), **args), Side(G, (8,), **args)


def new(seed=0, made=None, **changes) -> TwoSideModule:
    torch.manual_seed(seed)
    args = {
        "dropout_rate": 0.1,
        "kl_warmup_epochs": 50,
        "adversary_weight": 1.0,
        "linear_logvar": False,
        "start_at_means": False,
    } | changes
    module = TwoSideModule(made or sides(), H, **args)
    module.stage = "joint"
    return module


def roughen(module: TwoSideModule) -> TwoSideModule:
    """Batch norms that do something in evaluation mode."""
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm1d)):
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return module


def pairs(seed=1, n=N):
    generator = torch.Generator().manual_seed(seed)
    control, treated = torch.rand(2, n, G, generator=generator) * 3
    codes = torch.zeros(n, 1, dtype=torch.int32)
    return {"X": treated, "X_control": control, "perturbation": codes, "dose": torch.ones(n, 1)}


def cells(code, seed=1, n=N):
    return {"X": pairs(seed, n)["X_control"], "perturbation": torch.full((n, 1), code), "dose": torch.ones(n, 1)}


def forward(module, batch):
    inferred = module.inference(batch)
    return inferred, module.generative(**module._get_generative_input(batch, inferred))


def loss(module, batch, seed=3):
    torch.manual_seed(seed)
    return module.loss(batch, *forward(module, batch)).loss


def state(part: nn.Module, *, statistics=True) -> dict[str, torch.Tensor]:
    kept = part.state_dict() if statistics else dict(part.named_parameters())
    return {name: value.detach().clone() for name, value in kept.items()}


def moved(before, part: nn.Module) -> set[str]:
    return {name for name, value in state(part).items() if name in before and not torch.equal(before[name], value)}


# ---------------------------------------------------------------- the network


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def layer(w, prefix, x, *, training=False):
    """Linear, then batch norm, written out."""
    x = x @ w[f"{prefix}.0.weight"].T + w[f"{prefix}.0.bias"]
    mean, variance = (
        (x.mean(0), x.var(0, correction=0))
        if training
        else (w[f"{prefix}.1.running_mean"], w[f"{prefix}.1.running_var"])
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{prefix}.1.weight"] + w[f"{prefix}.1.bias"]


def chain(w, prefix, x, *, training=False):
    for i in range(2):
        x = leaky(layer(w, f"{prefix}.layers.{i}", x, training=training))
    return x


def test_all_four_translations_restated():
    module = roughen(new()).double().eval()
    w, x = module.state_dict(), pairs()["X"].double()
    for source in (R, A):
        hidden = chain(w, f"encoders.{source}", x)
        mu = leaky(layer(w, f"translator.mean.{source}", hidden))
        for target in (R, A):
            expected = chain(w, f"decoders.{target}", leaky(layer(w, f"translator.to_side.{target}", mu)))
            expected = torch.where(expected < 1e-4, 0, expected)
            np.testing.assert_allclose(module.translated(x, source, target).detach(), expected, atol=1e-6)


def test_the_joint_loss_restated_in_training():
    module = roughen(new(**NO_NOISE)).double()
    w, batch = module.state_dict(), {key: value.double() for key, value in pairs().items()}
    module.adversarial, module.epoch = False, 50
    torch.manual_seed(3)
    x = batch["X_control"], batch["X"]
    expected, divergence = 0.0, 0.0
    for source in (R, A):
        hidden = chain(w, f"encoders.{source}", x[source], training=True)
        mu, d = (
            leaky(layer(w, f"translator.{kind}.{source}", hidden, training=True)) for kind in ("mean", "log_variance")
        )
        z = mu + torch.randn_like(mu) * torch.exp(d / 2)
        divergence += -0.5 * (1 + d - mu**2 - d.exp()).mean()
        for target in (R, A):
            hidden = leaky(layer(w, f"translator.to_side.{target}", z, training=True))
            expected += (chain(w, f"decoders.{target}", hidden, training=True) - x[target]).square().mean()
    found = loss(module, batch)
    np.testing.assert_allclose(found.item(), (expected + 40 / G * divergence).item(), rtol=1e-9)


@pytest.mark.parametrize(("stage", "side", "other"), [("R", R, A), ("A", A, R)])
def test_a_side_alone_is_a_variational_autoencoder_with_a_translator_of_its_own(stage, side, other):
    module = roughen(new(**NO_NOISE)).double()
    w, batch = module.state_dict(), {key: value.double() for key, value in pairs().items()}
    module.stage, module.epoch = stage, 25
    torch.manual_seed(3)
    x = (batch["X_control"], batch["X"])[side]
    hidden = chain(w, f"encoders.{side}", x, training=True)
    mu, d = (leaky(layer(w, f"alone.{side}.{kind}.0", hidden, training=True)) for kind in ("mean", "log_variance"))
    z = mu + torch.randn_like(mu) * torch.exp(d / 2)
    decoded = chain(w, f"decoders.{side}", leaky(layer(w, f"alone.{side}.to_side.0", z, training=True)), training=True)
    kl = -0.5 * (1 + d - mu**2 - d.exp()).mean()
    # half of the ramp
    expected = (decoded - x).square().mean() + 0.5 * 20 / G * kl
    found = loss(module, batch)
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-9)
    found.backward()
    parts = module.encoders[other], module.decoders[other], module.alone[other], module.translator
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())


def test_shapes_and_four_translations_from_one_forward():
    inferred, generated = forward(new(), pairs())
    assert [z.shape for z in inferred["z"]] == [(N, H)] * 2
    assert {key: tuple(px.shape) for key, px in generated["px"].items()} == {
        (source, target): (N, G) for source in (R, A) for target in (R, A)
    }
    # both translations of a cell start at one draw
    module = new(**NO_NOISE).eval()
    inferred, generated = forward(module, pairs())
    for side in (R, A):
        again = module.decoders[side](module.translator(inferred["z"][R], side))
        assert torch.equal(generated["px"][R, side], again)


def test_a_target_chooses_the_side_and_the_mean_is_used():
    module = roughen(new()).eval()
    x = cells(0)["X"]
    for code, side in ((0, A), (-1, R)):
        found = module.counterfactual(cells(code))
        assert torch.equal(found, module.translated(x, R, side))
        assert torch.equal(found, module.counterfactual(cells(code)))
    mixed = cells(0)
    mixed["perturbation"][::2] = -1
    np.testing.assert_array_equal(
        module.counterfactual(mixed)[::2].detach(), module.counterfactual(cells(-1))[::2].detach()
    )
    np.testing.assert_array_equal(
        module.counterfactual(mixed)[1::2].detach(), module.counterfactual(cells(0))[1::2].detach()
    )


def test_small_and_negative_values_become_zero():
    module = roughen(new()).eval()
    hidden = module.translator(module.latent(cells(0)["X"], R), A)
    raw, found = module.decoders[A](hidden), module.counterfactual(cells(0))
    assert (raw < 0).any()
    assert (found[raw < 1e-4] == 0).all()
    assert torch.equal(found[raw >= 1e-4], raw[raw >= 1e-4])


@pytest.mark.parametrize("output", ["leaky", "identity"])
def test_an_unsigned_side_only_has_the_cut(output):
    made = sides(output=output, zero_below=None if output == "identity" else 1e-4)
    found = roughen(new(made=made)).eval().counterfactual(cells(0))
    assert (found < 0).any() == (output == "identity")


# ---------------------------------------------------------------- the losses


def test_the_weight_of_the_divergence_rises_over_fifty_epochs_of_each_pass():
    module = new()
    for epoch, factor in ((0, 0.0), (10, 0.2), (50, 1.0), (80, 1.0)):
        module.epoch = epoch
        assert module.kl_factor() == pytest.approx(factor)
    assert new(kl_warmup_epochs=0).kl_factor() == 1
    for stage, weight in (("R", 20 / G), ("A", 20 / G), ("joint", 40 / G)):
        module = new(adversary_weight=0.0)
        module.stage, losses = stage, {}
        batch = pairs()
        torch.manual_seed(0)
        inferred, generated = forward(module, batch)
        for module.epoch in (0, 50):
            losses[module.epoch] = module.loss(batch, inferred, generated).loss
        divergence = sum(
            -0.5 * (1 + d - mu**2 - d.exp()).mean()
            for mu, d in zip(inferred["mean"], inferred["log_variance"], strict=True)
        )
        np.testing.assert_allclose((losses[50] - losses[0]).item(), (weight * divergence).item(), rtol=1e-4)
        assert divergence > 0


def test_the_divergence_is_zero_only_at_the_standard_normal():
    module, batch = new(adversary_weight=0.0), pairs()
    inferred, generated = forward(module, batch)

    def at(mean, log_variance):
        changed = {**inferred, "mean": (mean,) * 2, "log_variance": (log_variance,) * 2}
        found = {}
        for module.epoch in (0, 50):
            found[module.epoch] = module.loss(batch, changed, generated).loss.item()
        return found[50] - found[0]

    nothing = torch.zeros(N, H)
    assert at(nothing, nothing) == 0
    for mean, log_variance in ((nothing + 0.1, nothing), (nothing, nothing + 0.1), (nothing, nothing - 0.1)):
        assert at(mean, log_variance) > 1e-3


def saturated(module, *, right: bool):
    """Discriminators that are right, or wrong, about half of what they see for sure."""
    for discriminator in module.discriminators:
        nn.init.constant_(discriminator[1].bias, 0.0)
        nn.init.constant_(discriminator[1].weight, 0.0)
        if not right:
            nn.init.constant_(discriminator[1].bias, 4.0)


def test_discriminators_at_chance_or_worse_are_left_out_of_the_loss():
    batch = pairs()
    module = new(**NO_NOISE)
    saturated(module, right=False)
    told_apart = module.discrimination(module.pair(batch))
    assert told_apart >= 1.35
    without = new(**NO_NOISE, adversary_weight=0.0)
    assert loss(module, batch).item() == loss(without, batch).item()
    saturated(module, right=True)
    # constant logits of 0 give 2 log 2 whatever the targets
    assert module.discrimination(module.pair(batch)).item() == pytest.approx(2 * math.log(2))
    assert loss(module, batch).item() == loss(without, batch).item()


def test_discriminators_below_chance_are_subtracted(monkeypatch):
    batch, module, without = pairs(), new(**NO_NOISE), new(**NO_NOISE, adversary_weight=0.0)
    monkeypatch.setattr(module, "discrimination", lambda pair: torch.tensor(1.2))
    assert loss(module, batch).item() == pytest.approx(loss(without, batch).item() - 1.2, rel=1e-6)
    module.adversarial = False
    assert loss(module, batch).item() == loss(without, batch).item()


def test_both_discriminators_share_the_draw_and_see_their_own_codes_where_it_is_high(monkeypatch):
    module, batch = new(**NO_NOISE), pairs()
    uniform = torch.tensor([0.05, 0.3, 0.49, 0.51, 0.7, 0.95, 0.1, 0.6, 0.9, 0.2])
    seen = []
    for discriminator in module.discriminators:
        discriminator.register_forward_hook(lambda part, inputs, output: seen.append((inputs[0], output.squeeze(1))))
    monkeypatch.setattr(torch, "rand", lambda n, **_: uniform)
    torch.manual_seed(5)
    found = module.discrimination(module.pair(batch))
    torch.manual_seed(5)
    own = [module.encoders[side](x) for side, x in enumerate(module.pair(batch))]
    z = [module.translator.encode(hidden, side)[0] for side, hidden in enumerate(own)]
    high, expected = uniform > 0.5, 0.0
    targets = torch.tensor([0.05, 0.2, 0.2, 0.8, 0.8, 0.95, 0.1, 0.8, 0.9, 0.2])
    for side, (codes, logits) in enumerate(seen):
        np.testing.assert_allclose(codes[high].detach(), own[side][high].detach(), atol=1e-6)
        np.testing.assert_allclose(
            codes[~high].detach(), module.translator(z[1 - side], side)[~high].detach(), atol=1e-5
        )
        p = torch.sigmoid(logits)
        expected += -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_validation_looks_at_the_reconstruction_by_means():
    module, batch = roughen(new()), pairs()
    module.eval()
    module.epoch = 80
    first, again = loss(module, batch, seed=1), loss(module, batch, seed=2)
    assert first.item() == again.item()
    px = forward(module, batch)[1]["px"]
    x = batch["X_control"], batch["X"]
    expected = sum((px[key] - x[key[1]]).square().mean() for key in px)
    assert first.item() == pytest.approx(expected.item(), rel=1e-6)


# ---------------------------------------------------------------- who moves


def updates(module, batch, *, trains="all"):
    plan = PerturbationTrainingPlan(module, lr=1e-3, critic_lr=5e-3, n_warmup_steps=0, trains=trains)
    return plan, plan.configure_optimizers()


def test_the_step_of_the_discriminators_moves_nothing_else_and_the_other_way_round():
    module, batch = new(), pairs()
    plan, (main, critic) = updates(module, batch)
    assert isinstance(critic, torch.optim.SGD)
    assert critic.param_groups[0]["lr"] == 5e-3
    before = state(module, statistics=False)
    module.critic_loss(batch).backward()
    of_discriminators = set(module.discriminators.parameters())
    assert all((parameter.grad is not None) == (parameter in of_discriminators) for parameter in module.parameters())
    critic.step()
    changed = moved(before, module)
    assert changed
    assert all(name.startswith("discriminators") for name in changed)
    module.zero_grad(set_to_none=True)
    before = state(module, statistics=False)
    plan(batch).loss.backward()
    main.step()
    changed = moved(before, module)
    assert not any(name.startswith(("discriminators", "alone")) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"encoders", "decoders", "translator"}


def test_running_statistics_move_as_often_as_published():
    module, batch = new(), pairs()
    plan, (main, critic) = updates(module, batch)
    module.critic_loss(batch)
    plan(batch)
    for part, times in ((module.encoders, 3), (module.decoders, 2), (module.discriminators, 2)):
        counted = {int(v) for name, v in part.state_dict().items() if name.endswith("num_batches_tracked")}
        assert counted == {times}
    counts = {name: int(v) for name, v in module.translator.state_dict().items() if name.endswith("tracked")}
    # reached from both sides; in the passes of the discriminators from the other one only
    assert {v for name, v in counts.items() if "to_side" not in name} == {3}
    assert {v for name, v in counts.items() if "to_side" in name} == {4}


# ---------------------------------------------------------------- training


def planted(n=120, n_vars=40, n_contexts=4, seed=0) -> tuple[AnnData, np.ndarray]:
    """Cells with two axes of state; the perturbation shifts ten genes in all contexts; the last is a test context."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.5, 2.5, n_vars)
    offsets, axes = rng.normal(0, 0.12, (n_contexts, n_vars)), rng.normal(0, 0.3, (2, n_vars))
    shift = np.zeros(n_vars)
    shift[:10] = np.array([1, -0.4] * 5)
    context = np.repeat(np.arange(n_contexts), 2 * n)
    label = np.tile(np.repeat([0, 1], n), n_contexts)
    x = base + offsets[context] + rng.normal(size=(len(label), 2)) @ axes + label[:, None] * shift
    x = (x + rng.normal(0, 0.1, x.shape)).clip(0)
    adata = AnnData(x.astype(np.float32))
    adata.obs_names = [f"c{i}" for i in range(len(label))]
    adata.obs["perturbation"] = np.array(["control", "A"])[label]
    adata.obs["context"] = np.array(list("abcdefgh"))[context]
    split = np.where(np.arange(len(label)) % 5 == 0, "val", "train")
    adata.obs["split"] = np.where((context == n_contexts - 1) & (label == 1), "test", split)
    return adata, shift


def made(adata, **init) -> ScButterfly:
    ScButterfly.setup_anndata(adata, context_key="context")
    return ScButterfly(adata, **{**TINY, **init})


def test_a_planted_shift_is_recovered_in_a_held_out_context():
    adata, shift = planted(n=64)
    model = made(adata, n_hidden=(32,), n_hidden_target=(32,), n_latent=16)
    model.train(40, split_key="split", seed=0, batch_size=32, lr=3e-3, **QUIET)
    is_treated = (adata.obs["perturbation"] == "A").to_numpy()
    here = (adata.obs["context"] == "d").to_numpy()
    control, truth = adata.X[here & ~is_treated].mean(0), adata.X[here & is_treated].mean(0)
    found = model.predict(context="d", perturbation="A").X.mean(0)
    assert 1 - ((found - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() > 0.9
    assert np.corrcoef(found - control, shift)[0, 1] > 0.9
    back = model.to_control(context="d")
    assert back.n_obs == 64
    assert set(back.obs["perturbation"]) == {"control"}
    assert np.corrcoef(truth - back.X.mean(0), shift)[0, 1] > 0.8


def test_pairs_are_of_one_context_one_for_each_control_cell_and_never_of_the_held_out_context():
    adata, _ = planted(n=12)
    model = made(adata)
    contexts, label = adata.obs["context"].to_numpy(), adata.obs["perturbation"].to_numpy()
    split = adata.obs["split"].to_numpy()
    store = model._training_store(adata, 0)
    of = {level: np.flatnonzero(split == level) for level in ("train", "val")}
    for number, stage in enumerate(ScButterfly.stages):
        passes = Pass(model, adata, store, stage.pairing, 4, 0, None, stage.itself)
        training, validation = passes.training(of["train"], number), passes.validation(of["val"], np.arange(len(split)))
        for loader, level in ((training, "train"), (validation, "val")):
            treated, controls = loader.rows, loader.partners
            assert (contexts[treated] == contexts[controls]).all()
            assert set(label[treated]) == {"A"}
            assert set(label[controls]) == {"control"}
            expected = of[level][(label[of[level]] == "control") & (contexts[of[level]] != "d")]
            np.testing.assert_array_equal(np.sort(controls), expected)
            assert "d" not in contexts[treated]
            assert set(split[treated]) == {level}


def partner_names(adata):
    """Name of each control cell's partner, by its own name."""
    model = made(adata)
    passes = Pass(model, adata, model._training_store(adata, 0), "ot", 4, 0, None, False)
    loader = passes.training(np.arange(adata.n_obs), 0)
    names = adata.obs_names.to_numpy()
    return dict(zip(names[loader.partners], names[loader.rows], strict=True))


def test_identical_cells_are_paired_with_each_other_and_permuted_rows_permute_the_pairs():
    adata, _ = planted(n=12)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    same = adata[is_control].copy()
    twins = same.copy()
    twins.obs_names, twins.obs["perturbation"] = same.obs_names + "'", "A"
    both = anndata.concat([same, twins])
    both.obs["split"] = "train"
    assert partner_names(both) == {name: f"{name}'" for name in same.obs_names}
    adata = adata[(adata.obs["split"] == "train").to_numpy()].copy()
    shuffled = adata[np.random.default_rng(3).permutation(adata.n_obs)].copy()
    found = partner_names(adata)
    assert len(set(found.values())) > 10
    assert partner_names(shuffled) == found


def test_a_named_partner_takes_the_place_of_transport_and_control_cells_meet_nobody():
    adata, _ = planted(n=6)
    controls = {
        name: adata.obs_names[(adata.obs["context"] == name) & (adata.obs["perturbation"] == "control")]
        for name in "abcd"
    }
    adata.obs["partner"] = [controls[context][i % 6] for i, context in enumerate(adata.obs["context"])]
    ScButterfly.setup_anndata(adata, context_key="context", pairing_key="partner")
    model = ScButterfly(adata, **TINY)
    rows = np.arange(adata.n_obs)
    loader = Pass(model, adata, model._training_store(adata, 0), "ot", 4, 0, None, False).training(rows, 0)
    assert (adata.obs["perturbation"].iloc[loader.rows] == "A").all()
    assert list(adata.obs_names[loader.partners]) == list(adata.obs["partner"].iloc[loader.rows])
    with pytest.raises(ValueError, match="partner='sample' has no meaning beside pairing_key"):
        ScButterfly(adata, partner="sample")


def test_cells_of_the_held_out_context_change_no_weight():
    adata, _ = planted(n=12)
    states = []
    for factor in (1, 3):
        changed = adata.copy()
        changed.X[(adata.obs["context"] == "d").to_numpy()] *= factor
        model = made(changed, start_at_means=False)
        model.train(2, split_key="split", seed=0, batch_size=8, **QUIET)
        states.append(state(model.module, statistics=True))
    fitted = TwoSideModule.fitted
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items() if name not in fitted)


def test_the_pass_of_one_side_leaves_the_other_alone(monkeypatch):
    adata, _ = planted(n=12)
    monkeypatch.setattr(ScButterfly, "stages", (ScButterfly.stages[0],))
    model = made(adata)
    model._start_module(0)
    before = state(model.module)
    model.train(2, split_key="split", seed=0, batch_size=8, **QUIET)
    changed = {".".join(name.split(".")[:2]) for name in moved(before, model.module)}
    # the start of the treated side's decoder at its means is no training
    assert changed - {f"decoders.{A}"} == {f"encoders.{R}", f"decoders.{R}", f"alone.{R}"}
    last = {name for name in moved(before, model.module) if name.startswith(f"decoders.{A}")}
    assert last <= {f"decoders.{A}.layers.1.1.{kind}" for kind in ("weight", "bias")}


def test_without_an_adversary_there_are_two_coupled_autoencoders_and_no_discriminator_moves():
    adata, _ = planted(n=12)
    model = made(adata, adversary_weight=0.0)
    model._start_module(0)
    before = state(model.module.discriminators)
    model.train(2, split_key="split", seed=0, batch_size=8, **QUIET)
    assert "critic_loss" not in model.history
    assert moved(before, model.module.discriminators) == set()
    module, batch = new(**NO_NOISE, adversary_weight=0.0), pairs()
    module.epoch = 0
    torch.manual_seed(3)
    px = forward(module, batch)[1]["px"]
    expected = sum((px[key] - (batch["X_control"], batch["X"])[key[1]]).square().mean() for key in px)
    assert loss(module, batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("stopping", [False, True])
def test_training_ends_on_the_best_validation_weights(stopping, monkeypatch):
    adata, _ = planted(n=16)
    monkeypatch.setattr(ScButterfly, "stages", (Stage("ot", name="joint", itself=False),))
    model = made(adata)
    # a large rate makes the loss rise and fall
    model.train(
        15,
        split_key="split",
        seed=0,
        batch_size=16,
        lr=0.05,
        early_stopping=stopping,
        early_stopping_patience=4,
        **QUIET,
    )
    losses = model.history["validation_loss"].iloc[:, 0]
    assert losses.idxmin() < losses.index[-1]
    assert (len(losses) < 15) == stopping
    rows = np.flatnonzero(adata.obs["split"] == "val")
    passes = Pass(model, adata, model._training_store(adata, 0), "ot", 64, 0, None, False)
    total, n = 0.0, 0
    with torch.no_grad():
        for batch in passes.validation(rows, np.arange(adata.n_obs)):
            total += loss(model.module, batch).item() * len(batch["X"])
            n += len(batch["X"])
    assert total / n == pytest.approx(losses.min(), rel=1e-4)


def test_passes_are_in_order_and_half_as_long_before(monkeypatch):
    adata, _ = planted(n=12)
    model, seen = made(adata), []
    whole = TwoSideModule.loss
    monkeypatch.setattr(
        TwoSideModule,
        "loss",
        lambda self, *args: (
            seen.append((self.stage, self.epoch, self.adversarial, self.training)),
            whole(self, *args),
        )[1],
    )
    model.train(4, split_key="split", seed=0, batch_size=8, **QUIET)
    epochs = list(dict.fromkeys((stage, epoch) for stage, epoch, _, training in seen if training))
    assert epochs == [(s, e) for s, n in (("R", 2), ("A", 2), ("joint", 4)) for e in range(n)]
    assert {(stage, adversarial) for stage, _, adversarial, _ in seen} == {("R", False), ("A", False), ("joint", True)}
    seen.clear()
    # each side alone comes before the first joint training only
    model.train(2, split_key="split", seed=0, batch_size=8, **QUIET)
    assert {stage for stage, _, _, _ in seen} == {"joint"}


# ---------------------------------------------------------------- presets and arguments


def test_published_widths_and_schedule():
    adata, _ = planted(n=6)
    ScButterfly.setup_anndata(adata, context_key="context")
    model = ScButterfly(adata, preset="published")
    shapes = {name: tuple(value.shape) for name, value in model.module.state_dict().items() if value.ndim == 2}
    expected = {
        **{f"encoders.{R}.layers.{i}.0.weight": s for i, s in enumerate([(256, 40), (128, 256)])},
        **{f"encoders.{A}.layers.{i}.0.weight": s for i, s in enumerate([(128, 40), (128, 128)])},
        **{f"decoders.{R}.layers.{i}.0.weight": s for i, s in enumerate([(256, 128), (40, 256)])},
        **{f"decoders.{A}.layers.{i}.0.weight": s for i, s in enumerate([(128, 128), (40, 128)])},
    }
    assert {name: shapes[name] for name in expected} == expected
    assert {shape for name, shape in shapes.items() if name.startswith(("translator", "alone"))} == {(128, 128)}
    assert {shape for name, shape in shapes.items() if name.startswith("discriminators")} == {(1, 128)}
    assert [stage.share for stage in model.stages] == [0.5, 0.5, 1.0]
    module = model.module
    assert (module.kl_warmup_epochs, module.adversary_weight, model._preset["max_epochs"]) == (50, 1.0, 200)
    assert [side.kl_weight for side in module.sides] == [20 / 40] * 2
    # masks draw from 2**15 numbers
    assert [encoder.mask.threshold for encoder in module.encoders] == [2**14] * 2
    assert [decoder.mask.threshold for decoder in module.decoders] == [0, 0]
    dropouts = {part.p for part in module.modules() if isinstance(part, nn.Dropout)}
    assert dropouts == {0.1}
    assert not module.start_at_means
    assert not module.decoders[R].norm.bias.any()


def test_decoders_start_at_the_means_of_their_own_side_before_the_first_training_only():
    adata, _ = planted(n=12)
    model = made(adata)
    model.train(0, split_key="split", seed=0, **QUIET)
    is_train = (adata.obs["split"] == "train").to_numpy()
    for side, label in ((R, "control"), (A, "A")):
        x = adata.X[is_train & (adata.obs["perturbation"] == label).to_numpy()]
        norm = model.module.decoders[side].norm
        np.testing.assert_allclose(norm.bias.detach(), x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(norm.weight.detach(), x.std(0), rtol=1e-4)
    with torch.no_grad():
        model.module.decoders[R].norm.bias.fill_(3.0)
    model.train(0, split_key="split", seed=0, **QUIET)
    assert (model.module.decoders[R].norm.bias == 3).all()


def test_linear_log_variances_reach_below_the_published_ones():
    for linear, below in ((True, True), (False, False)):
        module = new(linear_logvar=linear)
        nn.init.constant_(module.translator.log_variance[R][1].bias, -5.0)
        _, log_variance = module.translator.encode(torch.rand(N, H), R)[1:]
        assert bool((log_variance < -1).all()) == below
        assert bool((log_variance < -0.2).any()) == below


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"n_hidden": (0,)}, "n_hidden=\\(0,\\) must be"),
        ({"n_hidden_target": (1.5,)}, "n_hidden_target"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be a finite number"),
        ({"adversary_weight": math.nan}, "adversary_weight=nan"),
        ({"mask_rate": 1.0}, "mask_rate=1.0 must be"),
        ({"partner": "bset"}, "partner='bset' is unknown; did you mean 'best'"),
    ],
)
def test_bad_arguments_are_named(init, message):
    adata, _ = planted(n=6)
    with pytest.raises(ValueError, match=message):
        made(adata, **init)


def test_the_way_back_refuses_data_without_treated_cells():
    adata, _ = planted(n=12)
    model = made(adata)
    with pytest.raises(RuntimeError, match="not trained"):
        model.to_control()
    model.train(1, split_key="split", seed=0, batch_size=8, **QUIET)
    with pytest.raises(ValueError, match="No perturbed cell is left"):
        model.to_control(adata[adata.obs["perturbation"] == "control"].copy())
    perturbed = adata[adata.obs["perturbation"] == "A"].copy()
    np.testing.assert_array_equal(model.to_control(perturbed).X, model.to_control().X)
    perturbed.obs["perturbation"] = "ZZZ"
    with pytest.raises(ValueError, match="ZZZ"):
        model.to_control(perturbed)
    found = model.to_control(indices=[0, 15, 40], context="a")
    assert list(found.obs_names) == ["c15:control"]
    assert list(found.obs[_keys.SOURCE_CELL]) == ["c15"]

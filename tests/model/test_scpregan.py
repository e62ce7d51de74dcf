"""ScPreGAN keeps the invariants of its published equations, which are re-stated here."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch.nn.functional import batch_norm, binary_cross_entropy, layer_norm, softmax
from torch.utils.data import DataLoader

from multipert.model import ScPreGAN
from multipert.model._scpregan import PreGANModule
from multipert.train import PerturbationTrainingPlan
from multipert.train._fit import fit

G, K = 30, 3
SMALL = {"n_hidden": 8, "n_latent": 4}
VARIANTS = pytest.mark.parametrize("variant", ["ac", "wgan"])
CLASS_LOSSES = pytest.mark.parametrize("class_loss", ["cross_entropy", "legacy"])


def made(n_perturbations=1, seed=0, **arguments) -> PreGANModule:
    torch.manual_seed(seed)
    module = PreGANModule(G, n_perturbations, K, **{**SMALL, **arguments}).double()
    with torch.no_grad():
        # so that no gene is switched off
        for norm in (generator[-2] for generator in module.generators):
            norm.bias += 0.5
    return module.train()


def batch(codes=(0,) * 6, seed=1) -> dict[str, torch.Tensor]:
    n, rng = len(codes), torch.Generator().manual_seed(seed)
    x, x_control = torch.rand(2, n, G, generator=rng, dtype=torch.float64) * 3
    context, context_control = torch.randint(0, K, (2, n, 1), generator=rng)
    column = torch.tensor(codes)[:, None]
    labels = {"perturbation": column, "dose": (column >= 0).double()}
    return {"X": x, "X_control": x_control, "context": context, "context_control": context_control, **labels}


def rows(tensors, at):
    return {name: values[at] for name, values in tensors.items()}


def state(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(before, module):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def of(module, *prefixes):
    return {name for name, _ in module.named_parameters() if name.startswith(prefixes)}


def total_loss(module, tensors):
    inferred = module.inference(tensors)
    return module.loss(tensors, inferred, module.generative(**module._get_generative_input(tensors, inferred))).loss


def gradients(loss, module):
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def train(module, batches, **plan):
    """One pass over some batches at the full rate."""
    plan = PerturbationTrainingPlan(module, **{"lr": 1e-3, "n_warmup_steps": 0, **plan})
    module.train()
    loader = DataLoader(batches, batch_size=None)
    fit(plan, loader, None, max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=False)
    return plan


def close(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=rtol, atol=1e-12)


# ------------------------------------------------------------------ the published equations


class Restated:
    """The networks and losses of one perturbation, from the weights of a module and without its classes."""

    def __init__(self, module):
        self.module, self.weights = module, dict(module.named_parameters())
        # the power iteration has been run for the coming step already
        self.singular = {name: self._largest(name) for name in self.weights if name.endswith("original")}

    def _largest(self, name):
        buffers = dict(self.module.named_buffers())
        u, v = (buffers[name.replace("original", f"0._{side}")].clone() for side in "uv")
        return u, v

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if self.module.variant == "wgan":
            return batch_norm(x, None, None, scale, shift, training=True)
        return layer_norm(x, x.shape[1:], scale, shift)

    def encode(self, x):
        for i in (0, 3):
            x = self.norm(f"encoder.{i + 1}", self.linear(f"encoder.{i}", x)).relu()
        return self.linear("encoder.6", x)

    def generate(self, of_perturbed, z):
        for i in (0, 3, 6):
            z = self.norm(f"generators.{of_perturbed}.{i + 1}", self.linear(f"generators.{of_perturbed}.{i}", z)).relu()
        return z

    def discriminate(self, of_perturbed, x):
        """Score, or probability of a measured cell, and probabilities of the contexts."""
        name = f"discriminators.{of_perturbed}"
        for i in (0, 2):
            weight = self.weights[f"{name}.hidden.{i}.parametrizations.weight.original"]
            u, v = self.singular[f"{name}.hidden.{i}.parametrizations.weight.original"]
            x = (x @ (weight / (u @ weight @ v)).T + self.weights[f"{name}.hidden.{i}.bias"]).relu()
        score = self.linear(f"{name}.score", x)[:, 0]
        if self.module.variant == "wgan":
            return score, None
        return torch.sigmoid(score), softmax(self.linear(f"{name}.context", x), dim=1)

    def judge(self, of_perturbed, x, label, context):
        score, classes = self.discriminate(of_perturbed, x)
        if self.module.variant == "wgan":
            return -score.mean() if label else score.mean()
        of_label = classes[torch.arange(len(x)), context[:, 0]]
        of_class = -of_label if self.module.class_loss == "legacy" else -torch.log(of_label)
        return binary_cross_entropy(score, torch.full_like(score, label)) + of_class.mean()

    def generator_loss(self, tensors, *, detached=True):
        a, b, context_a, context_b = (tensors[key] for key in ("X_control", "X", "context_control", "context"))
        z_a, z_b = self.encode(a), self.encode(b)
        aa, ab, ba, bb = (self.generate(i, z) for z, i in ((z_a, 0), (z_a, 1), (z_b, 0), (z_b, 1)))
        z_ab, z_ba = self.encode(ab), self.encode(ba)
        aba, bab = self.generate(0, z_ab), self.generate(1, z_ba)
        adversarial = sum(
            self.judge(i, x, 1.0, context)
            for i, x, context in (
                (0, aa, context_a), (0, ba, context_b), (0, aba, context_a),
                (1, bb, context_b), (1, ab, context_a), (1, bab, context_b),
            )
        )  # fmt: skip
        target_a, target_b = (z_a.detach(), z_b.detach()) if detached else (z_a, z_b)
        encoding = sum(
            torch.square(found - target).mean()
            for found, target in (
                (self.encode(aa), target_a), (z_ab, target_a), (self.encode(bb), target_b), (z_ba, target_b)
            )
        )  # fmt: skip
        reconstruction = torch.square(aa - a).mean() + torch.square(bb - b).mean()
        return self.module.adversary_weight * adversarial + reconstruction + self.module.encoding_weight * encoding

    def discriminator_loss(self, tensors, share=None):
        a, b, context_a, context_b = (tensors[key] for key in ("X_control", "X", "context_control", "context"))
        with torch.no_grad():
            z_a, z_b = self.encode(a), self.encode(b)
            ab, ba = self.generate(1, z_a), self.generate(0, z_b)
        loss = self.judge(0, a, 1.0, context_a) + self.judge(0, ba, 0.0, context_b)
        loss = loss + self.judge(1, b, 1.0, context_b) + self.judge(1, ab, 0.0, context_a)
        if share is None:
            return loss
        for i, (real, generated) in enumerate(((a, ba), (b, ab))):
            x = (share[i] * real + (1 - share[i]) * generated).requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminate(i, x)[0].sum(), x, create_graph=True)
            loss = loss + 2 * torch.mean(slope.norm(dim=1) ** 6)
        return loss


def settled(module):
    """The module with power iterations that have come to their end, so that one more changes nothing."""
    with torch.no_grad():
        for discriminator in module.discriminators:
            for _ in range(300):
                discriminator(torch.zeros(1, G, dtype=torch.float64))
    return module


@VARIANTS
def test_networks_are_the_published_ones(variant):
    module = settled(made(variant=variant))
    restated, x = Restated(module), batch()["X"]
    z = module.encoder(x)
    close(z, restated.encode(x))
    for i in (0, 1):
        expression = module.generators[i](z)
        close(expression, restated.generate(i, z))
        assert expression.shape == x.shape
        assert expression.min() == 0
        score, classes = restated.discriminate(i, x)
        output = module.discriminators[i](x)
        close(output[:, 0] if variant == "wgan" else torch.sigmoid(output[:, 0]), score, 1e-6)
        if variant == "ac":
            close(softmax(output[:, 1:], 1), classes, 1e-6)
        assert output.shape == (6, 1 + K * (variant == "ac"))


@VARIANTS
@CLASS_LOSSES
def test_losses_and_gradients_are_the_published_ones(variant, class_loss):
    weights = {"adversary_weight": 0.3, "encoding_weight": 0.7}
    module, tensors = settled(made(variant=variant, class_loss=class_loss, **weights)), batch()
    restated = Restated(module)
    loss, expected = total_loss(module, tensors), restated.generator_loss(tensors)
    close(loss, expected, 1e-6)
    found, wanted = gradients(loss, module), gradients(expected, module)
    for name in of(module, "encoder", "generators"):
        close(found[name], wanted[name], 1e-4)
    assert {name for name, value in found.items() if value is None} == of(module, "discriminators")

    torch.manual_seed(5)
    loss = module.critic_loss(tensors)
    torch.manual_seed(5)
    share = torch.rand(2, 6, 1, dtype=torch.float64) if variant == "wgan" else None
    expected = restated.discriminator_loss(tensors, share)
    close(loss, expected, 1e-6)
    found, wanted = gradients(loss, module), gradients(expected, module)
    for name in of(module, "discriminators"):
        if wanted[name] is not None:
            close(found[name], wanted[name], 1e-4)
    assert {name for name, value in found.items() if value is None} == of(module, "encoder", "generators")


def test_encoding_targets_carry_no_gradient():
    module = settled(made(encoding_weight=5.0))
    restated, tensors = Restated(module), batch()
    attached = gradients(restated.generator_loss(tensors, detached=False), module)
    found = gradients(total_loss(module, tensors), module)
    assert (found["encoder.6.weight"] - attached["encoder.6.weight"]).abs().max() > 1e-3


def test_without_weights_each_generator_is_an_autoencoder_of_its_own_cells():
    module, tensors = made(adversary_weight=0.0, encoding_weight=0.0), batch()
    found = gradients(total_loss(module, tensors), module)
    alone = gradients(
        torch.square(module.generators[0](module.encoder(tensors["X_control"])) - tensors["X_control"]).mean(), module
    )
    for name in of(module, "generators.0"):
        close(found[name], alone[name])
        assert found[name].abs().max() > 0
    assert all(found[name] is None for name in of(module, "discriminators"))
    other = {**tensors, "X": tensors["X"].flip(0)}
    changed = gradients(total_loss(module, {**other, "X": other["X"] * 2}), module)
    for name in of(module, "generators.0"):
        close(changed[name], found[name])


# ------------------------------------------------------------------ who moves, and when


def test_discriminators_and_the_rest_move_on_batches_of_their_own():
    module = made()
    every = set(state(module))
    before = state(module)
    train(module, [batch(seed=1)])
    assert moved(before, module) == of(module, "encoder", "generators")
    before = state(module)
    plan = PerturbationTrainingPlan(module, n_warmup_steps=0)
    plan.n_updates = 1
    fit(plan, DataLoader([batch(seed=2)], batch_size=None), None, max_epochs=1, accelerator="cpu", devices=1)
    assert moved(before, module) == of(module, "discriminators")
    assert of(module, "discriminators") | of(module, "encoder", "generators") == every
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(("variant", "expected"), [("ac", "gdgdgdgdgdgd"), ("wgan", "gdddddgddddd")])
def test_order_of_steps(variant, expected, monkeypatch, toys):
    steps = []
    for letter, name in (("d", "critic_loss"), ("g", "loss")):
        original = getattr(PreGANModule, name)

        def spied(self, *args, original=original, letter=letter):
            if self.training:
                steps.append(letter)
            return original(self, *args)

        monkeypatch.setattr(PreGANModule, name, spied)
    adata = toys.screen()
    ScPreGAN.setup_anndata(adata, context_key="context")
    ScPreGAN(adata, variant=variant, **SMALL).train(2, train_size=1.0, batch_size=15, seed=0, **toys.quiet)
    assert "".join(steps) == expected


def test_rates_and_betas_are_the_published_ones():
    plan = PerturbationTrainingPlan(made(), lr=1e-3, critic_lr=2e-3, n_warmup_steps=0)
    main, critic = plan.configure_optimizers()
    parts = plan.module.encoder, plan.module.generators
    for group, part in zip(main.param_groups, parts, strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in part.parameters()}
    assert [group["betas"] for group in (*main.param_groups, *critic.param_groups)] == [
        (0.9, 0.999),
        (0.5, 0.9),
        (0.5, 0.9),
    ]
    train(plan.module, [batch(seed=i) for i in range(2)])
    assert [group.get("factor", 1) for group in main.param_groups] == [0.1, 1]


def test_published_schedules_take_20000_steps_of_the_generators(toys):
    adata = toys.screen()
    ScPreGAN.setup_anndata(adata)
    for variant, n_batches in (("ac", 2), ("wgan", 6)):
        preset = ScPreGAN(adata, preset="published", variant=variant)._preset
        assert preset["n_updates"] == 20_000 * n_batches
        assert preset["plan_kwargs"]["decay_every"] == 10_000 * n_batches
        assert preset["plan_kwargs"]["critic_every"] == n_batches - 1
        assert (preset["plan_kwargs"]["decay_factor"], preset["batch_size"], preset["lr"]) == (0.9, 64, 1e-3)


def test_spectral_norm_holds_after_fifty_steps():
    module = made()
    train(module, [batch(seed=i) for i in range(50)], lr=1e-2)
    for discriminator in module.discriminators:
        for layer in (discriminator.hidden[0], discriminator.hidden[2]):
            assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=0.05)
            assert float(torch.linalg.matrix_norm(layer.parametrizations.weight.original.detach(), 2)) != pytest.approx(
                1
            )


# ------------------------------------------------------------------ contexts


def test_both_steps_are_asked_for_the_contexts_of_their_own_batch(monkeypatch):
    asked, original = [], PreGANModule._of_class

    def spied(self, logits, context):
        asked.append(context)
        return original(self, logits, context)

    monkeypatch.setattr(PreGANModule, "_of_class", spied)
    first, second = batch(seed=1), batch(seed=2)
    assert not torch.equal(first["context"], second["context"])
    train(made(), [first, second])
    a, b = (first[key][:, 0] for key in ("context_control", "context"))
    c, d = (second[key][:, 0] for key in ("context_control", "context"))
    expected = [*(a, b, a), *(b, a, b), c, d, d, c]
    assert [found.tolist() for found in asked] == [context.tolist() for context in expected]


def test_legacy_class_loss_is_minus_a_probability():
    module = made(class_loss="legacy")
    logits = torch.randn(50, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    found = module._of_class(logits, torch.zeros(50, dtype=torch.long))
    assert -1 <= found.min() < -0.9
    assert -0.1 < found.max() <= 0


def two_kinds(held="c"):
    """The screen without the perturbed cells of a context."""
    rng = np.random.default_rng(0)
    context, label = np.repeat(list("abc"), 20), np.tile(np.repeat(["control", "A"], 10), 3)
    x = rng.poisson(2, (60, G)).astype(np.float32) / 2
    obs = pd.DataFrame({"perturbation": label, "context": context}, index=[f"c{i}" for i in range(60)])
    obs["split"] = np.where((context == held) & (label == "A"), "test", "train")
    adata = AnnData(x, obs=obs)
    ScPreGAN.setup_anndata(adata, context_key="context")
    return adata


def test_contexts_without_measured_cells_are_masked(toys):
    adata = two_kinds()
    for mask in (True, False):
        model = ScPreGAN(adata, mask_unseen_contexts=mask, **SMALL)
        model.train(1, split_key="split", **toys.quiet)
        assert model.module.measured.tolist() == [[True] * 3, [True, True, not mask]]
    tensors = {**batch(), "context_control": torch.full((6, 1), 2), "context": torch.zeros(6, 1, dtype=torch.long)}
    module = made()
    module.measured[1, 2] = False
    head = module.discriminators[1].context
    of_masked = gradients(module.critic_loss(tensors), module)["discriminators.1.context.bias"]
    module.measured[1, 2] = True
    of_all = gradients(module.critic_loss(tensors), module)["discriminators.1.context.bias"]
    real = torch.softmax(module.discriminators[1](tensors["X"])[:, 1:], 1).mean(0)
    # the head learns from the measured cells only, all of them of context 0
    close(of_masked, real - torch.eye(K, dtype=torch.float64)[0], 1e-3)
    assert (of_all - of_masked).abs().max() > 0.1
    assert head.bias.shape == (K,)


def test_without_contexts_there_are_no_heads_for_them(toys):
    adata = toys.screen()
    ScPreGAN.setup_anndata(adata)
    model = ScPreGAN(adata, **SMALL)
    model.train(1, **toys.quiet)
    assert [discriminator.context for discriminator in model.module.discriminators] == [None] * 4
    assert np.isfinite(model.predict().X).all()


# ------------------------------------------------------------------ several perturbations, and symmetry


def test_loss_of_several_perturbations_is_the_mean_over_cells():
    module = settled(made(n_perturbations=3, adversary_weight=0.3))
    tensors = batch((2, 0, 2, 2, 0, 2))
    parts = [rows(tensors, tensors["perturbation"][:, 0] == code) for code in (0, 2)]
    for loss in (lambda some: total_loss(module, some), module.critic_loss):
        expected = sum(len(part["X"]) * loss(part) for part in parts) / 6
        close(loss(tensors), expected, 1e-6)


def test_only_networks_of_present_perturbations_move():
    module = made(n_perturbations=3)
    before = state(module)
    train(module, [batch((2, 0, 2, 2, 0, 2), seed=i) for i in range(2)])
    absent = of(module, "generators.2", "discriminators.2")
    assert absent
    assert moved(before, module) == set(before) - absent


def test_order_of_the_cells_changes_no_loss():
    module, tensors = settled(made(n_perturbations=3)), batch((2, 0, 1, 2, 0, 2))
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    close(total_loss(module, rows(tensors, order)), total_loss(module, tensors), 1e-6)
    close(module.critic_loss(rows(tensors, order)), module.critic_loss(tensors), 1e-6)


def test_swapped_roles_swap_the_generators():
    tensors = [batch(seed=i) for i in range(4)]
    keys = {"X": "X_control", "context": "context_control"}
    keys |= {there: here for here, there in keys.items()}
    swapped = [{name: one[keys.get(name, name)] for name in one} for one in tensors]
    first, second = made(), made()
    number = re.compile(r"^(generators|discriminators)\.([01])")
    names = {name: number.sub(lambda at: f"{at[1]}.{1 - int(at[2])}", name) for name in first.state_dict()}
    original = first.state_dict()
    second.load_state_dict({name: original[names[name]] for name in original})
    before = state(first)
    train(first, tensors)
    train(second, swapped)
    assert len(moved(before, first)) == len(before)
    reached = second.state_dict()
    for name, value in first.named_parameters():
        np.testing.assert_allclose(reached[names[name]], value.detach(), rtol=1e-5, atol=1e-7)
    x = tensors[0]["X"]
    for i in (0, 1):
        expected = first.generators[i](first.encoder(x))
        np.testing.assert_allclose(
            second.generators[1 - i](second.encoder(x)).detach(), expected.detach(), rtol=1e-4, atol=1e-6
        )


def test_batch_norm_takes_a_single_cell_of_a_perturbation():
    module, tensors = made(n_perturbations=2, variant="wgan"), batch((0, 0, 1, 0, 0, 0))
    assert torch.isfinite(total_loss(module, tensors))
    assert torch.isfinite(module.critic_loss(tensors))


# ------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def trained(toys):
    adata = toys.screen()
    return toys.trained(ScPreGAN, adata, setup={"context_key": "context"}, init=SMALL, max_epochs=4), adata


def test_prediction_is_deterministic_and_cell_by_cell(trained):
    model, adata = trained
    expected = model.predict(adata, "A")
    assert expected.X.min() >= 0
    np.testing.assert_array_equal(model.predict(adata, "A", seed=3).X, expected.X)
    np.testing.assert_allclose(model.predict(adata, "A", batch_size=1).X, expected.X, atol=1e-5)


def test_prediction_is_by_the_generator_of_the_target(trained):
    model, adata = trained
    control = adata[adata.obs["perturbation"] == "control"]
    with torch.no_grad():
        z = model.module.encoder(torch.from_numpy(control.X.toarray()))
        for i, label in enumerate(["control", "A", "B", "C"]):
            expected = model.module.generators[i](z).numpy()
            np.testing.assert_allclose(model.predict(adata, label).X, expected, atol=1e-5)
    np.testing.assert_array_equal(model.predict(adata, "A", dose=0).X, model.predict(adata, "control").X)


def test_to_control_maps_perturbed_cells_by_the_generator_of_control(trained):
    model, adata = trained
    before = adata.copy()
    perturbed = adata[adata.obs["perturbation"] != "control"]
    found = model.to_control(adata)
    with torch.no_grad():
        expected = model.module.generators[0](model.module.encoder(torch.from_numpy(perturbed.X.toarray())))
    np.testing.assert_allclose(found.X, expected, atol=1e-5)
    assert found.obs["perturbation"].unique().tolist() == ["control"]
    assert found.obs["source_cell"].tolist() == perturbed.obs_names.tolist()
    assert found.obs["context"].tolist() == perturbed.obs["context"].tolist()
    assert found.obs_names.tolist() == [f"{name}:control" for name in perturbed.obs_names]
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0


def test_to_control_of_some_cells(trained):
    model, adata = trained
    everything = model.to_control(adata)
    label, context = (adata.obs[key].to_numpy() for key in ("perturbation", "context"))
    # without control cells there is nothing to compare with, and nothing is needed
    alone = adata[label == "B"].copy()
    kept = np.isin(everything.obs["source_cell"], alone.obs_names)
    np.testing.assert_allclose(model.to_control(alone, batch_size=3).X, everything.X[kept], atol=1e-5)
    found = model.to_control(adata, context="b", indices=np.arange(60))
    chosen = (np.arange(120) < 60) & (label != "control") & (context == "b")
    assert found.obs["source_cell"].tolist() == adata.obs_names[chosen].tolist()
    np.testing.assert_array_equal(model.to_control(adata, indices=np.arange(120) < 60, context=["b"]).X, found.X)
    with pytest.raises(ValueError, match="No perturbed cell"):
        model.to_control(adata, indices=np.flatnonzero(label == "control"))
    with pytest.raises(ValueError, match="indices must lie"):
        model.to_control(adata, indices=[500])
    with pytest.raises(ValueError, match="'z' is not in the data"):
        model.to_control(adata, context="z")
    with pytest.raises(RuntimeError, match="not trained"):
        ScPreGAN(adata, **SMALL).to_control(adata)


def test_validation_loss_is_without_the_discriminators():
    module, tensors = made(adversary_weight=0.5), batch()
    in_training = total_loss(module, tensors)
    module.eval()
    found = total_loss(module, tensors)
    restated = Restated(module)
    module.adversary_weight = 0.0
    close(found, restated.generator_loss(tensors))
    assert in_training > found + 0.5


def test_generators_start_at_the_mean_and_spread_of_their_cells_once(toys, tmp_path):
    adata = two_kinds()
    x, obs = np.asarray(adata.X, dtype=float), adata.obs
    model = ScPreGAN(adata, **SMALL)
    model.train(0, split_key="split", **toys.quiet)
    for label, generator in zip(["control", "A"], model.module.generators, strict=True):
        cells = x[(obs["perturbation"] == label) & (obs["split"] == "train")]
        np.testing.assert_allclose(generator[-2].bias.detach(), cells.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(generator[-2].weight.detach(), cells.std(0), rtol=1e-5, atol=1e-6)
    model.train(2, split_key="split", **toys.quiet)
    reached = state(model.module)
    model.save(tmp_path / "model")
    for again in (model, ScPreGAN.load(tmp_path / "model", adata)):
        again.train(0, split_key="split", **toys.quiet)
        assert moved(reached, again.module) == set()
    plain = ScPreGAN(adata, start_at_mean=False, **SMALL)
    plain.train(0, split_key="split", **toys.quiet)
    assert all((generator[-2].weight == 1).all() for generator in plain.module.generators)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "gan"}, "variant='gan' is unknown"),
        ({"class_loss": "nll"}, "class_loss='nll' is unknown"),
        ({"adversary_weight": -1.0}, "adversary_weight=-1.0 must be"),
        ({"encoding_weight": float("nan")}, "encoding_weight=nan must be"),
        ({"n_hidden": 0}, "n_hidden=0"),
        ({"n_latent": 1.5}, "n_latent=1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, toys):
    adata = toys.screen()
    ScPreGAN.setup_anndata(adata)
    with pytest.raises((ValueError, TypeError), match=message):
        ScPreGAN(adata, **arguments)


def test_signed_data_are_refused(toys):
    adata = toys.screen()
    ScPreGAN.setup_anndata(adata, signed=True)
    with pytest.raises(ValueError, match="signed=True"):
        ScPreGAN(adata)


@VARIANTS
def test_finds_a_planted_shift_in_a_held_out_context(variant, toys):
    """Two contexts train, a third has control cells only; 10 of 50 genes move by 2."""
    rng = np.random.default_rng(0)
    baseline = rng.uniform(2.5, 4, 50) + rng.normal(0, 0.3, (3, 50))
    shift = np.zeros(50)
    shift[:10] = 2 * np.array([1, -1] * 5)
    context, label = np.repeat([0, 0, 1, 1, 2], 100), np.repeat([0, 1, 0, 1, 0], 100)
    x = baseline[context] + label[:, None] * shift + rng.normal(0, 0.3, (500, 50))
    names = {"perturbation": np.array(["control", "A"])[label], "context": np.array(list("abc"))[context]}
    adata = AnnData(x.clip(0).astype(np.float32), obs=pd.DataFrame(names, index=[f"c{i}" for i in range(500)]))
    ScPreGAN.setup_anndata(adata, context_key="context")
    model = ScPreGAN(adata, n_hidden=16, n_latent=8, variant=variant)
    model.train(30, train_size=1.0, batch_size=50, seed=0, **toys.quiet)
    found = model.predict(context="c").X.mean(0) - model.predict(perturbation="control", context="c").X.mean(0)
    assert (np.sign(found[:10]) == np.sign(shift[:10])).all()
    assert np.corrcoef(found, shift)[0, 1] > 0.8

"""The adversarial, variational and transported variants of MTAe keep the invariants of their published equations."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from scvi.train import Trainer
from torch.utils.data import DataLoader

from multipert.data._noise import cell_keys
from multipert.model import MTAe, MTAeAdv, MTAeAdvG, MTAeOT, MTAePlusOT, MTVae, MTVaeOT, MTVaePlusOT
from multipert.model._mtae import MultiTaskModule
from multipert.nn import ConditionAdversary, GaussianAdversary
from multipert.train import PerturbationTrainingPlan
from multipert.train._fit import fit

VARIANTS = [MTAe, MTAeAdv, MTAeAdvG, MTAeOT, MTAePlusOT, MTVae, MTVaeOT, MTVaePlusOT]
ADVERSARIAL, VARIATIONAL = [MTAeAdv, MTAeAdvG], [MTVae, MTVaeOT, MTVaePlusOT]
TRANSPORTED = [MTAeOT, MTAePlusOT, MTVaeOT, MTVaePlusOT]
ADVERSARIES = pytest.mark.parametrize("adversary", [ConditionAdversary, GaussianAdversary])
CONTEXT = {"context_key": "context"}


def names(classes):
    return [cls.__name__ for cls in classes]


def each(classes):
    return pytest.mark.parametrize("cls", classes, ids=names(classes))


def made(seed=0, dropout=0.0, mask=0.0, **parts) -> Any:
    torch.manual_seed(seed)
    return MultiTaskModule(30, 3, (12,), 6, (), dropout, mask, **parts).double()


def batch(codes=(0, -1, 1, 2, -1, 0), seed=1):
    column = torch.tensor(codes)[:, None]
    x = torch.rand(len(codes), 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    keys = torch.from_numpy(cell_keys(seed, [f"cell{i}" for i in range(len(codes))]))
    return {"X": x, "perturbation": column, "dose": (column >= 0).double(), "cell_key": keys}


def state(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def of_critic(parameters):
    return {name for name in parameters if name.startswith("adversary.")}


def update(module, tensors, *, trains="all", seed=0, lr=0.01):
    """One update at the full rate; the parameters that moved."""
    before = state(module)
    plan = PerturbationTrainingPlan(module, lr=lr, n_warmup_steps=0, trains=trains)
    torch.manual_seed(seed)
    module.train()
    loader = DataLoader([tensors], batch_size=None)
    fit(plan, loader, None, max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=False)
    return moved(before, state(module))


def total_loss(module, tensors, seed=0):
    torch.manual_seed(seed)
    return module(tensors)[2].loss


def gradients(module, tensors, seed=0):
    loss = total_loss(module, tensors, seed)
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss, dict(zip(parameters, found, strict=True))


def close(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=rtol, atol=1e-12)


# ------------------------------------------------------------------ adversaries


@ADVERSARIES
def test_without_weight_the_adversary_changes_no_step(adversary):
    """Same batch, same dropout and mask."""
    plain, weightless, weighty = (
        made(dropout=0.5, mask=0.2, adversary=part, adversary_weight=weight)
        for part, weight in ((None, 0.0), (adversary, 0.0), (adversary, 0.5))
    )
    for module in (weightless, weighty):
        module.load_state_dict(plain.state_dict(), strict=False)
    found = [update(module, batch()) for module in (plain, weightless, weighty)]
    assert {name for name in found[1] if not name.startswith("adversary.")} == found[0]
    reached = [state(module) for module in (plain, weightless, weighty)]
    for name, value in reached[0].items():
        np.testing.assert_allclose(reached[1][name], value, atol=1e-6, rtol=0)
    assert (reached[2]["encoder.latent.weight"] - reached[0]["encoder.latent.weight"]).abs().max() > 1e-4


@ADVERSARIES
def test_each_step_moves_its_own_parameters_only(adversary):
    module = made(adversary=adversary, adversary_weight=0.3)
    every = set(state(module))
    critic, rest = of_critic(every), every - of_critic(every)
    assert len(critic) == 4
    assert update(module, batch(), trains="module") == rest
    statistics = {name: value.clone() for name, value in module.named_buffers() if "running" in name}
    assert update(module, batch(), trains="critic") == critic
    # the encoder is in training mode, so its running statistics follow
    now = dict(module.named_buffers())
    assert any(not torch.equal(value, now[name]) for name, value in statistics.items())
    assert update(module, batch(), trains="all") == every


@ADVERSARIES
def test_the_adversarial_loss_restated(adversary):
    module = made(adversary=adversary, adversary_weight=0.3).eval()
    tensors = batch()
    z = module.inference(tensors)["z"]
    error = torch.square(module.decoder(z, module.condition(tensors)) - tensors["X"]).mean()
    perturbed = tensors["perturbation"][:, 0] >= 0
    p = torch.sigmoid(module.adversary.discriminator(z)[:, 0])
    if adversary is ConditionAdversary:
        bits = [(int(key) >> 40) & 0xFFFFFF for key in tensors["cell_key"]]
        # a perturbed cell's label lies below 0.1, and the encoder is rewarded for the opposite
        wanted = 1 - 0.1 * torch.tensor(bits, dtype=torch.float64)[perturbed] / 2**24
        p = p[perturbed]
    else:
        wanted = torch.ones(6, dtype=torch.float64)
    entropy = -(wanted * torch.log(p) + (1 - wanted) * torch.log(1 - p)).mean()
    close(total_loss(module, tensors), 0.7 * error + 0.3 * entropy)
    module.adversarial = False
    close(total_loss(module, tensors), error)


def test_a_batch_of_control_cells_has_the_bare_error_unscaled():
    control = batch((-1,) * 5)
    adversarial = made(adversary=ConditionAdversary, adversary_weight=0.9)
    plain = made()
    plain.load_state_dict({k: v for k, v in adversarial.state_dict().items() if k in plain.state_dict()})
    assert torch.equal(total_loss(adversarial, control), total_loss(plain, control))
    # the discriminator learns from it all the same
    assert of_critic(update(adversarial, control))
    drawn = made(adversary=GaussianAdversary, adversary_weight=0.9)
    assert total_loss(drawn, control) != total_loss(plain, control)


@ADVERSARIES
def test_the_discriminator_sees_a_forward_pass_of_its_own_without_gradient(adversary, monkeypatch):
    module = made(dropout=0.5, mask=0.2, adversary=adversary, adversary_weight=0.3)
    seen = []
    critic_loss, penalty = adversary.critic_loss, adversary.penalty
    monkeypatch.setattr(
        adversary,
        "critic_loss",
        lambda self, z, tensors: (seen.append(("critic", z)), critic_loss(self, z, tensors))[1],
    )
    monkeypatch.setattr(
        adversary, "penalty", lambda self, z, tensors: (seen.append(("penalty", z)), penalty(self, z, tensors))[1]
    )
    update(module, batch())
    assert [kind for kind, _ in seen] == ["penalty", "critic"]
    (_, first), (_, second) = seen
    assert first.requires_grad
    assert not second.requires_grad
    assert not torch.allclose(first.detach(), second)


def test_soft_labels_stay_with_their_cell_over_epochs_and_passes(adata, toys, monkeypatch):
    seen: dict[bytes, set[float]] = {}
    targets = ConditionAdversary.targets

    def spy(self, tensors):
        found = targets(self, tensors)
        for row, control, label in zip(tensors["X"].numpy(), tensors["perturbation"][:, 0] < 0, found, strict=True):
            assert 0.9 <= label <= 1 if control else 0 <= label <= 0.1
            seen.setdefault(row.tobytes(), set()).add(float(label))
        return found

    monkeypatch.setattr(ConditionAdversary, "targets", spy)
    toys.trained(MTAeAdv, adata, setup=CONTEXT, init=toys.tiny, max_epochs=3, train_size=1.0, batch_size=30)
    assert len(seen) == 120
    assert {len(labels) for labels in seen.values()} == {1}
    once = {row: labels.copy() for row, labels in seen.items()}
    toys.trained(MTAeAdv, toys.screen(), setup=CONTEXT, init=toys.tiny, train_size=1.0, batch_size=30, seed=1)
    assert all(len(seen[row]) == 2 for row in once)


# ------------------------------------------------------------------ variational latent


def test_without_noise_and_weight_it_is_the_autoencoder_with_a_layer_more():
    module = made(variational=True, kl_weight=0.0)
    heads = module.latent.log_variance
    torch.nn.init.zeros_(heads.weight)
    torch.nn.init.constant_(heads.bias, -2000.0)
    plain = made()
    plain.load_state_dict(module.state_dict(), strict=False)

    class Longer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.layer = plain.encoder, torch.nn.Linear(6, 6).double()
            self.layer.load_state_dict(module.latent.mean.state_dict())

        def forward(self, x):
            return self.layer(self.encoder(x))

    plain.encoder = Longer()
    (loss, found), (expected_loss, expected) = gradients(module, batch()), gradients(plain, batch())
    close(loss, expected_loss)
    for name, gradient in expected.items():
        own = name.replace("encoder.encoder.", "encoder.").replace("encoder.layer.", "latent.mean.")
        close(found[own], gradient)
    assert found["latent.log_variance.bias"].abs().max() == 0
    module.eval()
    plain.eval()
    close(module.counterfactual(batch()), plain.counterfactual(batch()))


def test_the_variational_loss_restated():
    module = made(variational=True, kl_weight=0.25)
    module.n_rows = 40
    tensors = batch()
    hidden = module.encoder(tensors["X"])
    mean, log_variance = (
        hidden @ layer.weight.T + layer.bias for layer in (module.latent.mean, module.latent.log_variance)
    )
    torch.manual_seed(7)
    z = mean + torch.randn(6, 6, dtype=torch.float64) * torch.exp(0.5 * log_variance)
    error = torch.square(module.decoder(z, module.condition(tensors)) - tensors["X"]).mean()
    divergence = -0.5 * (1 + log_variance - mean**2 - torch.exp(log_variance)).sum(dim=1)
    close(total_loss(module, tensors, seed=7), error + 0.25 * 6 / 40 * divergence.mean())


def test_the_mean_is_decoded_in_evaluation_and_drawn_in_training():
    module, tensors = made(variational=True), batch()
    del tensors["cell_key"]
    assert not torch.equal(total_loss(module, tensors, 0), total_loss(module, tensors, 1))
    module.eval()
    found = module.inference(tensors)
    assert torch.equal(found["z"], found["mean"])
    assert torch.equal(total_loss(module, tensors, 0), total_loss(module, tensors, 1))


@pytest.mark.parametrize("trained", [True, False])
def test_one_step_moves_the_heads_unless_they_are_left_as_published(trained):
    module = made(variational=True, kl_weight=0.01, train_vae_heads=trained)
    heads = {name for name in state(module) if name.startswith("latent.")}
    assert len(heads) == 4
    found = update(module, batch())
    assert found & heads == (heads if trained else set())
    assert {name for name in state(module) if name.startswith(("encoder.", "decoder."))} <= found


@each(VARIATIONAL)
def test_heads_that_are_not_trained_stay_through_a_whole_training(cls, adata, toys):
    for trained in (True, False):
        start, model = (
            toys.trained(
                cls, toys.screen(), setup=CONTEXT, init={**toys.tiny, "train_vae_heads": trained}, max_epochs=n
            )
            for n in (0, 3)
        )
        found = moved(state(start.module), state(model.module))
        assert any(name.startswith("latent.") for name in found) is trained
        assert any(name.startswith("encoder.") for name in found)


def test_the_divergence_counts_the_cells_or_pairs_of_the_pass(adata, toys, monkeypatch):
    seen, loss = [], MultiTaskModule.loss

    def spy(self, *arguments):
        seen.append(self.n_rows)
        return loss(self, *arguments)

    monkeypatch.setattr(MultiTaskModule, "loss", spy)
    toys.trained(MTVaePlusOT, adata, setup=CONTEXT, init=toys.tiny, train_size=1.0, batch_size=120)
    # 120 cells; then 30 control cells, each with itself and a partner of 3 perturbations
    assert seen == [120, 120]
    seen.clear()
    few = adata[adata.obs["perturbation"].isin(["control", "A"])].copy()
    toys.trained(MTVaePlusOT, few, setup=CONTEXT, init=toys.tiny, train_size=1.0, batch_size=120)
    assert seen == [60, 60]
    seen.clear()
    fewer = few[~((few.obs["context"] == "a") & (few.obs["perturbation"] == "A"))].copy()
    toys.trained(MTVaePlusOT, fewer, setup=CONTEXT, init=toys.tiny, train_size=1.0, batch_size=120)
    assert seen == [50, 40]


# ------------------------------------------------------------------ transported pairs


@pytest.mark.parametrize("variational", [False, True])
def test_a_control_cell_paired_with_itself_is_reconstruction(variational):
    module, tensors = made(dropout=0.5, mask=0.2, variational=variational, kl_weight=0.1), batch((-1,) * 6)
    (loss, found), (expected_loss, expected) = (
        gradients(module, t) for t in ({**tensors, "X_control": tensors["X"].clone()}, tensors)
    )
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)


def test_a_pair_encodes_the_control_cell_and_is_compared_with_its_partner():
    module, tensors, other = made().eval(), batch(), batch(seed=2)
    paired = {**tensors, "X_control": other["X"]}
    assert torch.equal(module.inference(paired)["z"], module.inference(other)["z"])
    expected = torch.square(module.counterfactual({**tensors, "X": other["X"]}) - tensors["X"]).mean()
    close(total_loss(module, paired), expected)


def batches_of(cls, adata, toys, monkeypatch, **arguments):
    """The names of target and input cell, and the label, of every cell that training shows to the module."""
    name_of = {row.tobytes(): name for name, row in zip(adata.obs_names, adata.X.toarray(), strict=True)}
    assert len(name_of) == adata.n_obs
    seen, inference = [], MultiTaskModule.inference

    def spy(self, tensors):
        if self.training:
            inputs = tensors.get("X_control", tensors["X"])
            found = [[name_of[row.tobytes()] for row in x.numpy()] for x in (tensors["X"], inputs)]
            seen.append(SimpleNamespace(target=found[0], input=found[1], codes=tensors["perturbation"][:, 0].tolist()))
        return inference(self, tensors)

    monkeypatch.setattr(MultiTaskModule, "inference", spy)
    toys.trained(cls, adata, setup=CONTEXT, init=toys.tiny, split_key="split", **arguments)
    monkeypatch.undo()
    return seen


def held_out_screen(toys):
    """Context c has control cells only for training; B is not measured in b; some cells are validation cells."""
    adata = toys.screen()
    obs = adata.obs
    perturbed = (obs["perturbation"] != "control").to_numpy()
    split = np.where(np.arange(adata.n_obs) % 5 == 0, "val", "train")
    split[(obs["context"] == "c").to_numpy() & perturbed] = "test"
    split[((obs["context"] == "b") & (obs["perturbation"] == "B")).to_numpy()] = "test"
    obs["split"] = split
    return adata


@each(TRANSPORTED)
def test_each_control_cell_meets_one_cell_of_every_condition_of_its_context_and_itself(cls, toys, monkeypatch):
    adata = held_out_screen(toys)
    seen = batches_of(cls, adata, toys, monkeypatch, batch_size=1000)
    obs, (pairs,) = adata.obs, seen[-1:]
    assert len(seen) == len(cls.stages)
    target, source = obs.loc[pairs.target], obs.loc[pairs.input]
    assert (source["perturbation"] == "control").all()
    assert (target["split"] == "train").all()
    assert (source["split"] == "train").all()
    np.testing.assert_array_equal(target["context"], source["context"])
    assert pairs.codes == target["perturbation"].map({"control": -1, "A": 0, "B": 1, "C": 2}).tolist()
    of_control = (target["perturbation"] == "control").to_numpy()
    np.testing.assert_array_equal(target.index[of_control], source.index[of_control])
    trained = obs[obs["split"] == "train"]
    control = trained[trained["perturbation"] == "control"]
    expected = sorted(
        (cell, label)
        for cell, context in control["context"].items()
        for label in {"a": ["control", "A", "B", "C"], "b": ["control", "A", "C"], "c": []}[context]
    )
    assert sorted(zip(source.index, target["perturbation"], strict=True)) == expected
    if len(cls.stages) == 2:
        # the pass before reconstructs every training cell, the held-out context's control cells among them
        assert seen[0].target == seen[0].input
        assert sorted(seen[0].target) == sorted(trained.index)


def test_the_same_pairs_serve_every_epoch(toys, monkeypatch):
    seen = batches_of(MTAeOT, held_out_screen(toys), toys, monkeypatch, max_epochs=3, batch_size=1000)
    first, *others = (sorted(zip(epoch.input, epoch.target, strict=True)) for epoch in seen)
    assert len(others) == 2
    assert all(first == other for other in others)


def test_partners_of_optimal_transport_are_nearer_than_chance(toys, monkeypatch):
    adata, _ = toys.planted()
    rng = np.random.default_rng(0)
    # a strong direction that the perturbation leaves alone
    adata.X[:, 20:40] += rng.normal(0, 1.5, (adata.n_obs, 1)).astype(np.float32) + 4
    adata.X = adata.X.clip(0)
    adata.X = sparse.csr_matrix(adata.X)
    (pairs,) = batches_of(MTAeOT, adata, toys, monkeypatch, batch_size=1000)
    along = dict(zip(adata.obs_names, adata.X.toarray()[:, 20:40].mean(1), strict=True))
    other = [i for i, code in enumerate(pairs.codes) if code >= 0]
    assert len(other) == 150
    both = np.array([[along[pairs.input[i]], along[pairs.target[i]]] for i in other])
    assert np.corrcoef(both.T)[0, 1] > 0.9


@each(TRANSPORTED)
def test_validation_cells_that_cannot_be_paired_are_left_out(cls, toys):
    adata = toys.screen()
    control = adata.obs_names[(adata.obs["perturbation"] == "control")]
    adata.obs.loc[control[:3], "split"] = "val"
    model = toys.trained(cls, adata, setup=CONTEXT, init=toys.tiny, split_key="split", check_val_every_n_epoch=1)
    assert np.isfinite(model.predict().X).all()
    n_validated = len(model.history.get("validation_loss", ()))
    assert n_validated == len(cls.stages) - 1


def test_training_cells_that_cannot_be_paired_are_an_error(toys):
    adata = toys.screen()
    control = adata.obs["perturbation"] == "control"
    adata.obs["split"] = np.where(control == (adata.obs["context"] == "a"), "train", "test")
    with pytest.raises(ValueError, match="can be paired: no context has both control and perturbed cells"):
        toys.trained(MTAeOT, adata, setup=CONTEXT, init=toys.tiny, split_key="split")


# ------------------------------------------------------------------ passes


@pytest.fixture
def passes(monkeypatch):
    """What moved, for how long and at which rates, in every pass of the trainings of a test."""
    import multipert.model._training as training

    seen: list[Any] = []
    original, update_ = training.fit, PerturbationTrainingPlan._update

    def spy(plan, loader, validation, *, max_epochs, **trainer_kwargs):
        one = SimpleNamespace(trains=plan.trains, epochs=max_epochs, rates=[], before=state(plan.module))
        one.stops = trainer_kwargs["early_stopping"]
        seen.append(one)
        history = original(plan, loader, validation, max_epochs=max_epochs, **trainer_kwargs)
        one.after = state(plan.module)
        one.moved = moved(one.before, one.after)
        return history

    def spy_update(self, optimizer, parameters, loss, lr, number):
        seen[-1].rates.append(lr)
        if len(seen[-1].rates) == 1:
            assert not optimizer.optimizer.state
        return update_(self, optimizer, parameters, loss, lr, number)

    monkeypatch.setattr(training, "fit", spy)
    monkeypatch.setattr(PerturbationTrainingPlan, "_update", spy_update)
    return seen


@each(VARIANTS)
def test_passes_move_what_they_should_for_as_long_as_they_should(cls, adata, toys, passes):
    model = toys.trained(cls, adata, setup=CONTEXT, init=toys.tiny, max_epochs=8, train_size=1.0, batch_size=60)
    every = set(state(model.module))
    critic, rest = of_critic(every), every - of_critic(every)
    assert bool(critic) == (cls in ADVERSARIAL)
    if cls in ADVERSARIAL:
        expected = [("module", 8, rest, 1), ("critic", 8, critic, 1), ("all", 2, every, 2)]
    else:
        # reconstruction is a quarter as long as the transport after it
        expected = [("all", 2, every, 1)] * (len(cls.stages) - 1) + [("all", 8, every, 1)]
    assert [(one.trains, one.epochs, one.moved) for one in passes] == [row[:3] for row in expected]
    for one, (_, epochs, _, per_batch) in zip(passes, expected, strict=True):
        # 2 batches per epoch; each pass warms up anew, from a rate of 0
        steps = np.repeat(np.arange(2 * epochs), per_batch)
        np.testing.assert_allclose(one.rates, 1e-3 * steps / 100, rtol=1e-12)
    for earlier, later in pairwise(passes):
        assert not moved(earlier.after, later.before)
    losses = model.history["train_loss"]
    assert len(losses) == sum(row[1] for row in expected if row[0] != "critic")
    if cls in ADVERSARIAL:
        assert model.history["critic_loss"].index.tolist() == list(range(8, 18))
        assert losses.index.tolist() == [*range(8), 16, 17]
    assert np.isfinite(losses.to_numpy(float)).all()


@each(ADVERSARIAL)
def test_the_first_pass_is_that_of_mtae(cls, adata, toys, passes):
    """The adversary takes no part before it has been trained."""
    arguments = {"setup": CONTEXT, "init": toys.tiny, "max_epochs": 3, "train_size": 1.0, "batch_size": 60}
    for one in (cls, MTAe):
        toys.trained(one, toys.screen(), **arguments)
    adversarial, plain = passes[0], passes[-1]
    assert adversarial.trains == "module"
    for name, value in plain.before.items():
        assert torch.equal(adversarial.before[name], value)
        assert torch.equal(adversarial.after[name], plain.after[name])


@each(ADVERSARIAL)
def test_the_pass_of_the_discriminator_alone_never_stops_early(cls, adata, toys, passes):
    """The loss of validation cells does not change in it."""
    toys.trained(cls, adata, setup=CONTEXT, init=toys.tiny, max_epochs=3, early_stopping=True)
    assert [one.stops for one in passes] == [True, False, True]
    assert passes[1].moved


@each([MTAePlusOT, MTVaePlusOT])
def test_transport_goes_on_from_the_weights_of_reconstruction(cls, adata, toys, passes):
    alone = {MTAePlusOT: MTAe, MTVaePlusOT: MTVae}[cls]
    arguments = {"setup": CONTEXT, "init": toys.tiny, "train_size": 1.0, "batch_size": 60}
    toys.trained(cls, adata, **arguments, max_epochs=8)
    toys.trained(alone, toys.screen(), **arguments, max_epochs=2)
    reconstruction, transport, plain = passes
    for name, value in plain.after.items():
        assert torch.equal(reconstruction.after[name], value)
        assert torch.equal(transport.before[name], value)


@pytest.mark.parametrize(
    ("preset", "epochs", "lr", "batch_size"), [("published", 400, 1e-5, 64), ("tuned", 500, 5e-5, 128)]
)
@each(VARIANTS)
def test_presets_of_the_variants(cls, preset, epochs, lr, batch_size, adata, monkeypatch):
    schedule = []
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda trainer, plan, train, validation=None: schedule.append(
            (trainer.max_epochs, plan.lr, train.loader.batch_size)
        ),
    )
    cls.setup_anndata(adata, context_key="context")
    model = cls(adata, preset=preset)
    if cls in VARIATIONAL:
        assert model.module.kl_weight == 0.004
        assert all(parameter.requires_grad for parameter in model.module.latent.parameters())
        lr, batch_size = {"published": (6.62e-6, 32)}.get(preset, (lr, batch_size))
    if cls in ADVERSARIAL:
        assert model.module.adversary_weight == 0.01
    model.train(train_size=1.0, accelerator="cpu")
    lengths = [epochs, epochs, epochs // 4] if cls in ADVERSARIAL else [epochs] * len(cls.stages)
    assert schedule == [(length, lr, batch_size) for length in lengths]


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("argument", "value", "owners"),
    [
        ("adversary_weight", 0.5, ADVERSARIAL),
        ("kl_weight", 0.5, VARIATIONAL),
        ("train_vae_heads", False, VARIATIONAL),
        ("partner", "sample", TRANSPORTED),
    ],
)
@each(VARIANTS)
def test_arguments_of_a_part_are_refused_where_it_is_not(cls, argument, value, owners, adata, toys):
    cls.setup_anndata(adata, context_key="context")
    if cls not in owners:
        with pytest.raises(ValueError, match=f"{argument}={value!r} was given, but {cls.__name__} has no "):
            cls(adata, **toys.tiny, **{argument: value})
        return
    model = cls(adata, **toys.tiny, **{argument: value})
    found = {
        "adversary_weight": model.module.adversary_weight,
        "kl_weight": model.module.kl_weight,
        "train_vae_heads": model.module.latent is not None and not model.module.latent.frozen,
        "partner": model._partner,
    }
    assert found[argument] == value


def test_arguments_of_parts_are_saved(adata, toys, tmp_path):
    init = {**toys.tiny, "kl_weight": 0.5, "train_vae_heads": False, "partner": "sample"}
    model = toys.trained(MTVaeOT, adata, setup=CONTEXT, init=init)
    model.save(tmp_path)
    loaded = MTVaeOT.load(tmp_path, False, accelerator="cpu")
    assert (loaded.module.kl_weight, loaded.module.latent.frozen, loaded._partner) == (0.5, True, "sample")
    np.testing.assert_array_equal(loaded.predict(toys.screen()).X, model.predict(toys.screen()).X)


# ------------------------------------------------------------------ learning


@each(VARIANTS)
def test_a_planted_shift_is_transferred_to_the_held_out_context(cls, toys):
    adata, shift = toys.planted(n=100)
    model = toys.trained(
        cls,
        adata,
        setup=CONTEXT,
        init={"n_hidden": 64, "n_latent": 8},
        max_epochs=30,
        batch_size=50,
        lr=0.01,
        split_key="split",
        plan_kwargs={"n_warmup_steps": 20},
    )
    is_control = ((adata.obs["perturbation"] == "control") & (adata.obs["context"] == "b")).to_numpy()
    found = model.predict(perturbation="A", context="b", returns="mean", realise="residual").X[0]
    change = found - adata.X[is_control].mean(0)
    assert np.corrcoef(change, shift)[0, 1] > 0.9
    assert (np.sign(change[:10]) == np.sign(shift[:10])).all()
    np.testing.assert_array_equal(model.predict().X, model.predict().X)


@pytest.mark.parametrize(
    ("variant", "init", "message"),
    [
        (MTAeAdv, {"adversary_weight": 2.0}, r"adversary_weight=2.0 must lie in 0..1"),
        (MTAeAdv, {"adversary_weight": -0.1}, r"adversary_weight=-0.1 must lie in 0..1"),
        (MTVae, {"kl_weight": -5.0}, r"kl_weight=-5.0 must be a finite number of at least 0"),
        (MTAeOT, {"partner": "bset"}, r"partner='bset' is unknown; did you mean 'best'"),
    ],
)
def test_weights_and_partners_that_make_no_sense_are_refused(adata, variant, init, message):
    variant.setup_anndata(adata, context_key="context")
    with pytest.raises(ValueError, match=message):
        variant(adata, **init)


def test_validation_cells_of_a_context_whose_controls_train_are_paired_with_these(adata):
    held = ((adata.obs["context"] == "c") & (adata.obs["perturbation"] != "control")).to_numpy()
    adata.obs["split"] = np.where(held, "val", "train")
    MTAeOT.setup_anndata(adata, context_key="context")
    model = MTAeOT(adata)
    model.train(2, split_key="split", early_stopping=True, enable_progress_bar=False, accelerator="cpu")
    assert np.isfinite(model.history["validation_loss"].to_numpy(float)).all()


def test_a_batch_of_one_cell_is_refused_where_batches_are_normalised(adata):
    MTAe.setup_anndata(adata, context_key="context")
    with pytest.raises(ValueError, match="batch_size=1, but MTAe normalises"):
        MTAe(adata).train(1, batch_size=1, enable_progress_bar=False, accelerator="cpu")

"""CPA keeps the invariants of its published equations; its adversary hides labels and costs the autoencoder no update."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi.distributions import NegativeBinomial
from scvi.nn import DecoderSCVI, FCLayers
from scvi.train import Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from multipert.model import CPA
from multipert.model._cpa import CPAModule
from multipert.nn._adversary import gradient_penalty
from multipert.train._plan import PerturbationTrainingPlan

SMALL = {"n_hidden": 12, "n_latent": 5, "adversary_hidden": (8,)}
COVARIATES = {"context_key": "context", "categorical_covariate_keys": ["batch"]}
PLAIN = {"norm": "none", "decoder_norm": "none", "dropout_rate": 0.0, "adversary_dropout_rate": 0.0}
LABELS = torch.tensor([[-1, -1], [0, -1], [1, -1], [0, 2]])


def module(seed=0, n_vars=20, **changes) -> Any:
    """A module with the labels of :func:`batch`, in float64."""
    torch.manual_seed(seed)
    arguments = {
        "hidden": (12, 9),
        "decoder_hidden": (9, 12),
        "n_latent": 5,
        "dose_curve": "logsigm",
        "adversary_hidden": (8,),
        "adversary_weight": 3.0,
        "penalty_weight": 2.0,
        **changes,
    }
    made = CPAModule(n_vars, 3, (3, 1, 2), **arguments).double()
    made.labels, made.label_weights = LABELS, torch.tensor([0.5, 1.5, 2.0, 4.0])
    return made


def batch(n=24, n_vars=20, seed=1):
    """Cells of every label in turn, with doses, a context and two covariates, the first of these with one value."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.rand(n, n_vars, generator=generator).double() * 6, generator=generator)
    counts[:, 0] += 1
    factor = 30 / counts.sum(1)
    codes = LABELS[torch.arange(n) % len(LABELS)]
    doses = torch.where(codes >= 0, torch.rand(codes.shape, generator=generator).double() * 5, 0.0)
    return {
        "X": torch.log1p(factor[:, None] * counts),
        "size_factor": factor,
        "perturbation": codes,
        "dose": doses,
        "context": torch.arange(n)[:, None] % 3,
        "extra_categorical_covs": torch.stack([torch.zeros(n), torch.arange(n) // 2 % 2], 1).long(),
    }


def weights_of(made):
    """Weights of encoder, decoder and embeddings, and those of the adversary."""
    critic = {id(parameter) for parameter in made.critic_parameters()}
    pairs = [(name, parameter.detach().clone()) for name, parameter in made.named_parameters()]
    is_critic = [id(parameter) in critic for parameter in made.parameters()]
    return [
        {name: value for (name, value), of in zip(pairs, is_critic, strict=True) if of is which}
        for which in (False, True)
    ]


def same(one, other):
    return {name: torch.equal(one[name], other[name]) for name in one}


def loss_of(made, tensors):
    inferred = made.inference(tensors)
    return made.loss(tensors, inferred, made.generative(inferred["z"], tensors))


def per_cell(found):
    return found.reconstruction_loss["reconstruction_loss"].detach()


def spread(made):
    """Running statistics and scales that are not those of the start."""
    for part in made.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return made


# ------------------------------------------------------------------ against the published parts


def copied(source, target):
    state = list(source.state_dict().values())
    target.load_state_dict(dict(zip(target.state_dict(), state, strict=True)))
    return target.eval()


@pytest.mark.parametrize("likelihood", ["normal", "nb"])
def test_basal_state_latent_vector_and_mean_are_those_of_the_published_parts(likelihood):
    """Layers of scvi-tools, which the published network is made of, with copied weights, and the sums written out."""
    made, tensors = spread(module(likelihood=likelihood)).eval(), batch()
    nn.init.normal_(made.perturbation.curve.slope)
    nn.init.normal_(made.perturbation.curve.offset)
    counts = torch.round(torch.expm1(tensors["X"]) / tensors["size_factor"][:, None])
    layers = {"n_layers": 1, "dropout_rate": 0.0}
    encoder = [
        copied(block, FCLayers(i, o, **layers).double())
        for block, i, o in zip(made.encoder, (20, 12), (12, 9), strict=True)
    ]
    hidden = torch.log1p(counts) if likelihood == "nb" else tensors["X"]
    for block in encoder:
        hidden = block(hidden)
    basal = hidden @ made.mean.weight.T + made.mean.bias
    found = made.inference(tensors)["z"]
    np.testing.assert_allclose(found.detach(), basal.detach(), atol=1e-10)

    table, slope, offset = (
        made.perturbation.vectors.weight,
        made.perturbation.curve.slope,
        made.perturbation.curve.offset,
    )
    expected = basal.clone()
    for cell in range(len(basal)):
        for code, dose in zip(tensors["perturbation"][cell].tolist(), tensors["dose"][cell], strict=True):
            if code >= 0:
                raised = torch.sigmoid(slope[code] * torch.log1p(dose) + offset[code]) - torch.sigmoid(offset[code])
                expected[cell] += raised * table[code]
        expected[cell] += made.covariates[0].weight[tensors["context"][cell, 0]]
        expected[cell] += made.covariates[1].weight[tensors["extra_categorical_covs"][cell, 1]]
    np.testing.assert_allclose(made.latents(tensors, found)["full"].detach(), expected.detach(), atol=1e-10)

    decoded = made.generative(found, tensors)
    hidden = expected
    for block, i, o in zip(made.decoder, (5, 9), (9, 12), strict=True):
        hidden = copied(block, FCLayers(i, o, **layers).double())(hidden)
    if likelihood == "normal":
        mean = hidden @ made.head.mean.weight.T + made.head.mean.bias
        np.testing.assert_allclose(decoded["px"].detach(), mean.detach(), atol=1e-10)
        return
    decoder = DecoderSCVI(12, 20, n_layers=1, n_hidden=12).double()
    copied(made.head.share, decoder.px_scale_decoder[0])
    mean = decoder.px_scale_decoder(hidden) * counts.sum(1, keepdim=True)
    np.testing.assert_allclose(decoded["mean"].detach(), mean.detach(), atol=1e-10)
    np.testing.assert_allclose(
        decoded["px"].detach(), torch.log1p(mean * tensors["size_factor"][:, None]).detach(), atol=1e-10
    )
    log_prob = NegativeBinomial(mu=mean, theta=made.head.log_dispersion.exp()).log_prob(counts).sum(1)
    np.testing.assert_allclose(per_cell(loss_of(made, tensors)), -log_prob.detach(), rtol=1e-6)


def test_the_adversary_is_weighted_cross_entropies_of_whole_labels_and_of_covariates():
    made, tensors = module(**PLAIN), batch()
    z = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    logits = made.adversary(z, LABELS)
    scores = made.adversary.label(z)
    by_hand = torch.stack([scores[:, 0], scores[:, 1], scores[:, 2], scores[:, 1] + scores[:, 3]], 1)
    np.testing.assert_allclose(logits[0].detach(), by_hand.detach(), atol=1e-12)
    target, weight = torch.arange(24) % 4, made.label_weights.double()
    log_p = by_hand.log_softmax(1)[torch.arange(24), target]
    expected = -(weight[target] * log_p).sum() / weight[target].sum()
    for network, values in zip(
        made.adversary.covariates, (tensors["context"][:, 0], tensors["extra_categorical_covs"][:, 1]), strict=True
    ):
        expected = expected - network(z).log_softmax(1)[torch.arange(24), values].mean()
    found = made.adversary.entropy(logits, tensors, LABELS, made.label_weights)
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-6)


def test_the_penalty_is_the_squared_gradient_of_the_logits_sum():
    made = module(**PLAIN)
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    networks = [lambda z: made.adversary(z, LABELS)[0], *made.adversary.covariates]
    expected, step = 0.0, 1e-6
    for network in networks:
        for k in range(5):
            moved = step * torch.eye(5).double()[k]
            slope = (network(z + moved).sum(1) - network(z - moved).sum(1)) / (2 * step)
            expected += slope.square().mean().item() / 5
    found = gradient_penalty(made.adversary(z, LABELS), z)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)
    found.backward()
    assert made.adversary.label[0][0].weight.grad.abs().max() > 0


# ------------------------------------------------------------------ the adversary


def test_the_adversarys_gradient_on_the_encoder_is_minus_its_weight_times_that_of_the_entropy():
    tensors = batch()

    def gradient(made, value):
        made.zero_grad()
        value.backward()
        return made.encoder[0][0].weight.grad.clone()

    made, without = module(**PLAIN).train(), module(**PLAIN, adversary=False).train()
    whole, alone = gradient(made, loss_of(made, tensors).loss), gradient(without, loss_of(without, tensors).loss)
    z = made.inference(tensors)["z"]
    entropy = made.adversary.entropy(made.adversary(z, LABELS), tensors, LABELS, made.label_weights)
    of_entropy = gradient(made, entropy)
    assert of_entropy.abs().max() > 1e-6
    np.testing.assert_allclose(whole - alone, -3.0 * of_entropy, atol=1e-9)


def test_a_step_against_the_adversary_makes_its_task_harder():
    made, tensors = module(**PLAIN, adversary_weight=1e4).train(), batch()
    for _ in range(30):
        made.zero_grad()
        made.critic_loss(tensors).backward()
        with torch.no_grad():
            for parameter in made.critic_parameters():
                parameter -= 0.1 * parameter.grad
    before = made.critic_loss(tensors).item()
    made.zero_grad()
    loss_of(made, tensors).loss.backward()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith(("encoder", "mean")):
                parameter -= 1e-7 * parameter.grad
    assert made.critic_loss(tensors).item() > before


def test_a_step_of_one_leaves_the_other_as_it_was():
    made, tensors = module().train(), batch()
    plan = PerturbationTrainingPlan(made, lr=0.01)
    of_module, of_critic = plan.configure_optimizers()
    before = weights_of(made)
    loss_of(made, tensors).loss.backward()
    of_module.step()
    after = weights_of(made)
    assert all(same(before[1], after[1]).values())
    assert not any(
        value for name, value in same(before[0], after[0]).items() if "weight" in name and "norm" not in name
    )
    made.zero_grad(set_to_none=True)
    made.critic_loss(tensors).backward()
    assert all(parameter.grad is None for parameter in made.encoder.parameters())
    of_critic.step()
    last = weights_of(made)
    assert all(same(after[0], last[0]).values())
    assert not any(value for name, value in same(after[1], last[1]).items() if name.endswith("weight"))


def test_weight_zero_and_no_adversary_give_the_same_weights():
    tensors, states = batch(), []
    for changes in ({"adversary_weight": 0.0}, {"adversary": False}):
        made = module(**changes, dropout_rate=0.2).train()
        optimizer = PerturbationTrainingPlan(made, lr=0.01).configure_optimizers()[0]
        torch.manual_seed(3)
        loss_of(made, tensors).loss.backward()
        optimizer.step()
        states.append(weights_of(made)[0])
    assert list(states[0]) == list(states[1])
    assert all(same(*states).values())


def test_the_weight_grows_over_the_warm_up_epochs():
    made, tensors = module(**PLAIN, adversary_warmup=4).train(), batch()
    losses = []
    for epoch in (0, 2, 4, 9):
        made.epoch = epoch
        losses.append(loss_of(made, tensors).loss.item())
    off, half, full, later = losses
    np.testing.assert_allclose(half, (off + full) / 2)
    assert full == later
    assert off != full


def test_held_out_cells_are_scored_by_reconstruction_alone():
    made, tensors = module(**PLAIN), batch()
    tensors["perturbation"] = torch.full_like(tensors["perturbation"], -1)
    tensors["perturbation"][:, 0] = 2
    found = loss_of(made.eval(), tensors)
    assert found.loss == per_cell(found).mean()
    assert loss_of(made.train(), batch()).loss != loss_of(made.eval(), batch()).loss


def counted(monkeypatch):
    """How often the losses of autoencoder and adversary are taken in training."""
    seen = SimpleNamespace(loss=0, critic_loss=0)

    def count(name):
        inner = getattr(CPAModule, name)

        def outer(self, *args):
            setattr(seen, name, getattr(seen, name) + 1)
            return inner(self, *args)

        monkeypatch.setattr(CPAModule, name, outer)

    count("loss")
    count("critic_loss")
    return seen


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"adversary": False, "adversary_steps": 3}, (40, 0)),
        ({"adversary": False, "pretraining": 0.5}, (40, 0)),
        ({"pretraining": 0.0}, (40, 40)),
        ({"pretraining": 0.25}, (40, 30)),
        # the first batch of three is the autoencoder's
        ({"pretraining": 0.0, "adversary_steps": 3}, (14, 26)),
        ({"pretraining": 0.25, "adversary_steps": 3}, (20, 20)),
    ],
)
def test_no_batch_is_lost(adata, toys, monkeypatch, init, expected):
    seen = counted(monkeypatch)
    model = toys.trained(
        CPA, adata, setup=COVARIATES, init={**SMALL, **init}, max_epochs=8, batch_size=24, train_size=1.0
    )
    assert (seen.loss, seen.critic_loss) == expected
    assert ("critic_loss" in model.history) == (expected[1] > 0)


def test_labels_weigh_as_their_other_cells_outnumber_them(adata, toys):
    lonely = adata[(adata.obs["perturbation"] != "C") | (np.arange(120) % 3 == 0)].copy()
    lonely.obs["dose"] = lonely.obs["single_dose"]
    model = toys.trained(
        CPA, lonely, setup={**COVARIATES, "dose_key": "dose"}, init=SMALL, max_epochs=0, train_size=1.0
    )
    # two doses of A are one label
    assert model.module.labels.tolist() == [[-1], [0], [1], [2]]
    n = lonely.obs["perturbation"].value_counts()[["control", "A", "B", "C"]].to_numpy()
    np.testing.assert_allclose(model.module.label_weights, n.sum() / n - 1, rtol=1e-6)


def test_a_probe_on_the_basal_state_falls_to_chance_with_the_adversary_only(toys):
    rng, n, n_vars = np.random.default_rng(0), 200, 20
    label, shift = np.repeat([0, 1], n), np.zeros(n_vars)
    shift[:6] = [1.5, -1.5] * 3
    base = rng.normal(0, 1, (2 * n, 3)) @ rng.normal(0, 0.5, (3, n_vars))
    x = (4 + base + label[:, None] * shift + rng.normal(0, 0.3, (2 * n, n_vars))).clip(0).astype(np.float32)
    obs = pd.DataFrame({"perturbation": np.array(["control", "A"])[label]}, index=[f"c{i}" for i in range(2 * n)])
    shares = {}
    for adversary in (True, False):
        # fast embeddings and an encoder without normalisation leave the basal state little to know even without adversary
        start = {"embedding_lr_factor": 1.0, "norm": "batch", "adversary_weight": 10.0}
        init = {"n_hidden": 32, "n_latent": 8, "adversary": adversary, **start}
        fit = {"max_epochs": 60, "batch_size": 32, "lr": 3e-3, "train_size": 1.0}
        model = toys.trained(CPA, AnnData(x, obs.copy()), init=init, **fit)
        z = model.get_latents()["basal"]
        probes = (LogisticRegression(max_iter=1000), KNeighborsClassifier(15))
        shares[adversary] = [cross_val_score(probe, z, label, cv=5).mean() for probe in probes]
        change = np.subtract(*(model.predict(perturbation=p, returns="mean").X[0] for p in ("A", "control")))
        assert np.corrcoef(change, shift)[0, 1] > 0.9
    assert max(shares[True]) < 0.6
    assert shares[False][0] > 0.7


# ------------------------------------------------------------------ latents and prediction


def test_without_adversary_and_noise_reconstruction_is_prediction_under_the_own_label(adata, toys):
    model = toys.trained(CPA, adata, setup=COVARIATES, init={**SMALL, "adversary": False}, train_size=1.0)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    predicted = model.predict(perturbation="control", clip=False)
    batch = model._training_store(adata, 0).batch(np.flatnonzero(is_control))
    with torch.no_grad():
        reconstructed = model.module.eval().reconstruction(batch)
    np.testing.assert_allclose(predicted.X, reconstructed, atol=1e-5)


def test_latents_are_the_basal_state_with_the_vectors_of_the_own_label_and_covariates(adata, toys):
    setup = {**COVARIATES, "perturbation_key": "combination", "dose_key": "dose"}
    model = toys.trained(CPA, adata, setup=setup, init={**SMALL, "technical_covariates": ["batch"]}, max_epochs=2)
    latents = model.get_latents()
    np.testing.assert_array_equal(latents["basal"], model.get_latent_representation())
    vectors = model.get_perturbation_embedding()
    labels = model._labels([model._setup.conditions(adata)[0][i] for i in model._setup.conditions(adata)[1]])
    moved = vectors.reindex(labels).fillna(0).to_numpy()
    of_context = model.module.covariates[0].weight.detach().numpy()[adata.obs["context"].map({"a": 0, "b": 1, "c": 2})]
    of_batch = model.module.covariates[1].weight.detach().numpy()[adata.obs["batch"].map({"x": 0, "y": 1})]
    np.testing.assert_allclose(latents["corrected"], latents["basal"] + moved + of_context, atol=1e-5)
    np.testing.assert_allclose(latents["full"], latents["corrected"] + of_batch, atol=1e-5)
    assert np.abs(moved[adata.obs["combination"] != "control"]).max(1).min() > 1e-4
    some = model.get_latents(indices=[7, 3], batch_size=1)
    for name in latents:
        np.testing.assert_allclose(some[name], latents[name][[7, 3]], atol=1e-5)
    adata.obs["combination"] = adata.obs["combination"].replace({"B": "Z"})
    with pytest.raises(ValueError, match="'Z' is not in the vocabulary|'Z'"):
        model.get_latents(adata)


def test_annotate_writes_all_three_and_nan_where_a_label_was_never_trained(adata, toys):
    setup = {"context_key": "context", "categorical_covariate_keys": ["batch"]}
    model = toys.trained(CPA, adata[adata.obs["perturbation"] != "C"].copy(), setup=setup, init=SMALL)
    model.annotate(adata, prediction=False)
    strange = (adata.obs["perturbation"] == "C").to_numpy()
    known = model.get_latents(adata, indices=np.flatnonzero(~strange))
    for key, kind in (("X_CPA", "basal"), ("X_CPA_full", "full"), ("X_CPA_corrected", "corrected")):
        np.testing.assert_allclose(adata.obsm[key][~strange], known[kind], atol=1e-6)
        assert np.isnan(adata.obsm[key][strange]).all() == (key != "X_CPA")


def test_doses_stay_with_their_perturbations_in_whatever_order_they_are_written(adata, toys):
    setup = {**COVARIATES, "perturbation_key": "combination", "dose_key": "dose"}
    model = toys.trained(CPA, adata, setup=setup, init=SMALL, max_epochs=3)
    one, other, crossed = (
        model.predict(perturbation=label, dose=dose).X
        for label, dose in (("B+A", "1+10"), ("A+B", "10+1"), ("A+B", "1+10"))
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - crossed).max() > 1e-4
    tensors = model._label_tensors([model._codec.parse("B+A", "1+10")])
    parts = [model._label_tensors([model._codec.parse(*part)]) for part in (("A", "10"), ("B", "1"))]
    with torch.no_grad():
        whole, first, second = (model.module.perturbation(x) for x in (tensors, *parts))
    np.testing.assert_allclose(whole, first + second, atol=1e-6)


def test_a_preset_of_perturbench_has_effects_that_need_not_add_up(adata, toys):
    init = {**SMALL, "preset": "perturbench"}
    model = toys.trained(CPA, adata, setup={**COVARIATES, "perturbation_key": "combination"}, init=init, batch_size=40)
    labels = [model._codec.parse(label) for label in ("control", "A", "B", "A+B")]
    with torch.no_grad():
        control, one, other, both = model.module.perturbation(model._label_tensors(labels))
    assert (both + control - one - other).abs().max() > 1e-4
    assert model.module.head.__class__.__name__ == "SquaredErrorHead"
    assert model.predict(perturbation="A", n_samples=2).n_obs == 60


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_counts_are_read_and_predictions_come_log_normalised(adata, toys, tmp_path, likelihood):
    counts = adata.layers["counts"].toarray()
    x = adata.X.toarray()
    counts[5] = x[5] = 0
    adata.layers["counts"], adata.X = counts, x
    model = toys.trained(CPA, adata, setup=COVARIATES, init={**SMALL, "likelihood": likelihood}, max_epochs=4)
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    predicted = model.predict(perturbation="A")
    source = adata[predicted.obs["source_cell"]]
    total = source.layers["counts"].sum(1)
    factor = np.divide(np.expm1(source.X).sum(1), total, out=np.ones(len(total)), where=total > 0)
    found = (np.expm1(predicted.X) / factor[:, None]).sum(1)
    if likelihood == "nb":
        np.testing.assert_allclose(found, np.maximum(total, 1), rtol=1e-4)
    else:
        assert (found < np.maximum(total, 1)).all()
    model.save(tmp_path)
    again = CPA.load(tmp_path, False, accelerator="cpu").predict(adata, perturbation="A")
    np.testing.assert_array_equal(again.X, predicted.X)
    del adata.layers["counts"]
    with pytest.raises(ValueError, match="counts"):
        model.predict(adata, perturbation="A")


def test_the_variational_latent_is_drawn_in_training_and_for_samples_only(adata, toys):
    tensors, made = batch(3000), module(**PLAIN, variational=True)
    out = made.train().inference(tensors)
    noise = ((out["z"] - out["mean"]) / torch.exp(out["log_variance"] / 2)).detach()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    made.eval()
    assert torch.equal(made.inference(tensors)["z"], made.inference(tensors)["mean"])
    mean, log_variance = out["mean"], out["log_variance"]
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    with_it, without = (
        loss_of(module(**PLAIN, variational=True, kl_weight=w).eval(), tensors).loss for w in (0.7, 0.0)
    )
    np.testing.assert_allclose((with_it - without).item(), 0.7 * divergence.item(), rtol=1e-9)

    model = toys.trained(CPA, adata.copy(), setup=COVARIATES, init={**SMALL, "variational": True})
    drawn = model.predict(perturbation="A", n_samples=2)
    first, second = (drawn[drawn.obs["draw"] == i].X for i in range(2))
    assert np.abs(first - second).max() > 1e-3
    plain = toys.trained(CPA, adata.copy(), setup=COVARIATES, init=SMALL)
    with pytest.raises(ValueError, match="samples"):
        plain.predict(perturbation="A", n_samples=2)


def test_given_features_make_unseen_perturbations_legal_and_their_layer_is_trained(adata, toys):
    model = toys.trained(
        CPA, adata, setup={**COVARIATES, "perturbation_embedding_key": "table"}, init=SMALL, max_epochs=3
    )
    start = model._new_module()
    model._start_module(0)
    layer = model.module.perturbation.vectors
    assert isinstance(layer, nn.Linear)
    before = layer.weight.detach().clone()
    model.is_trained_ = False
    model.train(max_epochs=2, seed=0, **toys.quiet)
    assert not torch.equal(model.module.perturbation.vectors.weight, before)
    assert torch.equal(model.module.perturbation.embedding, start.perturbation.embedding)
    unseen, seen = (model.predict(perturbation=label).X for label in "DA")
    assert np.abs(unseen - seen).max() > 1e-4
    assert list(model.get_perturbation_embedding().index) == list("ABCD")


def test_a_given_embedding_of_the_cells_is_encoded_in_place_of_the_expression(adata, toys):
    model = toys.trained(CPA, adata, setup={**COVARIATES, "cell_embedding_key": "X_emb"}, init=SMALL)
    before = model.predict(perturbation="A").X
    same_embedding = adata.copy()
    same_embedding.X = same_embedding.X * 0.5
    np.testing.assert_array_equal(model.predict(same_embedding, perturbation="A").X, before)
    other = adata.copy()
    other.obsm["X_emb"] = other.obsm["X_emb"] + 1
    assert np.abs(model.predict(other, perturbation="A").X - before).max() > 1e-4


def test_a_covariate_with_one_value_adds_nothing():
    assert [table.num_embeddings for table in module().covariates] == [3, 2]
    assert [network[-1].out_features for network in module().adversary.covariates] == [3, 2]


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("init", "setup", "error", "message"),
    [
        ({"likelihood": "gauss"}, {}, ValueError, "likelihood='gauss' is unknown"),
        ({"norm": "bath"}, {}, ValueError, "norm='bath' is unknown; did you mean 'batch'"),
        ({"dose_curve": "sigm"}, {}, ValueError, "dose_curve='sigm' needs doses"),
        ({"adversary_weight": -1.0}, {}, ValueError, "adversary_weight=-1.0"),
        ({"adversary_steps": 0}, {}, ValueError, "adversary_steps=0"),
        ({"pretraining": 1.0}, {}, ValueError, "pretraining=1.0"),
        ({"dropout_rate": 1.0}, {}, ValueError, "dropout_rate=1.0"),
        ({"n_latent": 0}, {}, ValueError, "n_latent=0"),
        ({"n_hidden": (8, 4), "n_layers": 3}, {}, ValueError, "n_layers=3"),
        ({"perturbation_layers": -1}, {}, ValueError, "perturbation_layers=-1"),
        ({"technical_covariates": ["batsh"]}, {}, ValueError, "'batsh'.*did you mean 'batch'"),
        ({"technical_covariates": "batch"}, {}, TypeError, "must be a list of columns"),
        ({"likelihood": "nb"}, {"signed": True}, ValueError, "signed=True"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, setup, error, message):
    CPA.setup_anndata(adata, **COVARIATES, **setup)
    with pytest.raises(error, match=message):
        CPA(adata, **init)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("published", {"widths": [256] * 3, "decoder": [256] * 3, "latent": 128, "steps": 3, "fit": (5e-4, 3e-4, 1e-6, 128), "epochs": [400]}),
        ("norman", {"widths": [256] * 4, "decoder": [256] * 2, "latent": 32, "steps": 3, "fit": (1e-4, 1e-4, 3.2170178270865573e-06, 2048), "epochs": [10, 1990]}),
        ("kang", {"widths": [128] * 2, "decoder": [512] * 2, "latent": 64, "steps": 1, "fit": (3e-4, 3e-4, 4e-7, 512), "epochs": [30, 1970]}),
        ("perturbench", {"widths": [256] * 4, "decoder": [256] * 4, "latent": 128, "steps": 2, "fit": (1e-5, 1e-5, 1e-8, 4000), "epochs": [5, 495]}),
    ],
)  # fmt: skip
def test_presets_are_the_published_ones(adata, monkeypatch, preset, expected):
    seen = SimpleNamespace(fit=None, epochs=[], steps=None)

    def fit(trainer, plan, train, validation=None):
        seen.fit = (plan.lr, plan.critic_lr, plan.weight_decay, train.loader.batch_size)
        seen.steps = plan.critic_every + 1 if plan.module.critic_turn == "alone" else 1
        seen.epochs.append(trainer.max_epochs)

    monkeypatch.setattr(Trainer, "fit", fit)
    CPA.setup_anndata(adata, **COVARIATES)
    model = CPA(adata, preset=preset)
    made = model.module
    assert [block[0].out_features for block in made.encoder] == expected["widths"]
    assert [block[0].out_features for block in made.decoder] == expected["decoder"]
    assert made.mean.out_features == expected["latent"]
    model.train(accelerator="cpu")
    assert {"fit": seen.fit, "epochs": seen.epochs, "steps": seen.steps} == {
        key: expected[key] for key in ("fit", "epochs", "steps")
    }


@pytest.mark.parametrize("preset", sorted(CPA.presets))
def test_every_preset_makes_a_model(adata, preset):
    CPA.setup_anndata(adata, **COVARIATES)
    small = {"n_hidden": 8, "n_latent": 4, "adversary_hidden": (6,)}
    model = CPA(adata, preset=preset, **small)
    assert model.module.critic_groups()
    assert not CPA(adata, preset=preset, adversary=False, **small).module.critic_groups()


def test_learnt_embeddings_start_where_told_and_move_at_a_rate_of_their_own():
    made = module(embedding_start=0.01, embedding_lr_factor=7.0, n_latent=400)
    networks, learnt = made.parameter_groups()
    (vectors,) = learnt["params"]
    assert vectors.shape == (3, 400)
    assert learnt["factor"] == 7
    assert 0.009 < float(vectors.detach().std()) < 0.011
    every = {id(parameter) for parameter in made.parameters()}
    critic = {id(parameter) for parameter in made.critic_parameters()}
    assert {id(parameter) for parameter in networks["params"]} == every - critic - {id(vectors)}
    # given vectors and networks of labels are part of the networks
    for changes in ({"n_embedding": 4}, {"perturbation_hidden": (6,)}):
        assert len(module(**changes).parameter_groups()) == 1


def test_the_decoder_works_in_units_of_each_gene_where_genes_have_variances(toys):
    screen = toys.screen()
    x = screen.X.toarray().astype(np.float64)
    for preset, likelihood in ((None, "normal"), ("perturbench", "mse")):
        init = SMALL | {"likelihood": likelihood} | ({"preset": preset} if preset else {})
        head = toys.trained(CPA, screen.copy(), init=init, max_epochs=0, train_size=1.0).module.head
        assert hasattr(head, "scale") == (likelihood == "normal")
        if likelihood == "normal":
            np.testing.assert_allclose(head.scale.center, x.mean(0), rtol=1e-5)
            np.testing.assert_allclose(head.scale.spread, x.std(0) + 0.01, rtol=1e-5)

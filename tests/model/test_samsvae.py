"""SAMSVAE keeps the invariants of its published equations, finds planted masks, and predicts as its modes say."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scvi.train import Trainer
from torch.distributions import Bernoulli, NegativeBinomial, Normal, kl_divergence

from multipert import _keys
from multipert.data._loaders import CellLoader
from multipert.data._noise import cell_keys
from multipert.model import SAMSVAE
from multipert.model._samsvae import SAMSVAEModule
from multipert.nn._variational import bernoulli_divergence, normal_divergence

SMALL = {"n_hidden": 12, "n_latent": 5}
CONTEXT = {"context_key": "context"}
COMBINATION = {"perturbation_key": "combination", **CONTEXT}
N_VARS, N_PERTURBATIONS = 9, 4


def module(n_perturbations=N_PERTURBATIONS, covariate_sizes=(), *, seed=0, **changes):
    """A module whose masks, embeddings and input scales are none of the start."""
    arguments = {name: SAMSVAE.presets["default"][name] for name in ARGUMENTS} | {"n_latent": 3, "n_hidden": 7}
    torch.manual_seed(seed)
    made = SAMSVAEModule(N_VARS, n_perturbations, covariate_sizes, **{**arguments, **changes})
    for parameter in made.offsets.parameters(recurse=False):
        torch.nn.init.normal_(parameter)
    if made.log_spread is not None:
        torch.nn.init.normal_(made.log_spread, std=0.3)
    made.scale.center.uniform_(0, 2)
    made.scale.spread.uniform_(0.5, 2)
    made.n_cells.copy_(torch.randint(3, 30, (n_perturbations,)))
    return made


ARGUMENTS = [
    name
    for name in SAMSVAE.presets["default"]
    if name not in ("inject_covariates", "lr", "weight_decay", "batch_size", "n_updates")
]


def batch(codes=((0, -1), (1, 2), (-1, -1), (3, -1), (2, -1)), doses=None, *, seed=1):
    """Cells with these codes; counts times size factor, log-transformed."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.tensor(codes, dtype=torch.int32)
    counts = torch.poisson(torch.rand(len(codes), N_VARS, generator=generator) * 8, generator=generator)
    factor = 0.2 + torch.rand(len(codes), generator=generator)
    return {
        "X": torch.log1p(factor[:, None] * counts),
        "size_factor": factor,
        "perturbation": codes,
        "dose": (codes >= 0).float() if doses is None else torch.tensor(doses),
        "counts": counts,
    }


def passed(made, tensors):
    """What inference, generative and loss give."""
    inferred = made.inference(**made._get_inference_input(tensors))
    generated = made.generative(**made._get_generative_input(tensors, inferred))
    return inferred, generated, made.loss(tensors, inferred, generated)


def dense(tensors, n_perturbations=N_PERTURBATIONS):
    """Doses of every perturbation, shape (B, n_perturbations)."""
    dosage = np.zeros((len(tensors["X"]), n_perturbations), dtype=np.float32)
    for row, (codes, doses) in enumerate(zip(tensors["perturbation"], tensors["dose"], strict=True)):
        for code, dose in zip(codes, doses, strict=True):
            if code >= 0:
                dosage[row, code] += dose
    return torch.from_numpy(dosage)


def residual(network, x):
    """The residual perceptron, re-stated."""
    first, *others = network.hidden
    x = torch.nn.functional.leaky_relu(x @ first.weight.T + first.bias, 0.01)
    for layer in others:
        x = x + torch.nn.functional.leaky_relu(x @ layer.weight.T + layer.bias, 0.01)
    return x @ network.output.weight.T + network.output.bias


def decode(made, z):
    """The decoder, re-stated; its output is in units of each gene's spread where genes have variances."""
    decoded = residual(made.decoder, z)
    return made.scale.center + made.scale.spread * decoded if made.likelihood == "normal" else decoded


# ------------------------------------------------------------------ offsets


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("keyed", [False, True])
def test_offsets_of_a_combination_are_exactly_the_sum_of_its_parts(correlated, keyed):
    made = module(correlated_embedding=correlated).eval()
    tensors = batch([(0, -1), (2, -1), (0, 2)])
    if keyed:
        tensors[_keys.CELL_KEY] = torch.full((3,), 12345)
    with torch.no_grad():
        one, other, both = made.offset(tensors)
    assert one.abs().max() > 0
    assert (one != other).any()
    torch.testing.assert_close(both, one + other, rtol=0, atol=1e-7)


def test_control_stays_at_its_basal_state():
    for made in (module(), module().eval()):
        tensors = batch([(-1, -1)] * 4)
        inferred = made.inference(tensors)
        assert torch.equal(inferred["offset"], torch.zeros(4, 3))
        told = made.generative(inferred["z"], tensors, inferred["offset"])["px"]
        torch.testing.assert_close(told, decode(made, inferred["z"]), rtol=0, atol=1e-6)


def test_a_dose_scales_the_offset():
    made = module().eval()
    made.dose_unit.copy_(torch.tensor([2.0, 5.0, 1.0, 4.0]))
    codes = [(0, -1), (0, -1), (1, 3)]
    one, three, both = made.offset(batch(codes, [(1.0, 0.0), (3.0, 0.0), (10.0, 2.0)]))
    torch.testing.assert_close(three, 3 * one)
    shift = made.offsets(torch.arange(N_PERTURBATIONS)).shift
    torch.testing.assert_close(one, shift[0] / 2)
    torch.testing.assert_close(both, 2 * shift[1] + shift[3] / 2)


def test_the_cells_of_a_batch_share_masks_and_embeddings():
    made = module(n_particles=3)
    tensors = batch([(1, -1), (1, -1), (1, 2), (2, -1)])
    offset = made.inference(tensors)["offset"]
    assert offset.shape == (3, 4, 3)
    assert torch.equal(offset[:, 0], offset[:, 1])
    torch.testing.assert_close(offset[:, 2], offset[:, 0] + offset[:, 3])
    assert not torch.equal(offset[0], offset[1])


@pytest.mark.parametrize("correlated", [False, True])
def test_an_embedding_is_the_same_alone_and_in_a_combination_whatever_the_vocabulary(correlated):
    """A large vocabulary takes the way by the perturbations of the batch; both ways agree."""
    made = module(n_perturbations=30, correlated_embedding=correlated).eval()
    few = batch([(29, -1), (7, 29), (7, -1)])
    many = {key: value.repeat(10, *[1] * (value.ndim - 1)) for key, value in few.items()}
    assert few["perturbation"].numel() < 30 <= many["perturbation"].numel()
    (drawn, dosage), (everything, whole) = made.draw(few), made.draw(many)
    assert drawn.codes.tolist() == [7, 29]
    assert everything.codes.tolist() == list(range(30))
    torch.testing.assert_close(dosage @ drawn.shift, made.offset(few))
    torch.testing.assert_close((whole @ everything.shift)[:3], made.offset(few))
    torch.testing.assert_close(passed(made, few)[2].loss, passed(made, many)[2].loss)


# ------------------------------------------------------------------ loss


def restated(made, tensors, inferred, likelihood, *, correlated, analytic):
    """The loss of the published equations at given draws, from `torch.distributions`."""
    drawn, _ = inferred["shared"]
    dosage, logits = dense(tensors), made.offsets.logits
    prior = Bernoulli(probs=torch.tensor(SAMSVAE.presets["default"]["mask_prior"], dtype=torch.float64).float())
    if correlated:
        out = residual(made.offsets.network, torch.cat([drawn.mask, torch.eye(N_PERTURBATIONS).expand(2, -1, -1)], -1))
        embedding = Normal(out[..., :3], (out[..., 3:].exp() + 1e-4).sqrt())
    else:
        embedding = Normal(made.offsets.mean, made.offsets.log_scale.exp() + 1e-4)
    offset = dosage @ (drawn.mask * drawn.embedding)
    standardised = (tensors["X"] - made.scale.center) / made.scale.spread
    hidden = residual(made.encoder, torch.cat([standardised.expand(2, -1, -1), offset], -1))
    basal = Normal(hidden[..., :3], (hidden[..., 3:].exp() + 1e-4).sqrt())
    z = inferred["z"]
    decoded = decode(made, z + offset)
    if likelihood == "nb":
        counts = tensors["counts"]
        mean = decoded.softmax(-1) * counts.sum(1, keepdim=True) + 1e-4
        concentration = made.log_spread.exp()
        reconstruction = NegativeBinomial(concentration, probs=mean / (mean + concentration)).log_prob(counts)
    elif likelihood == "normal":
        reconstruction = Normal(decoded, (made.log_spread.exp() + 1e-4).sqrt()).log_prob(tensors["X"])
    else:
        reconstruction = -((tensors["X"] - decoded) ** 2)
    if analytic:
        of_mask = kl_divergence(Bernoulli(logits=logits), prior).expand(2, -1, -1)
        of_embedding = kl_divergence(embedding, Normal(0.0, 1.0)).expand(2, -1, -1)
        of_basal = kl_divergence(basal, Normal(0.0, 1.0))
    else:
        of_mask = Bernoulli(logits=logits).log_prob(drawn.mask) - prior.log_prob(drawn.mask)
        value = drawn.embedding
        of_embedding = embedding.log_prob(value) - Normal(0.0, 1.0).log_prob(value)
        of_basal = basal.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    weights = (dosage != 0) / made.n_cells
    shared = weights @ (of_mask + of_embedding).sum(-1, keepdim=True)
    return (-reconstruction.sum(-1) + of_basal.sum(-1) + shared[..., 0]).mean(), decoded


@pytest.mark.parametrize("likelihood", ["normal", "mse", "nb"])
@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("kl", ["analytic", "mc"])
def test_the_loss_is_that_of_the_published_equations(likelihood, correlated, kl):
    layers = {"n_layers_encoder": 2, "n_layers_embedding": 3, "n_layers_decoder": 2}
    arguments = {"likelihood": likelihood, "correlated_embedding": correlated, "kl": kl, "n_particles": 2}
    made, tensors = module(**arguments, **layers), batch()
    inferred, generated, found = passed(made, tensors)
    expected, decoded = restated(made, tensors, inferred, likelihood, correlated=correlated, analytic=kl == "analytic")
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    assert found.reconstruction_loss["reconstruction_loss"].shape == (5,)
    if likelihood == "nb":
        mean = decoded.softmax(-1) * tensors["counts"].sum(1, keepdim=True)
        decoded = torch.log1p(mean * tensors["size_factor"][:, None])
    torch.testing.assert_close(generated["px"], decoded, rtol=1e-5, atol=1e-5)
    # gradients reach everything that is trained
    found.loss.backward()
    assert {name for name, parameter in made.named_parameters() if not parameter.grad.abs().sum() > 0} == set()


def test_both_kinds_of_divergence_have_the_same_expected_loss():
    made, tensors = module(n_particles=1000), batch()
    losses = {}
    for made.kl in ("analytic", "mc"):
        torch.manual_seed(0)
        with torch.no_grad():
            inferred, _, found = passed(made, tensors)
        losses[made.kl] = found.loss
    drawn, dosage = inferred["shared"]
    weights = dosage / made.n_cells
    spread = made.offsets.divergence(drawn, analytic=False) @ weights.mean(0)
    local = normal_divergence(inferred["mean"], inferred["variance"], 1.0, inferred["z"]).sum(-1).mean(-1)
    error = (spread + local).std() / math.sqrt(1000)
    assert abs(losses["analytic"] - losses["mc"]) < 3 * error
    assert losses["analytic"] != losses["mc"]


def test_weights_of_shared_variables_sum_to_one_over_an_epoch(adata, toys):
    model = toys.trained(SAMSVAE, adata, setup=COMBINATION, init=SMALL, max_epochs=0)
    rows = model.train_indices
    total = torch.zeros(model.summary_stats.n_perturbations)
    for tensors in CellLoader(model._training_store(adata, 0), rows, 7):
        drawn, dosage = model.module.draw(tensors)
        total += torch.zeros_like(total).index_add(0, drawn.codes, ((dosage != 0) / model.module.n_cells).sum(0))
    torch.testing.assert_close(total, torch.ones_like(total))
    labels = adata.obs["combination"].to_numpy()[rows]
    expected = [sum(part in {one.strip() for one in label.split("+")} for label in labels) for part in "AB"]
    assert model.module.n_cells.tolist() == expected


def test_masks_that_are_all_on_change_nothing():
    sparse, plain = module(mask_logit=0.0), module(sparsity=False)
    plain.load_state_dict({name: value for name, value in sparse.state_dict().items() if name != "offsets.logits"})
    with torch.no_grad():
        sparse.offsets.logits.fill_(40)
    tensors = batch()
    for one, other in ((sparse.eval(), plain.eval()), (sparse.train(), plain.train())):
        drawn, _ = one.draw(tensors)
        assert (drawn.mask == 1).all()
        # the same noise for embeddings and basal states
        noise = torch.zeros(N_PERTURBATIONS, 3), torch.randn(N_PERTURBATIONS, 3)
        codes = torch.arange(N_PERTURBATIONS)
        assert torch.equal(one.offsets(codes, noise).shift, other.offsets(codes, noise).shift)
    found = [one.eval().reconstruction(tensors) for one in (sparse, plain)]
    assert torch.equal(*found)
    assert torch.equal(plain.offsets.probabilities(torch.arange(4)), torch.ones(4, 3))
    # with a prior that wants all of them nothing is left of the masks' part of the loss
    certain = bernoulli_divergence(torch.ones(1), torch.tensor([20.0]), 20.0)
    assert certain.abs().max() < 1e-6


def test_a_small_prior_switches_masks_off_on_noise(toys):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": np.repeat(["control", "A", "B", "C"], 20)}, index=[f"c{i}" for i in range(80)])
    adata = AnnData(rng.normal(size=(80, 12)).astype(np.float32), obs)
    init = {"n_hidden": 8, "n_latent": 3, "mask_prior": 1e-6}
    model = toys.trained(SAMSVAE, adata, setup={"signed": True}, init=init, max_epochs=100, batch_size=20, lr=5e-3)
    assert model.mask_probabilities().to_numpy().max() < 0.05
    assert (model.effective_sparsity()["active"] == 0).all()
    # nothing is moved then
    np.testing.assert_array_equal(model.get_perturbation_embedding(), 0)
    np.testing.assert_array_equal(model.predict(perturbation="A").X, model.predict(perturbation="control").X)


def test_the_simplified_form_is_a_plain_autoencoder_with_added_vectors():
    made = module(sparsity=False, stochastic_embedding=False, mean_field_encoder=True)
    tensors = batch()
    inferred, _, found = passed(made, tensors)
    hidden = residual(made.encoder, (tensors["X"] - made.scale.center) / made.scale.spread)
    basal = Normal(hidden[:, :3], (hidden[:, 3:].exp() + 1e-4).sqrt())
    decoded = decode(made, inferred["z"] + dense(tensors) @ made.offsets.mean)
    variance = made.log_spread.exp() + 1e-4
    expected = -Normal(decoded, variance.sqrt()).log_prob(tensors["X"]).sum(1) + kl_divergence(
        basal, Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(found.loss, expected.mean(), rtol=1e-5, atol=1e-5)
    assert sorted(name for name, _ in made.offsets.named_parameters()) == ["mean"]


@pytest.mark.parametrize("correlated", [False, True])
def test_the_order_of_perturbations_changes_nothing(correlated):
    order = torch.tensor([2, 0, 3, 1])
    made, other = (module(correlated_embedding=correlated).eval() for _ in range(2))
    state = {}
    for name, value in made.state_dict().items():
        if value.shape[:1] == (N_PERTURBATIONS,):
            value = value[order]
        elif name == "offsets.network.hidden.0.weight":
            value = torch.cat([value[:, :3], value[:, 3:][:, order]], 1)
        state[name] = value
    other.load_state_dict(state)
    tensors = batch()
    codes = tensors["perturbation"].long()
    moved = {**tensors, "perturbation": torch.where(codes < 0, -1, torch.argsort(order)[codes.clamp(min=0)])}
    for one, two in zip(passed(made, tensors)[1:], passed(other, moved)[1:], strict=True):
        found, expected = (part["px"] if isinstance(part, dict) else part.loss for part in (one, two))
        torch.testing.assert_close(found, expected)


def test_perturbations_without_cells_and_genes_without_counts_do_no_harm(adata, toys):
    adata.X = adata.X.toarray()
    adata.X[:, 3] = 0
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "C", "test", "train")
    model = toys.trained(SAMSVAE, adata, setup=CONTEXT, init=SMALL, max_epochs=2, split_key="split")
    assert model.module.n_cells.tolist() == [30, 30, 0]
    assert model.mask_probabilities().index.tolist() == ["A", "B"]
    assert model.get_perturbation_embedding().index.tolist() == ["A", "B"]
    held_out = CellLoader(model._training_store(adata, 0), np.flatnonzero(adata.obs["split"] == "test"), 8)
    for tensors in held_out:
        assert torch.isfinite(passed(model.module, tensors)[2].loss)
    assert np.isfinite(model.predict(perturbation="A").X).all()


# ------------------------------------------------------------------ what it finds


def planted(seed=0):
    """40 perturbations move one or a few of 5 latent dimensions, which 50 genes mix; 15 cells each."""
    rng, n, n_latent, n_perturbations = np.random.default_rng(seed), 15, 5, 40
    mask = rng.random((n_perturbations, n_latent)) < 0.05
    mask[np.arange(n_perturbations), rng.integers(n_latent, size=n_perturbations)] = True
    effect = mask * rng.choice([-1, 1], mask.shape) * rng.normal(4, 0.5, mask.shape)
    label = np.repeat(np.arange(-1, n_perturbations), n)
    z = rng.normal(size=(len(label), n_latent)) + np.where(label[:, None] < 0, 0, effect[label])
    x = z @ np.linalg.qr(rng.normal(size=(50, n_latent)))[0].T
    x = x / x.std(0) + rng.normal(0, 0.5, x.shape)
    names = ["control" if code < 0 else f"P{code:02}" for code in label]
    return AnnData(
        x.astype(np.float32), pd.DataFrame({"perturbation": names}, index=[f"c{i}" for i in range(len(x))])
    ), mask


def area(truth, score):
    """Area under the curve of true and false positives."""
    difference = score[truth][:, None] - score[~truth]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


def test_planted_masks_are_found(toys):
    adata, mask = planted()
    init = {"n_hidden": 32, "n_latent": 5, "mask_prior": 1e-3}
    train = {"max_epochs": 100, "batch_size": 64, "lr": 3e-3, "train_size": 1.0}
    model = toys.trained(SAMSVAE, adata, setup={"signed": True}, init=init, **train)
    found = model.mask_probabilities().to_numpy()
    # latent dimensions have no order
    likeness = np.corrcoef(mask.T, found.T)[:5, 5:]
    true, own = linear_sum_assignment(np.nan_to_num(likeness), maximize=True)
    truth, found = mask[:, true], found[:, own]
    assert area(truth, found) > 0.9
    hits = ((found > 0.5) & truth).sum()
    assert 2 * hits / ((found > 0.5).sum() + truth.sum()) > 0.7
    # of masks of other perturbations there is nothing to see
    assert abs(area(np.roll(truth, 7, axis=0), found) - 0.5) < 0.2
    report = model.effective_sparsity()
    assert report["active"].tolist() == (found > 0.5).sum(1).tolist()
    assert (report["n_cells"] == 15).all()
    np.testing.assert_allclose(report["expected"], found.sum(1), rtol=1e-6)
    np.testing.assert_allclose(report["share"], (found > 0.5).mean(1))


@pytest.fixture(scope="module")
def screen(toys):
    return toys.screen()


def of(toys, adata, *, setup=CONTEXT, epochs=8, **init):
    return toys.trained(
        SAMSVAE, adata.copy(), setup=setup, init={**SMALL, **init}, max_epochs=epochs, lr=3e-3, batch_size=16
    )


@pytest.fixture(scope="module")
def trained(toys, screen):
    return of(toys, screen, setup=COMBINATION, mask_logit=3.0)


def test_the_embedding_is_what_a_prediction_adds(trained, screen):
    table = trained.get_perturbation_embedding()
    assert table.index.tolist() == ["A", "B"]
    assert table.index.name == "combination"
    seen, decoder = [], trained.module.decoder.forward
    trained.module.decoder.forward = lambda x: seen.append(x) or decoder(x)
    try:
        for label in ("control", "A", "A+B"):
            trained.predict(perturbation=label)
    finally:
        del trained.module.decoder.forward
    control, alone, both = (states[:, :5].numpy() for states in seen)
    np.testing.assert_allclose(alone - control, np.tile(table.loc["A"], (30, 1)), atol=1e-5)
    np.testing.assert_allclose(both - control, np.tile(table.sum(), (30, 1)), atol=1e-5)
    np.testing.assert_allclose(
        control, trained.get_latent_representation()[screen.obs["combination"] == "control"], atol=1e-5
    )
    np.testing.assert_array_equal(table != 0, trained.mask_probabilities() > 0.5)


# ------------------------------------------------------------------ modes and samples


def control_tensors(model, adata, label):
    """Control cells under a target, and their codes."""
    rows = np.flatnonzero(adata.obs[model._setup.perturbation_key] == "control")
    ((_, tensors),) = model._predictor(adata, "plain", None, 0, None).batches(rows)
    target = model._label_tensors([label])
    return tensors | {key: target[key].expand(len(rows), -1) for key in ("perturbation", "dose")}


def test_the_default_encodes_control_cells_without_the_target(toys, screen):
    model = of(toys, screen, mask_logit=3.0)
    tensors = control_tensors(model, screen, (("A", 1.0),))
    made = model.module
    with torch.no_grad():
        offset = made.offset(tensors)
        without, told = (made.encode(tensors, one)[0] for one in (torch.zeros_like(offset), offset))
        assert (without - told).abs().max() > 1e-3
        expected = made.generative(without, tensors)["px"]
        of_reference = made.generative(told, tensors)["px"]
    np.testing.assert_allclose(model.predict(perturbation="A", clip=False).X, expected, atol=1e-5)
    torch.testing.assert_close(made.counterfactual(tensors), expected)
    try:
        made.mode = "reference_posterior"
        np.testing.assert_allclose(model.predict(perturbation="A", clip=False).X, of_reference, atol=1e-5)
    finally:
        made.mode = "posterior_control"


def test_the_reference_mode_takes_part_of_the_effect_away(toys):
    """The encoder has learnt to subtract the offset that it is told."""
    adata, shift = toys.planted()
    init = {"n_hidden": 32, "n_latent": 5, "inject_covariates": False, "mask_prior": 0.1}
    train = {"max_epochs": 60, "split_key": "split", "batch_size": 32, "lr": 3e-3}
    model, changes = toys.trained(SAMSVAE, adata, setup=CONTEXT, init=init, **train), {}
    for mode in ("posterior_control", "reference_posterior"):
        model.module.mode = mode
        control, moved = (model.predict(perturbation=x, context="b", clip=False).X.mean(0) for x in ("control", "A"))
        changes[mode] = (moved - control) @ shift / (shift @ shift)
        assert np.corrcoef(moved - control, shift)[0, 1] > 0.5
    assert changes["posterior_control"] > 0.75
    assert changes["reference_posterior"] < 0.9 * changes["posterior_control"]


def test_the_prior_reads_no_control_cell(toys, screen):
    model = of(toys, screen, mode="prior", inject_covariates=False, mask_logit=3.0)
    changed = screen.copy()
    changed.X = changed.X.toarray()[:, ::-1].copy()
    found = model.predict(screen, "A")
    np.testing.assert_array_equal(found.X, model.predict(changed, "A").X)
    assert (found.X[0] != found.X[1]).any()
    for other, is_same in (
        (model.predict(screen, "A", batch_size=7), True),
        (model.predict(screen, "A", seed=1), False),
    ):
        assert np.allclose(found.X, other.X, atol=1e-5) == is_same
    # a basal state is the same under all targets, so that their difference is the effect
    states, decoder = [], model.module.decoder.forward
    model.module.decoder.forward = lambda x: states.append(x) or decoder(x)
    try:
        model.predict(screen, ["control"])
        model.predict(screen, ["control"], n_samples=1)
    finally:
        del model.module.decoder.forward
    assert states[0].std() > 0.5
    assert not torch.equal(*states)
    # encoding cells is no draw
    latent = model.get_latent_representation(screen)
    np.testing.assert_array_equal(latent, model.get_latent_representation(screen))
    tensors = control_tensors(model, screen, (("A", 1.0),))
    expected = model.module.encode(tensors, torch.zeros(30, 5))[0].detach()
    np.testing.assert_allclose(latent[screen.obs["perturbation"] == "control"], expected, atol=1e-5)


def test_samples_follow_the_posterior():
    made, n = module().eval(), 4000
    tensors = {key: value.expand(n, *value.shape[1:]) for key, value in batch([(1, 2)]).items()}
    tensors[_keys.CELL_KEY] = torch.from_numpy(cell_keys(0, [f"cell{i}" for i in range(n)]))
    with torch.no_grad():
        offset = made.offset(tensors)
        inferred = made.inference(tensors)
    probability, mean = torch.sigmoid(made.offsets.logits)[1:3], made.offsets.mean[1:3]
    variance = (made.offsets.log_scale[1:3].exp() + 1e-4) ** 2
    expected = (probability * mean).sum(0)
    spread = (probability * (variance + mean**2) - (probability * mean) ** 2).sum(0)
    assert ((offset.mean(0) - expected).abs() < 4.5 * (spread / n).sqrt()).all()
    torch.testing.assert_close(offset.var(0), spread, rtol=0.15, atol=0)
    # masks of the two, and embeddings, are independent draws
    alone = [made.offset({**tensors, "perturbation": torch.tensor([[code, -1]]).expand(n, 2)}) for code in (1, 2)]
    assert abs(np.corrcoef(*(one[:, 0].detach() for one in alone))[0, 1]) < 0.1
    noise = (inferred["z"] - inferred["mean"]) / inferred["variance"].sqrt()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert abs(np.corrcoef(noise[:, 0], offset[:, 0])[0, 1]) < 0.1


# ------------------------------------------------------------------ covariates, counts, doses


def test_covariates_reach_encoder_and_decoder_only_where_they_are_injected(toys, screen):
    setup = {**CONTEXT, "categorical_covariate_keys": ["batch"]}
    relabelled = screen.copy()
    relabelled.obs["batch"] = relabelled.obs["batch"].map({"x": "y", "y": "x"})
    told, blind = (of(toys, screen, setup=setup, inject_covariates=inject, epochs=5) for inject in (True, False))
    assert (told.predict(relabelled, "A").X != told.predict(screen, "A").X).any()
    np.testing.assert_array_equal(blind.predict(relabelled, "A").X, blind.predict(screen, "A").X)
    sizes = [layer.hidden[0].in_features for layer in (told.module.encoder, told.module.decoder)]
    assert sizes == [20 + 5 + 5, 5 + 5]
    unseen = screen.copy()
    unseen.obs["context"] = "d"
    with pytest.raises(ValueError, match="unseen_context"):
        told.predict(unseen, "A")
    assert blind.predict(unseen, "A").n_obs == 30
    unseen = screen.copy()
    unseen.obs["batch"] = "z"
    with pytest.raises(ValueError, match=r"obs\['batch'\]"):
        told.predict(unseen, "A")


def test_counts_are_read_and_predictions_stay_log_normalised(toys, screen):
    model = of(toys, screen, likelihood="nb", epochs=20)
    assert model.history["train_loss"].iloc[-1, 0] < model.history["train_loss"].iloc[0, 0]
    # shares of the cell's own library
    found = model.predict(perturbation="A", clip=False).X
    np.testing.assert_allclose(np.expm1(found).sum(1), 50, rtol=1e-3)
    without = screen.copy()
    del without.layers["counts"]
    with pytest.raises(ValueError, match="counts"):
        model.predict(without, "A")


def test_doses_are_counted_in_units_of_the_largest_trained_one(toys, screen):
    setup = {"perturbation_key": "combination", "dose_key": "dose", **CONTEXT}
    model = of(toys, screen, setup=setup, mask_logit=3.0, epochs=5)
    assert model.module.dose_unit.tolist() == [5.0, 2.0]
    table = model.get_perturbation_embedding()
    for dose in (5.0, 1.0, 20.0):
        tensors = control_tensors(model, screen, (("A", dose),))
        np.testing.assert_allclose(model.module.offset(tensors)[0].detach(), dose / 5 * table.loc["A"], rtol=1e-5)
    unit, spread = model.module.dose_unit.clone(), model.module.scale.spread.clone()
    model.train(1, train_size=0.3, **toys.quiet)
    assert torch.equal(model.module.dose_unit, unit)
    assert torch.equal(model.module.scale.spread, spread)


def test_training_starts_at_the_means_and_variances_of_the_genes(toys, screen):
    model = toys.trained(SAMSVAE, screen.copy(), setup=CONTEXT, init=SMALL, max_epochs=0, train_size=1.0)
    x = screen.X.toarray().astype(np.float64)
    np.testing.assert_allclose(model.module.scale.center, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.module.scale.spread, x.std(0) + 0.01, rtol=1e-5)
    np.testing.assert_allclose(model.module.log_spread.detach().exp(), (x.std(0) + 0.01) ** 2, rtol=1e-4)
    squared = toys.trained(SAMSVAE, screen.copy(), init=SMALL | {"likelihood": "mse"}, max_epochs=0, train_size=1.0)
    np.testing.assert_allclose(squared.module.decoder.output.bias.detach(), x.mean(0), rtol=1e-5)
    counted = toys.trained(SAMSVAE, screen.copy(), init=SMALL | {"likelihood": "nb"}, max_epochs=0, train_size=1.0)
    normalised = np.expm1(x)
    share = normalised.sum(0) / normalised.sum()
    np.testing.assert_allclose(counted.module.decoder.output.bias.detach().exp(), share, rtol=1e-4)


# ------------------------------------------------------------------ arguments


def test_masks_and_embeddings_move_at_a_rate_of_their_own():
    networks, shared = module(offset_lr_factor=7.0).parameter_groups()
    assert shared["factor"] == 7
    assert {tuple(one.shape) for one in shared["params"]} == {(N_PERTURBATIONS, 3)}
    assert len(shared["params"]) == 3
    made = module(correlated_embedding=True, sparsity=False)
    (everything,) = made.parameter_groups()
    assert len(everything["params"]) == len(list(made.parameters()))


@pytest.mark.parametrize("preset", SAMSVAE.presets)
def test_every_preset_makes_a_model(screen, preset):
    adata = screen.copy()
    SAMSVAE.setup_anndata(adata, **CONTEXT)
    with torch.device("meta"):
        made = SAMSVAE(adata, preset=preset).module
    simplified = preset.startswith("simplified")
    assert made.offsets.is_random != simplified
    assert hasattr(made.offsets, "logits") != simplified


def test_the_published_preset_is_that_of_the_example(screen, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = (plan.lr, plan.weight_decay, plan.n_warmup_steps, train.loader.batch_size, trainer.max_epochs)

    monkeypatch.setattr(Trainer, "fit", fit)
    adata = screen.copy()
    SAMSVAE.setup_anndata(adata, **CONTEXT)
    model = SAMSVAE(adata, preset="published")
    linears = [
        (part.in_features, part.out_features) for part in model.module.modules() if isinstance(part, torch.nn.Linear)
    ]
    assert linears == [(120, 350), (350, 200), (100, 350), (350, 20)]
    assert (model.module.kl, model.module.n_particles, model.module.likelihood, model.module.mode) == (
        "mc",
        5,
        "nb",
        "prior",
    )
    model.train(accelerator="cpu")
    assert seen.found == (1e-3, 1e-6, 0, 512, 1000)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ({"n_latent": 0}, ValueError, "n_latent=0"),
        ({"n_hidden": (8, 4)}, TypeError, r"n_hidden=\(8, 4\) must be a whole number"),
        ({"n_particles": 0}, ValueError, "n_particles=0"),
        ({"mask_prior": 1.0}, ValueError, "mask_prior=1.0 must be above 0 and below 1; sparsity=False"),
        ({"mask_prior": 0}, ValueError, "mask_prior=0 "),
        ({"mask_logit": math.inf}, ValueError, "mask_logit=inf"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"embedding_scale": -1.0}, ValueError, "embedding_scale=-1.0"),
        ({"offset_lr_factor": math.nan}, ValueError, "offset_lr_factor=nan"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate=1.0"),
        ({"mode": "posterior"}, ValueError, "mode='posterior' is unknown.*posterior_control"),
        ({"likelihood": "zinb"}, ValueError, "likelihood='zinb' is unknown"),
        ({"kl": "exact"}, ValueError, "kl='exact' is unknown"),
        ({"network": "mlp"}, ValueError, "network='mlp' is unknown"),
        ({"preset": "norman"}, ValueError, "preset='norman' is unknown.*norman19"),
    ],
)
def test_arguments_that_make_no_model_are_named(screen, init, error, message):
    adata = screen.copy()
    SAMSVAE.setup_anndata(adata, **CONTEXT)
    with pytest.raises(error, match=message):
        SAMSVAE(adata, **init)


def test_masks_are_reported_after_training_only(screen):
    adata = screen.copy()
    SAMSVAE.setup_anndata(adata, **CONTEXT)
    model = SAMSVAE(adata, **SMALL)
    for method in (model.mask_probabilities, model.effective_sparsity):
        with pytest.raises(RuntimeError, match="train"):
            method()

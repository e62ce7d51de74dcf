"""Biolord keeps the invariants of its published equations, and its free codes belong to their cells."""

import copy

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import nn

from multipert.model import Biolord
from multipert.model._biolord import BiolordModule, BiolordStarModule
from multipert.nn import ConditionVector
from multipert.nn._attributevector import AttributeVector

SMALL = {
    "n_hidden": (14, 12),
    "n_latent": 6,
    "attribute_hidden": (9,),
    "n_latent_ordered": 5,
    "n_latent_categorical": 3,
}
CONTEXT = {"context_key": "context"}
TABLE = {**CONTEXT, "perturbation_embedding_key": "table"}
DOSES = {**CONTEXT, "perturbation_key": "combination", "dose_key": "dose"}
SETUPS = {"categories": CONTEXT, "embedding": TABLE, "doses": DOSES, "both": {**DOSES, **TABLE}}


def made(toys, adata, *, setup=CONTEXT, epochs=1, init=None, **train):
    split = "split" if (adata.obs["split"] != "train").any() else None
    return toys.trained(
        Biolord,
        adata,
        setup=setup,
        init={**SMALL, **(init or {})},
        **{"max_epochs": epochs, "split_key": split, "train_size": 1.0, "batch_size": 16, **train},
    )


def attribute(n_embedding=None):
    torch.manual_seed(0)
    return AttributeVector(3, n_embedding, False, n_categorical=3, n_ordered=12, hidden=(10,), dropout_rate=0.1)


def module(unknown="amortised", *, likelihood="normal", perturbation=None, **changes):
    perturbation = attribute() if perturbation is None else perturbation
    torch.manual_seed(0)
    arguments = {
        "n_categorical": 3,
        "unknown": unknown,
        "likelihood": likelihood,
        "standardise": False,
        "batch_norm": True,
        "dropout_rate": 0.1,
        "noise": 0.1,
        "code_penalty": 10.0,
        "reconstruction_penalty": 100.0,
        "attribute_lr_factor": 1.0,
        "n_code_steps": 200,
    }
    return BiolordModule(20, (2, 3), perturbation, (14, 12), 6, **{**arguments, **changes})


def batch(n=9, n_vars=20, slots=1):
    rng = np.random.default_rng(1)
    counts = torch.from_numpy(rng.poisson(3.0, (n, n_vars))).float()
    size_factor = torch.from_numpy(rng.uniform(0.5, 2, n)).float()
    codes = torch.from_numpy(rng.integers(-1, 3, (n, slots)))
    return {
        "X": torch.log1p(size_factor[:, None] * counts),
        "perturbation": codes,
        "dose": (codes >= 0).float(),
        "context": torch.from_numpy(rng.integers(0, 2, (n, 1))),
        "extra_categorical_covs": torch.from_numpy(rng.integers(0, 3, (n, 1))),
        "row": torch.arange(n),
        "size_factor": size_factor,
        "counts": counts,
    }


class Rows:
    """All that `prepare` reads of a loader."""

    def __init__(self, rows):
        self.rows = np.asarray(rows)


def with_codes(n=9, **changes):
    one = module("free", **changes)
    one.known_codes, one.known_doses = torch.tensor([[-1], [0]]), torch.tensor([[0.0], [1.0]])
    one.prepare(Rows(range(n)))
    return one


def disturb(network):
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm1d)):
        for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight.data, -1, 1)):
            values.uniform_(low, high)
        norm.bias.data.uniform_(-1, 1)
    return network


def loss_of(one, tensors):
    inferred = one.inference(tensors)
    return one.loss(tensors, inferred, one.generative(inferred["z"], tensors))


def error_of(result):
    return next(iter(result.reconstruction_loss.values()))


def descend(one, tensors, n_steps, lr=0.02):
    """Train on one batch of cells with a rate that falls to 0; end in evaluation mode."""
    one.known_codes, one.known_doses = torch.tensor([[-1], [0]]), torch.tensor([[0.0], [1.0]])
    one.prepare(Rows(tensors["row"].numpy()))
    adam = torch.optim.Adam(one.train().parameter_groups(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    torch.manual_seed(0)
    for _ in range(n_steps):
        adam.zero_grad()
        loss_of(one, tensors).loss.backward()
        adam.step()
        schedule.step()
    one.eval()


# ------------------------------------------------------------------ invariants of the method


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_without_an_unknown_attribute_predictions_depend_on_attributes_only(adata, toys, setup):
    model = made(toys, adata, setup=setup, init={"unknown": "none"})
    found = model.predict(perturbation=["A", "B"])
    for _, rows in found.obs.groupby(["context", setup.get("perturbation_key", "perturbation")]).indices.items():
        np.testing.assert_array_equal(found.X[rows], np.tile(found.X[rows[:1]], (len(rows), 1)))
    assert len(np.unique(found.X, axis=0)) == 6
    assert model.get_latent_representation().shape == (adata.n_obs, 0)


def test_free_codes_without_noise_or_penalty_memorise_few_cells():
    one = module("free", noise=0.0, code_penalty=0.0, reconstruction_penalty=1e4, batch_norm=False)
    alike = {"perturbation": torch.full((6, 1), -1), "context": torch.zeros(6, 1).long()}
    tensors = {key: value[:6] for key, value in batch().items()} | alike | {"extra_categorical_covs": alike["context"]}
    descend(one, tensors, 400)
    with torch.no_grad():
        error = (one.reconstruction(tensors) - tensors["X"]).square().mean()
    # what the attributes, the same for all, leave unexplained
    assert error < 0.03 * tensors["X"].var(dim=0, correction=0).mean()


@pytest.mark.parametrize("unknown", ["amortised", "free"])
def test_a_large_penalty_drives_codes_to_zero(unknown):
    norms = []
    for code_penalty in (0.01, 1e5):
        one, tensors = module(unknown, code_penalty=code_penalty, batch_norm=False), batch()
        descend(one, tensors, 200, lr=0.05)
        with torch.no_grad():
            norms.append(one.inference(tensors)["z"].norm(dim=1).mean())
    assert norms[1] < 0.05
    assert norms[1] < 0.05 * norms[0]


def test_swapping_the_perturbation_twice_returns_the_prediction():
    one, tensors = module().eval(), batch()
    with torch.no_grad():
        z = one.inference(tensors)["z"]
        first = one.counterfactual(tensors, z)
        there = one.counterfactual({**tensors, "perturbation": 1 - tensors["perturbation"]}, z)
        back = one.counterfactual(tensors, z)
    assert not torch.allclose(first, there)
    assert torch.equal(first, back)


def test_permuting_categories_with_their_vectors_changes_nothing():
    one, tensors = module().eval(), batch()
    other = copy.deepcopy(one)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        other.perturbation.table[1:] = one.perturbation.table[1:][order]
        other.covariates[1].weight.copy_(one.covariates[1].weight[order])
    place = torch.argsort(order)
    codes = torch.where(tensors["perturbation"] < 0, -1, place[tensors["perturbation"].clamp(min=0)])
    renamed = {**tensors, "perturbation": codes, "extra_categorical_covs": place[tensors["extra_categorical_covs"]]}
    assert not torch.equal(renamed["perturbation"], tensors["perturbation"])
    with torch.no_grad():
        torch.testing.assert_close(other.counterfactual(renamed), one.counterfactual(tensors))


@pytest.mark.parametrize("unknown", ["amortised", "free"])
def test_the_penalty_moves_what_makes_the_codes_and_nothing_else(unknown):
    tensors = batch()
    pair = [with_codes(code_penalty=p) if unknown == "free" else module(code_penalty=p) for p in (0.0, 10.0)]
    for one in pair:
        torch.manual_seed(3)
        loss_of(one, tensors).loss.backward()
    moved = set()
    for (name, without), (_, penalised) in zip(*(one.named_parameters() for one in pair), strict=True):
        assert without.grad is not None
        if not torch.equal(without.grad, penalised.grad):
            moved.add(name.split(".")[0])
    assert moved == {"codes" if unknown == "free" else "encoder"}


def test_codes_fitted_anew_reach_the_loss_of_those_that_were_trained():
    one, tensors = module("free", batch_norm=False), batch(40)
    descend(one, tensors, 500)
    with torch.no_grad():
        trained = one.inference(tensors)["z"]
        fitted = one.inference({key: value for key, value in tensors.items() if key != "row"})["z"]
        losses = [
            one.error(tensors, one.generative(z, tensors)).mean() for z in (trained, fitted, torch.zeros_like(trained))
        ]
    assert losses[2] > 1.5 * losses[0]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("likelihood", ["normal", "nb"])
def test_the_network_is_that_of_plain_torch(likelihood):
    perturbation = disturb(attribute(2))
    perturbation.give(torch.tensor([[0.5, 1.0], [-1.0, 0.3], [0.1, 2.0]]))
    one = disturb(module(likelihood=likelihood, perturbation=perturbation)).eval()
    tensors = batch()

    def dense(h, layer, *, norm=True):
        h = h @ layer[0].weight.T + (0 if layer[0].bias is None else layer[0].bias)
        h = (h - layer[1].running_mean) / torch.sqrt(layer[1].running_var + 1e-3) * layer[1].weight + layer[1].bias
        return h.clamp(min=0)

    rows = torch.tensor([[1, 0, 0], [0, 0.5, 1.0], [0, -1.0, 0.3], [0, 0.1, 2.0]])
    with torch.no_grad():
        found = one.generative(one.inference(tensors)["z"], tensors)
        code = tensors["X"]
        for layer in one.encoder[0]:
            code = dense(code, layer)
        code = code @ one.encoder[1].weight.T + one.encoder[1].bias
        vector = rows[tensors["perturbation"][:, 0] + 1]
        for layer in perturbation.network:
            vector = dense(vector, layer)
        context = one.covariates[0].weight[tensors["context"][:, 0]]
        covariate = one.covariates[1].weight[tensors["extra_categorical_covs"][:, 0]]
        h = torch.cat([code, context, covariate, vector], dim=1)
        for layer in one.decoder:
            h = dense(h, layer)
        if likelihood == "normal":
            mean, log_variance = (h @ part.weight.T + part.bias for part in (one.head.mean, one.head.log_variance))
            torch.testing.assert_close(found["variance"], log_variance.exp(), atol=1e-5, rtol=1e-5)
        else:
            share = torch.softmax(h @ one.head.share.weight.T + one.head.share.bias, dim=1)
            counts = share * tensors["counts"].sum(1, keepdim=True)
            torch.testing.assert_close(found["mean"], counts, atol=1e-5, rtol=1e-5)
            mean = torch.log1p(counts * tensors["size_factor"][:, None])
    torch.testing.assert_close(found["px"], mean, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_loss_is_the_likelihood_the_squared_error_and_the_penalty(noise):
    one, tensors = with_codes(noise=noise), batch()
    with torch.no_grad():
        z = one.inference(tensors)["z"]
        decoded = one.generative(z, tensors)
        found = one.loss(tensors, {"z": z}, decoded).loss
    likelihood = nn.GaussianNLLLoss()(decoded["px"], tensors["X"], decoded["variance"])
    expected = likelihood + 100 * nn.MSELoss()(decoded["px"], tensors["X"]) + 10 * z.square().sum(1).mean()
    torch.testing.assert_close(found, expected)
    assert (noise == 0) == torch.equal(z, one.codes)
    torch.testing.assert_close((z - one.codes).std(), torch.tensor(noise), atol=0.1, rtol=0)


def test_variances_below_the_floor_still_learn():
    one, tensors = module(), batch()
    nn.init.constant_(one.head.log_variance.bias, -40.0)
    found = loss_of(one, tensors).loss
    found.backward()
    assert torch.isfinite(found)
    assert one.head.log_variance.bias.grad.abs().min() > 0


def test_the_loss_of_counts_sums_the_likelihood_over_genes():
    one, tensors = module(likelihood="nb").eval(), batch()
    with torch.no_grad():
        inferred = one.inference(tensors)
        decoded = one.generative(inferred["z"], tensors)
        found = one.loss(tensors, inferred, decoded)
    dispersion, counts = one.head.log_dispersion.exp(), tensors["counts"]
    distribution = torch.distributions.NegativeBinomial(dispersion, logits=(decoded["mean"] / dispersion).log())
    expected = -distribution.log_prob(counts).sum(1) + 100 * (counts - decoded["mean"]).square().mean(1)
    torch.testing.assert_close(error_of(found), expected.detach())


def test_a_cell_without_counts_has_a_finite_loss():
    one, tensors = module(likelihood="nb").eval(), batch()
    tensors["X"][0] = 0
    assert torch.isfinite(loss_of(one, tensors).loss)


# ------------------------------------------------------------------ attributes


def test_the_given_embedding_is_what_the_network_reads(adata, toys):
    model = made(toys, adata, setup=TABLE)
    table = adata.uns["table"].loc[list("ABCD")].to_numpy()
    centred = table - table.mean(0)
    rows = model.module.perturbation.table
    np.testing.assert_allclose(rows[1:, 1:], centred / np.sqrt((centred**2).sum(1).mean()), rtol=1e-5)
    np.testing.assert_array_equal(rows[:, 0], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows[0, 1:], 0)
    assert "perturbation.table" not in dict(model.module.named_parameters())
    assert np.isfinite(model.predict(perturbation="D").X).all()


def test_covariates_whose_names_or_numbers_are_alike_have_vectors_of_their_own(adata, toys):
    adata.obs["batch_rep"] = adata.obs["batch"].map({"x": "y", "y": "x"})
    setup = {**CONTEXT, "categorical_covariate_keys": ["batch", "batch_rep"]}
    model = made(toys, adata, setup=setup, init={"unknown": "none"})
    assert [tuple(part.weight.shape) for part in model.module.covariates] == [(3, 3), (2, 3), (2, 3)]
    found = model.predict(perturbation="A", context="a")
    x_rows = (found.obs["batch"] == "x").to_numpy()
    assert 0 < x_rows.sum() < len(x_rows)
    assert len(np.unique(found.X, axis=0)) == 2


def test_the_networks_of_attributes_have_a_rate_of_their_own():
    one = module(perturbation=attribute(2), attribute_lr_factor=0.1)
    rest, network = one.parameter_groups()
    assert (network["factor"], network["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in network["params"]} == {id(p) for p in one.perturbation.network.parameters()}
    assert len(rest["params"]) + len(network["params"]) == len(list(one.parameters()))
    assert len(module().parameter_groups()) == 1


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_the_perturbation_embedding_is_what_the_decoder_reads(adata, toys, setup):
    model = made(toys, adata, setup=setup)
    found = model.get_perturbation_embedding()
    assert found.index[0] == "control"
    assert found.shape[1] == (3 if setup is CONTEXT else 5)
    assert not found.duplicated().any()


# ------------------------------------------------------------------ codes


def test_noise_is_added_in_training_only():
    for one in (module(), with_codes()):
        tensors = batch()
        part = one if one.encoder is None else one.encoder
        part.eval()
        one.training = True
        assert not torch.equal(one.inference(tensors)["z"], one.inference(tensors)["z"])
        one.training = False
        assert torch.equal(one.inference(tensors)["z"], one.inference(tensors)["z"])


@pytest.fixture
def held_out(adata):
    adata.obs["split"] = np.where(np.arange(120) % 5 == 0, "test", np.where(np.arange(120) % 5 == 1, "val", "train"))
    return adata


def test_every_training_cell_has_a_code_and_no_other_cell(held_out, toys):
    model = made(toys, held_out, init={"unknown": "free"}, check_val_every_n_epoch=1)
    train = np.flatnonzero(held_out.obs["split"] == "train")
    np.testing.assert_array_equal(model.module.code_rows, train)
    assert model.module.codes.shape == (len(train), 6)
    assert np.isfinite(model.history["validation_loss"].to_numpy()).all()
    rows = torch.from_numpy(np.r_[train[7], 0, 119, train[-1]])
    expected = torch.stack([model.module.codes[7], torch.zeros(6), torch.zeros(6), model.module.codes[-1]])
    assert torch.equal(model.module._own_codes(rows)[[0, 1, 3]], expected[[0, 1, 3]])


def test_free_codes_learn_from_their_own_cell_only():
    one, tensors = with_codes(), batch()
    some = {key: value[[2, 5]] for key, value in tensors.items()}
    one.eval()
    loss_of(one, some).loss.backward()
    touched = torch.nonzero(one.codes.grad.abs().sum(1))[:, 0]
    assert touched.tolist() == [2, 5]


@pytest.mark.parametrize("likelihood", ["normal", "nb"])
def test_fitted_codes_are_a_minimum_and_leave_the_weights_alone(likelihood):
    one, tensors = with_codes(likelihood=likelihood, reconstruction_penalty=1.0).eval(), batch()
    tensors.pop("row")
    before = copy.deepcopy(one.state_dict())
    with torch.inference_mode():
        inputs = {key: value.clone() for key, value in tensors.items()}
        found = one.inference(inputs)["z"]
        alone = torch.cat([one.inference({k: v[i : i + 1] for k, v in inputs.items()})["z"] for i in range(2)])
    torch.testing.assert_close(found[:2], alone, atol=1e-4, rtol=0)
    codes = found.clone().requires_grad_()
    loss = one.error(tensors, one.generative(codes, tensors)) + one.code_penalty * codes.square().sum(1)
    (gradient,) = torch.autograd.grad(loss.sum(), [codes])
    start = torch.zeros_like(codes).requires_grad_()
    (at_start,) = torch.autograd.grad(one.error(tensors, one.generative(start, tensors)).sum(), [start])
    assert gradient.abs().max() < 0.02 * at_start.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_fitting_codes_needs_evaluation_mode_and_training_the_rows():
    one, tensors = with_codes(), batch()
    tensors.pop("row")
    with pytest.raises(RuntimeError, match="batches that hold 'row'"):
        one.inference(tensors)
    with pytest.raises(RuntimeError, match="before train"):
        module("free").inference(batch())


def test_free_codes_of_perturbed_cells_are_fitted_under_their_own_label(adata, toys):
    init = {"unknown": "free", "code_penalty": 0.1, "n_code_steps": 40}
    model = made(toys, adata, init=init, epochs=10, lr=1e-2)
    found = model.get_latent_representation()
    relabelled = adata.copy()
    relabelled.obs["perturbation"] = "control"
    other = model.get_latent_representation(relabelled)
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_array_equal(found[is_control], other[is_control])
    assert (np.abs(found - other)[~is_control].max(1) > 1e-3).all()
    # a label that was never set up is no reason to refuse the control cells
    renamed = adata.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].replace({"B": "new"})
    np.testing.assert_array_equal(model.predict(renamed, "A").X, model.predict(adata, "A").X)


def test_free_codes_survive_files_and_further_training(held_out, toys, tmp_path):
    model = made(toys, held_out, init={"unknown": "free", "n_code_steps": 20})
    model.save(tmp_path / "model")
    loaded = Biolord.load(tmp_path / "model", adata=held_out, accelerator="cpu")
    assert torch.equal(loaded.module.codes, model.module.codes)
    assert torch.equal(loaded.module.code_rows, model.module.code_rows)
    np.testing.assert_array_equal(loaded.predict(perturbation="A").X, model.predict(perturbation="A").X)
    before = loaded.module.codes.detach().clone()
    further = {"max_epochs": 1, "batch_size": 16, "lr": 1e-3, "split_key": "split", **toys.quiet}
    loaded.train(**further)
    change = (loaded.module.codes - before).abs().max().item()
    assert 0 < change < 0.1
    held_out.obs["other"] = held_out.obs["split"].replace({"test": "train"})
    loaded.train(**{**further, "split_key": "other"})
    assert len(loaded.module.codes) == (held_out.obs["other"] == "train").sum()


def test_free_codes_are_drawn_anew_for_other_cells_in_their_rows(held_out, toys, tmp_path):
    model = made(toys, held_out, init={"unknown": "free", "n_code_steps": 5})
    model.save(tmp_path / "model")
    for data, kept in ((held_out, True), (held_out[::-1].copy(), False)):
        loaded = Biolord.load(tmp_path / "model", adata=data, accelerator="cpu")
        loaded.train(max_epochs=1, batch_size=16, lr=1e-9, seed=7, split_key="split", **toys.quiet)
        same = loaded.module.codes.shape == model.module.codes.shape and torch.allclose(
            loaded.module.codes, model.module.codes, atol=1e-3
        )
        assert same == kept


def test_a_training_that_fails_gives_the_codes_back(adata, toys):
    model = made(toys, adata, init={"unknown": "free", "n_code_steps": 5})
    before = model.module.codes
    kept = before.detach().clone()
    adata.obs["other"] = np.where(np.arange(adata.n_obs) < 60, "train", "test")
    with pytest.raises(FloatingPointError):
        model.train(
            max_epochs=3, batch_size=16, lr=1e38, split_key="other", plan_kwargs={"n_warmup_steps": 0}, **toys.quiet
        )
    assert model.module.codes is before
    assert torch.equal(before, kept)
    assert len(model.module.code_rows) == len(before)


@pytest.mark.parametrize("unknown", ["amortised", "free", "none"])
def test_one_cell_alone_is_predicted_as_among_others(adata, toys, unknown):
    model = made(toys, adata, init={"unknown": unknown, "n_code_steps": 40})
    row = np.flatnonzero(adata.obs["perturbation"] == "control")[3]
    one, all_cells = (model.predict(perturbation="A", indices=i) for i in ([row], None))
    expected = all_cells[all_cells.obs["source_cell"] == adata.obs_names[row]].X
    np.testing.assert_allclose(one.X, expected, atol=1e-3)


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize("unknown", ["amortised", "free"])
def test_counts_are_predicted_in_the_space_of_the_expression(adata, toys, unknown):
    init = {"likelihood": "nb", "unknown": unknown, "n_code_steps": 20, "reconstruction_penalty": 0.1}
    model = made(toys, adata, init=init, epochs=2)
    found = model.predict(perturbation="A", clip=False)
    source = adata[found.obs["source_cell"]]
    # size factors of the screen are 50 / total, so predicted shares sum to 50
    np.testing.assert_allclose(np.expm1(found.X.astype(np.float64)).sum(1), 50, rtol=1e-4)
    assert found.X.min() >= 0
    assert found.shape == source.shape
    del adata.layers["counts"]
    with pytest.raises(ValueError, match="needs raw counts"):
        model.predict(perturbation="A")


# ------------------------------------------------------------------ the benchmark's variant


def star(code_penalty=2.0):
    torch.manual_seed(0)
    arguments = {"dropout_rate": 0.2, "noise": 0.5, "code_penalty": code_penalty, "softplus": True}
    return BiolordStarModule(20, (2, 3), ConditionVector(3), 12, 2, 6, **arguments)


def test_the_variant_penalises_the_covariates_by_a_sum_over_the_batch():
    tensors, without, penalised = batch(), star(0.0).eval(), star(2.0).eval()
    keys = ("context", "extra_categorical_covs")
    vectors = [table.weight[tensors[key][:, 0]] for table, key in zip(without.covariates, keys, strict=True)]
    penalty = sum(vector.square().sum() for vector in vectors).detach()
    with torch.no_grad():
        decoded = without.generative(without.inference(tensors)["z"], tensors)["px"]
    losses = [loss_of(one, tensors).loss for one in (without, penalised)]
    torch.testing.assert_close(losses[0].detach(), (decoded - tensors["X"]).square().sum(1).mean())
    torch.testing.assert_close((losses[1] - losses[0]).detach(), 2 * penalty)
    for loss in losses:
        loss.backward()
    moved = {
        name.split(".")[0]
        for (name, a), (_, b) in zip(without.named_parameters(), penalised.named_parameters(), strict=True)
        if not torch.equal(a.grad, b.grad)
    }
    # as published: not the encoder
    assert moved == {"covariates"}
    assert (decoded > 0).all()


def test_the_variants_noise_stays_in_predictions_and_with_the_cell(adata, toys):
    init = {"variant": "perturbench", "n_hidden": 12, "n_latent": 6}
    Biolord.setup_anndata(adata, **CONTEXT, categorical_covariate_keys=["batch"])
    model = Biolord(adata, **init)
    model.train(max_epochs=1, batch_size=16, train_size=1.0, **toys.quiet)
    found = [model.predict(perturbation="A", seed=seed).X for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3
    assert isinstance(model.module, BiolordStarModule)
    assert model.get_perturbation_embedding().shape == (4, 6)


# ------------------------------------------------------------------ learning and arguments


@pytest.mark.parametrize("unknown", ["amortised", "free", "none"])
def test_a_planted_shift_is_found_in_a_context_without_perturbed_cells(toys, unknown):
    rng, n = np.random.default_rng(0), 30
    shift = np.zeros(40)
    shift[:5] = [1.2, -1.0, 1.5, 0.9, -1.1]
    context, label = np.repeat(np.arange(4), 2 * n), np.tile(np.repeat([0, 1], n), 4)
    base = rng.uniform(1.5, 4, 40) + rng.normal(0, 0.3, (4, 40))
    x = base[context] + label[:, None] * shift + rng.normal(0, 0.2, (len(context), 40))
    obs = {"perturbation": np.array(["control", "A"])[label], "context": np.array(list("abcd"))[context]}
    adata = AnnData(x.astype(np.float32), obs)
    adata.obs_names = [f"c{i}" for i in range(len(x))]
    adata.obs["split"] = np.where((context == 3) & (label == 1), "test", "train")
    init = {"n_hidden": 32, "n_layers": 1, "unknown": unknown, "n_code_steps": 60}
    model = made(toys, adata, init=init, epochs=40, lr=5e-3, batch_size=32)
    change = model.predict(perturbation="A", context="d", realise="residual").X.mean(0)
    found = change - x[(context == 3) & (label == 0)].mean(0)
    assert np.corrcoef(found, shift)[0, 1] > 0.75


def test_unseen_contexts_and_values_of_covariates_are_refused(adata, toys):
    adata.obs["split"] = np.where(adata.obs["context"] == "c", "test", "train")
    model = made(toys, adata, setup={**CONTEXT, "categorical_covariate_keys": ["batch"]})
    with pytest.raises(ValueError, match="unseen contexts.*c"):
        model.predict(perturbation="A")
    known = adata[adata.obs["context"] != "c"].copy()
    assert np.isfinite(model.predict(known, "A").X).all()
    known.obs["batch"] = "z"
    with pytest.raises(ValueError, match=r"obs\['batch'\]"):
        model.predict(known, "A")


@pytest.mark.parametrize("preset", Biolord.presets)
def test_presets_make_models(adata, preset):
    Biolord.setup_anndata(adata, **TABLE)
    model = Biolord(adata, preset=preset)
    assert isinstance(
        model.module, BiolordStarModule if model._arguments["variant"] == "perturbench" else BiolordModule
    )


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ({"unknown": "amortized"}, ValueError, "unknown='amortized' is unknown.*amortised"),
        ({"likelihood": "zinb"}, ValueError, "likelihood='zinb'"),
        ({"variant": "star"}, ValueError, "variant='star'"),
        ({"n_latent": 0}, ValueError, "n_latent=0"),
        ({"n_hidden": (8, 4), "n_layers": 3}, ValueError, r"holds 2 width\(s\), but n_layers=3"),
        ({"attribute_hidden": 8}, TypeError, r"such as \(8,\)"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate=1.0"),
        ({"code_penalty": -1.0}, ValueError, "code_penalty=-1.0"),
        ({"n_code_steps": 0}, ValueError, "n_code_steps=0"),
        ({"variant": "perturbench", "likelihood": "nb"}, ValueError, "likelihood='nb' has no meaning"),
        ({"variant": "perturbench", "n_hidden": (8, 4)}, ValueError, "must be one width"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, error, message):
    Biolord.setup_anndata(adata, **CONTEXT)
    with pytest.raises(error, match=message):
        Biolord(adata, **init)

"""LatentAdditive keeps the invariants of its equation, and reads the control row of each pair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.train import Trainer
from torch import nn

from multipert.model import LatentAdditive, LatentAdditiveOT
from multipert.model._latentadditive import LatentAdditiveModule
from multipert.model._training import passes_of

CONTEXT = {"context_key": "context"}
COMBINED = {"perturbation_key": "combination", **CONTEXT}
SMALL = {"n_hidden": 16, "n_latent": 5}


def module(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"n_vars": 9, "n_perturbations": 3, "n_hidden": 7, "n_latent": 4, "n_layers": 2, "dropout_rate": 0.3}
    return LatentAdditiveModule(**{**sizes, **changes}).eval()


def batch(n=8, n_vars=9, seed=1):
    codes = torch.tensor([[0, -1], [1, 2], [-1, -1], [2, -1]]).repeat(n // 4, 1)
    x = torch.rand(n, n_vars, generator=torch.Generator().manual_seed(seed)) * 3
    context = torch.arange(n)[:, None] % 2
    return {"X": x, "perturbation": codes, "dose": (codes >= 0).float(), "context": context}


def latent_of(made, tensors):
    """What the decoder reads."""
    read = []
    handle = made.decoder.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].detach()))
    made.counterfactual(tensors)
    handle.remove()
    return read[0]


# ------------------------------------------------------------------ equation


def plain(network, n_in, n_hidden, n_layers, n_out, variant):
    """The perceptron as a chain of PyTorch's own layers, with the weights of ours."""
    layers = [nn.Linear(n_in, n_hidden)] if variant == "linear_first" else []
    for _ in range(n_layers):
        layers += [
            nn.Linear(n_hidden if layers else n_in, n_hidden),
            nn.LayerNorm(n_hidden, elementwise_affine=False),
            nn.ReLU(),
        ]
    chain = nn.Sequential(*layers, nn.Linear(n_hidden, n_out))
    chain.load_state_dict(dict(zip(chain.state_dict(), network.state_dict().values(), strict=True)))
    return chain


@pytest.mark.parametrize("covariates", [(), (2,)])
@pytest.mark.parametrize("variant", ["linear_first", "standard"])
def test_the_module_is_a_plain_network_with_its_weights(variant, covariates):
    made = module(variant=variant, encoder_covariates=covariates, decoder_covariates=covariates)
    tensors, n = batch(), sum(covariates)
    hot = torch.zeros(8, 3)
    for row, codes in enumerate(tensors["perturbation"]):
        hot[row, codes[codes >= 0]] = 1
    context = torch.eye(2)[tensors["context"][:, 0]][:, :n]
    encoder = plain(made.cell_encoder, 9 + n, 7, 2, 4, variant)
    labels = plain(made.perturbation_encoder, 3, 7, 2, 4, variant)
    decoder = plain(made.decoder, 4 + n, 7, 2, 9, variant)
    z = encoder(torch.cat([tensors["X"], context], 1)) + labels(hot)
    expected = nn.functional.softplus(decoder(torch.cat([z, context], 1)))
    np.testing.assert_allclose(made.counterfactual(tensors).detach(), expected.detach(), atol=1e-5)


def test_the_label_adds_the_same_to_every_cell():
    made, tensors = module(encoder_covariates=(2,)), batch()
    none = {**tensors, "perturbation": torch.full((8, 2), -1)}
    effect = latent_of(made, tensors) - latent_of(made, none)
    np.testing.assert_allclose(effect[:4], effect[4:], atol=1e-6)
    assert effect[[0, 1, 3]].abs().max(1).values.min() > 1e-3
    np.testing.assert_allclose(effect[2], 0, atol=1e-6)


def test_without_covariates_both_contexts_move_alike():
    made, tensors = module(), batch()
    other = {**tensors, "context": 1 - tensors["context"]}
    np.testing.assert_array_equal(latent_of(made, tensors), latent_of(made, other))
    read = module(encoder_covariates=(2,))
    assert not torch.equal(latent_of(read, tensors), latent_of(read, other))


def test_without_a_label_encoder_the_label_does_not_matter():
    made, tensors = module(), batch()
    for parameter in made.perturbation_encoder.parameters():
        nn.init.zeros_(parameter)
    other = {**tensors, "perturbation": tensors["perturbation"].flip(0)}
    assert torch.equal(made.counterfactual(tensors), made.counterfactual(other))


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(8)), st.sampled_from(["linear_first", "standard"]))
def test_cells_keep_their_prediction_in_any_order(order, variant):
    made, tensors = module(variant=variant, encoder_covariates=(2,), decoder_covariates=(2,)), batch()
    moved = {key: value[list(order)] for key, value in tensors.items()}
    found = made.counterfactual(tensors)
    assert torch.equal(found, made.counterfactual(tensors))
    assert (found >= 0).all()
    np.testing.assert_allclose(made.counterfactual(moved).detach(), found[list(order)].detach(), atol=1e-6)


def test_the_smallest_network_and_a_batch_of_one_cell():
    made = module(n_hidden=1, n_latent=1, n_layers=1, dropout_rate=0.0).train()
    one = {key: value[:1] for key, value in batch().items()}
    out = made(one, compute_loss=False)
    assert (out[0]["z"].shape, out[1]["px"].shape) == ((1, 1), (1, 9))
    assert torch.isfinite(made.loss(one, *out).loss)


def test_the_loss_is_against_the_perturbed_cell_and_the_input_its_control():
    made, tensors = module(), batch()
    paired = {**tensors, "X_control": batch(seed=5)["X"]}
    decoded = made.counterfactual({**tensors, "X": paired["X_control"]})
    found = made.loss(paired, *made(paired, compute_loss=False)).loss
    np.testing.assert_allclose(found.item(), torch.square(decoded - tensors["X"]).mean().item(), rtol=1e-6)


# ------------------------------------------------------------------ sparse labels


def test_the_mask_switches_dimensions_of_the_label_off():
    made, tensors = module(sparse=True), batch()
    effect, full = made.effect(tensors), made.perturbation_encoder(made.perturbation(tensors))
    keep = made.mask(made.perturbation(tensors)) > 0
    assert 0 < keep.float().mean() < 1
    assert torch.equal(effect, full * keep)
    assert torch.equal(effect, made.effect(tensors))


def test_in_training_the_mask_is_drawn_with_its_probability_and_passes_a_gradient():
    made = module(sparse=True).train()
    logits = torch.tensor([[-1.0, 0.0, 2.0]]).repeat(20000, 1).requires_grad_()
    torch.manual_seed(0)
    drawn = made._switch(logits)
    assert set(drawn.detach().round(decimals=6).unique().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0).detach(), torch.sigmoid(logits[0]).detach(), atol=0.02)
    drawn.sum().backward()
    assert (logits.grad.mean(0) > 0.1).all()


# ------------------------------------------------------------------ cells and their embeddings


def test_pairs_read_the_embedding_of_their_control_cell(adata, toys):
    """The embedding is the number of the cell, so that what is read says whose it is."""
    adata.obsm["X_number"] = np.arange(120.0)[:, None]
    LatentAdditive.setup_anndata(adata, cell_embedding_key="X_number", **CONTEXT)
    model = LatentAdditive(adata, **SMALL)
    assert model.module.cell_encoder.first.in_features == 1 + 3
    read = []

    class Spy(nn.Module):
        def forward(self, cell):
            read.append(cell[:, 0].detach().round().long())
            return cell.new_zeros(len(cell), 5)

    seen = []
    loss = LatentAdditiveModule.loss

    def spied(self, tensors, *outputs):
        seen.append(tensors)
        return loss(self, tensors, *outputs)

    model._new_module, made = lambda: model.module, model.module
    made.cell_encoder = Spy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentAdditiveModule, "loss", spied)
        model.train(max_epochs=3, train_size=1.0, seed=0, **toys.quiet)
    x, is_control = adata.X.toarray(), (adata.obs["perturbation"] == "control").to_numpy()
    partners = []
    for tensors, rows in zip(seen, read, strict=True):
        assert is_control[rows].all()
        np.testing.assert_array_equal(tensors["X_control"], x[rows])
        own = np.array(list("abc"))[tensors["context"][:, 0]]
        np.testing.assert_array_equal(own, adata.obs["context"].to_numpy()[rows])
        partners += rows[(tensors["perturbation"] >= 0).any(1)].tolist()
    assert len(set(partners)) == is_control.sum()
    read.clear()
    model.predict(perturbation="A")
    assert torch.cat(read).tolist() == np.flatnonzero(is_control).tolist()


def test_expression_is_no_input_beside_an_embedding(adata, toys):
    setup = {**CONTEXT, "cell_embedding_key": "X_emb"}
    model = toys.trained(LatentAdditive, adata, setup=setup, init=SMALL)
    other = adata.copy()
    other.X = other.X * 2
    np.testing.assert_array_equal(model.predict(other, "A").X, model.predict(adata, "A").X)
    other.obsm["X_emb"] = other.obsm["X_emb"] + 1
    assert not np.array_equal(model.predict(other, "A").X, model.predict(adata, "A").X)


# ------------------------------------------------------------------ trained models


def test_the_order_of_a_label_does_not_matter(adata, toys):
    model = toys.trained(LatentAdditive, adata, setup=COMBINED, init=SMALL)
    one, other = (model.predict(perturbation=label).X for label in ("A+B", "B + A"))
    np.testing.assert_array_equal(one, other)
    table = model.get_perturbation_embedding()
    assert list(table.index) == ["control", "A", "B"]
    codes = model._label_tensors([(("B", 1.0),)])
    np.testing.assert_allclose(table.loc["B"], model.module.effect(codes)[0].detach(), atol=1e-6)


def test_a_planted_shift_is_found_in_the_other_context(toys):
    adata, shift = toys.planted(n=60)
    model = toys.trained(
        LatentAdditive,
        adata,
        setup=CONTEXT,
        init={"n_hidden": 64, "n_latent": 10},
        max_epochs=40,
        batch_size=32,
        lr=3e-3,
        split_key="split",
    )
    predicted, control = (
        model.predict(perturbation=label, context="b", returns="mean").X[0] for label in ("A", "control")
    )
    assert np.corrcoef(predicted - control, shift)[0, 1] > 0.9
    # conditional means vary less than cells
    cells = model.predict(perturbation="A", context="b")
    held_out = adata[((adata.obs["context"] == "b") & (adata.obs["perturbation"] == "A")).to_numpy()]
    assert cells.X.var(0).mean() < 0.5 * held_out.X.var(0).mean()


def test_unseen_perturbations_need_an_embedding(adata, toys):
    model = toys.trained(LatentAdditive, adata, setup={**CONTEXT, "perturbation_embedding_key": "table"}, init=SMALL)
    assert model.module.perturbation_encoder.first.in_features == 3 + 1
    assert model.predict(perturbation="D").n_obs == 30
    assert list(model.get_perturbation_embedding().index) == ["control", *"ABCD"]
    with pytest.raises(ValueError, match="'D' is unknown"):
        toys.trained(LatentAdditive, adata, setup=CONTEXT, init=SMALL).predict(perturbation="D")


def test_without_covariates_any_context_can_be_predicted(adata, toys):
    init = {**SMALL, "inject_covariates_encoder": False, "inject_covariates_decoder": False}
    setup = {**CONTEXT, "categorical_covariate_keys": ["batch"]}
    model = toys.trained(LatentAdditive, adata, setup=setup, init=init)
    elsewhere = adata.copy()
    elsewhere.obs["context"], elsewhere.obs["batch"] = "elsewhere", "z"
    np.testing.assert_array_equal(model.predict(elsewhere, "A").X, model.predict(adata, "A").X)
    half = toys.trained(LatentAdditive, adata, setup=setup, init={**init, "inject_covariates_decoder": True})
    assert half.module.decoder.first.in_features == 5 + 3 + 2
    elsewhere.obs["batch"] = "x"
    with pytest.raises(ValueError, match="unseen_context"):
        half.predict(elsewhere, "A")


def test_transported_pairs_are_the_other_class(adata):
    stages = {}
    for cls in (LatentAdditive, LatentAdditiveOT):
        cls.setup_anndata(adata, **CONTEXT)
        stages |= {(cls, keep): passes_of(cls(adata, **SMALL, control_targets=keep)) for keep in (True, False)}
    found = {key: [(stage.pairing, stage.itself) for stage in some] for key, some in stages.items()}
    assert found == {
        (LatentAdditive, True): [("random", True)],
        (LatentAdditive, False): [("random", False)],
        (LatentAdditiveOT, True): [("ot", True)],
        (LatentAdditiveOT, False): [("ot", False)],
    }


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"n_hidden": 0}, "n_hidden=0"),
        ({"n_latent": 2.5}, "n_latent=2.5 must be a whole number"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"mlp_variant": "linear"}, "mlp_variant='linear' is unknown.*linear_first"),
        ({"output_activation": "tanh"}, "output_activation='tanh' is unknown"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, message):
    LatentAdditive.setup_anndata(adata, **CONTEXT)
    with pytest.raises((ValueError, TypeError), match=message):
        LatentAdditive(adata, **init)


def test_presets_are_the_published_ones(adata, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = plan.lr, plan.weight_decay, plan.n_warmup_steps, train.loader.batch_size, trainer.max_epochs

    monkeypatch.setattr(Trainer, "fit", fit)
    LatentAdditive.setup_anndata(adata, **CONTEXT)
    model = LatentAdditive(adata, preset="norman19_2024", n_hidden=8)
    model.train(accelerator="cpu", train_size=1.0)
    assert seen.found == (6.780e-5, 1.04e-8, 0, 4000, 500)
    widths = [layer.in_features for layer in model.module.modules() if isinstance(layer, nn.Linear)]
    # one hidden layer each, no linear layer before it, no covariates
    assert widths == [20, 8, 3, 8, 64, 8]
    for name in LatentAdditive.presets:
        assert LatentAdditive(adata, preset=name, n_hidden=8).module.keeps_best == (name != "default")


def test_a_model_comes_back_from_its_files(adata, toys, tmp_path):
    setup = {**CONTEXT, "cell_embedding_key": "X_emb", "perturbation_embedding_key": "table"}
    model = toys.trained(LatentAdditive, adata, setup=setup, init={**SMALL, "sparse": True})
    model.save(tmp_path)
    loaded = LatentAdditive.load(tmp_path, False, accelerator="cpu")
    np.testing.assert_array_equal(loaded.predict(adata, "D").X, model.predict(adata, "D").X)
    np.testing.assert_array_equal(loaded.get_perturbation_embedding(), model.get_perturbation_embedding())

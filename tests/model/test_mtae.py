"""The multi-task autoencoder keeps the invariants of its published equations, and learns."""

from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scvi.train import Trainer
from torch import nn

from multipert.model import MTAe
from multipert.model._mtae import MultiTaskModule
from multipert.nn import FiLMDecoder, FiLMGenerator

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "reference_mtae.py"


def module(n_vars=30, n_perturbations=3, hidden=(12, 9), film=(), seed=0):
    """A module in evaluation mode, float64, with running statistics that are not those of the start."""
    torch.manual_seed(seed)
    made = MultiTaskModule(n_vars, n_perturbations, hidden, 6, film, 0.5, 0.2).double()
    norms: list[Any] = [part for part in made.modules() if isinstance(part, nn.BatchNorm1d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made.eval()


def batch(codes, n_vars=30, seed=1):
    codes = torch.as_tensor(codes)[:, None]
    x = torch.rand(len(codes), n_vars, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    return {"X": x, "perturbation": codes, "dose": (codes >= 0).double()}


def inputs(made):
    """The linear layers that read the condition."""
    return [
        layer for film in made.decoder.films for layer in ([film.trunk[0]] if film.trunk else [film.scale, film.shift])
    ]


def set_up(adata, **init):
    MTAe.setup_anndata(adata, context_key="context")
    return MTAe(adata, **init)


def widths(model):
    encoder = [block[0].out_features for block in model.module.encoder.hidden]
    decoder = [layer.out_features for layer in model.module.decoder.linears]
    return encoder, model.module.encoder.latent.out_features, decoder


def rates(model):
    """Dropout, and the share of genes that training masks."""
    dropouts = {part.p for part in model.module.modules() if isinstance(part, nn.Dropout)}
    torch.manual_seed(0)
    masked = model.module.encoder.mask.train()(torch.ones(1000, 100))
    np.testing.assert_allclose(masked.mean(), 1, atol=0.02)
    assert len(dropouts) == 1
    return dropouts.pop(), round(float((masked == 0).float().mean()), 2)


# ------------------------------------------------------------------ architecture


@pytest.mark.parametrize(
    ("n_vars", "n_perturbations", "film", "expected"), [(6998, 1, (), 3_658_710), (5000, 8, (16,), 2_641_064)]
)
def test_parameter_counts_are_the_published_ones(n_vars, n_perturbations, film, expected):
    made = MultiTaskModule(n_vars, n_perturbations, (256,), 128, film, 0.5, 0.2)
    assert sum(parameter.numel() for parameter in made.parameters()) == expected


@pytest.mark.parametrize(("labels", "film"), [(["A"], 0), (["A", "B", "C"], 16)])
def test_the_trunk_is_there_for_several_perturbations_only(adata, labels, film):
    some = adata[adata.obs["perturbation"].isin(["control", *labels])].copy()
    model = set_up(some)
    assert widths(model) == ([256], 128, [256])
    (generator,) = model.module.decoder.films
    assert [layer.out_features for layer in generator.trunk if isinstance(layer, nn.Linear)] == [film] * bool(film)
    assert generator.scale.in_features == (film or len(labels) + 1)
    assert inputs(model.module)[0].in_features == len(labels) + 1


def test_the_reference_restatement_agrees(capsys):
    loader = SourceFileLoader("reference_mtae", str(BENCHMARK))
    benchmark: Any = module_from_spec(ModuleSpec("reference_mtae", loader))
    loader.exec_module(benchmark)
    assert benchmark.main() == 0
    assert "3,658,710" in capsys.readouterr().out
    benchmark.SLOPE = 0.02
    assert benchmark.main() == 1
    benchmark.SLOPE = 0.01
    benchmark.COUNTS = {(6998, 1, ()): 3_658_709}
    assert benchmark.main() == 1


def test_a_generator_without_trunk_is_an_embedding_lookup():
    torch.manual_seed(0)
    generator, codes = FiLMGenerator(4, 7).double(), torch.tensor([2, 0, 3, 2])
    for found, layer in zip(generator(torch.eye(4).double()[codes]), (generator.scale, generator.shift), strict=True):
        table = nn.Embedding.from_pretrained(layer.weight.T + layer.bias)
        np.testing.assert_allclose(found.detach(), nn.functional.leaky_relu(table(codes), 0.01).detach(), atol=1e-15)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("film", [(), (5,)])
def test_scale_one_and_shift_zero_give_the_plain_decoder(training, film):
    torch.manual_seed(0)
    decoder: Any = FiLMDecoder(6, (9, 12), 30, 4, film, dropout_rate=0.5).train(training)
    layers = []
    for dense, norm, generator in zip(decoder.linears, decoder.norms, decoder.films, strict=True):
        norm.running_mean.normal_()
        for layer, value in ((generator.scale, 1.0), (generator.shift, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, value)
        layers += [dense, norm, nn.LeakyReLU(0.01), decoder.dropout]
    plain = nn.Sequential(*layers, decoder.output, nn.LeakyReLU(0.01))
    z, condition = torch.randn(20, 6), torch.eye(4)[torch.arange(20) % 4]
    torch.manual_seed(1)
    found = decoder(z, condition)
    torch.manual_seed(1)
    assert torch.equal(found, plain(z))


@pytest.mark.parametrize("film", [(), (5,)])
def test_renaming_conditions_with_their_columns_changes_nothing(film):
    made, codes = module(film=film), torch.tensor([0, 1, 2, -1, 2, 0])
    before = made.counterfactual(batch(codes))
    renamed = torch.tensor([2, 0, 1])
    other = batch(torch.where(codes < 0, codes, renamed[codes]))
    assert (made.counterfactual(other)[codes >= 0] - before[codes >= 0]).abs().max() > 0.01
    for layer in inputs(made):
        old = layer.weight.detach().clone()
        layer.weight.data[:, 1 + renamed] = old[:, 1:]
    np.testing.assert_allclose(made.counterfactual(other).detach(), before.detach(), atol=1e-12)


@pytest.mark.parametrize("film", [(), (5,)])
def test_equal_columns_give_equal_predictions(film):
    made = module(film=film)
    one, other, control = (made.counterfactual(batch([code] * 4)) for code in (0, 2, -1))
    assert not torch.allclose(one, other)
    for layer in inputs(made):
        layer.weight.data[:, 3] = layer.weight.data[:, 1]
    assert torch.equal(made.counterfactual(batch([0] * 4)), made.counterfactual(batch([2] * 4)))
    assert torch.equal(made.counterfactual(batch([-1] * 4)), control)


def test_the_latent_representation_ignores_the_label_and_is_almost_non_negative():
    made = module()
    z = made.inference(batch([0, 1, 2, -1]))["z"]
    assert torch.equal(z, made.inference(batch([-1] * 4))["z"])
    raw = made.encoder.latent(made.encoder.hidden(batch([0] * 4)["X"]))
    assert raw.min() < -0.1
    np.testing.assert_allclose(z.detach(), torch.where(raw > 0, raw, 0.01 * raw).detach(), atol=1e-14)


def test_the_loss_is_the_squared_error_over_cells_and_genes_of_the_own_label():
    made, tensors = module(), batch([0, 1, 2, -1])
    predicted = made.counterfactual(tensors)
    found = made.loss(tensors, *made(tensors, compute_loss=False))
    error = np.square((predicted - tensors["X"]).detach().numpy())
    np.testing.assert_allclose(found.loss.item(), error.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.reconstruction_loss["reconstruction_loss"].detach(), error.mean(1), rtol=1e-12)


# ------------------------------------------------------------------ arguments


@pytest.fixture
def schedule(monkeypatch):
    """What `train` hands to the trainer, without training."""
    seen: dict[str, float] = {}

    def fit(trainer, plan, train, validation=None):
        warmup, epochs = plan.n_warmup_steps, trainer.max_epochs
        seen.update(lr=plan.lr, warmup=warmup, batch_size=train.loader.batch_size, epochs=epochs)

    monkeypatch.setattr(Trainer, "fit", fit)
    return seen


@pytest.mark.parametrize(
    ("preset", "expected_widths", "trunk", "schedule_"),
    [
        (None, ([256], 128, [256]), True, (1e-3, 64, 1000)),
        ("default", ([256], 128, [256]), True, (1e-3, 64, 1000)),
        ("published", ([256], 128, [256]), True, (1e-5, 64, 400)),
        ("tuned", ([512, 256], 128, [256, 512]), False, (5e-5, 128, 500)),
    ],
)
def test_presets(adata, schedule, preset, expected_widths, trunk, schedule_):
    model = set_up(adata, preset=preset)
    assert widths(model) == expected_widths
    assert bool(model.module.decoder.films[0].trunk) is trunk
    assert rates(model) == (0.5, 0.2)
    model.train(train_size=1.0, accelerator="cpu")
    # 120 cells are 2 batches of 64 with the incomplete one kept out, so 1 per epoch, and 2000 updates are wanted
    epochs = 2000 if schedule_[2] == 1000 else schedule_[2]
    assert schedule == {"lr": schedule_[0], "warmup": 100, "batch_size": schedule_[1], "epochs": epochs}


def test_explicit_arguments_win_over_the_preset(adata, schedule):
    init = {"n_hidden": 9, "n_latent": 7, "n_layers": 3, "dropout_rate": 0.1, "mask_rate": 0.0, "film_hidden": (4, 3)}
    model = set_up(adata, preset="tuned", **init)
    assert widths(model) == ([9, 9, 9], 7, [9, 9, 9])
    assert rates(model) == (0.1, 0.0)
    generator = model.module.decoder.films[0]
    assert [layer.out_features for layer in generator.trunk if isinstance(layer, nn.Linear)] == [4, 3]
    model.train(3, lr=0.1, batch_size=5, accelerator="cpu", plan_kwargs={"n_warmup_steps": 7})
    assert schedule == {"lr": 0.1, "warmup": 7, "batch_size": 5, "epochs": 3}


@pytest.mark.parametrize(
    ("n_hidden", "n_layers", "expected"),
    [(8, None, [8]), (8, 2, [8, 8]), (np.int64(8), 2, [8, 8]), ((10, 5), None, [10, 5]), ([10, 5, 4], 3, [10, 5, 4])],
)
def test_hidden_widths_are_a_number_or_one_per_layer_and_the_decoder_mirrors_them(adata, n_hidden, n_layers, expected):
    model = set_up(adata, n_hidden=n_hidden, n_layers=n_layers, n_latent=3)
    assert widths(model) == (expected, 3, expected[::-1])


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"preset": "publshed"}, "preset='publshed' is unknown.*did you mean 'published'"),
        ({"n_hidden": ()}, "n_hidden and n_layers give no hidden layer"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_hidden": (8, 4), "n_layers": 3}, r"n_layers=3, but n_hidden=\(8, 4\) holds 2 widths"),
        ({"preset": "tuned", "n_layers": 1}, r"n_layers=1, but n_hidden=\(512, 256\) holds 2 widths"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, message):
    with pytest.raises(ValueError, match=message):
        set_up(adata, **init)


def test_the_embedding_holds_scale_and_shift_of_each_label_control_first(adata, toys):
    model = toys.trained(MTAe, adata)
    table = model.get_perturbation_embedding()
    assert table.index.tolist() == ["control", "A", "B", "C"]
    scale, shift = model.module.decoder.films[0](torch.eye(4))
    np.testing.assert_array_equal(table, torch.cat([scale, shift], dim=1).detach())
    assert table.columns[[0, -1]].tolist() == ["scale_0_0", "shift_0_15"]


# ------------------------------------------------------------------ training


def weights(model):
    return {name: value.detach().clone() for name, value in model.module.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_update_of_the_warm_up_changes_no_weight(adata, toys):
    one_update = {"train_size": 1.0, "batch_size": adata.n_obs}
    start = weights(toys.trained(MTAe, adata, max_epochs=0, **one_update))
    warmed = toys.trained(MTAe, adata, max_epochs=1, **one_update)
    assert same(start, weights(warmed))
    assert float(warmed.history["train_loss"].iloc[0, 0]) > 0
    assert not same(start, weights(toys.trained(MTAe, adata, max_epochs=2, **one_update)))
    cold = toys.trained(MTAe, adata, max_epochs=1, plan_kwargs={"n_warmup_steps": 0}, **one_update)
    assert not same(start, weights(cold))


def test_held_out_cells_change_no_bit(adata, toys):
    held_out = ((adata.obs["context"] == "c") & (adata.obs["perturbation"] == "A")).to_numpy()
    adata.obs["split"] = np.where(held_out, "test", "train")
    changed = adata.copy()
    x = changed.X.toarray()
    x[held_out] = 7 - x[held_out].clip(max=7)
    changed.X = x
    adata.X = adata.X.toarray()
    one, other = (toys.trained(MTAe, data, max_epochs=3, split_key="split") for data in (adata, changed))
    assert same(one.module.state_dict(), other.module.state_dict())
    np.testing.assert_array_equal(one.predict(perturbation="A").X, other.predict(perturbation="A").X)
    # a training cell does matter
    x[np.flatnonzero(~held_out)[0]] += 1
    changed.X = x
    third = toys.trained(MTAe, changed, max_epochs=3, split_key="split")
    assert not same(one.module.state_dict(), third.module.state_dict())


@pytest.fixture(scope="module")
def learnt(toys):
    adata, shift = toys.planted()
    model = toys.trained(
        MTAe,
        adata,
        setup={"context_key": "context"},
        init={"n_hidden": 64, "n_latent": 16, "dropout_rate": 0.3},
        max_epochs=150,
        lr=3e-3,
        split_key="split",
    )
    return model, adata, shift


@pytest.mark.parametrize("realise", ["plain", "residual"])
def test_a_planted_shift_is_transferred_to_the_held_out_context(learnt, realise):
    model, adata, shift = learnt
    predicted = model.predict(perturbation="A", context="b", returns="mean", realise=realise).X[0]
    is_control = ((adata.obs["perturbation"] == "control") & (adata.obs["context"] == "b")).to_numpy()
    moved = predicted - adata.X[is_control].mean(0)
    assert np.corrcoef(moved, shift)[0, 1] > 0.9
    assert (np.sign(moved[:10]) == np.sign(shift[:10])).all()


def test_predictions_use_neither_mask_nor_dropout_and_latents_are_almost_non_negative(learnt):
    model, _, _ = learnt
    np.testing.assert_array_equal(model.predict(perturbation="A").X, model.predict(perturbation="A", batch_size=7).X)
    latent = model.get_latent_representation()
    assert latent.max() > 0
    assert latent.min() > -0.05 * latent.max()


def test_decoding_under_control_reconstructs_control_cells(learnt):
    model, adata, _ = learnt
    predicted = model.predict(perturbation="control", context="b", returns="mean").X[0]
    is_control = ((adata.obs["perturbation"] == "control") & (adata.obs["context"] == "b")).to_numpy()
    assert np.abs(predicted - adata.X[is_control].mean(0)).max() < 0.3

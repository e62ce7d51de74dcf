import numpy as np
import pytest
import torch

from multipert import _keys
from multipert.data._loaders import CellLoader
from multipert.data._store import CellStore
from multipert.nn import Encoder, FiLMDecoder, FiLMGenerator, group_means, linear, multi_hot

CODES = torch.tensor([[0, 2], [1, -1], [-1, -1], [2, 2]])
DOSES = torch.tensor([[1.0, 5.0], [0.5, 0.0], [0.0, 0.0], [1.0, 2.0]])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_multi_hot_sums_the_dose_scaled_parts(dtype):
    expected = [[1, 0, 5], [0, 0.5, 0], [0, 0, 0], [0, 0, 3]]
    np.testing.assert_array_equal(multi_hot(CODES.to(dtype), DOSES, 3), expected)


def test_multi_hot_ignores_what_stands_beside_padding():
    np.testing.assert_array_equal(multi_hot(torch.tensor([[-1, 1]]), torch.tensor([[9.0, 1.0]]), 2), [[0, 1]])


def test_multi_hot_passes_gradients_to_the_doses():
    doses = DOSES.clone().requires_grad_()
    (multi_hot(CODES, doses, 3) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    np.testing.assert_array_equal(doses.grad, [[1, 100], [10, 0], [0, 0], [100, 100]])


def test_linear_layers_start_xavier_uniform():
    torch.manual_seed(0)
    bound = (6 / (300 + 200)) ** 0.5
    weight = linear(300, 200).weight
    assert weight.abs().max() <= bound
    assert abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.02


@pytest.mark.parametrize("hidden", [(), (4, 3)])
def test_the_generator_is_a_leaky_linear_map_of_its_trunk(hidden):
    torch.manual_seed(0)
    generator, condition = FiLMGenerator(3, 5, hidden).double(), torch.randn(6, 3).double()
    inner = condition
    for layer in generator.trunk:
        if isinstance(layer, torch.nn.Linear):
            inner = inner @ layer.weight.T + layer.bias
            inner = torch.where(inner > 0, inner, 0.01 * inner)
    scale, shift = generator(condition)
    for found, layer in ((scale, generator.scale), (shift, generator.shift)):
        value = inner @ layer.weight.T + layer.bias
        np.testing.assert_allclose(found.detach(), torch.where(value > 0, value, 0.01 * value).detach(), atol=1e-12)
    assert len([layer for layer in generator.trunk if isinstance(layer, torch.nn.Linear)]) == len(hidden)


def test_the_encoder_restated():
    torch.manual_seed(0)
    encoder = Encoder(7, (5, 4), 3, dropout_rate=0.5, mask_rate=0.5).double()
    for block in encoder.hidden:
        block[1].running_mean.normal_()
        block[1].running_var.uniform_(0.5, 2)
    x = torch.randn(6, 7).double()
    value = x
    for dense, norm, *_ in encoder.eval().hidden:
        value = value @ dense.weight.T + dense.bias
        value = (value - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
        value = torch.where(value > 0, value, 0.01 * value)
    value = value @ encoder.latent.weight.T + encoder.latent.bias
    value = torch.where(value > 0, value, 0.01 * value)
    np.testing.assert_allclose(encoder(x).detach(), value.detach(), atol=1e-12)


def test_masking_and_dropout_act_in_training_only():
    torch.manual_seed(0)
    encoder, x = Encoder(7, (5,), 3, dropout_rate=0.5, mask_rate=0.5), torch.randn(6, 7)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    kept = Encoder(7, (5,), 3, dropout_rate=0.0, mask_rate=0.0)
    assert torch.equal(kept(x), kept(x))


def test_each_hidden_layer_of_the_decoder_is_modulated_and_the_output_is_not():
    torch.manual_seed(0)
    decoder = FiLMDecoder(3, (4, 5), 7, 2, (), dropout_rate=0.3).double().eval()
    z, condition = torch.randn(6, 3).double(), torch.eye(2).double()[[0, 1, 0, 1, 0, 0]]
    value = z
    for dense, norm, film in zip(decoder.linears, decoder.norms, decoder.films, strict=True):
        scale, shift = film(condition)
        value = scale * norm(dense(value)) + shift
        value = torch.where(value > 0, value, 0.01 * value)
    value = decoder.output(value)
    expected = torch.where(value > 0, value, 0.01 * value)
    np.testing.assert_allclose(decoder(z, condition).detach(), expected.detach(), atol=1e-12)
    for film in decoder.films:
        film.scale.weight.data.zero_()
        film.scale.bias.data.zero_()
        film.shift.weight.data.zero_()
        film.shift.bias.data.zero_()
    blind = decoder(z, condition)
    assert torch.equal(blind, blind[[0]].expand_as(blind))


def test_group_means_equal_those_of_numpy():
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, 1.0, (50, 4)).astype(np.float32)
    context, condition = rng.integers(0, 3, 50).astype(np.int32), rng.integers(0, 2, 50)
    condition[context == 2] = 1
    columns = {_keys.CONTEXT: context[:, None], "condition": condition}
    loader = CellLoader(CellStore(x, columns), np.arange(50), 7)
    means = group_means(loader, lambda batch: batch["condition"])
    pairs = list(zip(means.context.tolist(), means.condition.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]
    for i, (c, p) in enumerate(pairs):
        here = x[(context == c) & (condition == p)].astype(np.float64)
        assert means.n_cells[i] == len(here)
        np.testing.assert_allclose(means.mean[i], here.mean(0), rtol=1e-12)
        np.testing.assert_allclose(means.variance[i], here.var(0), rtol=1e-9)
        np.testing.assert_allclose(means.mean_expm1[i], np.expm1(here).mean(0), rtol=1e-12)


def test_group_means_without_contexts_and_with_extreme_values():
    x = np.array([[-1e4, 1e4], [-1e4, 2e4]], dtype=np.float32)
    loader = CellLoader(CellStore(x, {"condition": np.zeros(2, dtype=np.int64)}), np.arange(2), 1)
    means = group_means(loader, lambda batch: batch["condition"])
    assert means.context.tolist() == [0]
    np.testing.assert_array_equal(means.mean, [[-1e4, 1.5e4]])
    assert torch.isfinite(means.mean_expm1).all()

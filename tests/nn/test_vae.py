"""The blocks of scGen's autoencoder, re-stated without a single layer class."""

import numpy as np
import pytest
import torch
from torch import nn

from multipert.nn import VAEDecoder, VAEEncoder

EPS, SLOPE = 1e-3, 0.01


def normed(w, name, x):
    scaled = (x - w[f"{name}.running_mean"]) / torch.sqrt(w[f"{name}.running_var"] + EPS)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def blocks(w, x, n):
    for i in range(n):
        x = normed(w, f"hidden.{i}.1", affine(w, f"hidden.{i}.0", x))
        x = torch.maximum(x, torch.zeros(())) + SLOPE * torch.minimum(x, torch.zeros(()))
    return x


def evaluated(part):
    """In float64 and evaluation mode, with running statistics that are not those of the start."""
    torch.manual_seed(0)
    for norm in (layer for layer in part.modules() if isinstance(layer, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return part.double().eval()


@pytest.mark.parametrize("hidden", [(7,), (7, 5), (7, 5, 6)])
def test_the_encoder_is_blocks_and_two_linear_heads(hidden):
    encoder, x = evaluated(VAEEncoder(9, hidden, 4, 0.2)), torch.rand(6, 9, dtype=torch.float64) * 3
    w = encoder.state_dict()
    inner = blocks(w, x, len(hidden))
    mean, variance = encoder(x)
    np.testing.assert_allclose(mean.detach(), affine(w, "mean", inner), atol=1e-12)
    np.testing.assert_allclose(variance.detach(), torch.exp(affine(w, "log_variance", inner)) + 1e-4, atol=1e-12)


@pytest.mark.parametrize("hidden", [(7,), (7, 5), (7, 5, 6)])
def test_the_decoder_is_blocks_and_a_linear_output_that_may_be_negative(hidden):
    decoder, z = evaluated(VAEDecoder(4, hidden, 9, 0.2)), torch.randn(50, 4, dtype=torch.float64)
    w, found = decoder.state_dict(), decoder(z).detach()
    np.testing.assert_allclose(found, affine(w, "output", blocks(w, z, len(hidden))), atol=1e-12)
    assert found.min() < 0


def test_the_linear_decoder_is_one_layer_and_a_batch_norm():
    decoder, z = evaluated(VAEDecoder(4, (7, 5), 9, 0.2, linear=True)), torch.randn(6, 4, dtype=torch.float64)
    w = decoder.state_dict()
    np.testing.assert_allclose(decoder(z).detach(), normed(w, "norm", affine(w, "output", z)), atol=1e-12)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 4 * 9 + 3 * 9


@pytest.mark.parametrize("part", [VAEEncoder(9, (8, 8, 8), 4, 0.35), VAEDecoder(4, (8, 8, 8), 9, 0.35)])
def test_every_layer_has_weights_and_rates_of_its_own(part):
    linears = [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
    # each is counted once, so a layer used twice would be missing
    assert sum(p.numel() for p in part.parameters()) == sum(
        layer.weight.numel() + layer.bias.numel() for layer in part.modules() if hasattr(layer, "weight")
    )
    assert len(linears) == len({id(layer.weight) for layer in linears}) >= 4
    assert {layer.p for layer in part.modules() if isinstance(layer, nn.Dropout)} == {0.35}
    norms = [layer for layer in part.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert [(norm.momentum, norm.eps) for norm in norms] == [(0.01, 1e-3)] * 3


def test_linear_layers_start_as_in_pytorch():
    torch.manual_seed(0)
    encoder = VAEEncoder(400, (300,), 10, 0.2)
    weight = encoder.hidden[0][0].weight.detach()
    # uniform within 1 / sqrt(n_in), where Xavier would give sqrt(6 / (n_in + n_out))
    assert 0.99 / 20 < weight.abs().max() <= 1 / 20
    np.testing.assert_allclose(weight.std(), 1 / 20 / np.sqrt(3), rtol=0.02)

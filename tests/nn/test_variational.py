"""Distributions of the latent representation, their divergences, and noise that stays with its cell."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

from multipert.data._noise import cell_generator, cell_keys
from multipert.nn import GaussianLatent, kl_to_standard_normal, noise_of_cells
from multipert.nn._variational import bernoulli_divergence, normal_divergence


def keys(n, seed=0):
    return torch.from_numpy(cell_keys(seed, [f"cell{i}" for i in range(n)]))


def test_the_divergence_is_the_integral_summed_over_dimensions():
    mean, log_variance = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = np.linspace(-30, 30, 20_001)[:, None, None]
    deviation = np.exp(log_variance.numpy() / 2)
    density = np.exp(-(((at - mean.numpy()) / deviation) ** 2) / 2) / deviation / np.sqrt(2 * np.pi)
    log_ratio = (at**2 - ((at - mean.numpy()) / deviation) ** 2) / 2 - np.log(deviation)
    expected = (density * log_ratio).sum(0) * (at[1] - at[0])[0]
    np.testing.assert_allclose(kl_to_standard_normal(mean, log_variance), expected.sum(1), rtol=1e-9)


def test_closed_and_sampled_divergences_agree():
    generator = torch.Generator().manual_seed(0)
    logits, mean, log_variance = torch.randn(3, 6, 4, generator=generator)
    variance, n = log_variance.exp(), 1000
    masks = torch.bernoulli(torch.sigmoid(logits).expand(n, -1, -1), generator=generator)
    values = mean + variance.sqrt() * torch.randn(n, 6, 4, generator=generator)
    pairs = [
        (bernoulli_divergence(torch.sigmoid(logits), logits, -2.0), bernoulli_divergence(masks, logits, -2.0)),
        (normal_divergence(mean, variance, 0.8), normal_divergence(mean, variance, 0.8, values)),
    ]
    for closed, sampled in pairs:
        sampled = sampled.sum((1, 2))
        error = abs(sampled.mean() - closed.sum())
        assert error < 3 * sampled.std() / math.sqrt(n)
        assert (closed >= 0).all()
    prior, normal = Bernoulli(logits=torch.tensor(-2.0)), Normal(0.0, 0.8)
    torch.testing.assert_close(pairs[0][0], kl_divergence(Bernoulli(logits=logits), prior))
    torch.testing.assert_close(pairs[1][0], kl_divergence(Normal(mean, variance.sqrt()), normal))


def test_the_divergence_from_the_standard_normal_is_that_of_both_functions():
    mean, log_variance = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = normal_divergence(mean, log_variance.exp(), 1.0).sum(1)
    torch.testing.assert_close(found, kl_to_standard_normal(mean, log_variance))


def test_trained_heads_are_linear_and_frozen_ones_activated():
    torch.manual_seed(0)
    hidden = torch.randn(9, 5)
    for frozen in (False, True):
        heads = GaussianLatent(5, frozen=frozen)
        for found, layer in zip(heads(hidden), (heads.mean, heads.log_variance), strict=True):
            value = hidden @ layer.weight.T + layer.bias
            assert (value < 0).any()
            expected = torch.where(value < 0, 0.01 * value, value) if frozen else value
            np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)
        assert {parameter.requires_grad for parameter in heads.parameters()} == {not frozen}


def test_noise_is_standard_normal_and_independent_over_cells_and_dimensions():
    noise = noise_of_cells(keys(4000), 5).double()
    assert noise.mean(0).abs().max() < 5 / np.sqrt(4000)
    assert (noise.var(0) - 1).abs().max() < 5 * np.sqrt(2 / 4000)
    correlation = np.corrcoef(np.c_[noise, noise.roll(1, dims=0)].T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    assert (noise.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), order=st.permutations(range(6)), n=st.integers(1, 6))
def test_noise_depends_on_the_key_only(seed, order, n):
    every = noise_of_cells(keys(6, seed), 4)
    some = list(order)[:n]
    assert torch.equal(noise_of_cells(keys(6, seed)[some], 4), every[some])
    # further dimensions come behind
    assert torch.equal(noise_of_cells(keys(6, seed), 9)[:, :4], every)


def test_latent_noise_and_the_draw_of_counts_are_apart():
    """Both are keyed by seed and cell; one stream for both would tie a cell's latent noise to its counts."""
    noise = noise_of_cells(keys(50), 8).numpy()
    of_counts = np.stack([cell_generator(0, f"cell{i}").standard_normal(8, dtype=np.float32) for i in range(50)])
    assert abs(np.corrcoef(noise.ravel(), of_counts.ravel())[0, 1]) < 5 / np.sqrt(400)

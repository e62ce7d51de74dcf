"""Masks and embeddings that the cells of a perturbation share."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from multipert.nn._offsets import LEAST_VARIANCE, Offsets, joined

N_PERTURBATIONS, N_LATENT = 4, 3
CODES = torch.arange(N_PERTURBATIONS)


def made(network=None, **changes):
    """Offsets with parameters that are not those of the start."""
    arguments = {
        "sparsity": True,
        "stochastic": True,
        "mask_prior": 0.1,
        "mask_logit": 0.0,
        "temperature": 1.0,
        "embedding_scale": 0.8,
    }
    torch.manual_seed(0)
    offsets = Offsets(N_PERTURBATIONS, N_LATENT, network, **{**arguments, **changes})
    for parameter in offsets.parameters():
        nn.init.normal_(parameter)
    return offsets


def noise(*lead):
    shape = (*lead, N_PERTURBATIONS, N_LATENT)
    return torch.logit(torch.rand(shape), eps=1e-6), torch.randn(shape)


def test_straight_through_masks_are_zeros_and_ones_with_a_gradient():
    offsets = made(temperature=0.7)
    torch.manual_seed(0)
    shape = (4000, N_PERTURBATIONS, 3)
    noise = torch.logit(torch.rand(shape), eps=1e-6), torch.zeros(shape)
    mask = offsets(torch.arange(N_PERTURBATIONS), noise).mask
    assert set(mask.detach().unique().tolist()) == {0.0, 1.0}
    probability = torch.sigmoid(offsets.logits).detach()
    error = (mask.detach().mean(0) - probability).abs() / (probability * (1 - probability) / len(mask)).sqrt()
    assert error.max() < 4.5
    mask.sum().backward()
    soft = torch.sigmoid((offsets.logits + noise[0]) / 0.7).detach()
    torch.testing.assert_close(offsets.logits.grad, (soft * (1 - soft) / 0.7).sum(0))
    assert (offsets.logits.grad > 0).all()


def test_without_noise_masks_are_the_likelier_ones_and_embeddings_their_means():
    offsets = made()
    drawn = offsets(CODES)
    assert torch.equal(drawn.mask, (offsets.probabilities(CODES) > 0.5).float())
    assert 0 < drawn.mask.sum() < drawn.mask.numel()
    torch.testing.assert_close(drawn.shift, drawn.mask * offsets.mean)


@pytest.mark.parametrize("sparsity", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_divergence_is_that_of_the_distributions_that_are_there(sparsity, stochastic):
    offsets = made(sparsity=sparsity, stochastic=stochastic)
    assert offsets.is_random == (sparsity or stochastic)
    expected = torch.zeros(N_PERTURBATIONS, N_LATENT)
    if sparsity:
        expected = expected + kl_divergence(Bernoulli(logits=offsets.logits), Bernoulli(torch.tensor(0.1)))
    if stochastic:
        scale = offsets.log_scale.exp() + LEAST_VARIANCE
        expected = expected + kl_divergence(Normal(offsets.mean, scale), Normal(0.0, 0.8))
    found = offsets.divergence(offsets(CODES, noise()), analytic=True)
    torch.testing.assert_close(found, expected.sum(1), rtol=1e-4, atol=1e-5)


def test_a_network_reads_the_mask_and_the_unit_vector():
    offsets = made(nn.Linear(N_LATENT + N_PERTURBATIONS, 2 * N_LATENT))
    drawn = offsets(CODES, noise(5))
    unit = torch.eye(N_PERTURBATIONS).expand(5, -1, -1)
    mean, log_variance = offsets.network(torch.cat([drawn.mask, unit], dim=2)).chunk(2, dim=2)
    torch.testing.assert_close(drawn.mean, mean)
    torch.testing.assert_close(drawn.variance, log_variance.exp() + LEAST_VARIANCE)
    assert not torch.equal(drawn.embedding, drawn.mean)


def test_parts_of_several_shapes_stand_side_by_side():
    left, right = torch.randn(4, 1, 2), torch.randn(3, 5)
    found = joined(left, right)
    assert torch.equal(found[..., :2], left.expand(4, 3, 2))
    assert torch.equal(found[..., 2:], right.expand(4, 3, 5))

"""Discriminators of the latent representation, against their published equations written out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from multipert.data._noise import cell_keys
from multipert.nn import ConditionAdversary, GaussianAdversary

N_LATENT = 6
CODES = torch.tensor([[-1], [0], [2], [-1], [1], [0]])
PERTURBED = (CODES >= 0).all(1)


def batch(codes=CODES, seed=0):
    keys = cell_keys(seed, [f"cell{i}" for i in range(len(codes))])
    x = torch.zeros(len(codes), 3, dtype=torch.float64)
    return {"X": x, "perturbation": codes, "cell_key": torch.from_numpy(keys)}


def made(cls, seed=0) -> Any:
    """An adversary without dropout, in float64, whose power iterations have converged."""
    torch.manual_seed(seed)
    adversary = cls(N_LATENT).double()
    with torch.no_grad():
        for _ in range(200):
            adversary.discriminator(torch.zeros(1, N_LATENT, dtype=torch.float64))
    return adversary.eval()


def latent(n=6):
    return torch.randn(n, N_LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def logits(adversary, z):
    """The discriminator without a layer class; its first weight is divided by the largest singular value."""
    first, *_, last = adversary.discriminator
    weight = first.parametrizations.weight.original
    hidden = z @ (weight / torch.linalg.svdvals(weight)[0]).T + first.bias
    hidden = torch.maximum(hidden, 0.01 * hidden)
    return (hidden @ last.weight.T + last.bias)[:, 0]


def entropy(logit, target):
    p = 1 / (1 + torch.exp(-logit))
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()


def close(found, expected):
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cls", [ConditionAdversary, GaussianAdversary])
def test_the_discriminator_has_the_published_size_and_dropout(cls):
    adversary: Any = cls(128)
    assert sum(parameter.numel() for parameter in adversary.parameters()) == 4_161
    assert [layer.p for layer in adversary.modules() if isinstance(layer, nn.Dropout)] == [0.1]


@pytest.mark.parametrize("cls", [ConditionAdversary, GaussianAdversary])
def test_only_the_first_layer_is_bounded(cls):
    adversary, z = made(cls), latent()
    close(adversary.discriminator(z)[:, 0], logits(adversary, z))
    before = adversary.discriminator(z)
    adversary.discriminator[0].parametrizations.weight.original.data *= 50
    close(adversary.discriminator(z), before)
    last = adversary.discriminator[-1]
    last.weight.data *= 50
    close(adversary.discriminator(z) - last.bias, 50 * (before - last.bias))


def test_the_encoder_is_rewarded_for_perturbed_cells_that_pass_for_control():
    adversary, z = made(ConditionAdversary), latent().requires_grad_()
    target = adversary.targets(batch())
    found = adversary.penalty(z, batch())
    close(found, entropy(logits(adversary, z)[PERTURBED], 1 - target[PERTURBED]))
    (gradient,) = torch.autograd.grad(found, z)
    assert (gradient[~PERTURBED] == 0).all()
    assert (gradient[PERTURBED] != 0).any(dim=1).all()
    # a step against the gradient raises the logit, which is control's side
    raised = logits(adversary, z - 1e-3 * gradient)[PERTURBED] - logits(adversary, z)[PERTURBED]
    assert (raised > 0).all()


def test_the_discriminator_learns_from_all_cells():
    adversary, z = made(ConditionAdversary), latent()
    close(adversary.critic_loss(z, batch()), entropy(logits(adversary, z), adversary.targets(batch())))
    parameters = list(adversary.parameters())
    for _ in range(300):
        gradients = torch.autograd.grad(adversary.critic_loss(z, batch()), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data -= 0.5 * gradient
    found = torch.sigmoid(adversary.discriminator(z)[:, 0])
    assert (found[~PERTURBED] > 0.8).all()
    assert (found[PERTURBED] < 0.2).all()


def test_a_batch_of_control_cells_has_no_penalty_but_a_critic_loss():
    adversary, control = made(ConditionAdversary), batch(torch.full((4, 1), -1))
    assert adversary.penalty(latent(4), control) is None
    assert torch.isfinite(adversary.critic_loss(latent(4), control))


def test_soft_labels_lie_in_their_ranges_spread_over_them_and_stay_with_their_cell():
    adversary = made(ConditionAdversary)
    codes = torch.where(torch.arange(4000)[:, None] % 2 == 0, -1, torch.arange(4000)[:, None] % 5)
    tensors = batch(codes)
    target, control = adversary.targets(tensors), codes[:, 0] < 0
    for values, low in ((target[control], 0.9), (target[~control], 0.0)):
        assert low <= values.min() <= low + 1e-3
        assert low + 0.1 - 1e-3 <= values.max() <= low + 0.1
        # five standard errors of the mean of 2000 uniform numbers
        assert abs(values.mean() - low - 0.05) < 5 * 0.1 / np.sqrt(12 * 2000)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adversary.targets({k: v[order] for k, v in tensors.items()}), target[order])
    assert (adversary.targets(batch(codes, seed=1)) != target).double().mean() > 0.99


def test_a_cell_of_a_combination_is_perturbed_also_where_slots_are_padded():
    adversary = made(ConditionAdversary)
    target = adversary.targets(batch(torch.tensor([[0, -1], [-1, -1], [0, 1], [-1, 2]])))
    assert (target > 0.5).tolist() == [False, True, False, False]


def test_the_gaussian_adversary_tells_cells_from_noise():
    adversary, z = made(GaussianAdversary), latent()
    close(adversary.penalty(z, batch()), entropy(logits(adversary, z), torch.ones(6)))
    torch.manual_seed(5)
    found = adversary.critic_loss(z, batch())
    torch.manual_seed(5)
    noise = torch.randn_like(z)
    of_noise = entropy(logits(adversary, noise), torch.ones(6))
    close(found, (entropy(logits(adversary, z), torch.zeros(6)) + of_noise) / 2)
    # whatever the labels
    close(adversary.penalty(z, batch(torch.full((6, 1), -1))), adversary.penalty(z, batch()))

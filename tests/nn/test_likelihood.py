"""Log-likelihoods against SciPy's distributions and scvi-tools', and the layers that give their parameters."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import nn

from multipert.nn._likelihood import (
    HEADS,
    NormalHead,
    counts_of,
    library_of,
    log_normalised,
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)

COUNTS = np.array([0, 1, 2, 7, 40, 300])
MEANS = np.geomspace(1e-3, 500, 6)


def grid(dtype=torch.float64):
    """Every count with every mean, one cell per count and one gene per mean."""
    counts, means = np.meshgrid(COUNTS, MEANS, indexing="ij")
    return torch.tensor(counts, dtype=dtype), torch.tensor(means, dtype=dtype)


def scipy_nb(counts, means, dispersion):
    return scipy.stats.nbinom.logpmf(counts.numpy(), dispersion, dispersion / (dispersion + means.numpy()))


@pytest.mark.parametrize("log_dispersion", [-4.0, 0.0, 3.0, 5.2, 5.4, 9.0])
def test_nb_is_that_of_scipy(log_dispersion):
    counts, means = grid()
    found = nb_log_prob(counts, means, torch.full((len(MEANS),), log_dispersion, dtype=torch.float64))
    np.testing.assert_allclose(found, scipy_nb(counts, means, np.exp(log_dispersion)), rtol=1e-9, atol=1e-9)


def test_nb_takes_a_dispersion_for_each_gene_and_is_that_of_scvi_tools():
    counts, means = grid()
    log_dispersion = torch.linspace(-3, 4, len(MEANS)).double()
    expected = NegativeBinomial(mu=means, theta=log_dispersion.exp()).log_prob(counts)
    np.testing.assert_allclose(nb_log_prob(counts, means, log_dispersion), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.floats(0.01, 400), st.floats(-6, 11.9))
def test_single_precision_loses_no_digit_that_matters(count, mean, log_dispersion):
    one = torch.tensor([[float(count)]]), torch.tensor([[mean]]), torch.tensor([log_dispersion])
    found = nb_log_prob(*one).item()
    expected = nb_log_prob(*(value.double() for value in one)).item()
    assert abs(found - expected) < 2e-3 + 1e-5 * abs(expected)


def test_a_large_dispersion_is_nearly_poisson():
    counts, means = grid()
    small = means <= 1
    found = nb_log_prob(counts, means, torch.full((len(MEANS),), 12.0).double())
    np.testing.assert_allclose(found[small][:3], poisson_log_prob(counts, means)[small][:3], atol=1e-4)


def test_nb_sums_to_one_and_has_the_mean_and_variance_that_it_names():
    counts, mean, dispersion = torch.arange(4000.0).double()[:, None], 12.0, 1.7
    p = nb_log_prob(counts, torch.full_like(counts, mean), torch.tensor([np.log(dispersion)])).exp()
    np.testing.assert_allclose(p.sum(), 1, atol=1e-9)
    np.testing.assert_allclose((p * counts).sum(), mean, rtol=1e-7)
    np.testing.assert_allclose((p * (counts - mean) ** 2).sum(), mean + mean**2 / dispersion, rtol=1e-6)


def test_zinb_is_the_mixture_and_that_of_scvi_tools():
    counts, means = grid()
    log_dispersion, logits = torch.linspace(-2, 2, len(MEANS)).double(), torch.linspace(-3, 3, counts.numel()).double()
    logits = logits.reshape(counts.shape)
    found = zinb_log_prob(counts, means, log_dispersion, logits)
    share = scipy.special.expit(logits.numpy())
    mixture = share * (counts.numpy() == 0) + (1 - share) * np.exp(
        scipy_nb(counts, means, log_dispersion.exp().numpy())
    )
    likely = mixture > 1e-280
    np.testing.assert_allclose(found.numpy()[likely], np.log(mixture[likely]), rtol=1e-8, atol=1e-9)
    theirs = ZeroInflatedNegativeBinomial(mu=means, theta=log_dispersion.exp(), zi_logits=logits).log_prob(counts)
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-4)


def test_poisson_and_normal_are_those_of_scipy():
    counts, means = grid()
    expected = scipy.stats.poisson.logpmf(counts.numpy(), means.numpy())
    np.testing.assert_allclose(poisson_log_prob(counts, means), expected, rtol=1e-9, atol=1e-9)
    variance = means + 0.3
    expected = scipy.stats.norm.logpdf(counts.numpy(), means.numpy(), np.sqrt(variance.numpy()))
    np.testing.assert_allclose(normal_log_prob(counts, means, variance), expected, rtol=1e-9)


@pytest.mark.parametrize("log_prob", [nb_log_prob, poisson_log_prob])
def test_a_mean_of_zero_gives_finite_values_and_gradients(log_prob):
    counts, mean = torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2, requires_grad=True)
    found = log_prob(counts, mean, torch.zeros(2)) if log_prob is nb_log_prob else log_prob(counts, mean)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(mean.grad).all()


@pytest.mark.parametrize("log_dispersion", [-40.0, 40.0])
def test_extreme_dispersions_give_finite_values_and_gradients(log_dispersion):
    counts, means = grid(torch.float32)
    dispersion = torch.full((len(MEANS),), log_dispersion, requires_grad=True)
    means.requires_grad_()
    found = nb_log_prob(counts, means, dispersion)
    found.sum().backward()
    for values in (found, means.grad, dispersion.grad):
        assert torch.isfinite(values).all()


# ------------------------------------------------------------------ counts of a batch


@pytest.fixture
def cells():
    """Counts, a cell without any among them, and the batch that holds them log-normalised."""
    counts = np.random.default_rng(0).poisson(np.geomspace(0.1, 300, 8), (5, 8)).astype(np.float32)
    counts[2] = 0
    total = counts.sum(1)
    factor = np.where(total > 0, 1e4 / np.where(total > 0, total, 1), 1).astype(np.float32)
    return counts, {"X": torch.from_numpy(np.log1p(factor[:, None] * counts)), "size_factor": torch.from_numpy(factor)}


def test_counts_and_library_are_the_ones_that_were_normalised(cells):
    counts, tensors = cells
    np.testing.assert_array_equal(counts_of(tensors), counts)
    expected = counts.sum(1)
    expected[2] = 1
    np.testing.assert_array_equal(library_of(tensors), expected)


def test_counts_go_back_to_the_expression(cells):
    counts, tensors = cells
    np.testing.assert_allclose(log_normalised(torch.from_numpy(counts), tensors), tensors["X"], atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_a_trained_head_finds_the_distribution_of_its_cells(name):
    torch.manual_seed(0)
    rates = torch.tensor([0.5, 5.0, 40.0])
    counts = torch.poisson(rates.expand(600, 3))
    factor = 20 / counts.sum(1).clamp(min=1)
    tensors = {"X": torch.log1p(factor[:, None] * counts), "size_factor": factor}
    head = HEADS[name](1, 3)
    hidden = torch.ones(600, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        loss = -head.log_prob(tensors, head(hidden, tensors)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoded = head(hidden, tensors)
    assert decoded["px"].shape == tensors["X"].shape
    if name == "normal":
        np.testing.assert_allclose(decoded["px"][0].detach(), tensors["X"].mean(0), atol=0.02)
        np.testing.assert_allclose(decoded["variance"][0].detach(), tensors["X"].var(0), rtol=0.1)
    elif name == "mse":
        np.testing.assert_allclose(decoded["px"][0].detach(), tensors["X"].mean(0), atol=0.02)
        np.testing.assert_allclose(loss.item(), tensors["X"].var(0, correction=0).sum(), rtol=1e-3)
    else:
        mean = torch.expm1(decoded["px"]) / factor[:, None]
        np.testing.assert_allclose(mean.mean(0).detach(), rates, rtol=0.1)


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_mean_counts_add_up_to_the_library_of_the_cell(name, cells):
    _, tensors = cells
    torch.manual_seed(0)
    head = HEADS[name](4, 8)
    decoded = head(torch.randn(5, 4), tensors)
    np.testing.assert_allclose(decoded["mean"].sum(1).detach(), library_of(tensors), rtol=1e-5)
    expected = decoded["mean"] * (torch.sigmoid(-decoded["dropout_logits"]) if name == "zinb" else 1)
    np.testing.assert_allclose(decoded["px"].detach(), log_normalised(expected, tensors).detach(), atol=1e-6)


def test_a_normal_head_never_has_a_variance_of_zero_or_infinity():
    head = HEADS["normal"](1, 2)
    nn.init.constant_(head.log_variance.weight, 0)
    head.log_variance.bias.data = torch.tensor([-200.0, 200.0])
    variance = head(torch.ones(1, 1), {})["variance"]
    assert torch.isfinite(variance).all()
    np.testing.assert_allclose(variance[0, 0].detach(), 1e-4)
    bare = NormalHead(1, 2, least_variance=0.0)
    bare.load_state_dict(head.state_dict())
    assert bare(torch.ones(1, 1), {})["variance"][0, 0] == 0

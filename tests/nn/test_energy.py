"""The energy distance with gradient, and rates of Poisson counts from means of their logarithms."""

import numpy as np
import pytest
import torch

from multipert.metrics import edistance
from multipert.nn import energy_distance
from multipert.nn._poisson import rate_of_mean


def test_the_energy_distance_is_the_unbiased_one_of_the_metrics():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(12, 3)), rng.normal(1, 2, size=(9, 3))
    found = energy_distance(torch.from_numpy(one), torch.from_numpy(other))
    np.testing.assert_allclose(found, edistance(one, other, unbiased=True), rtol=1e-12)


def test_samples_of_one_distribution_are_at_distance_zero_on_average():
    rng = np.random.default_rng(1)
    found = [float(energy_distance(*(torch.from_numpy(rng.normal(size=(8, 2))) for _ in range(2)))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert min(found) < 0


def test_its_gradient_moves_points_towards_the_others():
    points = torch.zeros(6, 2, requires_grad=True)
    target = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + 3
    start = energy_distance(points, target).item()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(energy_distance(points, target), points)
        assert torch.isfinite(gradient).all()
        points = (points - 0.5 * gradient).detach().requires_grad_()
    assert energy_distance(points, target).item() < 0.3 * start


def test_sets_of_one_point_have_no_spread():
    found = energy_distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0]]))
    assert found.item() == pytest.approx(10)


@pytest.mark.parametrize("unit", [0.1, 1.0, 7.0])
def test_rates_give_back_their_means(unit):
    rng = np.random.default_rng(0)
    rates = unit * np.array([0.01, 0.5, 3.0, 40.0])
    means = np.log1p(unit * rng.poisson(rates / unit, size=(400_000, 4))).mean(axis=0)
    np.testing.assert_allclose(rate_of_mean(means, unit), rates, rtol=0.03)
    assert (np.diff(rate_of_mean(np.linspace(0, 5, 200), unit)) > 0).all()

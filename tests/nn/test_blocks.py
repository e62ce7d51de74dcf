"""Hidden layers, re-stated without a single layer class."""

from functools import partial

import pytest
import torch
from torch import nn

from multipert.nn._blocks import blocks

WIDTHS = (7, 5, 4)


def evaluated(**changes):
    """In float64 and evaluation mode, with no number left at its start."""
    torch.manual_seed(0)
    network = blocks(WIDTHS, 0.3, **changes).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return network


def normed(norm, w, name, x):
    if norm == "none":
        return x
    if norm == "batch":
        mean, variance, eps = w[f"{name}.running_mean"], w[f"{name}.running_var"], 1e-3
    else:
        mean, variance, eps = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0), 1e-5
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layers_are_their_equations(norm, bias):
    network = evaluated(norm=norm, bias=bias)
    w, x = network.state_dict(), torch.randn(6, 7).double()
    expected = x
    for layer in range(2):
        expected = expected @ w[f"{layer}.0.weight"].T + (w[f"{layer}.0.bias"] if bias else 0)
        expected = normed(norm, w, f"{layer}.1", expected).clamp(min=0)
    torch.testing.assert_close(network(x), expected)
    assert bias == ("0.0.bias" in w)


def test_the_activation_is_the_given_one():
    network, x = evaluated(norm="none", activation=partial(nn.LeakyReLU, 0.5)), torch.randn(6, 7).double()
    assert (network(x) < 0).any()
    assert (evaluated(norm="none")(x) >= 0).all()


def test_statistics_move_by_a_hundredth_and_units_are_dropped_in_training_only():
    network, x = blocks((7, 500), 0.3), torch.randn(50, 7)
    assert (network.train()(x) == 0).float().mean() > 0.55
    mean = (x @ network[0][0].weight.T + network[0][0].bias).mean(0)
    torch.testing.assert_close(network[0][1].running_mean, 0.01 * mean)
    assert torch.equal(network.eval()(x), network(x))


def test_one_width_gives_no_layer():
    x = torch.randn(2, 7)
    assert torch.equal(blocks((7,))(x), x)

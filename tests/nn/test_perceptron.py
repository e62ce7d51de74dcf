"""The perceptron of PerturBench's models restated, and labels as its input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multipert.nn import LabelVector, Perceptron, distinct_rows, output_activation
from multipert.nn._perceptron import ResidualPerceptron

CODES = torch.tensor([[0, 2], [1, -1], [-1, -1], [2, 0]])
DOSES = torch.tensor([[1.0, 5.0], [0.5, 0.0], [0.0, 0.0], [5.0, 1.0]])


def batch(codes=CODES, doses=DOSES):
    return {"X": torch.zeros(len(codes), 0, dtype=doses.dtype), "perturbation": codes, "dose": doses}


def restated(network, x, variant, n_layers):
    """The network as plain products, its weights by name."""
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
    x = x.numpy()
    if variant == "linear_first":
        x = x @ weights["first.weight"].T + weights["first.bias"]
    for layer in range(n_layers):
        x = x @ weights[f"hidden.{layer}.0.weight"].T + weights[f"hidden.{layer}.0.bias"]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        if f"hidden.{layer}.1.weight" in weights:
            x = x * weights[f"hidden.{layer}.1.weight"] + weights[f"hidden.{layer}.1.bias"]
        x = np.maximum(x, 0)
    return x @ weights["output.weight"].T + weights["output.bias"]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("variant", ["linear_first", "standard"])
def test_the_network_is_its_equations(variant, n_layers, affine):
    torch.manual_seed(0)
    network = Perceptron(7, 5, n_layers, 3, 0.4, variant, affine).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 7).double()
    np.testing.assert_allclose(network(x).detach(), restated(network, x, variant, n_layers), atol=1e-12)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_later_layers_of_the_residual_network_add_to_what_they_read(n_layers):
    torch.manual_seed(0)
    network, x = ResidualPerceptron(7, 5, n_layers, 3, 0.4).double().eval(), torch.randn(6, 7).double()
    found, (first, *others) = network(x), network.hidden
    assert len(others) == n_layers - 1
    state = nn.functional.leaky_relu(x @ first.weight.T + first.bias, 0.01)
    for layer in others:
        state = state + nn.functional.leaky_relu(state @ layer.weight.T + layer.bias, 0.01)
    torch.testing.assert_close(found, state @ network.output.weight.T + network.output.bias)


def test_linear_first_has_one_linear_layer_more_and_norms_learn_nothing_unless_asked():
    shapes = {
        variant: [tuple(value.shape) for name, value in Perceptron(7, 5, 2, 3, 0.1, variant).named_parameters()]
        for variant in ("standard", "linear_first")
    }
    assert shapes["standard"] == [(5, 7), (5,), (5, 5), (5,), (3, 5), (3,)]
    assert shapes["linear_first"] == [(5, 7), (5,), (5, 5), (5,), (5, 5), (5,), (3, 5), (3,)]
    affine = Perceptron(7, 5, 2, 3, 0.1, "standard", affine=True)
    assert sum(p.numel() for p in affine.parameters()) == sum(math.prod(s) for s in shapes["standard"]) + 2 * 2 * 5


def test_nothing_bends_between_the_first_two_layers_of_linear_first():
    torch.manual_seed(0)
    first = Perceptron(7, 9, 1, 3, 0.0, "linear_first").double().eval()
    merged = Perceptron(7, 9, 1, 3, 0.0, "standard").double().eval()
    one, two = first.first, first.hidden[0][0]
    with torch.no_grad():
        merged.hidden[0][0].weight.copy_(two.weight @ one.weight)
        merged.hidden[0][0].bias.copy_(two.weight @ one.bias + two.bias)
    merged.output = first.output
    x = torch.randn(5, 7).double()
    np.testing.assert_allclose(first(x).detach(), merged(x).detach(), atol=1e-12)


def test_dropout_comes_after_each_hidden_layer_and_in_training_only():
    network = Perceptron(4, 1000, 2, 1000, 0.3).train()
    rates = [part.p for part in network.modules() if isinstance(part, nn.Dropout)]
    assert rates == [0.3, 0.3]
    inner = network.hidden(network.first(torch.ones(1, 4)))
    zeros = (network.eval().hidden(network.first(torch.ones(1, 4))) == 0).float().mean()
    assert abs((inner == 0).float().mean() - (zeros + 0.3 * (1 - zeros))) < 0.06


def test_one_cell_is_a_batch():
    for variant in ("linear_first", "standard"):
        network = Perceptron(7, 1, 1, 1, 0.0, variant)
        assert network(torch.ones(1, 7)).shape == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 0}, "n_layers=0 must be at least 1"),
        ({"n_hidden": 0}, "n_hidden=0"),
        ({"n_in": 0}, "n_in=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"variant": "residual"}, "variant='residual' is unknown; known: 'linear_first', 'standard'"),
    ],
)
def test_arguments_that_make_no_network_are_named(change, message):
    arguments = {"n_in": 7, "n_hidden": 5, "n_layers": 1, "n_out": 3, "dropout_rate": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        Perceptron(**arguments)


def test_activations_of_the_output():
    x = torch.tensor([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(output_activation("softplus")(x), np.log1p(np.exp(x)), rtol=1e-6)
    np.testing.assert_array_equal(output_activation("relu")(x), [0, 0, 3])
    np.testing.assert_array_equal(output_activation("identity")(x), x)
    with pytest.raises(ValueError, match="output_activation='exp' is unknown; known: 'softplus', 'relu', 'identity'"):
        output_activation("exp")


# ------------------------------------------------------------------ labels


def test_labels_are_sums_of_unit_vectors_and_control_is_zero():
    np.testing.assert_array_equal(LabelVector(3)(batch()), [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]])


def test_doses_are_logarithmic_and_go_to_control():
    low, high = np.log1p([1.0, 5.0])
    found = LabelVector(3, doses=True)(batch())
    np.testing.assert_allclose(
        found, [[low, 0, high], [0, np.log1p(0.5), 0], [0, 0, 0], [low, 0, high]], rtol=1e-6, atol=0
    )
    tiny = LabelVector(3, doses=True)(batch(torch.tensor([[1, -1]]), torch.tensor([[1e-6, 0.0]])))
    assert tiny.abs().max() < 2e-6


@pytest.mark.parametrize("doses", [False, True])
def test_a_given_embedding_takes_the_place_of_the_unit_vectors(doses):
    unit, given_ = LabelVector(3, doses=doses), LabelVector(3, 4, doses=doses)
    given_.fill(torch.randn(3, 4))
    assert (unit.width, given_.width) == (3, 5)
    np.testing.assert_allclose(given_(batch()), unit(batch()) @ given_.embedding, rtol=1e-5, atol=1e-6)


def test_what_stands_beside_padding_is_not_read():
    for vector in (LabelVector(2, doses=True), LabelVector(2, 3, doses=True)):
        found = vector(batch(torch.tensor([[-1, -1]]), torch.tensor([[9.0, 4.0]])))
        np.testing.assert_array_equal(found, np.zeros((1, vector.width)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_distinct_rows_find_every_kind_once(rows):
    keys = torch.tensor(rows)
    first, kind = distinct_rows(keys)
    assert len(first) == len(set(rows))
    assert torch.equal(keys[first][kind], keys)


def test_rows_without_keys_are_of_one_kind():
    first, kind = distinct_rows(torch.zeros(4, 0))
    assert (first.tolist(), kind.tolist()) == ([0], [0, 0, 0, 0])

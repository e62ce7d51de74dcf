"""Vectors of conditions: control, parts, doses and given embeddings."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.nn import ConditionVector, LabelLinear, shared_label

N = 4
TABLE = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TRAINED = (
    torch.tensor([[-1, -1], [0, -1], [0, -1], [1, -1], [0, 2]]),
    torch.tensor([[0.0, 0], [1, 0], [100, 0], [5, 0], [10, 3]]),
)


def made(doses, embedding, curve=0) -> Any:
    """Vectors whose curves are those of the start, or drawn."""
    vector = ConditionVector(N, TABLE.shape[1] if embedding else None, doses).double()
    if embedding:
        vector.embedding = TABLE
    vector.start(*TRAINED)
    if doses and curve:
        generator = torch.Generator().manual_seed(curve)
        for parameter in vector.curve.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return vector


def vectors(vector, codes, doses):
    codes, doses = torch.tensor(codes), torch.tensor(doses, dtype=torch.float64)
    return vector({"X": torch.zeros(len(codes), 2).double(), "perturbation": codes, "dose": doses}).detach()


def parts(embedding):
    return TABLE if embedding else torch.eye(N, dtype=torch.float64)


def close(found, expected, atol=1e-12):
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=atol)


EVERY = pytest.mark.parametrize(("doses", "embedding"), [(d, e) for d in (False, True) for e in (False, True)])
DOSED = pytest.mark.parametrize("embedding", [False, True])


@EVERY
def test_control_comes_first_and_has_nothing_of_any_perturbation(doses, embedding):
    vector = made(doses, embedding, curve=1)
    found = vectors(vector, [[-1, -1], [-1, -1]], [[0, 0], [7, 0]])
    assert vector.width == 1 + parts(embedding).shape[1] == found.shape[1]
    close(found, torch.eye(vector.width, dtype=torch.float64)[[0, 0]])


@DOSED
def test_without_doses_a_perturbation_is_its_unit_vector_or_embedding(embedding):
    vector, e = made(False, embedding), parts(embedding)
    found = vectors(vector, [[2, -1], [3, 0], [-1, 1]], [[1, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(found[:, 0], [0, 0, 0])
    close(found[:, 1:], torch.stack([e[2], e[3] + e[0], e[1]]))
    # whatever stands in the column of doses
    assert torch.equal(vectors(vector, [[2, -1]], [[1, 0]]), vectors(vector, [[2, -1]], [[50, 9]]))
    assert not list(vector.parameters())


@EVERY
def test_a_combination_is_the_sum_of_its_parts_in_any_order(doses, embedding):
    vector = made(doses, embedding, curve=2)
    both, swapped, padded = (
        vectors(vector, codes, amounts)
        for codes, amounts in (
            ([[0, 3]], [[2, 30]]),
            ([[3, 0]], [[30, 2]]),
            ([[-1, 0, -1, 3]], [[0, 2, 0, 30]]),
        )
    )
    one, other = vectors(vector, [[0, -1]], [[2, 0]]), vectors(vector, [[3, -1]], [[30, 0]])
    close(both[:, 1:], one[:, 1:] + other[:, 1:])
    # how much of it is control: what both parts leave
    close(both[:, 0], one[:, 0] * other[:, 0])
    close(swapped, both)
    close(padded, both)


@DOSED
@settings(max_examples=25, deadline=None)
@given(
    code=st.integers(0, N - 1),
    low=st.floats(1e-6, 1e5),
    factor=st.floats(1.01, 1e4),
    curve=st.integers(0, 10**6),
)
def test_strength_rises_with_the_dose_from_control_to_the_whole(embedding, code, low, factor, curve):
    vector = made(True, embedding, curve)
    codes = torch.full((4, 1), code)
    rising = torch.tensor([[1e-300], [low], [low * factor], [1e300]], dtype=torch.float64)
    strength = vector.strength(codes, rising).detach()[:, 0]
    assert 0 <= strength[0] <= strength[1] <= strength[2] <= strength[3] <= 1
    assert (strength[1] < strength[2]) or not 1e-9 < strength[1] < 1 - 1e-9
    found = vectors(vector, [[code]], [[low]])
    close(found[0, 0], 1 - strength[1])
    close(found[0, 1:], strength[1] * parts(embedding)[code])


@DOSED
def test_the_vector_goes_to_that_of_control_and_to_the_undosed_one(embedding):
    vector, undosed = made(True, embedding), made(False, embedding)
    control = vectors(vector, [[-1, -1]], [[0, 0]])
    codes = [[1, -1], [0, 3]]
    close(vectors(vector, codes, [[1e-12, 0], [1e-12, 1e-12]]), control.expand(2, -1), atol=1e-9)
    large = vectors(vector, codes, [[1e15, 0], [1e15, 1e15]])
    close(large, vectors(undosed, codes, [[1, 0], [1, 1]]), atol=1e-9)


@DOSED
def test_curves_start_at_half_their_height_at_the_mean_trained_dose(embedding):
    vector = made(True, embedding)
    # geometric means: 0 of 1, 100 and 10; 1 of 5; 2 of 3; 3 was never trained and takes that of all
    of_all = np.exp(np.log([1, 100, 5, 10, 3]).mean())
    for code, middle in enumerate([10, 5, 3, of_all]):
        for dose in (middle, 0.1 * middle, 7 * middle):
            found = vectors(vector, [[code]], [[dose]])[0, 0]
            np.testing.assert_allclose(1 - found, dose / (dose + middle), rtol=1e-6)


def test_curves_of_perturbations_are_their_own_and_equal_for_equal_embeddings():
    for embedding in (False, True):
        vector = made(True, embedding, curve=3)
        strengths = vector.strength(torch.arange(N)[:, None], torch.full((N, 1), 4.0)).detach()[:, 0]
        assert len(set(strengths.tolist())) == N
    vector.embedding = TABLE[[0, 0, 1, 1]]
    vector.log_dose.zero_()
    found = vectors(vector, [[0], [1], [2], [3]], [[4.0]] * N)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[0], found[2])


@DOSED
def test_gradients_are_finite_also_beside_padding(embedding):
    vector = made(True, embedding, curve=4)
    codes, amounts = torch.tensor([[0, -1], [-1, -1], [1, 2]]), torch.tensor([[3.0, 0], [0, 0], [1e-9, 1e9]]).double()
    vector({"X": torch.zeros(3, 2).double(), "perturbation": codes, "dose": amounts}).square().sum().backward()
    for parameter in vector.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).any()


def test_vectors_take_the_precision_of_the_expression():
    vector: Any = ConditionVector(N, doses=True)
    tensors = {"X": torch.zeros(1, 2), "perturbation": torch.tensor([[1]], dtype=torch.int32), "dose": torch.ones(1, 1)}
    assert vector(tensors).dtype == torch.float32


def test_a_label_is_shared_where_it_is_one_row_and_not_where_rows_are_equal():
    one = {"perturbation": torch.tensor([[1, 2]]), "dose": torch.tensor([[1.0, 5.0]])}
    expanded = {"X": torch.zeros(3, 2), **{key: values.expand(3, -1) for key, values in one.items()}}
    repeated = {"X": torch.zeros(3, 2), **{key: values.repeat(3, 1) for key, values in one.items()}}
    assert shared_label(repeated) is repeated
    assert shared_label({**expanded, "dose": repeated["dose"]})["perturbation"].shape == (3, 2)
    found, vector = shared_label(expanded), ConditionVector(N, doses=True)
    assert [len(found[key]) for key in ("X", "perturbation", "dose")] == [3, 1, 1]
    torch.testing.assert_close(vector(found).expand(3, -1), vector(repeated), rtol=0, atol=0)


def test_a_layer_of_labels_reads_those_that_are_there_and_gives_every_gradient():
    layer, wide = LabelLinear(1500, 7).double(), torch.zeros(5, 1500).double()
    wide[torch.arange(5), torch.tensor([3, 1499, 3, 0, 700])] = torch.tensor([1.0, 2.0, 0.5, 1.0, -1.0]).double()
    expected = torch.nn.functional.linear(wide, layer.weight, layer.bias).detach()
    with torch.inference_mode():
        close(layer(wide), expected)
        close(layer(wide[:1]), expected[:1])
        close(layer(torch.zeros(2, 1500).double()), layer.bias.expand(2, -1))
        every = torch.randn(2, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        close(layer(every), every @ layer.weight.T + layer.bias)
        # weights of labels that are not in the batch are not read
        layer.weight[:, 5] = torch.nan
        close(layer(wide), expected)
    layer.weight.data[:, 5] = 0
    given = wide.clone().requires_grad_()
    layer.eval()(given).sum().backward()
    close(given.grad, layer.weight.sum(dim=0).expand(5, -1))

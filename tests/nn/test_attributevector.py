"""Vectors of labels whose combinations add what their parts change."""

import pytest
import torch
from torch import nn

from multipert.nn._attributevector import AttributeVector


def attribute(n_embedding=None, doses=False, n_perturbations=3):
    """In evaluation mode, with running statistics that are not those of the start."""
    torch.manual_seed(0)
    one = AttributeVector(
        n_perturbations, n_embedding, doses, n_categorical=3, n_ordered=12, hidden=(10,), dropout_rate=0.1
    )
    for norm in (part for part in one.modules() if isinstance(part, nn.BatchNorm1d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    return one.eval()


@pytest.mark.parametrize(("n_embedding", "doses"), [(None, False), (2, False), (None, True), (2, True)])
def test_a_combination_adds_what_its_parts_change(n_embedding, doses):
    one = attribute(n_embedding, doses)
    if n_embedding:
        one.give(torch.tensor([[0.5, 1.0], [-1.0, 0.3], [0.1, 2.0]]))
    one.start(torch.tensor([[5.0, 2.0]]))

    def vector(*parts):
        codes = torch.tensor([[code for code, _ in parts] + [-1] * (2 - len(parts))])
        amounts = torch.tensor([[dose for _, dose in parts] + [0.0] * (2 - len(parts))])
        with torch.no_grad():
            return one({"perturbation": codes, "dose": amounts})

    a, b, control = vector((0, 5.0)), vector((1, 2.0)), vector()
    torch.testing.assert_close(vector((0, 5.0), (1, 2.0)), a + b - control)
    assert not torch.allclose(a, b)
    # which part has which dose matters
    assert torch.allclose(vector((0, 5.0), (1, 2.0)), vector((0, 2.0), (1, 5.0))) != doses
    with torch.no_grad():
        codes = torch.tensor([[0], [-1], [1]])
        alone = one({"perturbation": codes, "dose": torch.tensor([[5.0], [0.0], [2.0]])})
    torch.testing.assert_close(alone, torch.cat([a, control, b]))


def test_the_scale_of_doses_is_that_of_the_first_training():
    one = attribute(None, True)
    one.start(torch.tensor([[8.0]]))
    one.start(torch.tensor([[3.0]]))
    assert one.largest_dose == 8


def test_an_ordered_number_is_the_same_as_dose_or_as_embedding():
    given, dosed = attribute(1, False, n_perturbations=2), attribute(0, True, n_perturbations=2)
    dosed.load_state_dict({**given.state_dict(), "table": dosed.table})
    given.give(torch.tensor([[0.25], [1.0]]))
    dosed.give(torch.zeros(2, 0))
    dosed.start(torch.tensor([[0.0], [4.0]]))
    codes = torch.tensor([[-1], [0], [1]])
    with torch.no_grad():
        expected = given({"perturbation": codes, "dose": (codes >= 0).float()})
        found = dosed({"perturbation": codes, "dose": torch.tensor([[0.0], [1.0], [4.0]])})
    torch.testing.assert_close(found, expected)
    assert len(torch.unique(found, dim=0)) == 3


def test_categories_without_doses_have_vectors_of_their_own():
    one = attribute()
    codes = torch.tensor([[-1], [2], [0]])
    assert torch.equal(one({"perturbation": codes}), one.table[codes[:, 0] + 1])

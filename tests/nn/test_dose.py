"""Curves of dose, and the latent vectors of labels that they scale."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.nn._dose import DoseCurve, PerturbationEncoder

KINDS = ("logsigm", "sigm", "linear")
N, N_LATENT = 4, 5
TABLE = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def drawn(kind, seed=0, slope=None):
    """A curve with parameters that are not those of the start."""
    torch.manual_seed(seed)
    curve = DoseCurve(N, kind).double()
    for parameter in curve.parameters():
        torch.nn.init.normal_(parameter)
    if slope is not None and kind != "linear":
        torch.nn.init.uniform_(curve.slope, *slope)
    return curve


def encoder(kind, embedding=False, seed=0):
    torch.manual_seed(seed)
    made = PerturbationEncoder(N, N_LATENT, 3 if embedding else None, kind, None).double()
    if embedding:
        made.embedding = TABLE
    if made.curve is not None:
        for parameter in made.curve.parameters():
            torch.nn.init.normal_(parameter)
    return made


def vectors(made, codes, doses):
    codes, doses = torch.tensor(codes), torch.tensor(doses, dtype=torch.float64)
    return made({"X": torch.zeros(len(codes), 2).double(), "perturbation": codes, "dose": doses}).detach().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_the_published_formula(kind):
    curve = drawn(kind)
    codes, doses = torch.tensor([[0, 3]]), torch.tensor([[0.7, 12.0]], dtype=torch.float64)
    found = curve(codes, doses).detach().numpy()[0]
    if kind == "linear":
        np.testing.assert_allclose(found, [0.7, 12])
        return
    slope, offset = (values.detach().numpy()[[0, 3]] for values in (curve.slope, curve.offset))
    x = np.array([0.7, 12.0])
    u = np.log1p(x) if kind == "logsigm" else x
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-slope * u - offset)) - 1 / (1 + np.exp(-offset)), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_at_dose_zero_is_zero(kind):
    np.testing.assert_array_equal(drawn(kind)(torch.arange(N)[:, None], torch.zeros(N, 1).double()).detach(), 0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 20), st.lists(st.floats(0, 4), min_size=2, max_size=8, unique=True))
def test_a_positive_slope_makes_the_curve_rise(kind, seed, doses):
    curve = drawn(kind, seed, slope=(0.1, 2))
    ordered = torch.tensor(sorted(doses), dtype=torch.float64)
    for code in range(N):
        found = curve(torch.full((len(doses), 1), code), ordered[:, None]).detach().numpy()[:, 0]
        assert (np.diff(found) >= 0).all()
        assert found[-1] > found[0] or ordered[-1] - ordered[0] < 1e-3


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='hill' is unknown; known: 'logsigm', 'sigm', 'linear'"):
        DoseCurve(3, "hill")


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, None])
class TestVectorsOfLabels:
    def test_control_and_padding_add_nothing(self, kind, embedding):
        made = encoder(kind, embedding)
        found = vectors(made, [[-1, -1], [2, -1], [-1, 2]], [[0, 0], [3, 0], [0, 3]])
        np.testing.assert_array_equal(found[0], 0)
        np.testing.assert_array_equal(found[1], found[2])
        assert np.abs(found[1]).min() > 1e-6

    def test_a_combination_is_the_sum_of_its_parts(self, kind, embedding):
        one, other, both = vectors(encoder(kind, embedding), [[0, -1], [2, -1], [0, 2]], [[1, 0], [7, 0], [1, 7]])
        np.testing.assert_allclose(both, one + other, atol=1e-12)

    def test_the_order_of_slots_does_not_matter_when_pairs_move_together(self, kind, embedding):
        made = encoder(kind, embedding)
        one, other, crossed = vectors(made, [[0, 2], [2, 0], [0, 2]], [[1, 7], [7, 1], [7, 1]])
        np.testing.assert_allclose(one, other, atol=1e-12)
        assert kind is None or np.abs(one - crossed).max() > 1e-3

    def test_dose_zero_is_control(self, kind, embedding):
        if kind is not None:
            np.testing.assert_array_equal(vectors(encoder(kind, embedding), [[1]], [[0.0]]), 0)


def test_a_network_need_not_add_up():
    network = torch.nn.Sequential(torch.nn.Linear(N, 6), torch.nn.ReLU(), torch.nn.Linear(6, N_LATENT))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    made = PerturbationEncoder(N, N_LATENT, None, None, network).double()
    found = vectors(made, [[-1, -1], [0, -1], [2, -1], [0, 2]], np.ones((4, 2)))
    hot = torch.zeros(4, N).double()
    hot[[1, 2, 3, 3], [0, 2, 0, 2]] = 1
    np.testing.assert_allclose(found, network(hot).detach())
    assert np.abs(found[3] + found[0] - found[1] - found[2]).max() > 1e-3

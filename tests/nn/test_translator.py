"""Blocks of features, batch-normed perceptrons, sides and soft targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multipert.nn._mlp import MLP, BlockLinear
from multipert.nn._translator import Side, Translator, soft_targets

GROUPS = np.array([1, 0, 2, 1, 1, 0, 2, 0, 1])
WIDTH = 4


def blocks(groups=GROUPS, width=WIDTH, *, decodes=False, seed=0) -> BlockLinear:
    torch.manual_seed(seed)
    layer = BlockLinear(groups, width, decodes=decodes).double()
    nn.init.normal_(layer.bias)
    return layer


def units(group: int) -> slice:
    return slice(group * WIDTH, (group + 1) * WIDTH)


@pytest.mark.parametrize("feature", range(len(GROUPS)))
def test_a_feature_reaches_the_units_of_its_group_only_and_the_other_way_round(feature):
    x = torch.rand(3, len(GROUPS), dtype=torch.float64)
    other = x.clone()
    other[:, feature] += 1
    changed = blocks()(other) != blocks()(x)
    expected = torch.zeros(3 * WIDTH, dtype=torch.bool)
    expected[units(GROUPS[feature])] = True
    assert (changed == expected).all()
    decoder, z = blocks(decodes=True), torch.rand(3, 3 * WIDTH, dtype=torch.float64)
    moved = z.clone()
    moved[:, units(GROUPS[feature])] += 1
    assert ((decoder(moved) != decoder(z)) == torch.from_numpy(GROUPS == GROUPS[feature])).all()


def test_each_group_is_a_linear_layer_of_its_own():
    x, layer = torch.rand(3, len(GROUPS), dtype=torch.float64), blocks()
    decoder, z = blocks(decodes=True), torch.rand(3, 3 * WIDTH, dtype=torch.float64)
    for group in range(3):
        here = torch.from_numpy(np.flatnonzero(GROUPS == group))
        expected = x[:, here] @ layer.weight[here] + layer.bias[units(group)]
        np.testing.assert_allclose(layer(x)[:, units(group)].detach(), expected.detach())
        expected = z[:, units(group)] @ decoder.weight[here].T + decoder.bias[here]
        np.testing.assert_allclose(decoder(z)[:, here].detach(), expected.detach())


def test_the_number_of_weights():
    n_features, n_groups = len(GROUPS), 3
    assert sum(p.numel() for p in blocks().parameters()) == WIDTH * (n_features + n_groups)
    assert sum(p.numel() for p in blocks(decodes=True).parameters()) == WIDTH * n_features + n_features


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_permuted_features_permute_the_layer(random):
    order = np.array(random.sample(range(len(GROUPS)), len(GROUPS)))
    x, z = torch.rand(2, len(GROUPS), dtype=torch.float64), torch.rand(2, 3 * WIDTH, dtype=torch.float64)
    for decodes in (False, True):
        layer, moved = blocks(decodes=decodes), blocks(GROUPS[order], decodes=decodes)
        with torch.no_grad():
            moved.weight.copy_(layer.weight[order])
            moved.bias.copy_(layer.bias[order] if decodes else layer.bias)
        found, expected = (moved(z), layer(z)[:, order]) if decodes else (moved(x[:, order]), layer(x))
        np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-12)


@pytest.mark.parametrize("decodes", [False, True])
def test_one_group_is_a_dense_layer(decodes):
    layer = blocks(np.zeros(7, dtype=int), 5, decodes=decodes)
    dense = nn.Linear(layer.in_features, layer.out_features).double()
    with torch.no_grad():
        dense.weight.copy_(layer.weight if decodes else layer.weight.T)
        dense.bias.copy_(layer.bias)
    x = torch.rand(3, layer.in_features, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), dense(x).detach())


def test_blocks_start_xavier_uniform_by_their_own_sizes():
    groups = np.repeat([0, 1], [300, 20])
    torch.manual_seed(0)
    layer = BlockLinear(groups, 32)
    for group, size in ((0, 300), (1, 20)):
        weight, bound = layer.weight[torch.from_numpy(groups == group)], (6 / (size + 32)) ** 0.5
        assert weight.abs().max() <= bound
        assert abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.1


def test_groups_without_features_are_refused():
    with pytest.raises(ValueError, match="groups has no feature of number 1"):
        BlockLinear(np.array([0, 2]), 4)


def test_gradients_of_blocks_are_those_of_the_same_dense_layer():
    for decodes in (False, True):
        layer = blocks(decodes=decodes)
        x = torch.rand(2, layer.in_features, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda x, w, b, m=layer: torch.func.functional_call(m, {"weight": w, "bias": b}, x),
            (x, layer.weight, layer.bias),
        )


# ---------------------------------------------------------------- perceptrons and sides


def test_there_is_dropout_after_every_layer_but_the_last_and_a_norm_after_each():
    mlp = MLP([nn.Linear(5, 4), nn.Linear(4, 3)], 0.2, mask_rate=0.5, output=nn.Sigmoid())
    inner, last = mlp.layers
    assert [type(part) for part in inner] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Dropout]
    assert [type(part) for part in last] == [nn.Linear, nn.BatchNorm1d, nn.Sigmoid]
    assert mlp.norm is last[1]
    assert inner[3].p == 0.2


def side(output="leaky", groups=None, **changes):
    args = {"hidden": (5,), "mask_rate": 0.0, "weight": 1.0, "kl_weight": 1.0, "zero_below": None} | changes
    return Side(len(GROUPS), output=output, groups=groups, **args)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize(
    ("output", "low", "high"), [("leaky", None, None), ("sigmoid", 0, 1), ("identity", None, None)]
)
def test_encoders_and_decoders_mirror_each_other(output, low, high, groups):
    torch.manual_seed(0)
    made = side(output, groups)
    encoder, decoder = made.encoder(6, 0.1), made.decoder(6, 0.1)
    x = torch.rand(8, len(GROUPS))
    hidden = encoder(x)
    decoded = decoder(hidden)
    assert hidden.shape == (8, 6)
    assert decoded.shape == x.shape
    if low is not None:
        assert (decoded > low).all()
        assert (decoded < high).all()
    widths = [layer[0].out_features for layer in encoder.layers]
    assert widths == [5 * (1 if groups is None else 3), 6]


@pytest.mark.parametrize(("output", "groups"), [("leaky", None), ("identity", None), ("sigmoid", GROUPS)])
def test_a_decoder_starts_at_the_means_it_is_given_once(output, groups):
    torch.manual_seed(0)
    made = side(output, groups)
    decoder = made.decoder(6, 0.0)
    mean, spread = torch.rand(len(GROUPS)) * 0.4 + 0.3, torch.rand(len(GROUPS)) * 0.05
    made.start(decoder, mean, spread)
    decoded = decoder(torch.randn(4000, 6))
    np.testing.assert_allclose(decoded.mean(0).detach(), mean, atol=0.02)
    np.testing.assert_allclose(decoded.std(0).detach(), spread, rtol=0.15, atol=2e-3)
    made.start(decoder, mean + 1, spread)
    np.testing.assert_allclose(decoder(torch.randn(4000, 6)).mean(0).detach(), mean, atol=0.02)


def test_errors_are_squares_or_cross_entropies_of_real_targets():
    decoded, x = torch.rand(4, len(GROUPS)) * 0.8 + 0.1, torch.rand(4, len(GROUPS))
    np.testing.assert_allclose(side().errors(decoded, x), (decoded - x).square().mean(1), rtol=1e-6)
    entropy = -(x * decoded.log() + (1 - x) * (1 - decoded).log()).mean(1)
    np.testing.assert_allclose(side("sigmoid").errors(decoded, x), entropy, rtol=1e-5)
    # not 0 at best, but the entropy of the targets
    assert (side("sigmoid").errors(x, x) > 0).all()
    assert (side("sigmoid").errors(x, x) < entropy).all()


def test_a_cut_of_small_values():
    x = torch.tensor([[-1.0, 5e-5, 1e-4, 2.0]])
    assert side(zero_below=1e-4).finished(x).tolist() == [[0, 0, pytest.approx(1e-4), 2]]
    assert torch.equal(side().finished(x), x)


def test_the_translator_draws_in_training_and_gives_the_mean_outside():
    torch.manual_seed(0)
    translator, hidden = Translator(5, 2), torch.randn(20, 5)
    first, second = (translator.encode(hidden, 1)[0] for _ in range(2))
    assert not torch.equal(first, second)
    translator.eval()
    z, mean, _ = translator.encode(hidden, 1)
    assert torch.equal(z, mean)
    assert not torch.equal(translator.encode(hidden, 0)[1], mean)
    assert len(Translator(5, 1).to_side) == 1


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.9999998807907104, width=32))
def test_soft_targets_lie_in_two_bands_and_keep_the_side_of_the_draw(uniform):
    target = float(soft_targets(torch.tensor([uniform]))[0])
    assert 0 <= target <= np.float32(0.2) or np.float32(0.8) <= target < 1
    assert (target > 0.5) == (uniform > 0.5)
    if uniform > 0.8 or uniform <= 0.2:
        assert target == np.float32(uniform)


def test_half_of_the_soft_targets_are_real():
    targets = soft_targets(torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    assert abs(float((targets > 0.5).float().mean()) - 0.5) < 0.02

"""Shifts of a context from those of others: against loops over genes and contexts, limits, and the choice of strength."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.data._shifts import (
    FALLBACK,
    GRIDS,
    choose_strength,
    context_shift,
    context_weights,
    gene_ridge_shift,
)

KINDS = ("similarity", "ridge", "gene_ridge")
WEIGHTED = ("similarity", "ridge")


def draw(seed, n_contexts=5, n_vars=12, n_targets=2, spread=0.4):
    """Control means, target control means and changes."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(2, 1, n_vars) + spread * rng.normal(size=(n_contexts + n_targets, n_vars))
    return values[:n_contexts], values[n_contexts:], rng.normal(size=(n_contexts, n_vars))


def restated(kind, strength, control, target, delta):
    """The shift of one target: numpy's correlations, and ridges as least squares on augmented rows."""
    centre = control.mean(0)
    rows, wanted = control - centre, target - centre
    if np.linalg.norm(rows, axis=1).max() <= 1e-6 * np.linalg.norm(control, axis=1).max():
        return delta.mean(0)
    if kind == "similarity":
        r = np.array([np.corrcoef(wanted, row)[0, 1] for row in rows])
        w = np.exp(r / strength)
        return (w[:, None] * delta).sum(0) / w.sum()
    d, n_vars = delta - delta.mean(0), control.shape[1]
    if kind == "ridge":
        root = np.sqrt(strength * (rows**2).sum() / len(rows))
        design = np.vstack([rows, root * np.eye(n_vars)])
        return (
            delta.mean(0) + wanted @ np.linalg.lstsq(design, np.vstack([d, np.zeros((n_vars, n_vars))]), rcond=None)[0]
        )
    penalty = strength * np.mean((rows**2).sum(0))
    slopes = [float(x @ y / (x @ x + penalty)) for x, y in zip(rows.T, d.T, strict=True)]
    return delta.mean(0) + slopes * wanted


def left_out(kind, problems):
    """Summed squared errors of every strength, one context left out after the other."""
    errors = np.zeros(len(GRIDS[kind]))
    for control, delta in problems:
        if len(control) < 3:
            continue
        for out in range(len(control)):
            kept = np.arange(len(control)) != out
            for i, strength in enumerate(GRIDS[kind]):
                found = restated(kind, strength, control[kept], control[out], delta[kept])
                errors[i] += np.mean((found - delta[out]) ** 2)
    return errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.02, 0.4, 7.0])
def test_shifts_equal_the_restated_formula(kind, strength):
    control, target, delta = draw(0)
    expected = np.stack([restated(kind, strength, control, row, delta) for row in target])
    assert np.abs(expected - delta.mean(0)).max() > 1e-3
    np.testing.assert_allclose(context_shift(kind, strength, control, target, delta), expected, atol=1e-11)
    if kind in WEIGHTED:
        np.testing.assert_allclose(context_weights(kind, strength, control, target) @ delta, expected, atol=1e-11)
    else:
        np.testing.assert_allclose(gene_ridge_shift(strength, control, target, delta), expected, atol=1e-11)


@given(seed=st.integers(0, 10**6), n_contexts=st.integers(1, 7), strength=st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weights_sum_to_one_and_follow_the_contexts(kind, seed, n_contexts, strength):
    control, target, _ = draw(seed, n_contexts)
    weights = context_weights(kind, strength, control, target)
    assert weights.shape == (2, n_contexts)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)
    order = np.random.default_rng(seed).permutation(n_contexts)
    np.testing.assert_allclose(context_weights(kind, strength, control[order], target), weights[:, order], atol=1e-7)
    offset = np.linspace(0, 2, control.shape[1])
    np.testing.assert_allclose(context_weights(kind, strength, control + offset, target + offset), weights, atol=1e-7)
    if kind == "similarity":
        assert (weights >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_context_gives_its_own_change(kind):
    control, target, delta = draw(1, n_contexts=1)
    np.testing.assert_allclose(
        context_shift(kind, 0.1, control, target, delta), np.repeat(delta, 2, axis=0), atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_means_that_differ_by_rounding_alone_weigh_equally(kind):
    rng = np.random.default_rng(2)
    mean, delta = rng.gamma(2, 1, 8), rng.normal(size=(3, 8))
    control = mean * (1 + 1e-9 * rng.normal(size=(3, 8)))
    assert not np.array_equal(control[0], control[1])
    target = np.stack([mean + 1, mean])
    np.testing.assert_allclose(context_shift(kind, 1e-3, control, target, delta), [delta.mean(0)] * 2, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_at_the_centre_gets_the_mean_change(kind):
    control, _, delta = draw(3)
    target = control.mean(0, keepdims=True) * (1 + 1e-8)
    np.testing.assert_allclose(context_shift(kind, 0.02, control, target, delta)[0], delta.mean(0), atol=1e-12)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_the_smallest_strength_gives_a_known_context_its_own_change(kind):
    control, _, _ = draw(4)
    strength = 1e-3 if kind == "similarity" else 1e-12
    np.testing.assert_allclose(context_weights(kind, strength, control, control), np.eye(5), atol=1e-6)


def test_no_penalty_is_too_small_for_a_ridge():
    control, target, _ = draw(5, n_contexts=3)
    weights = context_weights("ridge", 1e-300, control, target)
    np.testing.assert_allclose(weights, context_weights("ridge", 1e-12, control, target), atol=1e-9)
    np.testing.assert_allclose(weights @ np.ones(3), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_strength_gives_the_mean_change(kind):
    control, target, delta = draw(6)
    np.testing.assert_allclose(context_shift(kind, 1e12, control, target, delta), [delta.mean(0)] * 2, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_strength_has_the_least_error_over_left_out_contexts(kind, seed):
    control, _, noise = draw(seed, n_contexts=6, spread=0.8)
    own, _, _ = draw(seed + 100, n_contexts=4)
    linear = 0.3 * seed * (control - control.mean(0)) + 0.3 * noise
    # two with the same contexts, one with some of them, one with contexts of its own, and one with too few
    problems = [
        (control, linear),
        (control, noise[::-1]),
        (control[:4], linear[:4]),
        (own, noise[:4]),
        (control[:2], linear[:2]),
    ]
    errors = left_out(kind, problems)
    assert np.ptp(errors) > 0
    assert choose_strength(kind, iter(problems)) == GRIDS[kind][errors.argmin()]


def test_the_choice_is_not_always_the_same():
    control, _, noise = draw(7, n_contexts=6, spread=1.0)
    linear = 3 * (control - control.mean(0))
    for kind in KINDS:
        assert choose_strength(kind, [(control, linear)]) < choose_strength(kind, [(control, noise)])


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_chooses_as_double_does(kind):
    control, _, noise = draw(8, n_contexts=6)
    delta = noise + control - control.mean(0)
    narrow = choose_strength(kind, [(control.astype(np.float32), delta.astype(np.float32))])
    assert narrow == choose_strength(kind, [(control, delta)])


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_than_three_contexts_fall_back(kind):
    control, _, delta = draw(9)
    assert choose_strength(kind, [(control[:2], delta[:2]), (control[:1], delta[:1])]) == FALLBACK[kind]
    assert choose_strength(kind, []) == FALLBACK[kind]


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_change_that_all_contexts_share_does_not_sway_the_choice(kind):
    control, _, delta = draw(10, n_contexts=6)
    far = delta + 1e4 * np.linspace(1, 2, delta.shape[1])
    assert choose_strength(kind, [(control, far)]) == choose_strength(kind, [(control, delta)])

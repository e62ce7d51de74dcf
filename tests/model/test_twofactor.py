"""Additive benchmark: exact on additive data whatever is missing, and what each estimator is and is not."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert.model import TwoFactor
from multipert.model._shift import Deltas
from multipert.model._twofactor import TwoFactorModule
from multipert.nn import GroupMeans

ESTIMATORS = (
    "additive_control",
    "additive_ols",
    "multiplicative",
    "context_mean",
    "perturbation_mean",
    "two_way_mean",
)
# X and the result are float32: values below 32 are rounded by at most 1e-6, twice
SINGLE = 4e-6
G = 7


def screen(means, n=4, spread=0.0, seed=0, n_cells=None):
    """Cells of the given group means {(context, label): vector}, +-spread around them so that each mean is exact.

    `n_cells` changes the (even) number of cells of some groups.
    """
    rng = np.random.default_rng(seed)
    x, obs = [], []
    for (context, label), mean in means.items():
        size = n if n_cells is None else n_cells.get((context, label), n)
        noise = spread * rng.choice([-1.0, 1.0], (size // 2, len(mean)))
        x.append(mean + np.concatenate([noise, -noise, np.zeros((size % 2, len(mean)))]))
        obs += [(context, label)] * size
    order = rng.permutation(len(obs))
    frame = pd.DataFrame(obs, columns=["context", "perturbation"]).iloc[order]
    frame.index = [f"cell{i}" for i in range(len(obs))]
    frame["split"] = "train"
    return AnnData(np.concatenate(x)[order].astype(np.float32), frame)


def eighths(rng, shape, low, high):
    """Numbers that float32 holds exactly, as it does their sums."""
    return rng.integers(8 * low, 8 * high, shape) / 8


def additive(contexts="ab", labels="AB", seed=0):
    """Group means that are exactly context + perturbation, control among them."""
    rng = np.random.default_rng(seed)
    alpha = {c: eighths(rng, G, 8, 16) for c in contexts}
    beta = {"control": np.zeros(G), **{p: eighths(rng, G, -4, 4) for p in labels}}
    return {(c, p): alpha[c] + beta[p] for c in contexts for p in beta}


def irregular(contexts="abc", labels="AB", seed=0):
    """Group means without any structure."""
    rng = np.random.default_rng(seed)
    return {(c, p): rng.uniform(3, 9, G) for c in contexts for p in ("control", *labels)}


def hold_out(adata, *pairs):
    keys = zip(adata.obs["context"], adata.obs["perturbation"], strict=True)
    adata.obs["split"] = np.where([key in pairs for key in keys], "test", "train")
    return adata


def fit(adata, dose_key=None, signed=False, context_key="context", **init):
    TwoFactor.setup_anndata(adata, context_key=context_key, dose_key=dose_key, signed=signed)
    model = TwoFactor(adata, **init)
    model.train(split_key="split", accelerator="cpu")
    return model


def predicted_means(model, perturbation=None, **arguments):
    """{(context, label): mean}."""
    result = model.predict(perturbation=perturbation, returns="mean", **{"clip": False, **arguments})
    return dict(zip(zip(result.obs["context"], result.obs["perturbation"], strict=True), result.X, strict=True))


def assert_means(found, expected, atol=SINGLE):
    assert found
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=atol, err_msg=str(key))


# ------------------------------------------------------------------ recovery of additive data


@st.composite
def connected_patterns(draw):
    """A connected set of observed (context, label) pairs: a spanning tree and some more."""
    contexts, labels = "abcd"[: draw(st.integers(2, 4))], ["control", *"ABC"[: draw(st.integers(1, 3))]]
    pairs = draw(st.permutations([(c, p) for c in contexts for p in labels]))
    group, tree, others = {name: {name} for name in [*contexts, *labels]}, [], []
    for c, p in pairs:
        if group[c] is group[p]:
            others.append((c, p))
            continue
        tree.append((c, p))
        joined = group[c] | group[p]
        group.update(dict.fromkeys(joined, joined))
    return contexts, labels, tree + others[: draw(st.integers(0, len(others)))]


@settings(max_examples=40, deadline=None)
@given(connected_patterns(), st.integers(0, 1000), st.sampled_from(["equal", "cells"]))
def test_additive_data_are_recovered_whatever_is_missing(pattern, seed, weights):
    contexts, labels, observed = pattern
    truth = additive(contexts, labels[1:], seed)
    rng = np.random.default_rng(seed)
    adata = screen(truth, spread=0.5, seed=seed, n_cells={pair: int(rng.choice([2, 4, 8])) for pair in truth})
    hold_out(adata, *(set(truth) - set(observed)))
    assert_means(predicted_means(fit(adata, estimator="additive_ols", weights=weights)), truth)
    model = fit(adata, estimator="additive_control", weights=weights)
    for label in labels[1:]:
        if any((c, label) in observed and (c, "control") in observed for c in contexts):
            assert_means(predicted_means(model, label), truth)
        else:
            with pytest.raises(ValueError, match=f"The shift of '{label}' alone is not known"):
                model.predict(perturbation=label)


@settings(max_examples=40, deadline=None)
@given(connected_patterns(), st.integers(0, 1000), st.sampled_from(["equal", "cells"]))
def test_the_fits_are_exact_to_double_precision(pattern, seed, weights):
    contexts, labels, observed = pattern
    rng = np.random.default_rng(seed)
    alpha, beta = rng.normal(size=(len(contexts), G)), rng.normal(size=(len(labels), G))
    beta[0] = 0
    pairs = sorted((contexts.index(c), labels.index(p)) for c, p in observed)
    context, condition = torch.tensor(pairs).T
    mean = torch.from_numpy(np.array([alpha[c] + beta[p] for c, p in pairs]))
    means = GroupMeans(context, condition, torch.from_numpy(rng.integers(1, 50, len(pairs))), mean, mean * 0 + 1, mean)
    module = TwoFactorModule("additive_ols", weights, "exact", 0.01)
    module.known_codes = torch.arange(-1, len(labels) - 1)[:, None]
    np.testing.assert_allclose(module._least_squares(means, len(labels)), beta, atol=1e-10)
    deltas = Deltas(means, 0)
    np.testing.assert_allclose(deltas.delta, beta[deltas.condition.numpy()], atol=1e-10)


def test_contexts_and_conditions_without_a_link_have_no_least_squares_fit():
    truth = additive("ab", "ABC")
    adata = hold_out(screen(truth), ("a", "B"), ("a", "C"), ("b", "control"), ("b", "A"))
    with pytest.raises(ValueError, match="2 contexts and 4 conditions .* without a condition in common"):
        fit(adata, estimator="additive_ols")
    linked = hold_out(screen(truth), ("a", "C"), ("b", "control"), ("b", "A"))
    assert_means(predicted_means(fit(linked, estimator="additive_ols")), truth)


@pytest.mark.parametrize("estimator", ["additive_control", "additive_ols"])
@pytest.mark.parametrize("weights", ["equal", "cells"])
def test_training_pairs_of_balanced_additive_data_get_their_own_means(estimator, weights):
    truth = additive("abc", "AB")
    model = fit(screen(truth, spread=0.5), estimator=estimator, weights=weights)
    assert_means(predicted_means(model), truth)


def test_both_estimators_agree_where_each_context_has_control_and_one_more_label():
    adata = hold_out(screen(irregular("abcd", "AB")), ("a", "B"), ("b", "B"), ("c", "A"), ("d", "A"))
    one, other = (predicted_means(fit(adata, estimator=e)) for e in ("additive_control", "additive_ols"))
    assert_means(one, other)


def test_the_estimators_differ_where_a_context_lacks_control():
    truth = irregular("abc", "AB")
    adata = hold_out(screen(truth), ("c", "control"), ("a", "B"))
    one, other = (predicted_means(fit(adata, estimator=e)) for e in ("additive_control", "additive_ols"))
    assert np.abs(one["a", "B"] - other["a", "B"]).max() > 0.1
    beta = truth["b", "B"] - truth["b", "control"]
    np.testing.assert_allclose(one["a", "B"], truth["a", "control"] + beta, atol=SINGLE)


# ------------------------------------------------------------------ symmetries


@pytest.mark.parametrize("estimator", ["additive_control", "additive_ols"])
def test_a_constant_added_to_one_context_moves_its_predictions_by_just_that(estimator):
    means = irregular()
    offset = np.linspace(0.5, 4, G)
    moved = {(c, p): mean + offset * (c == "b") for (c, p), mean in means.items()}
    before, after = (predicted_means(fit(hold_out(screen(m), ("b", "A")), estimator=estimator)) for m in (means, moved))
    assert_means(after, {(c, p): mean + offset * (c == "b") for (c, p), mean in before.items()}, atol=2 * SINGLE)


@pytest.mark.parametrize("estimator", ["additive_control", "additive_ols", "two_way_mean"])
def test_scaled_data_give_scaled_predictions(estimator):
    means = irregular()
    one, twice = (
        predicted_means(fit(hold_out(screen(m), ("b", "A")), estimator=estimator))
        for m in (means, {key: 2 * mean for key, mean in means.items()})
    )
    assert_means(twice, {key: 2 * mean for key, mean in one.items()}, atol=2 * SINGLE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_test_cells_change_no_bit_and_names_of_contexts_do_not_matter(estimator):
    adata = hold_out(screen(irregular(), spread=0.5), ("b", "A"))
    spoiled = adata.copy()
    spoiled.X[(adata.obs["split"] == "test").to_numpy()] += 2
    before = predicted_means(fit(adata, estimator=estimator))
    after = predicted_means(fit(spoiled, estimator=estimator))
    assert all((after[key] == before[key]).all() for key in before)
    renamed = adata.copy()
    names = {"a": "z", "b": "m", "c": "f"}
    renamed.obs["context"] = renamed.obs["context"].map(names)
    after = predicted_means(fit(renamed, estimator=estimator))
    assert_means(after, {(names[c], p): mean for (c, p), mean in before.items()})


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("as_cells", [False, True])
def test_the_control_label_gives_control(estimator, as_cells):
    adata = screen(irregular(), spread=0.5)
    model = fit(adata, estimator=estimator)
    if as_cells:
        predicted = model.predict(perturbation="control")
        np.testing.assert_array_equal(predicted.X, adata[predicted.obs["source_cell"]].X)
    else:
        assert_means(predicted_means(model, "control"), irregular())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cells_are_moved_together_and_their_mean_is_the_predicted_mean(estimator):
    adata = hold_out(screen(irregular(), spread=0.5, n=8), ("b", "A"))
    model = fit(adata, estimator=estimator)
    cells = model.predict(perturbation="A", context="b")
    assert cells.X.min() > 0
    np.testing.assert_allclose(cells.X.mean(0), predicted_means(model, "A")["b", "A"], atol=SINGLE)
    moved = cells.X - adata[cells.obs["source_cell"]].X
    if estimator != "multiplicative":
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=SINGLE)


def test_clipping_raises_the_mean_of_cells_at_zero_only():
    means = {
        ("a", "control"): np.array([3.0, 4.0]),
        ("a", "A"): np.array([2.25, 3.0]),
        ("b", "control"): np.array([1.0, 4.0]),
        ("b", "A"): np.array([9.0, 9.0]),
    }
    model = fit(hold_out(screen(means, spread=0.5), ("b", "A")))
    np.testing.assert_allclose(predicted_means(model, "A")["b", "A"], [0.25, 3.0], atol=SINGLE)
    # half of the cells go from 0.5 to -0.25 and half from 1.5 to 0.75
    np.testing.assert_allclose(predicted_means(model, "A", clip=None)["b", "A"], [0.375, 3.0], atol=SINGLE)


# ------------------------------------------------------------------ weights


def unbalanced():
    means = irregular("abc", "A", seed=3)
    n_cells = {("a", "A"): 2, ("a", "control"): 6, ("b", "A"): 16, ("b", "control"): 4, ("c", "A"): 6}
    adata = screen(means, n_cells=n_cells)
    adata.X += np.random.default_rng(0).normal(0, 0.3, adata.shape).astype(np.float32)
    return hold_out(adata, ("c", "A"))


def statistics(adata, key):
    here = (adata.obs["context"] == key[0]) & (adata.obs["perturbation"] == key[1])
    x = adata.X[here.to_numpy()].astype(np.float64)
    return x.mean(0), x.var(0), len(x)


def test_weights_of_contexts_restated():
    adata, shifts = unbalanced(), {}
    groups = {key: statistics(adata, key) for key in [(c, p) for c in "ab" for p in ("control", "A")]}
    delta = np.array([groups[c, "A"][0] - groups[c, "control"][0] for c in "ab"])
    error = np.array([sum(groups[c, p][1] / groups[c, p][2] for p in ("control", "A")) for c in "ab"])
    expected = {
        "equal": delta.mean(0),
        "cells": (2 * delta[0] + 16 * delta[1]) / 18,
        "inverse_variance": (delta / error).sum(0) / (1 / error).sum(0),
    }
    control = statistics(adata, ("c", "control"))[0]
    for weights in expected:
        shifts[weights] = predicted_means(fit(adata, weights=weights))["c", "A"] - control
        np.testing.assert_allclose(shifts[weights], expected[weights], atol=SINGLE)
    assert np.abs(shifts["equal"] - shifts["cells"]).max() > 0.1
    assert np.abs(shifts["inverse_variance"] - shifts["cells"]).max() > 0.1


def test_equal_and_cell_weights_agree_on_balanced_data():
    adata = hold_out(screen(irregular(), spread=0.5), ("c", "A"))
    expected = predicted_means(fit(adata))
    for weights in ("cells", "inverse_variance"):
        # the cells of every group lie at the same distance from its mean, so variances are equal too
        assert_means(predicted_means(fit(adata, weights=weights)), expected)


@pytest.mark.parametrize("estimator", ["additive_control", "additive_ols"])
def test_a_context_of_many_cells_weighs_no_more_unless_asked(estimator):
    means = irregular("abc", "A", seed=1)
    small, large = (hold_out(screen(means, n_cells={("a", "A"): n, ("a", "control"): n}), ("c", "A")) for n in (4, 200))
    one, other = (predicted_means(fit(adata, estimator=estimator))["c", "A"] for adata in (small, large))
    np.testing.assert_allclose(one, other, atol=SINGLE)
    weighted = predicted_means(fit(large, estimator=estimator, weights="cells"))["c", "A"]
    assert np.abs(weighted - one).max() > 0.1


def test_a_single_cell_has_no_known_variance_and_does_not_outweigh_the_rest():
    means = irregular("abc", "A", seed=1)
    n_cells = {("a", "A"): 1, ("a", "control"): 1, ("b", "A"): 40, ("b", "control"): 40}
    adata = hold_out(screen(means, spread=0.5, n_cells=n_cells), ("c", "A"))
    found = predicted_means(fit(adata, weights="inverse_variance"))["c", "A"]
    of_large = means["c", "control"] + means["b", "A"] - means["b", "control"]
    of_single = means["c", "control"] + means["a", "A"] - means["a", "control"]
    assert (np.abs(found - of_large) < 0.1 * np.abs(of_single - of_large)).all()


def test_cells_without_any_variance_weigh_contexts_equally():
    adata = hold_out(screen(irregular()), ("c", "A"))
    assert_means(predicted_means(fit(adata, weights="inverse_variance")), predicted_means(fit(adata)))


def test_a_context_without_the_perturbation_takes_no_part():
    means = irregular("abcd", "AB")
    adata = hold_out(screen(means), ("a", "B"), ("b", "A"), ("d", "A"), ("d", "B"))
    found = predicted_means(fit(adata))
    for label, contexts in (("A", "ac"), ("B", "bc")):
        beta = np.mean([means[c, label] - means[c, "control"] for c in contexts], axis=0)
        np.testing.assert_allclose(found["d", label], means["d", "control"] + beta, atol=SINGLE)


# ------------------------------------------------------------------ companions and the multiplicative estimator


def test_the_companions_are_means_of_training_groups():
    means = irregular("abcd", "AB")
    adata = hold_out(screen(means), ("a", "A"), ("d", "A"), ("d", "B"))
    found = {
        e: predicted_means(fit(adata, estimator=e))
        for e in ("context_mean", "perturbation_mean", "two_way_mean", "additive_control", "additive_ols")
    }
    of_context = {
        "a": means["a", "B"],
        "b": (means["b", "A"] + means["b", "B"]) / 2,
        "c": (means["c", "A"] + means["c", "B"]) / 2,
        "d": means["d", "control"],
    }
    of_label = {
        "A": (means["b", "A"] + means["c", "A"]) / 2,
        "B": (means["a", "B"] + means["b", "B"] + means["c", "B"]) / 3,
    }
    for (context, label), both in found["two_way_mean"].items():
        np.testing.assert_allclose(found["context_mean"][context, label], of_context[context], atol=SINGLE)
        np.testing.assert_allclose(found["perturbation_mean"][context, label], of_label[label], atol=SINGLE)
        np.testing.assert_allclose(both, (of_context[context] + of_label[label]) / 2, atol=SINGLE)
        for additive_one in ("additive_control", "additive_ols"):
            assert np.abs(both - found[additive_one][context, label]).max() > 0.1


def test_on_additive_data_the_two_way_mean_is_not_the_additive_model():
    truth = additive("abc", "AB")
    adata = hold_out(screen(truth), ("a", "A"))
    assert_means(predicted_means(fit(adata)), truth)
    assert np.abs(predicted_means(fit(adata, estimator="two_way_mean"))["a", "A"] - truth["a", "A"]).max() > 0.5


def multiplicative():
    """Mean normalised counts that are exactly context x perturbation."""
    rng = np.random.default_rng(0)
    base = {c: rng.uniform(2, 20, G) for c in "abc"}
    ratio = {"control": np.ones(G), "A": rng.uniform(0.2, 5, G), "B": rng.uniform(0.2, 5, G)}
    cell = np.array([0.5, 1.0, 1.0, 1.5])[:, None]
    rows = {(c, p): np.log1p(base[c] * ratio[p] * cell) for c in base for p in ratio}
    x = np.concatenate(list(rows.values())).astype(np.float32)
    obs = pd.DataFrame(np.repeat(list(rows), 4, axis=0), columns=["context", "perturbation"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return hold_out(AnnData(x, obs), ("a", "A")), rows


def test_multiplicative_data_are_recovered_cell_by_cell():
    adata, rows = multiplicative()
    predicted = fit(adata, estimator="multiplicative", pseudocount=1e-9).predict(perturbation="A", context="a")
    np.testing.assert_allclose(predicted.X, rows["a", "A"], rtol=1e-5)
    worse = fit(adata).predict(perturbation="A", context="a")
    assert np.abs(worse.X - rows["a", "A"]).max() > 0.1


def test_the_pseudocount_shrinks_ratios_and_keeps_genes_that_are_off_at_zero():
    adata, _ = multiplicative()
    adata.X[:, 0] = np.where(adata.obs["perturbation"] == "control", 0, adata.X[:, 0])
    tables = [
        fit(adata, estimator="multiplicative", pseudocount=value).get_perturbation_embedding().loc["A"]
        for value in (1e-6, 1.0)
    ]
    assert (tables[1].abs() < tables[0].abs()).all()
    model = fit(adata, estimator="multiplicative")
    assert np.isfinite(model.get_perturbation_embedding()).all(axis=None)
    assert (model.predict(perturbation="A").X[:, 0] == 0).all()


# ------------------------------------------------------------------ combinations and doses


def dosed(doses=(1.0, 10.0, 100.0), labels="A"):
    """Shifts of `1, 2, 4, ...` times a vector at growing doses of each perturbation."""
    rng = np.random.default_rng(0)
    adata, beta, parts = [], {}, []
    for p in labels:
        vector = eighths(rng, G, 1, 3)
        beta.update({(p, dose): vector * 2**i for i, dose in enumerate(doses)})
    base = {c: eighths(rng, G, 2, 4) for c in "ab"}
    for c in base:
        groups = {("control", 0.0): base[c], **{key: base[c] + shift for key, shift in beta.items()}}
        for (p, dose), mean in groups.items():
            adata.append(np.tile(mean, (2, 1)))
            parts += [(c, p, dose)] * 2
    obs = pd.DataFrame(parts, columns=["context", "perturbation", "dose"], index=[f"c{i}" for i in range(len(parts))])
    obs["split"] = "train"
    return AnnData(np.concatenate(adata).astype(np.float32), obs), beta, base


@pytest.mark.parametrize(
    ("dose", "weights"),
    [
        (1, {1: 1}),
        (10, {10: 1}),
        (10**0.5, {1: 0.5, 10: 0.5}),
        (10**1.25, {10: 0.75, 100: 0.25}),
        (0.01, {1: 1}),
        (1e4, {100: 1}),
    ],
)
def test_shifts_between_measured_doses_are_linear_in_the_log_dose(dose, weights):
    adata, beta, base = dosed()
    model = fit(adata, dose_key="dose", dose_rule="interpolate")
    found = model.predict(perturbation="A", dose=dose, context="b", returns="mean", clip=False).X[0]
    expected = base["b"] + sum(weight * beta["A", known] for known, weight in weights.items())
    np.testing.assert_allclose(found, expected, atol=SINGLE)


def test_doses_that_were_not_measured_are_refused_unless_interpolated():
    adata, _, base = dosed()
    model = fit(adata, dose_key="dose")
    with pytest.raises(ValueError, match=r"Dose 5 of 'A' was not measured \(measured: 1, 10, 100\).*'interpolate'"):
        model.predict(perturbation="A", dose=5)
    np.testing.assert_array_equal(
        model.predict(perturbation="A", dose=0, context="a", returns="mean").X[0], base["a"].astype(np.float32)
    )


def test_doses_of_a_combination_are_those_of_its_parts():
    adata, beta, base = dosed(labels="AB")
    model = fit(adata, dose_key="dose")
    found = model.predict(perturbation="B+A", dose="10+1", context="a", returns="mean", clip=False)
    np.testing.assert_allclose(found.X[0], base["a"] + beta["B", 10] + beta["A", 1], atol=SINGLE)
    with pytest.raises(ValueError, match="Dose 5 of 'A' was not measured"):
        model.predict(perturbation="A+B", dose="5+1")


@pytest.mark.parametrize("estimator", ["additive_control", "additive_ols"])
def test_a_combination_never_measured_is_the_sum_of_its_parts(estimator):
    means = irregular("ab", "ABC")
    model = fit(screen(means), estimator=estimator)
    alone, sums = predicted_means(model), predicted_means(model, ["A+B", "C + A + B"])
    for c in "ab":
        parts = {p: alone[c, p] - means[c, "control"] for p in "ABC"}
        np.testing.assert_allclose(sums[c, "A+B"], means[c, "control"] + parts["A"] + parts["B"], atol=2 * SINGLE)
        np.testing.assert_allclose(sums[c, "A+B+C"], means[c, "control"] + sum(parts.values()), atol=2 * SINGLE)


def test_a_measured_combination_has_a_shift_of_its_own():
    truth = additive("abc", ["A", "B", "A+B"])
    model = fit(hold_out(screen(truth), ("c", "A+B")))
    found = predicted_means(model, "B+A")
    assert_means(found, truth)
    parts = truth["c", "A"] + truth["c", "B"] - truth["c", "control"]
    assert np.abs(found["c", "A+B"] - parts).max() > 0.5


# ------------------------------------------------------------------ deviation and what is not known


def test_the_deviation_between_contexts():
    means = irregular("abc", "AB")
    model = fit(hold_out(screen(means), ("a", "B"), ("b", "B")))
    table = model.get_context_deviation()
    delta = [means[c, "A"] - means[c, "control"] for c in "abc"]
    np.testing.assert_allclose(table.loc["A"], np.std(delta, axis=0, ddof=1), atol=SINGLE)
    assert table.loc["B"].isna().all()
    assert fit(screen(irregular("a", "AB"))).get_context_deviation().isna().all(axis=None)


def test_a_perturbation_never_seen_beside_control_is_refused_not_silently_unchanged():
    means = irregular("abc", ["A", "B", "A+B"])
    adata = hold_out(screen(means), ("c", "control"), ("a", "B"), ("b", "B"), ("a", "A+B"), ("b", "A+B"))
    model = fit(adata)
    for label in ("B", "A+B"):
        with pytest.raises(ValueError, match="The shift of 'B' alone is not known"):
            model.predict(perturbation=label)
    assert model.get_perturbation_embedding().loc[["B", "A+B"]].isna().all(axis=None)
    assert model.get_context_deviation().loc["B"].isna().all()
    assert model.get_perturbation_embedding().loc["A"].notna().all()
    with pytest.warns(UserWarning, match=r"\d+ cell\(s\) have labels that the model cannot predict"):
        model.annotate()
    unknown = adata.obs["perturbation"].isin(["B", "A+B"]).to_numpy()
    assert np.isnan(adata.layers["TwoFactor_predicted"][unknown]).all()
    assert np.isfinite(adata.layers["TwoFactor_predicted"][~unknown]).all()
    assert ("c", "B") in predicted_means(fit(adata, estimator="additive_ols"), "B")


def test_without_contexts_the_shift_is_that_of_all_cells():
    means = {("a", p): mean for (_, p), mean in irregular("a", "AB").items()}
    adata = screen(means, spread=0.5)
    model = fit(adata, context_key=None)
    predicted = model.predict(perturbation="B", returns="mean", clip=False)
    np.testing.assert_allclose(predicted.X[0], means["a", "B"], atol=SINGLE)


@pytest.mark.parametrize("estimator", ["context_mean", "perturbation_mean", "two_way_mean"])
def test_companions_refuse_what_was_not_trained(estimator):
    model = fit(screen(irregular("ab", "AB")), estimator=estimator)
    with pytest.raises(ValueError, match=f"estimator='{estimator}' predicts trained conditions only"):
        model.predict(perturbation="A+B")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"estimator": "additive"}, "estimator='additive' is unknown"),
        ({"weights": "cell"}, "weights='cell' is unknown.*did you mean 'cells'"),
        ({"dose_rule": "exactly"}, "dose_rule='exactly' is unknown"),
        *(({"pseudocount": v}, f"pseudocount={v} must be positive and finite") for v in (0, -1, np.inf, np.nan)),
        ({"estimator": "two_way_mean", "weights": "cells"}, "weights='cells' is not offered for .*'two_way_mean'"),
        (
            {"estimator": "additive_ols", "weights": "inverse_variance"},
            "weights='inverse_variance' is not offered for .*'additive_ols'",
        ),
    ],
)
def test_bad_arguments_are_named(init, message):
    with pytest.raises(ValueError, match=message):
        fit(screen(irregular("a", "A")), **init)


def test_ratios_of_signed_data_are_refused():
    adata = screen({("a", "control"): np.array([-2.0, 1.0]), ("a", "A"): np.array([1.0, -1.5])})
    with pytest.raises(ValueError, match="'multiplicative' needs log-normalised .* signed=True"):
        fit(adata, signed=True, estimator="multiplicative")
    found = predicted_means(fit(adata, signed=True), "A", clip=None)
    np.testing.assert_allclose(found["a", "A"], [1, -1.5], atol=SINGLE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_saved_model_predicts_the_same(estimator, tmp_path):
    adata = hold_out(screen(irregular("abc", "AB"), spread=0.5), ("c", "control"), ("a", "B"))
    model = fit(adata, estimator=estimator)
    model.save(tmp_path / "model")
    loaded = TwoFactor.load(tmp_path / "model", adata, accelerator="cpu")
    np.testing.assert_array_equal(loaded.predict(perturbation="A").X, model.predict(perturbation="A").X)
    pd.testing.assert_frame_equal(loaded.get_context_deviation(), model.get_context_deviation())

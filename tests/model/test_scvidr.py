"""ScVIDR keeps the invariants of its published equations: regression, doses, gene scores and pseudo-doses."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.train import Trainer
from sklearn.decomposition import PCA
from sklearn.linear_model import ElasticNet, LinearRegression, Ridge

from multipert.data._loaders import CellLoader
from multipert.model import ScGen, ScVIDR
from multipert.model._scvidr import regression_weights
from multipert.model._surrogate import Surrogate, nearness

SMALL = {"n_hidden": 12, "n_latent": 5}
CONTEXT = {"context_key": "context"}
DOSES = {**CONTEXT, "dose_key": "single_dose"}
PCA_LATENT = {"latent": "pca", "n_latent": 10}


def untrained(toys, adata, *, setup=DOSES, init=None, **train):
    """Weights as drawn, regression fitted."""
    return toys.trained(
        ScVIDR,
        adata,
        setup=setup,
        init=SMALL if init is None else init,
        **{"max_epochs": 0, "train_size": 1.0, **train},
    )


def linear_screen(amount, n_noise=6, seed=0):
    """Every context's perturbed cells are its control cells, moved along one axis by an amount linear in its place.

    Parameters
    ----------
    amount
        Gives the amount from the place of a context; the last context has control cells only.
    """
    rng = np.random.default_rng(seed)
    places = np.array([0.0, 1.0, 2.0, 4.0, 5.5])
    direction, axis = (np.eye(12)[i] for i in (0, 1))
    x, rows = [], []
    for i, place in enumerate(places):
        noise = rng.normal(0, 0.3, (40, 12))
        control = 5 + place * direction + noise - noise.mean(0)
        x.append(control)
        rows += [("control", f"c{i}")] * 40
        x.append(control + amount(place) * axis)
        rows += [("P", f"c{i}")] * 40
    obs = pd.DataFrame(rows, columns=["perturbation", "context"], index=[f"cell{i}" for i in range(len(rows))])
    obs["split"] = np.where((obs["context"] == "c4") & (obs["perturbation"] == "P"), "test", "train")
    return AnnData(np.concatenate(x).astype(np.float32), obs)


def changes_along_the_axis(model, context):
    control = model.predict(perturbation="control", context=context, returns="mean").X[0]
    return (model.predict(perturbation="P", context=context, returns="mean").X[0] - control)[1]


# ------------------------------------------------------------------ regression


@pytest.mark.parametrize(("n_contexts", "n_latent"), [(4, 30), (40, 6)])
def test_the_regression_is_that_of_scikit_learn(n_contexts, n_latent):
    rng = np.random.default_rng(0)
    control, delta, target = (rng.normal(size=(n, n_latent)) for n in (n_contexts, n_contexts, 3))
    expected = LinearRegression().fit(control, delta).predict(target)
    np.testing.assert_allclose(regression_weights(control, target, 0.0) @ delta, expected, atol=1e-9)
    spread = np.square(control - control.mean(0)).sum() / n_contexts
    expected = Ridge(alpha=0.3 * spread).fit(control, delta).predict(target)
    np.testing.assert_allclose(regression_weights(control, target, 0.3) @ delta, expected, atol=1e-9)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.1, 5.0]), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_weights_sum_to_one_so_equal_vectors_stay_what_they_are(n_contexts, ridge_alpha, seed):
    rng = np.random.default_rng(seed)
    weights = regression_weights(rng.normal(size=(n_contexts, 4)), 10 * rng.normal(size=(3, 4)), ridge_alpha)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)


def test_a_large_penalty_gives_the_mean_and_equal_centroids_do_too():
    rng = np.random.default_rng(0)
    control, target = rng.normal(size=(4, 5)), rng.normal(size=(2, 5))
    np.testing.assert_allclose(regression_weights(control, target, 1e9), 0.25, atol=1e-6)
    rounding = control[:1] + 1e-7 * rng.normal(size=(4, 5))
    for ridge_alpha in (0.0, 1.0):
        same = np.repeat(control[:1], 4, axis=0)
        np.testing.assert_allclose(regression_weights(same, target, ridge_alpha), 0.25, atol=1e-12)
    assert np.isfinite(regression_weights(rounding, target, 0.0)).all()


def test_training_contexts_get_their_measured_vectors(adata, toys):
    module = untrained(toys, adata).module
    for code in range(3):
        position = module.highest(code)
        at = module.pairs(position)
        assert len(at) == 3
        found = module.context_shift(position, module.centroid[module.pair_context[at]])
        np.testing.assert_allclose(found, module.delta[at], atol=1e-5)
        assert (module.delta[at].std(0) > 1e-4).all()


def test_vectors_and_centroids_are_those_of_the_highest_dose(adata, toys):
    model = untrained(toys, adata)
    module, obs = model.module, adata.obs
    z = model.get_latent_representation(adata).astype(np.float64)
    for label, dose in {"A": 5.0, "B": 2.0, "C": 3.0}.items():
        position = module.highest(model._code(label))
        assert model.trained_conditions_[position] == ((label, dose),)
        for at in module.pairs(position).tolist():
            context = model._context_names()[module.pair_context[at]]
            here = (obs["context"] == context).to_numpy()
            control = z[here & (obs["perturbation"] == "control").to_numpy()].mean(0)
            perturbed = z[here & ((obs["perturbation"] == label) & (obs["single_dose"] == dose)).to_numpy()].mean(0)
            np.testing.assert_allclose(module.centroid[module.pair_context[at]], control, atol=1e-6)
            np.testing.assert_allclose(module.delta[at], perturbed - control, atol=1e-6)


def test_duplicating_the_cells_of_a_context_changes_nothing(adata, toys):
    model = untrained(toys, adata)
    before = [getattr(model.module, name).clone() for name in ("centroid", "delta")]
    rows = np.concatenate([np.arange(adata.n_obs), *[np.flatnonzero(adata.obs["context"] == "b")] * 3])
    with torch.no_grad():
        model.module.conclude(CellLoader(model._training_store(adata, 0), rows, 32))
    for name, value in zip(("centroid", "delta"), before, strict=True):
        np.testing.assert_allclose(getattr(model.module, name), value, atol=1e-6)


def test_without_the_regression_it_is_scgen(adata, toys):
    single = toys.trained(ScGen, adata, setup=CONTEXT, init=SMALL, max_epochs=2, batch_size=16, train_size=1.0)
    for init, same in (({"regression": False}, True), ({"ridge_alpha": 1e9}, True), ({}, False)):
        model = untrained(toys, adata, setup=CONTEXT, init={**SMALL, **init})
        model.module.load_state_dict(single.module.state_dict(), strict=False)
        with torch.no_grad():
            model.module.conclude(CellLoader(model._training_store(adata, 0), np.arange(adata.n_obs), 32))
        found, expected = (one.predict(clip=False).X for one in (model, single))
        assert (np.abs(found - expected).max() < 1e-5) == same


def test_equal_responses_are_transferred_by_both(toys):
    adata = linear_screen(lambda place: 1.5)
    models = [
        untrained(toys, adata, setup=CONTEXT, init={**PCA_LATENT, "n_latent": 12, "regression": on}, split_key="split")
        for on in (True, False)
    ]
    for model in models:
        np.testing.assert_allclose(changes_along_the_axis(model, "c4"), 1.5, atol=1e-4)


def test_responses_linear_in_the_centroid_are_recovered_and_the_mean_is_not(toys):
    adata = linear_screen(lambda place: 0.5 + 0.4 * place)
    init = {**PCA_LATENT, "n_latent": 12}
    model = untrained(toys, adata, setup=CONTEXT, init=init, split_key="split")
    np.testing.assert_allclose(changes_along_the_axis(model, "c4"), 0.5 + 0.4 * 5.5, atol=1e-3)
    errors = model.regression_errors()
    assert (errors["error"] < 1e-3).all()
    assert (errors["error_of_mean"] > 0.05).all()
    flat = untrained(toys, adata, setup=CONTEXT, init={**init, "regression": False}, split_key="split")
    np.testing.assert_allclose(changes_along_the_axis(flat, "c4"), 0.5 + 0.4 * 1.75, atol=1e-4)


def test_regression_errors_leave_each_context_out(adata, toys):
    model = untrained(toys, adata, init={**SMALL, "ridge_alpha": 0.2})
    table = model.regression_errors()
    assert list(table.columns) == ["perturbation", "context", "n_contexts", "error", "error_of_mean"]
    assert table["perturbation"].tolist() == list("AAABBBCCC")
    assert table["context"].tolist() == list("abc") * 3
    module = model.module
    at = module.pairs(module.highest(0))
    delta, control = module.delta[at].numpy(), module.centroid[module.pair_context[at]].numpy()
    spread = np.square(control[1:] - control[1:].mean(0)).sum() / 2
    found = Ridge(alpha=0.2 * spread).fit(control[1:], delta[1:]).predict(control[:1])[0]
    length = np.linalg.norm(delta[0])
    np.testing.assert_allclose(table["error"][0], np.linalg.norm(found - delta[0]) / length, rtol=1e-4)
    mean = delta[1:].mean(0)
    np.testing.assert_allclose(table["error_of_mean"][0], np.linalg.norm(mean - delta[0]) / length, rtol=1e-5)
    one = untrained(toys, adata[adata.obs["context"] == "a"].copy()).regression_errors()
    assert one["n_contexts"].tolist() == [0, 0, 0]
    assert one["error"].isna().all()


# ------------------------------------------------------------------ centroids of the query


def test_the_centroid_of_an_unseen_context_is_that_of_all_its_control_cells_given(adata, toys):
    known = adata[adata.obs["context"] != "c"].copy()
    model = untrained(toys, known)
    query = adata.copy()
    z = model.get_latent_representation(query)
    rows = np.flatnonzero((query.obs["context"] == "c") & (query.obs["perturbation"] == "control"))
    centroid = torch.from_numpy(z[rows].mean(0, keepdims=True))
    delta = model.module.context_shift(model.module.highest(0), centroid).float()
    with torch.no_grad():
        expected = model.module.decoder(torch.from_numpy(z[rows]) + delta).numpy()
    for arguments in ({}, {"batch_size": 3}):
        found = model.predict(query, "A", dose=5, context="c", clip=False, **arguments)
        np.testing.assert_allclose(found.X, expected, atol=1e-5)
    some = model.predict(query, "A", dose=5, indices=rows[2:5], clip=False)
    np.testing.assert_allclose(some.X, expected[2:5], atol=1e-5)
    # other cells of the context move its prediction
    query.X[rows[7:]] = query.X[rows[7:]] * 3
    moved = model.predict(query, "A", dose=5, indices=rows[2:5], clip=False)
    assert np.abs(moved.X - some.X).max() > 1e-4


# ------------------------------------------------------------------ doses


def test_vectors_grow_with_the_logarithm_of_the_dose(adata, toys):
    model = untrained(toys, adata)
    module = model.module
    centroid = module.centroid[:1]

    def vector(dose):
        label = model._label_tensors([(("A", dose),)])
        return module.condition_shift(label["perturbation"][0], label["dose"][0], {"context_latent": centroid})[0]

    top = vector(5.0)
    np.testing.assert_allclose(top, module.context_shift(module.highest(0), centroid)[0], atol=1e-7)
    for dose in (0.01, 0.3, 1.0, 4.0, 20.0):
        np.testing.assert_allclose(vector(dose), top * math.log1p(dose) / math.log1p(5), atol=1e-6)
    lengths = [float(vector(dose).norm()) for dose in (0.01, 0.3, 1.0, 4.0, 20.0)]
    assert lengths == sorted(lengths)


def test_dose_zero_is_control_and_the_highest_dose_is_that_of_a_model_of_it_alone(adata, toys):
    model = untrained(toys, adata)
    zero = model.predict(perturbation="A", dose=0)
    np.testing.assert_array_equal(zero.X, model.predict(perturbation="control").X)
    top = adata[((adata.obs["perturbation"] == "control") | (adata.obs["single_dose"] == 5)).to_numpy()].copy()
    alone = untrained(toys, top, setup=CONTEXT)
    alone.module.load_state_dict(model.module.encoder.state_dict(prefix="encoder."), strict=False)
    alone.module.load_state_dict(model.module.decoder.state_dict(prefix="decoder."), strict=False)
    with torch.no_grad():
        alone.module.conclude(CellLoader(alone._training_store(top, 0), np.arange(top.n_obs), 32))
    one, other = model.predict(top, "A", dose=5, clip=False), alone.predict(top, "A", clip=False)
    np.testing.assert_allclose(one.X, other.X, atol=1e-5)


def test_two_perturbations_at_one_dose_keep_their_vectors(adata, toys):
    adata.obs["single_dose"] = np.where(adata.obs["perturbation"] == "control", 0.0, 2.0)
    model = untrained(toys, adata)
    table = model.get_perturbation_embedding()
    assert table.index.tolist() == ["A@2", "B@2", "C@2"]
    assert np.abs(table.loc["A@2"] - table.loc["B@2"]).max() > 1e-3
    one, other = (model.predict(perturbation=name, dose=2).X for name in "AB")
    assert np.abs(one - other).max() > 1e-4


def test_other_doses_from_cells_at_the_highest_one(adata, toys):
    model = untrained(toys, adata)
    found = model.predict_from_perturbed(adata, "A", dose=[5, 1, 0], clip=False)
    at = np.flatnonzero((adata.obs["perturbation"] == "A") & (adata.obs["single_dose"] == 5))
    n = len(at)
    z = torch.from_numpy(model.get_latent_representation(adata)[at])
    centroids = model.module.centroid[[model._context_names().index(c) for c in adata.obs["context"].iloc[at]]]
    delta = model.module.context_shift(model.module.highest(0), centroids).float()
    with torch.no_grad():
        for i, dose in enumerate((5, 1, 0)):
            share = (math.log1p(5) - math.log1p(dose)) / math.log1p(5)
            expected = model.module.decoder(z - share * delta)
            np.testing.assert_allclose(found.X[i * n : (i + 1) * n], expected, atol=1e-5)
    assert found.obs["single_dose"].tolist() == [5.0] * n + [1.0] * n + [0.0] * n
    assert found.obs["perturbation"].tolist() == ["A"] * 2 * n + ["control"] * n
    assert found.obs["source_cell"].tolist() == adata.obs_names[at].tolist() * 3
    some = model.predict_from_perturbed(adata, "A", dose=1, context="b", clip=False, batch_size=2)
    here = (found.obs["context"] == "b").to_numpy() & (found.obs["single_dose"] == 1).to_numpy()
    np.testing.assert_allclose(some.X, found.X[here], atol=1e-5)


def test_cells_at_the_highest_dose_and_controls_are_needed(adata, toys):
    model = untrained(toys, adata)
    low = adata[(adata.obs["single_dose"] != 5).to_numpy()].copy()
    with pytest.raises(ValueError, match="No cell has 'A' at dose 5"):
        model.predict_from_perturbed(low, "A", dose=1)
    bare = adata[((adata.obs["context"] != "b") | (adata.obs["perturbation"] != "control")).to_numpy()].copy()
    with pytest.raises(ValueError, match=r"1 context\(s\) have no control cells, first 'b'"):
        model.predict_from_perturbed(bare, "A", dose=1)
    with pytest.raises(ValueError, match="negative"):
        model.predict_from_perturbed(adata, "A", dose=-1)
    with pytest.raises(ValueError, match="holds 3 perturbations; name one"):
        model.predict_from_perturbed(adata, dose=1)
    for doses in ([], [1, 1]):
        with pytest.raises(ValueError, match="at least one dose, and none twice"):
            model.predict_from_perturbed(adata, "A", dose=doses)
    unit = untrained(toys, adata, setup=CONTEXT)
    assert set(unit.predict_from_perturbed(adata, "A", dose=0).obs["perturbation"]) == {"control"}


def test_contexts_far_outside_the_measured_ones_are_told(toys):
    near, far = linear_screen(lambda place: 1 + place / 5), linear_screen(lambda place: 1 + place / 5)
    at = (far.obs["context"] == "c4").to_numpy()
    far.X[at, 0] += 40
    for adata, told in ((near, False), (far, True)):
        model = untrained(toys, adata, setup=CONTEXT, init=PCA_LATENT, split_key="split")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.predict(perturbation="P", context="c4")
        assert any("ScVIDR extrapolates" in str(one.message) for one in caught) == told


# ------------------------------------------------------------------ gene scores


@pytest.fixture(scope="module")
def linear(toys):
    """A model with a linear decoder."""
    return untrained(toys, toys.screen(), init={"n_latent": 5, "n_hidden": 12, "linear_decoder": True})


def decoder_weights(model):
    """Change of the decoded expression with each latent dimension."""
    decoder = model.module.decoder
    scale = decoder.norm.weight / torch.sqrt(decoder.norm.running_var + 1e-3)
    return (scale[:, None] * decoder.output.weight).detach().double().numpy()


def test_scores_of_a_linear_decoder_are_its_weights_times_the_vector(linear):
    weights = decoder_weights(linear)
    at = linear._context_names().index("b")
    delta = linear.module.context_shift(linear.module.highest(0), linear.module.centroid[at : at + 1])[0].numpy()
    expected = (weights / np.linalg.norm(weights, axis=0)) @ delta
    table = linear.gene_scores("A", context="b", n_samples=5000, alpha=1e-6)
    np.testing.assert_allclose(table["score"].loc[list(linear.get_var_names())], expected, atol=1e-4)
    assert table.attrs["r2"] > 0.99
    assert (table["r2"] > 0.99).all()
    assert table["score"].is_monotonic_decreasing
    assert table["rank"].sort_values().tolist() == list(range(1, 21))
    assert table["score"].abs().idxmax() == table["rank"].idxmin()


def test_scores_follow_sign_and_length_of_the_vector(linear):
    one = linear.gene_scores("A", context="b", n_samples=3000, alpha=1e-6)
    low = linear.gene_scores("A", context="b", dose=1, n_samples=3000, alpha=1e-6)
    np.testing.assert_allclose(low["score"], one["score"] * math.log1p(1) / math.log1p(5), rtol=1e-5)
    assert low.index.equals(one.index)
    linear.module.delta *= -1
    try:
        flipped = linear.gene_scores("A", context="b", n_samples=3000, alpha=1e-6)
    finally:
        linear.module.delta *= -1
    np.testing.assert_allclose(flipped["score"].loc[one.index], -one["score"], atol=1e-4)


def test_scores_of_a_network_are_repeatable_and_say_how_little_the_surrogate_explains(adata, toys):
    model = untrained(toys, adata)
    one, again, other = (model.gene_scores("A", n_samples=500, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one["score"].equals(other["score"])
    assert one.attrs["r2"] < 0.999


def data_of_surrogate(n=400, seed=0):
    rng = np.random.default_rng(seed)
    z, weights = rng.uniform(-1, 2, (n, 4)), rng.normal(size=(7, 4))
    x = z @ weights.T + 0.3 * np.sin(3 * z) @ rng.normal(size=(4, 7)) + rng.normal(size=7)
    sample_weights = nearness(z, rng.normal(size=4))

    def decode(some):
        found = [np.flatnonzero((z == row).all(1))[0] for row in some]
        return x[found]

    return z, x, sample_weights, decode


@pytest.mark.parametrize("regressor", ["ridge", "elasticnet"])
def test_the_surrogate_is_the_weighted_fit_of_scikit_learn(regressor):
    z, x, sample_weights, decode = data_of_surrogate()
    found = Surrogate.fit(decode, z, sample_weights, regressor=regressor, alpha=0.05, l1_ratio=0.7)
    if regressor == "ridge":
        expected = Ridge(alpha=0.05).fit(z, x, sample_weight=sample_weights)
    else:
        expected = ElasticNet(alpha=0.05, l1_ratio=0.7, tol=1e-10).fit(z, x, sample_weight=sample_weights)
        assert (expected.coef_ == 0).any()
    np.testing.assert_allclose(found.weights, expected.coef_, atol=2e-4)
    np.testing.assert_allclose(found.offset, expected.intercept_, atol=2e-4)
    from sklearn.metrics import r2_score

    np.testing.assert_allclose(
        found.r2(decode, z[:100]), r2_score(x[:100], z[:100] @ found.weights.T + found.offset, multioutput="raw_values")
    )


def test_samples_along_the_vector_weigh_much_but_not_infinitely():
    delta = np.array([1.0, 2.0, 0.0])
    weights = nearness(np.array([delta, 3 * delta, -delta, [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), delta)
    np.testing.assert_allclose(weights, [1e6, 1e6, 0.5, 1.0, 1.0], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation": "D"}, "'D' has no vector"),
        ({"context": "d"}, "Context 'd' has no training cell under control"),
        ({"regressor": "lasso"}, "regressor='lasso' is unknown"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"l1_ratio": 2.0}, "l1_ratio=2.0"),
        ({"n_samples": 1}, "n_samples=1"),
        ({"dose": 0}, "vector of 'A' at dose 0 is 0"),
        ({"dose": -1}, "negative"),
    ],
)
def test_gene_scores_name_what_is_wrong(linear, arguments, message):
    with pytest.raises(ValueError, match=message):
        linear.gene_scores(**{"perturbation": "A", **arguments})


# ------------------------------------------------------------------ pseudo-doses


def test_perturbed_cells_lie_one_above_control_on_average(adata, toys):
    for init in (SMALL, {**SMALL, "ridge_alpha": 1.0}, {**SMALL, "regression": False}):
        model = untrained(toys, adata, init=init)
        found, obs = model.pseudo_dose(adata, "A"), adata.obs
        assert found.index.equals(adata.obs_names)
        for context in "abc":
            here = obs["context"] == context
            perturbed = found[here & (obs["perturbation"] == "A") & (obs["single_dose"] == 5)].mean()
            control = found[here & (obs["perturbation"] == "control")].mean()
            np.testing.assert_allclose(perturbed - control, 1, atol=1e-5)


def test_pseudo_doses_of_an_unmeasured_context_are_along_the_predicted_vector(adata, toys):
    adata.obs["split"] = np.where((adata.obs["context"] == "c") & (adata.obs["perturbation"] == "A"), "test", "train")
    model = untrained(toys, adata, split_key="split")
    here = (adata.obs["context"] == "c").to_numpy()
    z = model.get_latent_representation(adata)[here].astype(np.float64)
    centroid = model.module.centroid[model._context_names().index("c")][None]
    delta = model.module.context_shift(model.module.highest(0), centroid)[0].numpy()
    np.testing.assert_allclose(model.pseudo_dose(adata, "A")[here], z @ delta / (delta @ delta), rtol=1e-4, atol=1e-5)


def test_pseudo_doses_need_control_cells_of_contexts_without_any_in_training_only(adata, toys):
    adata.obs["split"] = np.where((adata.obs["context"] == "c") & (adata.obs["perturbation"] == "A"), "test", "train")
    model = untrained(toys, adata, split_key="split")
    whole = model.pseudo_dose(adata, "A")
    # measured in a and b; in c predicted from the control cells of the training
    perturbed = adata[(adata.obs["perturbation"] != "control").to_numpy()].copy()
    pd.testing.assert_series_equal(model.pseudo_dose(perturbed, "A"), whole[perturbed.obs_names], rtol=1e-4, atol=1e-5)
    new = adata.copy()
    new.obs["context"] = new.obs["context"].replace({"c": "d"})
    found = model.pseudo_dose(new, "A")
    # the same cells are its control cells, so only the name is new
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)
    bare = new[((new.obs["context"] != "d") | (new.obs["perturbation"] != "control")).to_numpy()].copy()
    with pytest.raises(ValueError, match=r"1 context\(s\) have no control cells, first 'd'"):
        model.pseudo_dose(bare, "A")
    mean = untrained(toys, adata, init={**SMALL, "regression": False}, split_key="split")
    pd.testing.assert_series_equal(
        mean.pseudo_dose(bare, "A"), mean.pseudo_dose(adata, "A")[bare.obs_names], rtol=1e-4, atol=1e-5
    )


# ------------------------------------------------------------------ principal components


def test_the_latent_space_of_pca_is_that_of_scikit_learn(adata, toys):
    model = untrained(toys, adata, init={"latent": "pca", "n_latent": 4})
    x = adata.X.toarray().astype(np.float64)
    pca = PCA(4).fit(x)
    z = model.get_latent_representation(adata)
    expected = pca.transform(x)
    signs = np.sign((z * expected).sum(0))
    np.testing.assert_allclose(z * signs, expected, atol=2e-3)
    found = model.predict(perturbation="control", clip=False)
    at = (adata.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_allclose(found.X, pca.inverse_transform(expected[at]), atol=1e-3)


def test_all_components_lose_nothing_and_no_pass_is_run(adata, toys, tmp_path):
    model = untrained(toys, adata, init={"latent": "pca"})
    assert model.history == {}
    x = adata.X.toarray()[(adata.obs["perturbation"] == "control").to_numpy()]
    np.testing.assert_allclose(model.predict(perturbation="control").X, x, atol=1e-5)
    model.save(tmp_path)
    again = ScVIDR.load(tmp_path, adata, accelerator="cpu")
    np.testing.assert_array_equal(again.predict(dose=None).X, model.predict().X)
    again.train(train_size=1.0, **toys.quiet)
    np.testing.assert_allclose(again.predict().X, model.predict().X, atol=1e-5)


# ------------------------------------------------------------------ arguments and training


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"latent": "ica"}, "latent='ica' is unknown"),
        ({"latent": "pca", "n_hidden": 8}, "n_hidden was given, but latent='pca' has no network"),
        ({"latent": "pca", "linear_decoder": True}, "linear_decoder was given, but latent='pca' has no network"),
        ({"ridge_alpha": -1.0}, "ridge_alpha=-1.0"),
        ({"n_layers": 0}, "n_layers=0"),
    ],
)
def test_arguments_that_make_no_model_are_named(adata, init, message):
    ScVIDR.setup_anndata(adata, **CONTEXT)
    with pytest.raises(ValueError, match=message):
        ScVIDR(adata, **init)


def test_presets_are_the_default_and_the_published_schedule(adata, monkeypatch):
    seen = SimpleNamespace()

    def fit(trainer, plan, train, validation=None):
        seen.found = (plan.lr, plan.weight_decay, plan.eps, plan.n_warmup_steps, train.loader.batch_size)
        seen.epochs = trainer.max_epochs

    monkeypatch.setattr(Trainer, "fit", fit)
    ScVIDR.setup_anndata(adata, **CONTEXT)
    model = ScVIDR(adata, preset="published")
    linears = [part for part in model.module.modules() if isinstance(part, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [800, 800, 100, 100, 800, 800, 20]
    assert {part.p for part in model.module.modules() if isinstance(part, torch.nn.Dropout)} == {0.2}
    assert (model.module.kl_weight, model.module.ridge_alpha, model.module.regression) == (5e-5, 0, True)
    # 120 cells are less than the published batch, which is then the only one
    model.train(accelerator="cpu")
    assert (seen.found, seen.epochs) == ((1e-3, 1e-6, 0.01, 0, 128), 100)


def test_held_out_cells_change_no_bit_and_two_calls_agree(adata, toys):
    held_out = ((adata.obs["context"] == "c") & (adata.obs["perturbation"] != "control")).to_numpy()
    adata.obs["split"] = np.where(held_out, "test", "train")
    changed = adata.copy()
    x = changed.X.toarray()
    x[held_out] = 7 - x[held_out].clip(max=7)
    changed.X, adata.X = x, adata.X.toarray()
    models = [untrained(toys, data, max_epochs=3, split_key="split", batch_size=16) for data in (adata, changed)]
    states = [model.module.state_dict() for model in models]
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])
    found = [model.predict(perturbation=["A", "B"], dose=[5, 2]).X for model in (*models, models[0])]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_perturbation_that_no_context_has_beside_control_is_refused(adata, toys):
    lonely = adata[(adata.obs["perturbation"] != "C") | (adata.obs["context"] == "c")].copy()
    lonely.obs["split"] = np.where(
        (lonely.obs["context"] == "c") & (lonely.obs["perturbation"] == "control"), "test", "train"
    )
    model = untrained(toys, lonely, split_key="split")
    assert model.get_perturbation_embedding().index.tolist() == ["A@5", "B@2"]
    with pytest.raises(ValueError, match="'C' is in no training context that has control cells"):
        model.predict(perturbation="C", dose=3)


def test_contexts_of_the_training_keep_their_centroid_whatever_control_cells_are_given(adata, toys):
    model = untrained(toys, adata)
    every = model.predict(perturbation="A", dose=1.0, context="a")
    is_here = ((adata.obs["context"] == "a") & (adata.obs["perturbation"] == "control")).to_numpy()
    some = model.predict(adata[np.flatnonzero(is_here)[:3]].copy(), perturbation="A", dose=1.0)
    np.testing.assert_allclose(some.X, every[some.obs_names].X, atol=1e-5)

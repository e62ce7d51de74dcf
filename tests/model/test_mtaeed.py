"""MTAeED moves control cells by measured changes and a correction, and is safe where there is no effect."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from multipert.model import MTAeED

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def cells(effect, n=60, n_vars=40, contexts=("a", "b", "c", "d"), seed=0, held="d"):
    """Counts of several contexts; the perturbation multiplies rates by `effect`; perturbed cells of `held` are test."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0.5, 1, n_vars) + rng.normal(0, 0.4, (len(contexts), n_vars)))
    context, label = np.repeat(np.arange(len(contexts)), 2 * n), np.tile(np.repeat([0, 1], n), len(contexts))
    rate = base[context] * np.where(label[:, None] == 1, effect, 1)
    counts = rng.poisson(rate).astype(np.float32)
    obs = pd.DataFrame(
        {
            "perturbation": np.array(["control", "P"])[label],
            "context": np.array(contexts)[context],
            "split": np.where((np.array(contexts)[context] == held) & (label == 1), "test", "train"),
        },
        index=[f"c{i}" for i in range(len(label))],
    )
    adata = AnnData(sparse.csr_matrix(np.log1p(counts)), obs=obs)
    adata.layers["counts"] = sparse.csr_matrix(counts)
    return adata


def trained(adata, max_epochs=20, **init):
    MTAeED.setup_anndata(adata, context_key="context")
    model = MTAeED(adata, **init)
    model.train(max_epochs, split_key="split", seed=0, **QUIET)
    return model


@pytest.fixture(scope="module")
def effect():
    values = np.ones(40)
    values[:6], values[6:12] = 4, 0.2
    return values


@pytest.fixture(scope="module")
def learnt(effect):
    adata = cells(effect)
    return trained(adata, max_epochs=100), adata


def mean(adata, context, label):
    at = (adata.obs["context"] == context) & (adata.obs["perturbation"] == label)
    return np.asarray(adata[at.to_numpy()].X.mean(axis=0)).ravel()


def test_the_change_of_a_held_out_context_is_predicted(learnt):
    model, adata = learnt
    control, truth = mean(adata, "d", "control"), mean(adata, "d", "P")
    predicted = model.predict(perturbation="P", context="d", returns="mean").X[0]
    assert np.corrcoef(predicted - control, truth - control)[0, 1] > 0.95
    assert np.square(predicted - truth).sum() < 0.1 * np.square(control - truth).sum()


def test_genes_that_go_down_are_multiplied_and_genes_that_go_up_are_added_to(effect):
    model = trained(adata := cells(effect), network_share=0.0, max_epochs=1)
    source = adata[((adata.obs["context"] == "d") & (adata.obs["perturbation"] == "control")).to_numpy()]
    x, moved = source.X.toarray(), model.predict(perturbation="P", context="d").X
    down = x[:, 6:12]
    assert (moved[:, 6:12][down == 0] < 1e-6).all()
    factor = moved[:, 6:12].sum(0) / down.sum(0)
    np.testing.assert_allclose(moved[:, 6:12], down * factor, atol=1e-5)
    added = moved[:, :6] - x[:, :6]
    assert (added > 0.3).all()
    np.testing.assert_allclose(added, np.broadcast_to(added[0], added.shape), atol=1e-5)


def test_without_network_the_effect_is_that_of_similar_contexts(learnt, effect):
    model = trained(cells(effect), network_share=0.0, max_epochs=1)
    other = trained(cells(effect), network_share=0.0, max_epochs=30)
    one, two = (m.predict(perturbation="P", context="d", returns="mean").X for m in (model, other))
    np.testing.assert_array_equal(one, two)
    assert np.abs(learnt[0].predict(perturbation="P", context="d", returns="mean").X - one).max() > 1e-3


def test_an_untrained_network_corrects_nothing(effect):
    model = trained(cells(effect), max_epochs=0)
    x = torch.rand(5, 40)
    tensors = {"X": x, "perturbation": torch.zeros(5, 1, dtype=torch.long), "dose": torch.ones(5, 1)}
    assert torch.equal(model.module.correction(x, tensors), torch.zeros(5, model.module.axes.shape[1]))


def test_control_is_left_as_it_is_in_every_form(learnt):
    model, adata = learnt
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    for realise in ("plain", "residual", "counts"):
        found = model.predict(perturbation="control", realise=realise)
        np.testing.assert_array_equal(found.X, control.X.toarray())


def test_plain_and_residual_are_one(learnt):
    model, _ = learnt
    one, two = (model.predict(perturbation="P", realise=form).X for form in ("plain", "residual"))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_counts_have_the_predicted_means_and_the_spread_of_counts(learnt):
    model, adata = learnt
    plain = model.predict(perturbation="P", context="d", returns="mean").X[0]
    found = [model.predict(perturbation="P", context="d", realise="counts", seed=seed) for seed in range(20)]
    means = np.mean([one.X.mean(axis=0) for one in found], axis=0)
    np.testing.assert_allclose(means, plain, atol=0.12)
    truth = adata[((adata.obs["context"] == "d") & (adata.obs["perturbation"] == "P")).to_numpy()].X.toarray()
    ratio = np.mean([one.X.var(axis=0).sum() for one in found]) / truth.var(axis=0).sum()
    assert 0.8 < ratio < 1.25


def test_no_effect_is_predicted_where_there_is_none():
    adata = cells(np.ones(40), n=30, seed=3)
    model = trained(adata, max_epochs=30)
    truth = mean(adata, "d", "P")
    control = mean(adata, "d", "control")
    predicted = model.predict(perturbation="P", context="d", returns="mean").X[0]
    assert float(model.module.signal[-1]) < 0.3
    assert np.linalg.norm(predicted - truth) < 1.05 * np.linalg.norm(control - truth)


@pytest.mark.parametrize("contexts", [("a", "d"), ("a", "b", "d")])
def test_one_or_two_training_contexts_are_enough(effect, contexts):
    adata = cells(effect, contexts=contexts)
    predicted = trained(adata).predict(perturbation="P", context="d", returns="mean").X[0]
    control, truth = mean(adata, "d", "control"), mean(adata, "d", "P")
    assert np.linalg.norm(predicted - truth) < 0.6 * np.linalg.norm(control - truth)


def test_held_out_cells_and_batch_size_change_nothing(learnt, effect):
    model, adata = learnt
    changed = cells(effect)
    x = changed.X.toarray()
    x[(changed.obs["split"] == "test").to_numpy()] = 1
    changed.X = sparse.csr_matrix(x)
    other = trained(changed, max_epochs=100)
    np.testing.assert_array_equal(other.predict(perturbation="P").X, model.predict(perturbation="P").X)
    np.testing.assert_allclose(
        model.predict(perturbation="P", batch_size=7).X, model.predict(perturbation="P").X, atol=1e-5
    )


def test_an_untrained_combination_is_that_of_its_parts():
    rng = np.random.default_rng(0)
    effects = {"control": np.ones(30), "A": np.ones(30), "B": np.ones(30)}
    effects["A"][:5], effects["B"][5:10] = 5, 0.1
    base = np.exp(rng.normal(0.8, 0.5, 30))
    label = np.tile(np.repeat(["control", "A", "B"], 400), 2)
    x = np.log1p(rng.poisson([base * effects[name] for name in label])).astype(np.float32)
    obs = pd.DataFrame({"perturbation": label, "context": np.repeat(["a", "b"], 1200), "split": "train"})
    obs.index = [f"c{i}" for i in range(2400)]
    model = trained(AnnData(x, obs=obs), max_epochs=5, network_share=0.0)
    both, one, two, control = (
        model.predict(perturbation=name, context="a", returns="mean").X[0] for name in ("A+B", "A", "B", "control")
    )
    np.testing.assert_allclose(both[:5], one[:5], atol=0.15)
    np.testing.assert_allclose(both[5:10], two[5:10], atol=0.15)
    assert np.abs(both[:10] - control[:10]).min() > 0.3


def test_a_condition_that_no_training_context_measured_beside_control_is_refused():
    adata = cells(np.full(40, 2.0))
    adata.obs["perturbation"] = adata.obs["perturbation"].where(
        ~((adata.obs["context"] == "a") & (adata.obs["perturbation"] == "P")), "Q"
    )
    keep = ~((adata.obs["context"] == "a") & (adata.obs["perturbation"] == "control"))
    model = trained(adata[keep.to_numpy()].copy(), max_epochs=1)
    with pytest.raises(ValueError, match="'Q' at dose 1 is in no training context that has control cells"):
        model.predict(perturbation="Q", context="b")


def test_network_share_lies_between_0_and_1(effect):
    adata = cells(effect)
    MTAeED.setup_anndata(adata, context_key="context")
    with pytest.raises(ValueError, match=r"network_share=1.5 must lie in 0..1"):
        MTAeED(adata, network_share=1.5)


def test_signed_data_are_shifted_only(effect):
    adata = cells(effect)
    adata.X = adata.X.toarray() - 1
    MTAeED.setup_anndata(adata, context_key="context", signed=True)
    model = MTAeED(adata, network_share=0.0)
    model.train(1, split_key="split", **QUIET)
    source = adata[((adata.obs["context"] == "d") & (adata.obs["perturbation"] == "control")).to_numpy()]
    change = model.predict(perturbation="P", context="d").X - source.X
    np.testing.assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-5)


def several(labels=("control", "P", "Q"), contexts=("a", "b", "c"), n=20, seed=0):
    """As :func:`cells`, with several perturbations that raise genes of their own."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0.5, 1, 30) + rng.normal(0, 0.3, (len(contexts), 30)))
    context = np.repeat(np.arange(len(contexts)), n * len(labels))
    label = np.tile(np.repeat(np.arange(len(labels)), n), len(contexts))
    raised = np.ones((len(labels), 30))
    for i in range(1, len(labels)):
        raised[i, 4 * i : 4 * i + 4] = 4
    x = np.log1p(rng.poisson(base[context] * raised[label])).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": np.array(labels)[label], "context": np.array(contexts)[context], "split": "train"},
        index=[f"c{i}" for i in range(len(label))],
    )
    return AnnData(x, obs=obs)


def test_a_perturbation_of_validation_cells_only_does_not_stop_early_stopping():
    adata = several()
    adata.obs.loc[(adata.obs["perturbation"] == "Q").to_numpy(), "split"] = "val"
    adata.obs.loc[adata.obs_names[:5], "split"] = "val"
    MTAeED.setup_anndata(adata, context_key="context")
    model = MTAeED(adata)
    model.train(3, split_key="split", early_stopping=True, **QUIET)
    assert np.isfinite(model.history["validation_loss"]).all(axis=None)
    with pytest.raises(ValueError, match="'Q' has no training cells"):
        model.predict(perturbation="Q")


def test_validation_cells_without_any_control_cell_are_left_out():
    adata = several()
    is_c = (adata.obs["context"] == "c").to_numpy()
    adata = adata[~(is_c & (adata.obs["perturbation"] == "control").to_numpy())].copy()
    adata.obs.loc[(adata.obs["context"] == "c").to_numpy(), "split"] = "val"
    MTAeED.setup_anndata(adata, context_key="context")
    model = MTAeED(adata)
    model.train(2, split_key="split", **QUIET)
    with pytest.raises(ValueError, match="early_stopping needs validation cells that can be paired"):
        model.train(2, split_key="split", early_stopping=True, **QUIET)


def test_training_without_a_context_that_has_both_kinds_of_cells_is_refused():
    adata = several(contexts=("a", "b"))
    here = ((adata.obs["context"] == "a") == (adata.obs["perturbation"] == "control")).to_numpy()
    adata = adata[here].copy()
    MTAeED.setup_anndata(adata, context_key="context")
    with pytest.raises(ValueError, match="can be paired: no context has both"):
        MTAeED(adata).train(1, split_key="split", **QUIET)


def test_contexts_without_control_cells_have_latents_and_no_predictions():
    model = trained(several(), max_epochs=2)
    adata = several(seed=1)
    is_c = (adata.obs["context"] == "c").to_numpy()
    adata = adata[~(is_c & (adata.obs["perturbation"] == "control").to_numpy())].copy()
    assert np.isfinite(model.get_latent_representation(adata)).all()
    perturbed = adata[(adata.obs["perturbation"] == "P").to_numpy()].copy()
    assert model.get_latent_representation(perturbed).shape == (60, 32)
    with pytest.warns(UserWarning, match="without control cells"):
        model.annotate(adata)
    is_c = (adata.obs["context"] == "c").to_numpy()
    assert np.isnan(adata.layers["MTAeED_predicted"][is_c]).all()
    assert np.isfinite(adata.layers["MTAeED_predicted"][~is_c]).all()


def test_a_further_training_without_updates_changes_nothing():
    adata = several()
    model = trained(adata, max_epochs=20)
    before, latent = model.predict().X, model.get_latent_representation()
    model.train(0, split_key="split", seed=5, **QUIET)
    np.testing.assert_array_equal(model.predict().X, before)
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


def test_a_further_training_that_fails_leaves_the_model_as_it_was():
    adata = several()
    model = trained(adata, max_epochs=2)
    before = model.predict().X
    adata.obs.loc[(adata.obs["perturbation"] == "P").to_numpy(), "split"] = "test"
    with pytest.raises(FloatingPointError):
        model.train(3, split_key="split", lr=1e38, **QUIET)
    assert model.predict().shape == before.shape
    assert [len(c) for c in model.trained_conditions_] == [0, 1, 1]
    model.predict(perturbation="P")


@pytest.mark.parametrize("depth", [0.25, 4.0])
def test_counts_have_the_predicted_means_at_another_depth(effect, depth):
    adata = cells(effect, n=300)
    model = trained(adata, max_epochs=5)
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(2, 1 / depth, 40), (400, 40)).astype(np.float32)
    obs = pd.DataFrame({"perturbation": "control", "context": "new"}, index=[f"n{i}" for i in range(400)])
    new = AnnData(np.log1p(depth * counts), obs=obs, layers={"counts": counts})
    plain, drawn = (
        model.predict(new, perturbation="P", realise=form, returns="mean").X[0] for form in ("plain", "counts")
    )
    up = effect > 1
    np.testing.assert_allclose(drawn[up], plain[up], rtol=0.15)


def test_widths_and_weights_that_make_no_model_are_refused(effect):
    adata = cells(effect)
    MTAeED.setup_anndata(adata, context_key="context")
    for arguments, message in (
        ({"n_components": 0}, "n_components=0 must be of whole numbers of at least 1"),
        ({"n_latent": 0}, "n_latent=0"),
        ({"energy_weight": -1.0}, "energy_weight=-1.0 must be a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MTAeED(adata, **arguments)

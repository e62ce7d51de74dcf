"""Several counterfactuals of one cell: what they depend on, how they are named, and how they are pooled."""

import numpy as np
import pytest
import torch

from multipert import _keys
from multipert.model import KNN, MTVae

SETUPS = {
    "MTVae": {"context_key": "context"},
    "KNN": {"context_key": "context", "perturbation_embedding_key": "table"},
}


@pytest.fixture(scope="module")
def vae(toys):
    return toys.trained(MTVae, toys.screen(), setup=SETUPS["MTVae"], init=toys.tiny, max_epochs=5, lr=0.01)


@pytest.fixture(scope="module", params=SETUPS)
def model(request, toys, vae):
    return vae if request.param == "MTVae" else toys.trained(KNN, toys.screen(), setup=SETUPS["KNN"], init={})


def control_of(adata):
    return adata[adata.obs["perturbation"] == "control"]


def latents(model, adata, n, rows, seed=0):
    """Drawn latent representations, shape (n, len(rows), n_latent), and the distribution that they are drawn from."""
    predictor, drawn = model._predictor(adata, "plain", None, seed, None), []
    model.module.eval()
    with torch.inference_mode():
        for sample in range(n):
            ((_, tensors),) = predictor.sampling(sample).batches(rows)
            found = model.module.inference(tensors)
            drawn.append(found["z"].numpy())
    return np.stack(drawn).astype(float), found["mean"].double().numpy(), found["log_variance"].double().numpy()


# ------------------------------------------------------------------ rows and names


def test_samples_follow_one_another_and_are_named(model, adata):
    cells = control_of(adata)
    found = model.predict(adata, ["B", "A"], n_samples=3)
    assert found.shape == (180, 20)
    names = [f"{cell}:{label}#{sample}" for sample in range(3) for label in "BA" for cell in cells.obs_names]
    assert found.obs_names.tolist() == names
    assert found.obs_names.is_unique
    assert found.obs[_keys.SAMPLE].tolist() == np.repeat([0, 1, 2], 60).tolist()
    assert found.obs["perturbation"].tolist() == 3 * (["B"] * 30 + ["A"] * 30)
    assert found.obs["context"].tolist() == 6 * cells.obs["context"].tolist()
    assert found.obs[_keys.SOURCE_CELL].tolist() == 6 * cells.obs_names.tolist()
    assert found.X.dtype == np.float32


def test_one_prediction_has_no_number(model, adata):
    assert _keys.SAMPLE not in model.predict(adata, "A").obs
    assert model.predict(adata, "A", n_samples=1).obs[_keys.SAMPLE].tolist() == [0] * 30


@pytest.mark.parametrize("n_samples", [2, 2.0, np.int64(2)])
def test_whole_numbers_of_any_type_are_legal(vae, adata, n_samples):
    assert vae.predict(adata, "A", n_samples=n_samples).n_obs == 60


@pytest.mark.parametrize("n_samples", [0, -1, 1.5])
def test_other_numbers_are_refused(vae, adata, n_samples):
    with pytest.raises(ValueError, match=f"n_samples={n_samples} must be a whole number of at least 1"):
        vae.predict(adata, "A", n_samples=n_samples)


def test_samples_go_through_a_file(vae, adata, tmp_path):
    import anndata

    found = vae.predict(adata, "A", n_samples=2, realise="counts")
    found.write_h5ad(tmp_path / "found.h5ad")
    again = anndata.read_h5ad(tmp_path / "found.h5ad")
    np.testing.assert_array_equal(again.layers["counts"], found.layers["counts"])
    assert again.obs[_keys.SAMPLE].tolist() == found.obs[_keys.SAMPLE].tolist()


# ------------------------------------------------------------------ what a draw depends on


def test_draws_differ_between_samples_and_between_cells(vae, adata):
    plain = vae.predict(adata, "A", clip=False).X
    noise = vae.predict(adata, "A", n_samples=4, clip=False).X.reshape(4, 30, 20) - plain
    assert (np.abs(noise).max(axis=2) > 0).all()
    for one, other in ((0, 1), (1, 2), (0, 3)):
        assert (noise[one] != noise[other]).any(axis=1).all()
    # two cells that are the same but for their names
    twins = control_of(adata)[[0, 1]].copy()
    twins.X = twins.X.toarray()[[0, 0]]
    found = vae.predict(twins, "A", n_samples=1).X
    assert (found[0] != found[1]).any()
    np.testing.assert_allclose(*vae.predict(twins, "A").X, atol=1e-6)


@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_draws_depend_on_seed_sample_and_cell_only(model, adata, realise):
    if realise != "plain" and model.tags.output != "cell":
        return
    arguments = {"n_samples": 3, "realise": realise}
    every = model.predict(adata, ["A", "B"], **arguments)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    for found in (
        model.predict(adata, ["A", "B"], batch_size=7, **arguments),
        model.predict(adata[order].copy(), ["A", "B"], **arguments),
        model.predict(adata, "B", context="b", **arguments),
        model.predict(adata, "A", indices=np.arange(40), **{**arguments, "n_samples": 2}),
    ):
        np.testing.assert_allclose(found.X, every[found.obs_names].X, atol=1e-5)
    np.testing.assert_array_equal(model.predict(adata, ["A", "B"], **arguments).X, every.X)
    other = model.predict(adata, ["A", "B"], seed=1, **arguments)
    assert (other.X != every.X).any()


def test_a_seed_is_not_another_sample(vae, adata):
    """Sample 1 of seed 0 and sample 0 of seed 1 are different draws."""
    by_seed = [vae.predict(adata, "A", n_samples=3, seed=seed).X.reshape(3, 30, 20) for seed in range(3)]
    draws = [one.tobytes() for samples in by_seed for one in samples]
    assert len(set(draws)) == 9


def test_the_draw_of_a_cell_is_the_same_for_all_targets(vae, adata, monkeypatch):
    seen, inference = [], type(vae.module).inference

    def spy(self, tensors):
        found = inference(self, tensors)
        seen.append(found["z"].clone())
        return found

    monkeypatch.setattr(type(vae.module), "inference", spy)
    vae.predict(adata, ["A", "B"], n_samples=1)
    vae.predict(adata, "C", n_samples=1)
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_draws_follow_the_distribution_of_each_cell(vae, adata):
    rows = np.flatnonzero(adata.obs["perturbation"] == "control")[:6]
    n = 600
    drawn, mean, log_variance = latents(vae, adata, n, rows)
    deviation = np.exp(log_variance / 2)
    assert deviation.min() > 1e-3
    noise = (drawn - mean) / deviation
    assert np.abs(noise.mean(0)).max() < 5 / np.sqrt(n)
    assert np.abs(noise.var(0) - 1).max() < 6 * np.sqrt(2 / n)
    np.testing.assert_allclose(vae.get_latent_representation(adata, rows), mean, atol=1e-5)
    # samples, cells and dimensions are independent of one another
    flat = noise.reshape(n, -1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1])).max() < 6 / np.sqrt(n)
    assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 5 / np.sqrt(flat.size)


def test_without_samples_the_mean_is_decoded(vae, adata):
    plain = vae.predict(adata, "A", clip=False)
    np.testing.assert_array_equal(plain.X, vae.predict(adata, "A", clip=False, seed=5).X)
    rows = np.flatnonzero(adata.obs["perturbation"] == "control")
    z = torch.from_numpy(vae.get_latent_representation(adata, rows))
    codes = torch.zeros(len(rows), 1, dtype=torch.long)
    tensors = {"X": torch.from_numpy(adata.X.toarray()[rows]), "perturbation": codes, "dose": torch.ones(len(rows), 1)}
    with torch.inference_mode():
        np.testing.assert_allclose(plain.X, vae.module.counterfactual(tensors, z), atol=1e-5)


def test_sampling_leaves_the_input_and_the_random_states_alone(model, adata, toys):
    torch.manual_seed(0)
    state, before = torch.get_rng_state(), adata.copy()
    for returns in ("cells", "mean"):
        model.predict(adata, n_samples=2, returns=returns)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert adata.obs.equals(before.obs)
    assert list(adata.uns) == list(before.uns)


# ------------------------------------------------------------------ moments


@pytest.mark.parametrize("realise", ["plain", "residual", "counts"])
def test_means_and_variances_are_over_cells_and_samples(model, adata, realise):
    if realise != "plain" and model.tags.output != "cell":
        return
    arguments = {"n_samples": 4, "realise": realise, "seed": 3}
    cells = model.predict(adata, ["A", "C"], **arguments)
    found = model.predict(adata, ["A", "C"], returns="mean", **arguments)
    assert found.obs_names.tolist() == ["a:A", "b:A", "c:A", "a:C", "b:C", "c:C"]
    for i, (_, row) in enumerate(found.obs.iterrows()):
        here = (cells.obs["perturbation"] == row["perturbation"]) & (cells.obs["context"] == row["context"])
        x = cells.X[here.to_numpy()].astype(float)
        assert len(x) == 40
        assert row[_keys.N_CELLS] == 10
        np.testing.assert_allclose(found.X[i], x.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.layers[_keys.VARIANCE_LAYER][i], x.var(0), atol=1e-4)
    within = model.predict(adata, ["A", "C"], returns="mean", **{**arguments, "n_samples": 1})
    assert (np.abs(within.X - found.X) > 0).any()


# ------------------------------------------------------------------ realised


@pytest.mark.parametrize("realise", ["residual", "counts"])
def test_under_control_every_sample_is_the_control_cell(vae, adata, realise):
    found = vae.predict(adata, "control", n_samples=3, realise=realise)
    np.testing.assert_array_equal(found.X, np.tile(control_of(adata).X.toarray(), (3, 1)))


def test_residuals_of_samples_differ(vae, adata):
    samples = vae.predict(adata, "A", n_samples=2, realise="residual").X.reshape(2, 30, 20)
    assert (samples[0] != samples[1]).any(axis=1).all()


def test_counts_of_samples_differ_and_are_counts(vae, adata):
    found = vae.predict(adata, "A", n_samples=3, realise="counts")
    counts = found.layers["counts"]
    assert (counts >= 0).all()
    np.testing.assert_array_equal(counts, np.rint(counts))
    one, other, _ = counts.reshape(3, 30, 20)
    assert (one != other).any(axis=1).mean() > 0.9
    # the latent noise and the counts are both drawn anew; a sample alone differs from the mean's draw too
    assert (vae.predict(adata, "A", realise="counts").layers["counts"] != one).any()


# ------------------------------------------------------------------ neighbours


def test_samples_of_one_cell_are_drawn_by_the_weights_of_its_neighbours(adata, toys):
    model = toys.trained(KNN, adata, setup=SETUPS["KNN"], init={"k": 3}, train_size=1.0)
    n = 500
    row = np.flatnonzero(adata.obs["perturbation"] == "control")[4]
    found = model.predict(perturbation="D", indices=[row], n_samples=n).X
    of_row = {cell.tobytes(): label for cell, label in zip(adata.X.toarray(), adata.obs["perturbation"], strict=True)}
    drawn = [of_row[cell.tobytes()] for cell in found]
    table = adata.uns["table"]
    weight = np.exp(-np.linalg.norm(table.loc[list("ABC")] - table.loc["D"], axis=1))
    for label, share in zip("ABC", weight / weight.sum(), strict=True):
        assert abs(drawn.count(label) / n - share) < 4.5 * np.sqrt(share * (1 - share) / n)


def test_a_mean_of_neighbours_is_the_same_in_every_sample(adata, toys):
    model = toys.trained(KNN, adata, setup=SETUPS["KNN"], init={"mode": "mean"})
    samples = model.predict(perturbation="D", n_samples=2).X.reshape(2, 30, 20)
    np.testing.assert_array_equal(samples[0], samples[1])

"""How decoded expression becomes cells: the exact identities, the moments and the refusals."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import multipert
from multipert.model import MTAe
from multipert.model._realise import check_realise, draw_counts, residual, size_factors

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(RNG.gamma(1.0, 3.0, 8), (40, 8)).astype(np.float32) + np.eye(40, 8, dtype=np.float32)
FACTORS = 50 / COUNTS.sum(1)
X = np.log1p(FACTORS[:, None] * COUNTS).astype(np.float32)
NAMES = [f"c{i}" for i in range(40)]


@pytest.fixture(scope="module", params=["MTAe", "Net", "Linear"])
def model(request, toys):
    cls = MTAe if request.param == "MTAe" else getattr(toys, request.param)
    return toys.trained(cls, toys.screen(), setup={"context_key": "context"}, max_epochs=3)


@pytest.fixture
def control(adata):
    return adata[adata.obs["perturbation"] == "control"].copy()


class Blind:
    """Make the decoder ignore the perturbation."""

    def __init__(self, module):
        self.module, self.decode = module, module.counterfactual

    def __call__(self, tensors, z=None):
        hidden = {**tensors, "perturbation": 0 * tensors["perturbation"] - 1, "dose": 0 * tensors["dose"]}
        return self.decode(hidden, z)


# ------------------------------------------------------------------ control stays control


@pytest.mark.parametrize("realise", ["residual", "counts"])
@pytest.mark.parametrize("batch_size", [7, 512])
def test_control_under_control_is_the_cell_itself(model, adata, control, realise, batch_size):
    found = model.predict(adata, "control", realise=realise, batch_size=batch_size)
    np.testing.assert_array_equal(found.X, control.X.toarray())
    if realise == "counts":
        np.testing.assert_array_equal(found.layers["counts"], control.layers["counts"].toarray())


def test_plain_control_is_the_reconstruction(model, adata, control, toys):
    if isinstance(model, toys.Linear):
        pytest.skip("a shift model has no reconstruction")
    found = model.predict(adata, "control")
    module = model.module
    x = torch.tensor(control.X.toarray())
    none = torch.full((30, 1), -1)
    with torch.inference_mode():
        decoded = module.counterfactual({"X": x, "perturbation": none, "dose": torch.zeros(30, 1)})
    np.testing.assert_allclose(found.X, decoded.clamp(min=0), atol=1e-5)
    assert np.abs(found.X - control.X.toarray()).max() > 0.01


@pytest.mark.parametrize("realise", ["residual", "counts"])
def test_a_decoder_that_ignores_the_perturbation_changes_nothing(model, adata, control, realise, monkeypatch):
    monkeypatch.setattr(model.module, "counterfactual", Blind(model.module))
    found = model.predict(adata, ["A", "B"], realise=realise)
    np.testing.assert_array_equal(found.X, np.tile(control.X.toarray(), (2, 1)))


def test_residual_is_the_cell_plus_the_decoded_change(model, adata, control):
    decoded = model.predict(adata, ["A", "control"], clip=False).X
    found = model.predict(adata, "A", realise="residual", clip=False).X
    np.testing.assert_allclose(found, control.X.toarray() + decoded[:30] - decoded[30:], atol=1e-5)
    np.testing.assert_array_equal(model.predict(adata, "A", realise="residual").X, np.maximum(found, 0))
    x, a, b = (torch.rand(3, 2) for _ in range(3))
    np.testing.assert_allclose(residual(x, a, b), x + a - b, rtol=1e-6)


def test_counts_are_those_of_the_expression(model, adata, control):
    found = model.predict(adata, "A", realise="counts")
    counts = found.layers["counts"]
    assert counts.shape == found.X.shape
    assert (counts >= 0).all()
    np.testing.assert_array_equal(counts, np.rint(counts))
    factors = np.expm1(control.X.toarray()).sum(1) / control.layers["counts"].toarray().sum(1)
    np.testing.assert_allclose(found.X, np.log1p(factors[:, None] * counts), atol=1e-5)
    assert (counts != control.layers["counts"].toarray()).any()


def test_counts_depend_on_seed_and_cell_only(model, adata):
    first = model.predict(adata, ["A", "B"], realise="counts", seed=1)
    for other in (
        model.predict(adata, ["B", "A"], realise="counts", seed=1, batch_size=7),
        model.predict(adata[::-1].copy(), ["A", "B"], realise="counts", seed=1),
        model.predict(adata, "A", realise="counts", seed=1, context="b"),
    ):
        np.testing.assert_array_equal(other.layers["counts"], first[other.obs_names].layers["counts"])
    again = model.predict(adata, ["A", "B"], realise="counts", seed=2)
    assert (again.layers["counts"] != first.layers["counts"]).any()


def test_annotate_realises_too(model, adata, control):
    for realise in ("residual", "counts"):
        model.annotate(adata, key=realise, realise=realise, latent=False)
        rows = adata.obs_names.get_indexer(control.obs_names)
        np.testing.assert_array_equal(adata.layers[f"{realise}_predicted"][rows], control.X.toarray())


@pytest.mark.parametrize("name", ["MTAe", "LatentAdditive", "LinearAdditive", "CPA", "Biolord"])
def test_control_cells_stay_as_they_are_among_a_thousand_labels(name, toys):
    """Layers that read labels may take some weights only, and how many must not show in what does not change."""
    rng = np.random.default_rng(0)
    n_control, n_labels = 150, 1200
    obs = pd.DataFrame({"perturbation": ["control"] * n_control + [f"P{i}" for i in range(n_labels)]})
    obs.index = obs.index.astype(str)
    obs["context"] = rng.choice(list("ab"), len(obs))
    obs["batch"] = rng.choice(list("xyz"), len(obs))
    adata = anndata.AnnData(rng.gamma(1, 1, (len(obs), 9)).astype(np.float32), obs)
    setup = {"context_key": "context", "categorical_covariate_keys": ["batch"]}
    model = toys.trained(getattr(multipert.model, name), adata, setup=setup, train_size=1.0)
    model.annotate(realise="residual", latent=False)
    found = adata.layers[f"{name}_predicted"]
    np.testing.assert_array_equal(found[:n_control], adata.X[:n_control])
    assert (found[n_control:] != adata.X[n_control:]).any(axis=1).all()
    np.testing.assert_array_equal(model.predict(perturbation="control", realise="residual").X, adata.X[:n_control])


def test_the_realisation_changes_no_training(toys):
    """It is chosen at predict: nothing that training does depends on it."""
    first, second = (toys.trained(MTAe, toys.screen(), setup={"context_key": "context"}) for _ in range(2))
    first.predict(realise="counts")
    for model in (first, second):
        model.train(max_epochs=1, seed=1, **toys.quiet)
    np.testing.assert_array_equal(first.predict().X, second.predict().X)


def test_added_counts_are_corrected_by_observed_over_decoded_means(adata, toys):
    model = toys.trained(MTAe, adata, setup={"context_key": "context"}, train_size=1.0)
    assert model.module.count_correction.shape == (4, 20)
    x = adata.X.toarray()
    for i, condition in enumerate(model.trained_conditions_):
        name = condition[0][0] if condition else "control"
        rows = np.flatnonzero(adata.obs["perturbation"] == name)
        code = -1 if name == "control" else "ABC".index(name)
        batch = {
            "X": torch.tensor(x[rows]),
            "perturbation": torch.full((len(rows), 1), code),
            "dose": torch.ones(len(rows), 1),
        }
        with torch.inference_mode():
            decoded = model.module.counterfactual(batch).clamp(min=0).double()
        means = np.expm1(x[rows]).mean(0), torch.expm1(decoded).mean(0).numpy()
        # a gene that is never decoded gets no counts, corrected or not
        expected = np.divide(*means, out=np.ones(20), where=means[1] > 0)
        np.testing.assert_allclose(model.module.count_correction[i], expected.clip(0, 5), rtol=1e-3)


# ------------------------------------------------------------------ draws


def draw(rates_control, rates, correction=1.0, seed=0, names=NAMES):
    shape = COUNTS.shape
    return draw_counts(
        X,
        COUNTS,
        FACTORS,
        np.broadcast_to(rates_control, shape),
        np.broadcast_to(rates, shape),
        np.asarray([correction]),
        names,
        seed,
    )


@pytest.mark.parametrize("correction", [1.0, 2.5])
def test_the_mean_over_draws_is_the_thinned_plus_the_added(correction):
    a, b = np.array([2, 2, 1, 0, 3, 0, 1, 5.0]), np.array([1, 2, 4, 2, 0, 0, 0.5, 8])
    draws = np.stack([draw(a, b, correction, seed)[1] for seed in range(400)])
    assert (draws >= 0).all()
    np.testing.assert_array_equal(draws, np.rint(draws))
    keep = np.array([0.5, 1, 1, 1, 0, 1, 0.5, 1])
    expected = COUNTS * keep + np.maximum(b - a, 0) * correction / FACTORS[:, None]
    # five standard errors: Binomial and Poisson variances are at most their means
    error = 5 * np.sqrt((COUNTS * keep * (1 - keep) + np.maximum(b - a, 0) * correction / FACTORS[:, None]) / 400)
    assert (np.abs(draws.mean(0) - expected) <= error + 1e-9).all()
    np.testing.assert_allclose(draws.sum(2).mean(), expected.sum(1).mean(), rtol=0.01)
    np.testing.assert_allclose(draws.var(0).mean(), (error**2 * 16).mean(), rtol=0.15)


def test_a_gene_silenced_is_silent_and_one_unchanged_is_exactly_so():
    a = np.full(8, 2.0)
    b = a.copy()
    b[3] = 0
    expression, counts = draw(a, b)
    assert (counts[:, 3] == 0).all()
    assert (expression[:, 3] == 0).all()
    np.testing.assert_array_equal(np.delete(expression, 3, 1), np.delete(X, 3, 1))


def test_draws_are_keyed_by_the_cell():
    a, b = np.full(8, 2.0), np.full(8, 5.0)
    _, counts = draw(a, b)
    order = RNG.permutation(40)
    _, shuffled = draw_counts(
        X[order],
        COUNTS[order],
        FACTORS[order],
        np.full((40, 8), 2.0),
        np.full((40, 8), 5.0),
        np.ones(1),
        [NAMES[i] for i in order],
        0,
    )
    np.testing.assert_array_equal(shuffled, counts[order])
    assert (draw(a, b, names=[f"d{i}" for i in range(40)])[1] != counts).any()


# ------------------------------------------------------------------ size factors


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("genes", [slice(None), slice(0, 3)])
def test_size_factors_are_found_also_when_genes_were_left_out(container, genes):
    """Files are often normalised over more genes than they keep."""
    counts = COUNTS[:, genes]
    found = size_factors(container(X[:, genes]), container(counts), NAMES, "counts")
    some = counts.sum(1) > 0
    np.testing.assert_allclose(found[some], FACTORS[some], rtol=1e-5)
    assert (found[~some] == 1).all()


def test_expression_that_is_not_log1p_of_scaled_counts_is_refused():
    for changed in (X * 1.01, np.log2(1 + FACTORS[:, None] * COUNTS), np.roll(X, 1, axis=1), np.minimum(X, 2)):
        with pytest.raises(ValueError, match=r"not log1p\(size factor \* layers\['raw'\]\).*normalize_total"):
            size_factors(changed, COUNTS, NAMES, "raw")
    one = X.copy()
    one[7, 2] += 0.01
    with pytest.raises(ValueError, match="1 cell\\(s\\) differ, first 'c7'"):
        size_factors(one, COUNTS, NAMES, "raw")
    np.testing.assert_allclose(size_factors(X * (1 + 1e-6), COUNTS, NAMES, "raw"), FACTORS, rtol=1e-4)


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan])
def test_a_layer_that_holds_no_counts_is_refused(value):
    counts = COUNTS.copy()
    counts[3, 1] = value
    with pytest.raises(ValueError, match=r"layers\['raw'\] must hold raw counts; 1 value\(s\)"):
        size_factors(X, counts, NAMES, "raw")


# ------------------------------------------------------------------ who may


@pytest.mark.parametrize("output", ["sample", "mean"])
def test_only_mapped_cells_are_realised(output):
    check_realise("plain", signed=True, output=output)
    for realise in ("residual", "counts"):
        check_realise(realise, signed=False, output="cell")
        with pytest.raises(ValueError, match=f"realise='{realise}' needs a model that maps cells, .* '{output}'"):
            check_realise(realise, signed=False, output=output)


def test_unknown_and_signed_realisations_are_refused():
    with pytest.raises(ValueError, match="realise='Counts' is unknown; known: 'plain', 'residual', 'counts'"):
        check_realise("Counts", signed=False, output="cell")
    check_realise("residual", signed=True, output="cell")
    with pytest.raises(ValueError, match="signed=True"):
        check_realise("counts", signed=True, output="cell")

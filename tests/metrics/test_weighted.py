import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from multipert.metrics._cells import Cells
from multipert.metrics._de import welch_t
from multipert.metrics._weighted import de_weights, weighted_mse, weighted_r2_delta

SIZES = (12, 30, 2, 45, 9)


@pytest.fixture
def cells() -> list[np.ndarray]:
    """Cells of five perturbations of unequal number, with silent genes and one constant within a perturbation."""
    rng = np.random.default_rng(0)
    baseline = rng.gamma(1.0, 1.0, 60)
    blocks = [np.log1p(rng.poisson(baseline * np.exp(rng.normal(0, 0.7, 60)), (size, 60))) for size in SIZES]
    for block in blocks:
        block[:, :3] = 0
    blocks[1][:, 10] = 0.7
    return blocks


def statistics(cells):
    """Means, variances and numbers of cells."""
    groups = [Cells(block) for block in cells]
    return (
        np.array([g.mean for g in groups]),
        np.array([g.variance for g in groups]),
        np.array([len(g) for g in groups]),
    )


def weights_of(statistic):
    size = np.abs(statistic)
    scaled = (size - size.min()) / (size.max() - size.min())
    return scaled**2 / np.sum(scaled**2)


def random_means(seed=0, shape=(6, 25)):
    rng = np.random.default_rng(seed)
    observed = rng.normal(size=shape)
    return observed + rng.normal(0, 0.6, shape), observed, rng.random(shape)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_weights_are_those_of_a_test_against_all_other_cells(offset, cells):
    moved = [block + offset for block in cells]
    weights = de_weights(*statistics(moved))
    for p, block in enumerate(moved):
        rest = np.vstack([other for q, other in enumerate(moved) if q != p])
        # the variance floor grows with the mean, so that the reference is taken without the offset
        expected = weights_of(welch_t(block - offset, rest - offset))
        np.testing.assert_allclose(weights[p], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("method", "overestimate"), [("t-test", False), ("t-test_overestim_var", True)])
def test_weights_are_those_of_scanpy(method, overestimate, cells):
    sc = pytest.importorskip("scanpy")
    # scanpy leaves gaps where nothing varies
    cells = [np.delete(block, [0, 1, 2, 10], axis=1) for block in cells]
    adata = ad.AnnData(np.vstack(cells))
    adata.obs["label"] = np.repeat([f"p{i}" for i in range(len(cells))], SIZES)
    adata.obs["label"] = adata.obs["label"].astype("category")
    sc.tl.rank_genes_groups(adata, "label", method=method, reference="rest")
    weights = de_weights(*statistics(cells), overestimate_variance=overestimate)
    for p, row in enumerate(weights):
        scores = sc.get.rank_genes_groups_df(adata, f"p{p}").set_index("names")["scores"][adata.var_names]
        np.testing.assert_allclose(row, weights_of(scores.to_numpy(float)), rtol=1e-4, atol=1e-9)


@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one_and_follow_their_genes_and_perturbations(n_perturbations, n_vars, seed):
    rng = np.random.default_rng(seed)
    mean, variance = rng.normal(size=(n_perturbations, n_vars)), rng.gamma(1, 1, (n_perturbations, n_vars))
    n_cells = rng.integers(2, 50, n_perturbations)
    weights = de_weights(mean, variance, n_cells)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    assert weights.min() >= 0
    assert (weights.min(axis=1) == 0).all()
    rows, genes = rng.permutation(n_perturbations), rng.permutation(n_vars)
    shuffled = de_weights(mean[rows][:, genes], variance[rows][:, genes], n_cells[rows])
    np.testing.assert_allclose(shuffled, weights[rows][:, genes], rtol=1e-8, atol=1e-12)
    # neither the sign nor the unit of the data matters
    np.testing.assert_allclose(de_weights(-3 * mean, 9 * variance, n_cells), weights, rtol=1e-8, atol=1e-12)


def test_the_gene_that_sets_a_perturbation_apart_weighs_most():
    mean = np.zeros((4, 10))
    mean[1, 6], mean[2, 3], mean[:, 8] = 2, -2, 5
    weights = de_weights(mean, np.full((4, 10), 0.5), np.full(4, 30))
    assert weights[1].argmax() == 6
    assert weights[2].argmax() == 3
    # a gene that is high in all of them sets none apart
    np.testing.assert_allclose(weights[:, 8], 0, atol=1e-12)


def test_weights_that_cannot_be_known_are_nan(cells):
    mean, variance, n_cells = statistics([*cells, cells[0][:1]])
    weights = de_weights(mean, variance, n_cells)
    assert np.isnan(weights[-1]).all()
    assert np.isfinite(weights[:-1]).all()
    # the single cell still is one of the others
    alone = np.vstack([*cells[1:], cells[0][:1]])
    np.testing.assert_allclose(weights[0], weights_of(welch_t(cells[0], alone)), rtol=1e-8, atol=1e-12)
    assert np.isnan(de_weights(mean[:1], variance[:1], n_cells[:1])).all()
    same = np.tile(mean[:1], (3, 1))
    assert np.isnan(de_weights(same, np.ones_like(same), np.array([3, 4, 5]))).all()


def test_genes_that_are_constant_but_for_rounding_have_no_weight():
    rng = np.random.default_rng(0)
    mean = rng.random((2, 50))
    variance = np.full((2, 50), 1e-17)
    variance[:, 7] = 0.5
    weights = de_weights(mean, variance, np.array([23, 31]))
    np.testing.assert_array_equal(weights[:, 7], 1)


def test_equal_statistics_weigh_equally():
    mean = np.array([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(de_weights(mean, np.ones((2, 3)), np.array([5, 5])), 1 / 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": np.full((2, 3), np.nan)}, "`mean` holds 6 values that are NaN or infinite"),
        ({"variance": np.ones((2, 4))}, r"`variance` has shape \(2, 4\) but `mean` has \(2, 3\)"),
        ({"variance": np.full((2, 3), -1.0)}, "`variance` holds 6 values that are negative"),
        ({"variance": np.full((2, 3), np.nan)}, "`variance` holds 6 values that are negative, NaN"),
        ({"n_cells": np.array([5])}, "`n_cells` must have one number for each of 2 perturbations"),
        ({"n_cells": np.array([0, 5])}, "`n_cells` holds 1 of 2 numbers that are not positive integers"),
        ({"n_cells": np.array([2.5, np.nan])}, "`n_cells` holds 2 of 2"),
    ],
)
def test_bad_statistics_raise(changed, message):
    arguments = {"mean": np.ones((2, 3)), "variance": np.ones((2, 3)), "n_cells": np.array([4, 5])}
    with pytest.raises(ValueError, match=message):
        de_weights(**{**arguments, **changed})


@pytest.mark.parametrize("weight", [1 / 25, 7.0])
def test_equal_weights_give_the_plain_scores(weight):
    predicted, observed, _ = random_means()
    equal = np.full(observed.shape, weight)
    np.testing.assert_allclose(weighted_mse(predicted, observed, equal), ((predicted - observed) ** 2).mean(axis=1))
    reference = observed.mean(axis=0)
    expected = [r2_score(o - reference, p - reference) for p, o in zip(predicted, observed, strict=True)]
    np.testing.assert_allclose(weighted_r2_delta(predicted, observed, equal), expected, rtol=1e-10)


@pytest.mark.parametrize("reference", [None, np.linspace(-1, 1, 25)])
def test_weighted_r2_is_that_of_sklearn(reference):
    predicted, observed, weights = random_means()
    base = observed.mean(axis=0) if reference is None else reference
    expected = [
        r2_score(o - base, p - base, sample_weight=w) for p, o, w in zip(predicted, observed, weights, strict=True)
    ]
    np.testing.assert_allclose(weighted_r2_delta(predicted, observed, weights, reference), expected, rtol=1e-10)
    np.testing.assert_allclose(
        weighted_mse(predicted, observed, weights),
        [np.average((p - o) ** 2, weights=w) for p, o, w in zip(predicted, observed, weights, strict=True)],
    )


def test_only_weighted_genes_count():
    predicted, observed, weights = random_means()
    weights[:, 10:] = 0
    spoilt = predicted.copy()
    spoilt[:, 10:] += 100
    for score in (weighted_mse, weighted_r2_delta):
        np.testing.assert_array_equal(score(spoilt, observed, weights), score(predicted, observed, weights))


@given(st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_perfect_mean_and_opposite_predictions(seed):
    _, observed, weights = random_means(seed, (4, 6))
    mean = np.tile(observed.mean(axis=0), (4, 1))
    np.testing.assert_array_equal(weighted_mse(observed, observed, weights), 0)
    np.testing.assert_array_equal(weighted_r2_delta(observed, observed, weights), 1)
    of_mean = weighted_r2_delta(mean, observed, weights)
    assert (of_mean <= 1e-12).all()
    assert (weighted_r2_delta(2 * mean - observed, observed, weights) < of_mean).all()


def test_float32_means_score_as_float64():
    arrays = random_means()
    for score in (weighted_mse, weighted_r2_delta):
        float32 = [array.astype(np.float32) for array in arrays]
        np.testing.assert_allclose(score(*float32), score(*arrays), rtol=1e-5, atol=1e-6)


def test_scores_without_weights_or_spread_are_nan():
    predicted, observed, weights = random_means(shape=(4, 6))
    weights[0], weights[1] = np.nan, 0
    assert np.isnan(weighted_mse(predicted, observed, weights)).tolist() == [True, True, False, False]
    # all genes change by the same, but for rounding
    observed[2] = observed.mean(axis=0)
    reference = observed[2] - 0.1
    assert np.isnan(weighted_r2_delta(predicted, observed, weights, reference)).tolist() == [True, True, True, False]


@pytest.mark.parametrize("score", [weighted_mse, weighted_r2_delta])
def test_bad_weights_raise(score):
    predicted, observed, weights = random_means()
    with pytest.raises(ValueError, match=r"`weights` has shape \(5, 25\) but the means have \(6, 25\)"):
        score(predicted, observed, weights[1:])
    with pytest.raises(ValueError, match="`weights` holds 150 values that are negative or infinite"):
        score(predicted, observed, -1 - weights)
    with pytest.raises(ValueError, match="`observed_mean` has shape"):
        score(predicted, observed[1:], weights)


def test_average_perturbation_is_not_rewarded_on_real_cells(shared_data):
    adata = ad.read_h5ad(shared_data / "norman19_subset.h5ad")
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    names = [name for name in np.unique(labels) if name != "control"]
    rng = np.random.default_rng(0)
    truth, other = [], []
    for name in names:
        rows = rng.permutation(np.flatnonzero(labels == name))
        truth.append(adata.X[np.sort(rows[::2])].toarray())
        other.append(adata.X[np.sort(rows[1::2])].toarray())
    observed, variance, n_cells = statistics(truth)
    weights = de_weights(observed, variance, n_cells)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-10)
    replicate = np.array([block.mean(axis=0) for block in other])
    average = np.tile(observed.mean(axis=0), (len(names), 1))
    assert weighted_r2_delta(average, observed, weights).max() <= 1e-12
    assert np.median(weighted_r2_delta(replicate, observed, weights)) > 0.3
    # the plain error all but hides the difference that the weighted one shows
    equal = np.ones_like(weights)
    plain, weighted = (
        np.median(weighted_mse(average, observed, w) / weighted_mse(replicate, observed, w)) for w in (equal, weights)
    )
    assert weighted > 2 * plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert.metrics import (
    auprc_de,
    average_precision,
    de_genes,
    log2_fold_change,
    precision_at_recall,
    prevalence,
    retrieve_de,
)

N_DE, N_VARS = 30, 300

labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40).map(
    lambda pairs: (np.array([pair[0] for pair in pairs]), np.array([float(pair[1]) for pair in pairs]))
)


@pytest.fixture(scope="module")
def response():
    """Predicted, observed and control cells on the scale of the data, with 30 genes that change, half of them down."""
    rng = np.random.default_rng(3)
    mean = rng.gamma(1.0, 3.0, N_VARS) + 1
    mean[-40:] = 0.002
    factor = np.ones(N_VARS)
    factor[:N_DE] = np.where(np.arange(N_DE) % 2, 5.0, 0.2)
    groups = {}
    for name, strength, n_cells in (("predicted", 0.5, 150), ("observed", 1.0, 160), ("control", 0.0, 170)):
        groups[name] = np.log1p(rng.poisson(mean * factor**strength, (n_cells, N_VARS)))
    return groups


@settings(deadline=None)
@given(labelled_scores)
def test_average_precision_is_that_of_scikit_learn(case):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = case
    ours = average_precision(labels, scores)
    if labels.any():
        assert ours == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
    else:
        assert np.isnan(ours)


@settings(deadline=None)
@given(labelled_scores, st.sampled_from([0.1, 0.25, 0.1 * 3, 0.5, 1.0]))
def test_precision_at_recall_by_its_definition(case, level):
    labels, scores = case
    n_positive = labels.sum()
    if not n_positive:
        assert np.isnan(precision_at_recall(labels, scores, level))
        return
    reached = [
        np.mean(labels[scores >= threshold])
        for threshold in sorted(set(scores), reverse=True)
        if labels[scores >= threshold].sum() >= level * n_positive - 1e-9
    ]
    assert precision_at_recall(labels, scores, level) == pytest.approx(reached[0])
    assert precision_at_recall(labels, scores, level, interpolated=True) == pytest.approx(max(reached))


@settings(deadline=None)
@given(labelled_scores, st.randoms())
def test_order_of_genes_and_monotone_maps_change_nothing(case, random):
    labels, scores = case
    order = list(range(len(labels)))
    random.shuffle(order)
    for other in (average_precision(labels[order], scores[order]), average_precision(labels, np.exp(scores) - 3)):
        assert other == pytest.approx(average_precision(labels, scores), nan_ok=True)


def test_perfect_constant_and_reversed_rankings():
    labels = np.arange(100) < 5
    scores = -np.arange(100.0)
    assert average_precision(labels, scores) == 1
    assert average_precision(labels, np.zeros(100)) == prevalence(labels) == 0.05
    assert precision_at_recall(labels, np.zeros(100), 0.25) == 0.05
    assert average_precision(labels, -scores) < 0.05
    assert average_precision(labels, np.where(labels, np.inf, scores)) == 1
    assert precision_at_recall(labels, scores, 0.5) == precision_at_recall(labels, scores, 1.0) == 1


def test_scores_of_noise_have_the_precision_of_the_prevalence():
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.1
    values = [average_precision(labels, rng.random(4000)) for _ in range(30)]
    assert np.mean(values) == pytest.approx(prevalence(labels), abs=0.01)


def test_prevalence_of_no_genes_is_undefined():
    assert np.isnan(prevalence(np.array([], dtype=bool)))
    assert np.isnan(average_precision(np.array([], dtype=bool), np.array([])))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.array([1, 0]), np.array([1.0, 2.0]), "`labels` must be boolean, one value for each of the 2 genes"),
        (np.array([True]), np.array([1.0, 2.0]), "`labels` must be boolean, one value for each of the 2 genes"),
        (np.array([True, False]), np.array([np.nan, 2.0]), "`scores` is NaN for 1 of 2 genes"),
    ],
)
def test_bad_labels_and_scores_raise(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        average_precision(labels, scores)


@pytest.mark.parametrize("recall", [0, 1.1, np.nan])
def test_bad_recall_raises(recall):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        precision_at_recall(np.array([True, False]), np.array([2.0, 1.0]), recall)


def test_auprc_of_truth_prediction_and_no_change(response):
    control = response["control"]
    labels = np.arange(N_VARS) < N_DE
    of_truth = auprc_de(response["observed"], response["observed"], control, labels=labels)
    of_prediction = auprc_de(**response, labels=labels)
    retrieval = retrieve_de(control, response["observed"], control, labels=labels)
    assert of_truth == 1
    assert retrieval.prevalence() < of_prediction <= 1
    # a prediction that changes nothing ranks nothing
    assert retrieval.average_precision() == pytest.approx(retrieval.prevalence()) == N_DE / (N_VARS - 40)


def test_labels_are_the_observed_de_genes(response):
    labels = de_genes(response["observed"], response["control"])
    assert labels[:N_DE].mean() > 0.9
    assert auprc_de(**response) == auprc_de(**response, labels=labels)
    assert auprc_de(**response) != auprc_de(**response, labels=np.arange(N_VARS) < N_DE // 2)


def test_auprc_is_the_average_precision_of_the_fold_changes(response):
    """By hand on the genes that any group expresses."""
    linear = [np.expm1(cells.mean(axis=0)) for cells in response.values()]
    kept = np.max(linear, axis=0) >= 0.05
    assert kept.sum() == N_VARS - 40
    labels = de_genes(response["observed"], response["control"])
    change = np.abs(np.log2((linear[0] + 0.1) / (linear[2] + 0.1)))
    assert auprc_de(**response) == pytest.approx(average_precision(labels[kept], change[kept]))
    retrieval = retrieve_de(**response)
    for level in (0.25, 0.5, 0.75):
        expected = precision_at_recall(labels[kept], change[kept], level)
        assert retrieval.precision_at_recall(level) == pytest.approx(expected)


def test_signed_variant_asks_for_the_direction(response):
    observed, control = response["observed"], response["control"]
    labels = np.arange(N_VARS) < N_DE
    change = log2_fold_change(observed, control)
    centre = np.expm1(control.mean(axis=0)) + 0.1
    # means only, with the fold change of every gene inverted
    inverted = np.log1p(np.maximum(centre * 2.0**-change - 0.1, 0))[None]
    assert auprc_de(inverted, observed, control, labels=labels) > 0.9
    assert auprc_de(inverted, observed, control, labels=labels, signed=True) == 0
    assert auprc_de(observed, observed, control, labels=labels, signed=True) == 1
    # half of the genes in the right direction: no recall above one half, and less than half of the area
    half = np.where(np.arange(N_VARS) % 2, inverted, np.log1p(centre * 2.0**change - 0.1)[None])
    retrieval = retrieve_de(half, observed, control, labels=labels, signed=True)
    assert (retrieval.hits.sum(), retrieval.n_de) == (N_DE / 2, N_DE)
    assert 0 < retrieval.average_precision() < 0.5
    assert retrieval.precision_at_recall(0.75) == 0
    assert retrieval.precision_at_recall(0.25) > 0


def test_excluded_genes_are_not_ranked(response):
    whole, without = retrieve_de(**response), retrieve_de(**response, exclude=[0, 1])
    np.testing.assert_array_equal(without.scores, whole.scores[2:])
    assert without.n_de == whole.n_de - 2


def test_silent_genes_are_left_out_unless_predicted(response):
    control, observed = response["control"], response["observed"]
    noisy, loud = response["predicted"].copy(), response["predicted"].copy()
    # below the floor in all three groups: the ratio to almost nothing would come first
    noisy[:, -40:] = 0.04
    loud[:, -40:] = 3.0
    expected = auprc_de(response["predicted"], observed, control)
    assert auprc_de(noisy, observed, control) == expected
    assert auprc_de(loud, observed, control) < expected
    assert len(retrieve_de(noisy, observed, control, min_mean=0).scores) == N_VARS
    # a response that is not predicted is missed and not dropped
    appeared = observed.copy()
    appeared[:, -20:] = np.log1p(np.random.default_rng(0).poisson(3.0, (len(observed), 20)))
    assert retrieve_de(control, appeared, control).n_de == retrieve_de(appeared, appeared, control).n_de


def test_fewer_than_five_genes_are_undefined(response):
    few = np.arange(N_VARS) < 4
    retrieval = retrieve_de(**response, labels=few)
    assert np.isnan(retrieval.average_precision())
    assert np.isnan(retrieval.precision_at_recall(0.5))
    assert not np.isnan(auprc_de(**response, labels=np.arange(N_VARS) < 5))
    assert np.isnan(auprc_de(**response, labels=np.arange(N_VARS) < 5, exclude=[3]))


def test_format_dtype_and_order_of_genes_change_nothing(response):
    expected = auprc_de(**response)
    as_sparse = {name: sparse.csr_matrix(cells.astype(np.float32)) for name, cells in response.items()}
    assert auprc_de(**as_sparse) == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(N_VARS)
    assert auprc_de(**{name: cells[:, order] for name, cells in response.items()}) == pytest.approx(expected)
    means = response["predicted"].mean(axis=0, keepdims=True)
    assert auprc_de(means, response["observed"], response["control"]) == pytest.approx(expected)


@pytest.mark.parametrize("exclude", [[-1], [N_VARS], [0.5], ["g1"], [[0]]])
def test_bad_positions_raise(response, exclude):
    with pytest.raises(ValueError, match="it must list positions of genes from 0 to 299"):
        auprc_de(**response, exclude=exclude)


@pytest.mark.parametrize("name", ["observed", "control"])
def test_counts_in_place_of_log_values_raise(response, name):
    with pytest.raises(ValueError, match=f"`{name}` holds .* values below 0 or not below 12"):
        auprc_de(**(response | {name: np.expm1(response[name])}))

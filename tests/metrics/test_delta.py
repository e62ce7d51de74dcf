import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from multipert.metrics._cells import Cells
from multipert.metrics._delta import _halves, cosine_fold_change, cosine_logfc, pearson_delta, sign_accuracy

ALL = (pearson_delta, cosine_logfc, cosine_fold_change, sign_accuracy)
COSINES = (cosine_logfc, cosine_fold_change)
GENES = np.array([7, 3, 50, 21, 90])


def cosine(first, second):
    return first @ second / np.sqrt((first @ first) * (second @ second))


@pytest.mark.parametrize("function", ALL)
def test_genes_score_as_if_the_data_held_only_them(function, groups):
    expected = function(**{name: cells[:, GENES] for name, cells in groups.items()})
    mask = np.isin(np.arange(120), GENES)
    assert function(**groups) != pytest.approx(expected, rel=1e-3)
    for genes in (GENES, GENES[::-1], mask):
        assert function(**groups, genes=genes) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("genes", [[], [120], [-1], [2, 2], [0.5], np.ones(3, bool)])
def test_bad_genes_raise(function, genes, groups):
    with pytest.raises(ValueError, match="`genes`"):
        function(**groups, genes=genes)


def test_genes_without_change_have_no_score_beside_others_that_change(groups):
    predicted = groups["control"].astype(np.float32)
    predicted[:, :60] += 2
    arguments = {**groups, "predicted": predicted}
    for function in (pearson_delta, *COSINES):
        assert np.isfinite(function(**arguments))
        assert np.isnan(function(**arguments, genes=np.arange(60, 120)))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_array, np.float32])
def test_storage_and_order_of_cells_do_not_matter(function, convert, groups):
    rng = np.random.default_rng(0)
    converted = {name: convert(rng.permutation(cells, axis=0)) for name, cells in groups.items()}
    assert function(**converted) == pytest.approx(function(**groups), rel=1e-6)


def test_fold_change_is_that_of_mean_counts(groups):
    p, o, c = (np.expm1(groups[name]).mean(axis=0) for name in ("predicted", "observed", "control"))
    expected = cosine(np.log2((p + 0.1) / (c + 0.1)), np.log2((o + 0.1) / (c + 0.1)))
    assert cosine_fold_change(**groups) == pytest.approx(expected, rel=1e-12)
    # the mean of logarithms is another thing, and so is its expm1
    assert cosine_logfc(**groups) != pytest.approx(expected, abs=1e-3)
    p, o, c = (np.expm1(groups[name].mean(axis=0)) for name in ("predicted", "observed", "control"))
    assert cosine(np.log2((p + 0.1) / (c + 0.1)), np.log2((o + 0.1) / (c + 0.1))) != pytest.approx(expected, abs=1e-3)


@given(st.floats(0.01, 100), st.floats(0.01, 10))
@settings(max_examples=30, deadline=None)
def test_fold_change_does_not_depend_on_the_library_size(scale, pseudocount):
    counts = np.random.default_rng(0).poisson([1.0, 4.0, 9.0, 2.0], (3, 6, 4))
    expected = cosine_fold_change(*np.log1p(counts), pseudocount=pseudocount)
    assert cosine_fold_change(*np.log1p(scale * counts), pseudocount=scale * pseudocount) == pytest.approx(expected)


def test_fold_change_of_a_change_common_to_both_in_another_gene_scores_zero():
    control = np.log1p([[3.0, 5.0]])
    assert cosine_fold_change(np.log1p([[9.0, 5.0]]), np.log1p([[3.0, 9.0]]), control) == pytest.approx(0)
    assert cosine_fold_change(np.log1p([[9.0, 5.0]]), np.log1p([[1.0, 5.0]]), control) == pytest.approx(-1)


@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix])
def test_counts_are_refused_where_logarithms_are_needed(convert, groups):
    for name in groups:
        counts = convert(np.expm1(groups[name]) * 40)
        with pytest.raises(ValueError, match=f"`{name}` holds values up to .* cannot be log1p"):
            cosine_fold_change(**{**groups, name: counts})


@pytest.mark.parametrize("function", COSINES)
@pytest.mark.parametrize("pseudocount", [-0.1, np.nan, np.inf])
def test_bad_pseudocount_raises(function, pseudocount, groups):
    with pytest.raises(ValueError, match="`pseudocount` is"):
        function(**groups, pseudocount=pseudocount)


@pytest.mark.parametrize("function", COSINES)
def test_genes_silent_everywhere_do_not_count_without_pseudocount(function, groups):
    silent = {name: np.hstack([cells[:, :20] + 1, np.zeros((len(cells), 5))]) for name, cells in groups.items()}
    audible = {name: cells[:, :20] for name, cells in silent.items()}
    assert function(**silent, pseudocount=0) == pytest.approx(function(**audible, pseudocount=0), rel=1e-12)


def test_sign_accuracy_by_hand(groups):
    p, o, c = (groups[name].mean(axis=0) for name in ("predicted", "observed", "control"))
    assert sign_accuracy(**groups) == pytest.approx(np.mean(np.sign(p - c)[o != c] == np.sign(o - c)[o != c]))


def test_sign_accuracy_of_known_predictions(groups):
    control, observed = groups["control"], groups["observed"]
    change = observed.mean(0) - control.mean(0)

    def score(predicted, **kwargs):
        return sign_accuracy(predicted, observed, control, **kwargs)

    assert score(observed) == 1
    assert score(control + 0.01 * change) == 1
    assert score(control - change) == 0
    assert score(control) == 0
    assert score(control.astype(np.float32)) == 0
    assert np.isnan(sign_accuracy(observed, control.astype(np.float32), control))
    up = np.flatnonzero(change > 0)
    assert score(control + 1, genes=up) == 1
    assert score(control - 1, genes=up) == 0


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_right_wrong_and_silent_signs_make_up_all_changed_genes(changes):
    predicted, observed = np.array(changes, dtype=float).T
    control = np.full((2, len(changes)), 3.0)
    right = sign_accuracy(control + predicted, control + observed, control)
    wrong = sign_accuracy(control - predicted, control + observed, control)
    if not observed.any():
        assert np.isnan(right)
        assert np.isnan(wrong)
    else:
        assert right + wrong == pytest.approx(np.mean(predicted[observed != 0] != 0))


def test_shared_control_correlates_noise_and_split_control_does_not():
    shared, split = [], []
    for draw in range(100):
        predicted, observed, control = np.random.default_rng(draw).normal(size=(3, 50, 200))
        shared.append(pearson_delta(predicted, observed, control))
        split.append(pearson_delta(predicted, observed, control, control_split=True, seed=draw))
    assert np.mean(shared) > 0.3
    assert abs(np.mean(split)) < 0.05
    assert np.mean(np.abs(split)) > 0.01


def test_split_control_is_no_remedy_for_predictions_made_of_it():
    shared, split = [], []
    for draw in range(50):
        rng = np.random.default_rng(draw)
        observed, control = rng.normal(size=(2, 50, 200))
        predicted = control + rng.normal(0, 0.1, 200)
        shared.append(pearson_delta(predicted, observed, control))
        split.append(pearson_delta(predicted, observed, control, control_split=True))
    assert abs(np.mean(shared)) < 0.05
    assert np.mean(split) < -0.2


def test_split_control_gives_truth_and_prediction_their_own_halves(groups):
    predicted, observed, control = (groups[name] for name in ("predicted", "observed", "control"))
    first, second = (half.values for half in _halves(Cells(control), 3))
    assert {len(first), len(second)} == {len(control) // 2, len(control) - len(control) // 2}
    np.testing.assert_array_equal(np.sort(np.vstack([first, second]), axis=0), np.sort(control, axis=0))
    expected = stats.pearsonr(observed.mean(0) - first.mean(0), predicted.mean(0) - second.mean(0)).statistic
    assert pearson_delta(**groups, control_split=True, seed=3) == pytest.approx(expected, rel=1e-12)
    assert pearson_delta(**groups, control_split=True, seed=4) != pytest.approx(expected, abs=1e-6)
    # the second half serves the prediction alone
    moved = np.where((control[:, None] == second).all(axis=2).any(axis=1)[:, None], control + 5 * control, control)
    expected = stats.pearsonr(observed.mean(0) - first.mean(0), predicted.mean(0) - 6 * second.mean(0)).statistic
    assert pearson_delta(predicted, observed, moved, control_split=True, seed=3) == pytest.approx(expected, rel=1e-12)


def test_a_single_control_cell_cannot_be_split(groups):
    groups["control"] = groups["control"][:1]
    assert np.isfinite(pearson_delta(**groups))
    assert np.isnan(pearson_delta(**groups, control_split=True))

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

from multipert import metrics

PAIR = (
    *(
        metrics.rmse,
        metrics.mae,
        metrics.mse,
        metrics.r2,
        metrics.r2_pearson,
        metrics.edistance,
        metrics.low_variance_share,
    ),
    *(metrics.mean_pairwise, metrics.variance_ratio, metrics.mmd_linear, metrics.mmd_rbf),
)
TRIPLE = (metrics.pearson_delta, metrics.cosine_logfc, metrics.de_overlap)
TESTS = (metrics.welch_t, metrics.wilcoxon)
ALL = PAIR + TRIPLE + TESTS
FORMATS = [
    sparse.csr_matrix,
    sparse.csc_matrix,
    sparse.coo_matrix,
    sparse.csr_array,
    sparse.csc_array,
    np.float32,
    np.asfortranarray,
]


def arguments(function, groups, **changed):
    """The groups that a function takes, in its order, with some of them replaced by name."""
    if function in TRIPLE:
        names = ["predicted", "observed", "control"]
    elif function in PAIR:
        names = ["predicted", "observed"]
    else:
        names = ["group", "control"]
    given = {**groups, "group": groups["observed"], **changed}
    return {name: given[name] for name in names}


def score(function, groups):
    return np.asarray(function(**arguments(function, groups)))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("convert", FORMATS)
def test_storage_does_not_matter(function, convert, groups):
    converted = {name: convert(cells) for name, cells in groups.items()}
    exact = {name: np.asarray(cells, np.float32).astype(float) for name, cells in groups.items()}
    expected = exact if convert is np.float32 else groups
    np.testing.assert_allclose(score(function, converted), score(function, expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", ALL)
def test_order_of_cells_does_not_matter(function, groups):
    rng = np.random.default_rng(0)
    shuffled = {name: rng.permutation(cells, axis=0) for name, cells in groups.items()}
    np.testing.assert_allclose(score(function, shuffled), score(function, groups), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", ALL)
def test_order_of_genes_does_not_matter(function, groups):
    order = np.random.default_rng(0).permutation(groups["control"].shape[1])
    permuted = score(function, {name: cells[:, order] for name, cells in groups.items()})
    expected = score(function, groups)
    np.testing.assert_allclose(permuted, expected[order] if expected.ndim else expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", [f for f in ALL if f is not metrics.cosine_logfc])
def test_constant_added_to_every_cell_changes_nothing(function, groups):
    moved = {name: cells + 2.5 for name, cells in groups.items()}
    np.testing.assert_allclose(score(function, moved), score(function, groups), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix])
def test_not_finite_raises_with_name_and_count(function, bad, convert, groups):
    for name, cells in arguments(function, groups).items():
        spoilt = cells.copy()
        spoilt[1, 2] = spoilt[3, 4] = bad
        with pytest.raises(ValueError, match=f"`{name}` holds 2 values that are NaN or infinite"):
            function(**arguments(function, groups, **{name: convert(spoilt)}))


@pytest.mark.parametrize("function", ALL)
def test_bad_shape_raises_with_name(function, groups):
    names = list(arguments(function, groups))
    for name, cells in arguments(function, groups).items():
        for spoilt, message in [
            (cells[:0], f"`{name}` is empty: it has 0 cells"),
            (cells[:, :0], f"`{name}` is empty: .* 0 genes"),
            (cells[0], f"`{name}` must be cells x genes .*shape"),
            (cells.astype(str), f"`{name}` must hold real numbers"),
        ]:
            with pytest.raises(ValueError, match=message):
                function(**arguments(function, groups, **{name: spoilt}))
    last = names[-1]
    with pytest.raises(ValueError, match=f"`{last}` has 119 genes but `{names[0]}` has 120"):
        function(**arguments(function, groups, **{last: groups["control"][:, 1:]}))


def test_large_finite_values_are_not_taken_for_infinite():
    cells = np.array([[1e308, 1.0], [1e308, 1.0]])
    with np.errstate(over="ignore"):
        assert np.isnan(metrics.low_variance_share(cells[:1], cells))


def test_duplicate_entries_of_coo_are_summed():
    cells = sparse.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
    assert metrics.rmse(cells, np.zeros((1, 2))) == pytest.approx(1.5 / np.sqrt(2))


@pytest.mark.parametrize(
    ("function", "best"),
    [
        (metrics.rmse, 0),
        (metrics.r2, 1),
        (metrics.r2_pearson, 1),
        (metrics.edistance, 0),
        (metrics.low_variance_share, 0),
        (metrics.pearson_delta, 1),
        (metrics.cosine_logfc, 1),
    ],
)
def test_perfect_prediction(function, best, groups):
    groups["predicted"] = groups["observed"].copy()
    assert score(function, groups) == pytest.approx(best, abs=1e-6)
    assert metrics.de_overlap(**groups, k=20) == 20


def test_prediction_of_no_change(groups):
    groups["predicted"] = groups["control"].copy()
    assert np.isnan(metrics.pearson_delta(**groups))
    assert np.isnan(metrics.cosine_logfc(**groups))
    assert [metrics.de_overlap(**groups, direction=d) for d in ("absolute", "up", "down")] == [0, 0, 0]


def test_no_change_is_recognised_in_float32(groups):
    groups["predicted"] = sparse.csr_matrix(groups["control"].astype(np.float32))
    assert np.isnan(metrics.pearson_delta(**groups))
    assert np.isnan(metrics.cosine_logfc(**groups))


def test_r2_is_determination_and_not_correlation(groups):
    observed, predicted = groups["observed"], groups["predicted"]
    assert metrics.r2(predicted, observed) == pytest.approx(r2_score(observed.mean(0), predicted.mean(0)))
    assert metrics.r2(predicted, observed) != pytest.approx(metrics.r2(observed, predicted), abs=1e-3)
    flat = np.full((1, observed.shape[1]), observed.mean())
    assert metrics.r2(flat, observed) == pytest.approx(0)
    assert metrics.r2(-observed, observed) < 0
    assert np.isnan(metrics.r2_pearson(flat, observed))
    assert metrics.r2_pearson(3 * predicted - 7, observed) == pytest.approx(metrics.r2_pearson(predicted, observed))
    expected = np.corrcoef(predicted.mean(0), observed.mean(0))[0, 1] ** 2
    assert metrics.r2_pearson(predicted, observed) == pytest.approx(expected)


def test_delta_metrics_by_hand(groups):
    p, o, c = (groups[name].mean(axis=0) for name in ("predicted", "observed", "control"))
    assert metrics.pearson_delta(**groups) == pytest.approx(np.corrcoef(p - c, o - c)[0, 1])
    first, second = np.log2((p + 0.1) / (c + 0.1)), np.log2((o + 0.1) / (c + 0.1))
    cosine = first @ second / np.sqrt((first @ first) * (second @ second))
    assert metrics.cosine_logfc(**groups) == pytest.approx(cosine)


def test_effect_of_the_wrong_sign_is_punished(groups):
    control, effect = groups["control"], groups["observed"].mean(0) - groups["control"].mean(0)
    groups["predicted"] = control - effect
    assert metrics.pearson_delta(**groups) == pytest.approx(-1)
    assert metrics.de_overlap(**groups, k=5, direction="up") == 0
    assert metrics.de_overlap(**groups, k=5, direction="down") == 0


def test_constant_predictions_do_not_win(groups):
    """Values that carry no perturbation score high in r2_pearson at best, and low in pearson_delta."""
    honest = metrics.pearson_delta(**groups)
    n_vars = groups["control"].shape[1]
    flat = np.full((5, n_vars), groups["observed"].mean())
    assert metrics.pearson_delta(flat, groups["observed"], groups["control"]) < 0.5 < honest
    same_for_all_genes = groups["control"] + 1.0
    assert np.isnan(metrics.pearson_delta(same_for_all_genes, groups["observed"], groups["control"]))
    # the mean of control cells is nearly the mean of other control cells: high r2_pearson, no credit for the change
    halves = groups["control"][::2], groups["control"][1::2]
    assert metrics.r2_pearson(halves[0], groups["observed"]) > 0.5
    assert metrics.pearson_delta(halves[0], groups["observed"], halves[1]) < 0.5


def test_edistance_is_unsquared_with_self_pairs(groups, monkeypatch):
    first, second = groups["predicted"], groups["observed"]

    def mean_distance(a, b):
        return np.mean([[np.linalg.norm(x - y) for y in b] for x in a])

    expected = 2 * mean_distance(first, second) - mean_distance(first, first) - mean_distance(second, second)
    assert metrics.edistance(first, second) == pytest.approx(expected, rel=1e-10)
    assert metrics.edistance(second, first) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr("multipert.metrics._cells.BLOCK_ROWS", 7)
    assert metrics.edistance(first, second) == pytest.approx(expected, rel=1e-10)
    assert metrics.edistance(sparse.csr_matrix(first), second) == pytest.approx(expected, rel=1e-10)
    # the same cells in another order are at distance 0, and not at what rounding leaves
    assert metrics.edistance(first, first[::-1].copy()) == 0
    # far from the origin, where the usual expansion of the square loses digits
    assert metrics.edistance(first + 1e4, second + 1e4) == pytest.approx(expected, rel=1e-6)


def test_low_variance_share_counts_genes_that_vary():
    observed = np.array([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    predicted = np.array([[0.0, 0.0, 0.4, 5.0], [1.0, 0.2, 0.6, 9.0]])
    assert metrics.low_variance_share(predicted, observed) == pytest.approx(2 / 3)
    assert metrics.low_variance_share(predicted, observed, ratio=0.01) == 0
    assert np.isnan(metrics.low_variance_share(predicted[:1], observed))
    assert np.isnan(metrics.low_variance_share(predicted, observed[:, 3:].repeat(4, axis=1)))

import anndata as ad
import numpy as np
import pytest
from scipy import sparse, stats

from multipert.metrics import (
    de_direction_match,
    de_genes,
    de_overlap,
    de_recall,
    log2_fold_change,
    rank_genes,
    t_undefined_share,
    welch_t,
    wilcoxon,
)


def scanpy_scores(group, control, method, **kwargs):
    """Scores of scanpy in the order of the genes, and the order it ranks them in."""
    sc = pytest.importorskip("scanpy")
    adata = ad.AnnData(np.vstack([group, control]))
    adata.obs["label"] = ["group"] * len(group) + ["control"] * len(control)
    adata.obs["label"] = adata.obs["label"].astype("category")
    sc.tl.rank_genes_groups(adata, "label", groups=["group"], reference="control", method=method, **kwargs)
    result = sc.get.rank_genes_groups_df(adata, "group").set_index("names")["scores"]
    return result[adata.var_names].to_numpy(), result.index.astype(int).to_numpy()


def test_welch_t_is_scipy_and_scanpy(groups):
    ours = welch_t(groups["observed"], groups["control"])
    np.testing.assert_allclose(
        ours, stats.ttest_ind(groups["observed"], groups["control"], equal_var=False).statistic, rtol=1e-10
    )
    scores, order = scanpy_scores(groups["observed"], groups["control"], "t-test")
    np.testing.assert_allclose(ours, scores, rtol=1e-5)
    # compared by value, since scanpy leaves the order of equal scores open
    np.testing.assert_allclose(np.sort(ours)[::-1], ours[order], rtol=1e-5)


@pytest.mark.parametrize("tie_correct", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_wilcoxon_is_scanpy(groups, tie_correct, signed):
    # log1p(1) becomes 0, so that zeros stand between negative and positive values
    offset = np.log1p(1) if signed else 0
    group, control = groups["observed"] - offset, groups["control"] - offset
    group[:, 7] = control[:, 7] = 0
    ours = wilcoxon(group, control, tie_correct=tie_correct)
    scores, order = scanpy_scores(group, control, "wilcoxon", tie_correct=tie_correct)
    np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sort(ours)[::-1], ours[order], rtol=1e-5, atol=1e-7)
    assert ours[7] == 0


@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_array])
def test_wilcoxon_in_tasks_of_few_genes(groups, monkeypatch, convert):
    expected = wilcoxon(groups["observed"], groups["control"])
    monkeypatch.setattr("multipert.metrics._ranksum.GENES_PER_TASK", 11)
    np.testing.assert_array_equal(wilcoxon(convert(groups["observed"]), groups["control"]), expected)


@pytest.mark.parametrize("test", [welch_t, wilcoxon])
def test_swapped_groups_change_sign(test, groups):
    np.testing.assert_allclose(
        test(groups["observed"], groups["control"]), -test(groups["control"], groups["observed"]), atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("convert", [np.array, sparse.csr_matrix])
def test_shift_of_a_silent_gene_is_no_statistic(dtype, convert, groups):
    """A column constant but for rounding scores 0, whatever the dtype; its neighbours score as they do alone."""
    control = groups["control"].copy()
    control[:, 5:60] = 0
    shift = np.random.default_rng(3).random(control.shape[1])
    predicted = (control + shift).astype(dtype)
    # what arithmetic in float64 leaves in a column that should be constant
    if dtype is np.float64:
        predicted[::2] = np.nextafter(predicted[::2], 2)
    ours = welch_t(convert(predicted), convert(control.astype(dtype)))
    silent = ~control.any(axis=0)
    assert silent.sum() >= 55
    np.testing.assert_array_equal(ours[silent], 0)
    reference = stats.ttest_ind((control + shift)[:, ~silent], control[:, ~silent], equal_var=False).statistic
    np.testing.assert_allclose(ours[~silent], reference, rtol=1e-5)


def test_de_overlap_is_the_same_in_float32_and_float64(groups):
    control = groups["control"].copy()
    control[:, ::4] = 0
    predicted = control + np.random.default_rng(3).normal(0, 0.5, control.shape[1])
    wide = de_overlap(predicted, groups["observed"], control, k=20)
    narrow = de_overlap(*(x.astype(np.float32) for x in (predicted, groups["observed"], control)), k=20)
    assert wide == narrow > 0


def test_single_cell_has_no_statistic(groups):
    np.testing.assert_array_equal(welch_t(groups["observed"][:1], groups["control"]), 0)
    assert np.isnan(de_overlap(groups["predicted"][:1], groups["observed"], groups["control"]))


def test_top_sets_by_direction():
    control = np.array([[0.0] * 6, [1.0] * 6])
    observed = control + [5, 4, 3, -6, -2, 0]
    predicted = control + [5, 0, 3, 6, -2, 0]
    assert de_overlap(predicted, observed, control, k=3) == 2  # {3, 0, 1} and {3, 0, 2}
    assert de_overlap(predicted, observed, control, k=3, direction="up") == 2  # {0, 1, 2} and {3, 0, 2}
    assert de_overlap(predicted, observed, control, k=3, direction="down") == 1  # {3, 4} and {4}
    # gene 5 does not change, so it is never common, however large the sets
    assert de_overlap(predicted, observed, control, k=100) == 4


def test_equal_statistics_are_taken_in_the_order_of_the_genes():
    control = np.array([[0.0] * 4, [1.0] * 4])
    assert de_overlap(control + [1, 1, 1, 1], control + [2, 1, 1, 1], control, k=2) == 2
    assert de_overlap(control + [1, 1, 1, 1], control + [1, 1, 1, 2], control, k=2) == 1


def test_bad_options_raise(groups):
    with pytest.raises(ValueError, match="`k` is 0"):
        de_overlap(**groups, k=0)
    with pytest.raises(ValueError, match="`direction` is 'both'; it must be one of absolute, up, down"):
        de_overlap(**groups, direction="both")


def test_de_recall_by_its_definition(groups):
    """The share in common of the top genes by t with overestimated variance, as rank_genes has it."""
    tops = []
    for name in ("predicted", "observed"):
        both = np.vstack([groups[name], groups["control"]])
        labels = np.repeat(["group", "control"], [len(groups[name]), len(groups["control"])])
        t = rank_genes(both, labels, reference="control", method="t_overestimated_variance").scores[0]
        tops.append(set(np.argsort(-np.abs(t))[:20]))
    recall = de_recall(**groups)
    assert recall == len(tops[0] & tops[1]) / 20
    assert 20 / 120 < recall < 1


def test_de_recall_of_truth_control_and_constant_cells(groups):
    assert de_recall(groups["observed"], groups["observed"], groups["control"]) == 1
    assert de_recall(groups["control"], groups["observed"], groups["control"]) == 0
    silent = groups["control"].copy()
    silent[0] = 5
    silent[:, ::2] = 0
    shifted = np.zeros((5, 120)) + 1.0
    # half of the genes vary nowhere and have no t; the others do
    assert t_undefined_share(shifted, silent) == 0.5
    assert t_undefined_share(shifted.astype(np.float32), sparse.csr_matrix(silent)) == 0.5
    assert t_undefined_share(groups["control"], groups["control"]) == 0
    assert t_undefined_share(np.zeros((5, 120)), np.zeros((4, 120))) == 0


def test_de_recall_sees_size_and_not_direction(groups):
    centre = groups["control"].mean(axis=0)
    mirrored = 2 * centre - groups["observed"]
    assert de_recall(mirrored, groups["observed"], groups["control"]) == 1


def test_de_recall_counts_the_cells_of_the_group(groups):
    """With overestimated variance, more control cells do not change the ranking; with Welch's t they do."""
    many = np.tile(groups["control"], (40, 1))
    assert de_recall(groups["predicted"], groups["observed"], many, k=10) == de_recall(**groups, k=10)


def test_de_recall_is_undefined_for_too_few():
    cells = np.random.default_rng(0).random((6, 10))
    assert np.isnan(de_recall(cells[:2], cells[2:4], cells[4:]))
    assert not np.isnan(de_recall(cells[:2], cells[2:4], cells[4:], k=10))
    assert np.isnan(de_recall(cells[:1], cells[2:4], cells[4:], k=5))
    assert np.isnan(t_undefined_share(cells[:1], cells[4:]))
    with pytest.raises(ValueError, match="`k` is 0"):
        de_recall(cells[:2], cells[2:4], cells[4:], k=0)


def test_de_genes_finds_the_changed_and_keeps_its_rate():
    rng = np.random.default_rng(0)
    mean = rng.gamma(1.0, 0.3, 400)
    changed = np.arange(400) < 60
    control = np.log1p(rng.poisson(mean, (300, 400)))
    observed = np.log1p(rng.poisson(np.where(changed, mean * 3, mean), (250, 400)))
    found = de_genes(observed, control)
    assert found[changed].sum() > 30
    assert found[~changed].sum() <= 0.1 * found.sum()
    # without the correction genes that few cells express are missed
    assert de_genes(observed, control, tie_correct=False)[changed].sum() < found[changed].sum()
    # a strict bound or a floor of the fold change leaves a subset
    for kept in (de_genes(observed, control, alpha=1e-6), de_genes(observed, control, min_log2_fold_change=1)):
        assert 0 < kept.sum() < found.sum()
        assert found[kept].all()
    assert not de_genes(control[:150], control[150:]).any()


def test_direction_match_of_truth_mirror_and_control(groups):
    control, observed = groups["control"], groups["observed"]
    mirrored = 2 * control.mean(axis=0) - observed
    assert de_direction_match(observed, observed, control) == 1
    assert de_direction_match(mirrored, observed, control) == 0
    assert de_direction_match(control, observed, control) == 0
    assert np.isnan(de_direction_match(observed, control, control))
    labels = np.arange(120) < 4
    half = np.where(np.arange(120) < 1, mirrored, observed)
    assert de_direction_match(half, observed, control, labels=labels) == 0.75


def test_direction_is_that_of_the_mean(groups):
    """One gene whose mean does not move, though its distribution does, is left out."""
    control, observed = np.zeros((4, 2)) + 1.0, np.array([[0.0, 2.0], [2.0, 2.0]])
    labels = np.array([True, True])
    assert de_direction_match(observed + 5, observed, control, labels=labels) == 1
    assert np.isnan(de_direction_match(observed, observed, control, labels=np.array([True, False])))


@pytest.mark.parametrize("labels", [np.ones(120), np.ones(119, dtype=bool), np.ones((120, 1), dtype=bool)])
def test_labels_must_be_one_truth_value_per_gene(groups, labels):
    with pytest.raises(ValueError, match="`labels` must be boolean, one value for each of the 120 genes"):
        de_direction_match(**groups, labels=labels)


def test_log2_fold_change_is_that_of_counts():
    rng = np.random.default_rng(0)
    group, control = rng.poisson(3.0, (20, 6)), rng.poisson(2.0, (30, 6))
    group[:, 0] = control[:, 0] = 0
    control[:, 1] = 0
    linear = log2_fold_change(np.log1p(group), np.log1p(control), average="linear")
    np.testing.assert_allclose(linear, np.log2((group.mean(0) + 0.1) / (control.mean(0) + 0.1)))
    geometric = [np.expm1(np.log1p(x).mean(0)) for x in (group, control)]
    for convert in (np.array, sparse.csr_matrix):
        ours = log2_fold_change(convert(np.log1p(group)), np.log1p(control), pseudocount=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.log2(geometric[0] / geometric[1])
        np.testing.assert_allclose(ours[1:], expected[1:])
        assert (ours[0], ours[1]) == (0, np.inf)


def test_log2_fold_change_is_antisymmetric_and_0_for_no_change(groups):
    forth = log2_fold_change(groups["observed"], groups["control"])
    np.testing.assert_allclose(forth, -log2_fold_change(groups["control"], groups["observed"]), atol=1e-12)
    np.testing.assert_array_equal(log2_fold_change(groups["control"], groups["control"], pseudocount=0), 0)
    # a prediction below 0 counts as unexpressed
    below = groups["predicted"] - 100
    np.testing.assert_array_equal(
        log2_fold_change(below, groups["control"]), log2_fold_change(0 * below, groups["control"])
    )


@pytest.mark.parametrize(
    ("control", "options", "message"),
    [
        (np.array([[-0.5, 1.0]]), {}, "`control` holds 1 values below 0 or not below 12"),
        (np.array([[3.0, 12.0]]), {}, "`control` holds 1 values below 0 or not below 12"),
        (np.array([[3.0, 1.0]]), {"pseudocount": -0.1}, "`pseudocount` is -0.1"),
        (np.array([[3.0, 1.0]]), {"average": "mean"}, "`average` is 'mean'; it must be one of log, linear"),
    ],
)
def test_fold_change_of_another_scale_raises(control, options, message):
    with pytest.raises(ValueError, match=message):
        log2_fold_change(np.array([[1.0, 1.0]]), control, **options)


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"min_log2_fold_change": -1}])
def test_bad_thresholds_of_de_genes_raise(groups, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        de_genes(groups["observed"], groups["control"], **options)

import numpy as np
import pytest
from scipy import sparse

from multipert.metrics import pearson_delta, r2
from multipert.pl import mean_scatter

NAMES = [f"gene_{i:02}" for i in range(60)]


@pytest.fixture
def groups() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    control = rng.gamma(2.0, 1.0, (30, 60))
    change = np.where(np.arange(60) < 12, rng.normal(0, 1.5, 60), 0)
    return {"predicted": control + 0.7 * change, "observed": rng.permuted(control, axis=0) + change, "control": control}


def named(ax) -> dict[str, tuple[float, float]]:
    return {text.get_text(): tuple(map(float, text.xy)) for text in ax.texts if hasattr(text, "xyann")}


def points(ax) -> np.ndarray:
    return np.concatenate([drawn.get_offsets() for drawn in ax.collections])


def test_every_gene_is_one_point_predicted_over_observed(groups):
    ax = mean_scatter(**groups)
    expected = np.column_stack([groups["observed"].mean(axis=0), groups["predicted"].mean(axis=0)])
    assert len(points(ax)) == 60
    np.testing.assert_allclose(np.sort(points(ax), axis=0), np.sort(expected, axis=0))


def test_names_go_to_the_largest_observed_changes(groups):
    change = groups["observed"].mean(axis=0) - groups["control"].mean(axis=0)
    largest = {NAMES[i] for i in np.argsort(-np.abs(change))[:5]}
    for delta in (False, True):
        ax = mean_scatter(**groups, n_named=5, var_names=NAMES, delta=delta)
        assert set(named(ax)) == largest
    x = {name: x for name, (x, _) in named(ax).items()}
    np.testing.assert_allclose([x[name] for name in x], [change[NAMES.index(name)] for name in x])


def test_without_control_the_worst_predicted_genes_are_named(groups):
    predicted = groups["observed"].copy()
    predicted[:, 40] += 3
    assert set(named(mean_scatter(predicted, groups["observed"], n_named=1, var_names=NAMES))) == {"gene_40"}


def test_genes_can_be_chosen(groups):
    ax = mean_scatter(**groups, genes=["gene_50", "gene_02"], var_names=NAMES)
    assert set(named(ax)) == {"gene_50", "gene_02"}
    assert set(named(mean_scatter(**groups, genes="gene_50", var_names=NAMES))) == {"gene_50"}
    assert named(mean_scatter(**groups, n_named=0)) == {}


def test_corner_agrees_with_the_metrics(groups):
    corner = mean_scatter(**groups).texts[0].get_text()
    assert corner.splitlines()[0] == f"R² = {r2(groups['predicted'], groups['observed']):.3f}"
    corner = mean_scatter(**groups, delta=True).texts[0].get_text()
    assert corner.splitlines()[1] == f"r = {pearson_delta(**groups):.3f}"


def test_undefined_scores_are_left_out():
    ax = mean_scatter(np.ones((2, 3)), np.ones((2, 3)), n_named=0)
    assert ax.texts[0].get_text() == ""


@pytest.mark.parametrize("delta", [False, True])
def test_names_cover_neither_names_nor_named_points_nor_the_corner(groups, delta, overlaps, new_ax):
    ax = mean_scatter(**groups, delta=delta, n_named=12, var_names=NAMES, ax=new_ax(4, 4))
    assert len(named(ax)) == 12
    assert overlaps(ax, ax.texts) == []
    pixels = ax.transData.transform(list(named(ax).values()))
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert not any(box.contains(x, y) for box in boxes for x, y in pixels)
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_names_that_find_no_place_are_left_out_and_the_rest_do_not_touch(overlaps, new_ax):
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.01, (1, 150)) + 1
    ax = mean_scatter(values, values + 0.001, n_named=150, ax=new_ax(2, 2))
    assert 5 < len(named(ax)) < 150
    assert overlaps(ax, ax.texts) == []


def test_anndata_sparse_and_means_draw_the_same(groups, cells):
    annotated = {name: cells(values[:, :20]) for name, values in groups.items()}
    compressed = {name: sparse.csr_matrix(values[:, :20]) for name, values in groups.items()}
    means = {name: values[:, :20].mean(axis=0) for name, values in groups.items()}
    first = mean_scatter(**annotated)
    for other in (compressed, means):
        ax = mean_scatter(**other, var_names=annotated["observed"].var_names)
        np.testing.assert_allclose(points(ax), points(first))
        assert set(named(ax)) == set(named(first))


def test_layer_is_read_and_a_prediction_keeps_its_x(groups, cells):
    annotated = {name: cells(values[:, :20]) for name, values in groups.items()}
    expected = points(mean_scatter(**annotated))
    for name in ("observed", "control"):
        annotated[name].layers["log"] = annotated[name].X.copy()
        annotated[name].X[:] = 0
    np.testing.assert_allclose(points(mean_scatter(**annotated, layer="log")), expected)


def test_names_with_signs_of_mathematics_are_written_as_they_are(groups, cells):
    ax = mean_scatter(**groups, genes=["$a_1$"], var_names=["$a_1$", *NAMES[1:]])
    ax.figure.draw_without_rendering()
    assert set(named(ax)) == {"$a_1$"}


def test_bad_input(groups, cells):
    a, b = cells(np.ones((2, 3))), cells(np.ones((2, 3)))
    with pytest.raises(ValueError, match="`delta=True` needs `control`"):
        mean_scatter(a, b, delta=True)
    with pytest.raises(ValueError, match="`predicted` has 2, `observed` has 3"):
        mean_scatter(a[:, :2], b)
    with pytest.raises(ValueError, match="not those of"):
        mean_scatter(a[:, ["b", "a", "c"]], b)
    with pytest.raises(ValueError, match="'gene_5'; did you mean"):
        mean_scatter(**groups, genes="gene_5", var_names=NAMES)
    with pytest.raises(ValueError, match="5 names for 60 genes"):
        mean_scatter(**groups, var_names=NAMES[:5])
    with pytest.raises(ValueError, match="`observed` has no cells"):
        mean_scatter(a, b[:0])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 3 genes"):
        mean_scatter(np.array([[1, np.nan, 2.0]]), np.ones((1, 3)))
    with pytest.raises(KeyError, match="no 'log'"):
        mean_scatter(a, b, layer="log")

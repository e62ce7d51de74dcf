import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from multipert.pl import gene_distributions


@pytest.fixture
def groups(cells) -> dict:
    """Gene "a": three quarters zeros in control, none in observed; gene "b": nothing but zeros, and four values."""
    rng = np.random.default_rng(0)
    control = np.column_stack([np.where(np.arange(80) < 60, 0, rng.normal(3, 0.2, 80)), np.zeros(80)])
    observed = np.column_stack([rng.normal(5, 0.2, 40), np.where(np.arange(40) < 36, 0, 2.0 + np.arange(40) / 40)])
    return {"control": cells(control), "observed": cells(observed)}


def zeros_of(ax):
    return next(other for other in ax.figure.axes if other is not ax)


def violins(ax) -> list[np.ndarray]:
    return [body.get_paths()[0].vertices for body in ax.collections if isinstance(body, PolyCollection)]


def means(ax) -> list[float]:
    return [float(line.get_ydata()[0]) for line in ax.lines if line.get_linewidth() == 2 and len(line.get_xdata()) == 2
            and line.get_marker() == "None"]  # fmt: skip


def test_bars_are_the_share_of_exact_zeros(groups):
    bars = zeros_of(gene_distributions(groups, ["a", "b"])).patches
    assert [round(bar.get_height(), 3) for bar in bars] == [0.75, 0.0, 1.0, 0.9]


def test_bars_hang_down(groups):
    low, high = zeros_of(gene_distributions(groups, "a")).get_ylim()
    assert (low, high) == (1, 0)


def test_violins_hold_no_zero_and_are_as_wide_as_their_share(groups):
    control, observed = violins(gene_distributions(groups, "a"))
    values = {name: adata.X[:, 0][adata.X[:, 0] != 0] for name, adata in groups.items()}
    assert control[:, 1].min() == pytest.approx(values["control"].min())
    assert observed[:, 1].max() == pytest.approx(values["observed"].max())
    assert np.ptp(control[:, 0]) / np.ptp(observed[:, 0]) == pytest.approx(0.25)


def test_few_values_are_points(groups):
    ax = gene_distributions(groups, "b")
    assert violins(ax) == []
    drawn = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "."])
    np.testing.assert_allclose(np.sort(drawn), groups["observed"].X[36:, 1])


def test_line_is_the_mean_of_all_cells(groups):
    expected = [groups[name].X[:, gene].mean() for gene in (0, 1) for name in groups]
    np.testing.assert_allclose(means(gene_distributions(groups, ["a", "b"])), expected)


def test_genes_and_groups_in_order(groups, legend):
    ax = gene_distributions(groups, ["b", "a"])
    assert [label.get_text() for label in zeros_of(ax).get_xticklabels()] == ["b", "a"]
    assert legend(ax) == ["control (80)", "observed (40)"]
    left, right = violins(ax)
    assert 0.5 < left[:, 0].mean() < 1 < right[:, 0].mean() < 1.5


def test_known_groups_keep_their_colours(groups):
    renamed = {"other": groups["control"], **groups}
    colour = {line.get_label().split()[0]: line.get_color() for line in gene_distributions(renamed, "a").lines[-3:]}
    first = {line.get_label().split()[0]: line.get_color() for line in gene_distributions(groups, "a").lines[-2:]}
    assert colour.items() >= first.items()
    assert len(set(colour.values())) == 3


def test_constant_and_sparse_values_are_drawn(cells):
    from scipy import sparse

    adata = cells(np.full((20, 1), 2.0))
    adata.X = sparse.csr_matrix(adata.X)
    ax = gene_distributions({"x": adata}, "a")
    assert violins(ax) == []
    assert zeros_of(ax).patches[0].get_height() == 0


def test_axes_of_a_grid_keep_their_place():
    from anndata import AnnData

    figure = Figure()
    left, right = figure.subplots(1, 2)
    before = left.get_position()
    ax = gene_distributions({"x": AnnData(np.eye(10))}, "0", ax=left)
    assert ax is left
    inner = [left.get_position(), zeros_of_first(figure, left, right).get_position()]
    assert min(box.y0 for box in inner) == pytest.approx(before.y0)
    assert max(box.y1 for box in inner) == pytest.approx(before.y1)
    assert inner[1].y1 < inner[0].y0


def zeros_of_first(figure, *others):
    (found,) = [ax for ax in figure.axes if ax not in others]
    return found


def test_bad_input(groups, cells):
    with pytest.raises(ValueError, match="`groups` is empty"):
        gene_distributions({}, "a")
    with pytest.raises(ValueError, match="1 unknown name.*'q'"):
        gene_distributions(groups, ["a", "q"])
    with pytest.raises(ValueError, match="`genes` is empty"):
        gene_distributions(groups, [])
    with pytest.raises(ValueError, match="`none` has no cells"):
        gene_distributions({"none": groups["control"][:0]}, "a")
    with pytest.raises(ValueError, match="`x` holds 1 NaN"):
        gene_distributions({"x": cells([[np.nan], [1.0]])}, "a")
    with pytest.raises(KeyError, match="no 'log'"):
        gene_distributions(groups, "a", layer="log")
    with pytest.raises(ValueError, match="no place in a grid"):
        gene_distributions(groups, "a", ax=Figure().add_axes((0, 0, 1, 1)))

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from multipert.pl import latent


@pytest.fixture
def adata(cells):
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "P1", "P2"], [30, 20, 10])
    adata = cells(np.zeros((60, 1)), perturbation=labels, size=np.arange(60.0))
    adata.obsm["X_two"] = rng.normal(size=(60, 2))
    adata.obsm["X_many"] = np.column_stack([rng.normal(0, 5, 60), rng.normal(0, 2, 60), rng.normal(0, 0.1, (60, 3))])
    return adata


def drawn(ax) -> tuple[np.ndarray, np.ndarray]:
    """Points and their colours, over all markers."""
    points = np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])
    colours = np.concatenate([part.get_facecolors()[:, :3] for part in ax.collections])
    return points, colours


def test_two_columns_are_drawn_as_they_are(adata):
    ax = latent(adata, "X_two")
    np.testing.assert_allclose(np.sort(drawn(ax)[0], axis=0), np.sort(adata.obsm["X_two"], axis=0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("X_two 1", "X_two 2")


def test_more_columns_are_their_first_components_and_the_axes_say_so(adata):
    ax = latent(adata, "X_many")
    space = adata.obsm["X_many"] - adata.obsm["X_many"].mean(axis=0)
    _, singular, axes = np.linalg.svd(space, full_matrices=False)
    expected = np.abs(space @ axes[:2].T)
    np.testing.assert_allclose(np.sort(np.abs(drawn(ax)[0]), axis=0), np.sort(expected, axis=0), atol=1e-8)
    share = singular**2 / np.sum(singular**2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        f"PC1 of X_many ({share[0]:.0%})",
        f"PC2 of X_many ({share[1]:.0%})",
    )


def test_legend_counts_the_cells_and_colours_are_those_of_the_points(adata, legend):
    ax = latent(adata, "X_two")
    assert legend(ax) == ["P1 (20)", "P2 (10)", "control (30)"]
    colour = {line.get_label().split()[0]: line.get_color() for line in ax.lines}
    assert colour["control"] == "#8b929c"
    points, colours = drawn(ax)
    by_place = {tuple(point): to_hex(c) for point, c in zip(points, colours, strict=True)}
    for place, label in zip(adata.obsm["X_two"], adata.obs["perturbation"], strict=True):
        assert by_place[tuple(place)] == colour[label]


def test_categories_keep_their_order_and_missing_ones_are_last(adata, legend):
    column = pd.Categorical(adata.obs["perturbation"].replace("P2", None), categories=["control", "absent", "P1"])
    adata.obs["group"] = column
    assert legend(latent(adata, "X_two", color="group")) == ["control (30)", "P1 (20)", "missing (10)"]


def test_no_category_is_drawn_as_a_whole_over_another(adata):
    _, colours = drawn(latent(adata, "X_two"))
    runs = 1 + np.sum(np.any(np.diff(colours, axis=0) != 0, axis=1))
    assert runs > 15


def test_same_seed_same_picture_other_seed_other_order(adata):
    first, again, other = (drawn(latent(adata, "X_two", seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_numbers_get_a_colour_bar(adata):
    ax = latent(adata, "X_two", color="size")
    assert ax.get_legend() is None
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "size"
    (points,) = ax.collections
    order = [int(np.flatnonzero((adata.obsm["X_two"] == point).all(axis=1))[0]) for point in points.get_offsets()]
    np.testing.assert_array_equal(points.get_array(), adata.obs["size"].to_numpy()[order])


def test_centres_are_the_means(adata):
    ax = latent(adata, "X_two", centres=True)
    crosses = {line.get_color(): line.get_xydata()[0] for line in ax.lines if line.get_marker() == "P"}
    expected = adata.obsm["X_two"][:30].mean(axis=0)
    np.testing.assert_allclose(crosses["#8b929c"], expected)
    assert len(crosses) == 3


def test_many_categories_differ_in_colour_or_marker(adata):
    adata.obs["many"] = [f"c{i % 25:02}" for i in range(60)]
    ax = latent(adata, "X_two", color="many")
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 25
    assert len(drawn(ax)[0]) == 60


def test_cells_without_a_place_are_left_out_with_a_warning(adata, legend):
    adata.obsm["X_two"][:5] = np.nan
    with pytest.warns(UserWarning, match=r"5 of 60 cells .* obsm\['X_two'\]"):
        ax = latent(adata, "X_two")
    assert legend(ax)[-1] == "control (25)"
    assert len(drawn(ax)[0]) == 55


def test_input_is_not_changed(adata):
    before = adata.copy()
    latent(adata, "X_many")
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.uns) == list(before.uns)
    np.testing.assert_array_equal(adata.obsm["X_many"], before.obsm["X_many"])


def test_bad_input(adata):
    with pytest.raises(KeyError, match="'X_tow' is not in obsm; did you mean 'X_two'"):
        latent(adata, "X_tow")
    with pytest.raises(KeyError, match="'perturbatoin' is not a column of obs; did you mean 'perturbation'"):
        latent(adata, "X_two", color="perturbatoin")
    adata.obsm["X_one"], adata.obsm["X_same"] = np.zeros((60, 1)), np.zeros((60, 2))
    with pytest.raises(ValueError, match="at least two columns"):
        latent(adata, "X_one")
    with pytest.raises(ValueError, match="not all the same"):
        latent(adata, "X_same")
    with pytest.raises(ValueError, match="needs three"):
        latent(adata[:2], "X_two")
    adata.obs["name"] = adata.obs_names
    with pytest.raises(ValueError, match="60 categories; 25 can be told apart"):
        latent(adata, "X_two", color="name")

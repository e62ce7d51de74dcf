import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from multipert.pl import perturbations
from multipert.pl._axes import GREY, PALETTE


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = ["control", *(f"P{i:02}" for i in range(1, 13)), "P01+P02", "P03+P04"]
    space = rng.normal(size=(15, 8)) * np.linspace(3, 0.2, 8)
    return pd.DataFrame(space, index=names, columns=[f"scale_0_{i}" for i in range(8)])


@pytest.fixture
def doses() -> pd.DataFrame:
    """A goes to the right with its dose, and B upwards; the doses are not in order."""
    at = {
        "A@10": (10, 0),
        "B@1": (0, 3),
        "control": (0, 0),
        "A@2": (5, 1),
        "A@0.5": (2, 0),
        "B@30": (1, 7),
        "C": (4, 5),
    }
    return pd.DataFrame(list(at.values()), index=list(at), columns=["x", "y"], dtype=float)


def stars(ax) -> list:
    """Collections that hold control: those that are not rasterized."""
    return [drawn for drawn in ax.collections if not drawn.get_rasterized()]


def drawn(ax) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, colours and areas of the points but control, over all markers."""
    parts = [drawn for drawn in ax.collections if drawn.get_rasterized()]
    return (
        np.concatenate([np.asarray(part.get_offsets()) for part in parts]),
        np.concatenate([part.get_facecolors()[:, :3] for part in parts]),
        np.concatenate([part.get_sizes() for part in parts]),
    )


def components(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components up to sign, and the shares of the variance."""
    space = table.to_numpy() - table.to_numpy().mean(axis=0)
    left, singular, _ = np.linalg.svd(space, full_matrices=False)
    return (left * singular)[:, :2], singular**2 / np.sum(singular**2)


def places(ax) -> np.ndarray:
    """All points, control first."""
    return np.concatenate([*(np.asarray(star.get_offsets()) for star in stars(ax)), drawn(ax)[0]])


def named(ax) -> dict[str, np.ndarray]:
    return {text.get_text(): np.array(text.xy) for text in ax.texts}


def test_points_are_the_first_components_and_the_axes_say_so(table):
    ax = perturbations(table)
    expected, share = components(table)
    np.testing.assert_allclose(np.sort(np.abs(places(ax)), axis=0), np.sort(np.abs(expected), axis=0), atol=1e-8)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (f"PC1 ({share[0]:.0%})", f"PC2 ({share[1]:.0%})")


def test_control_is_one_star_at_its_own_place(table):
    ax = perturbations(table)
    (star,) = stars(ax)
    (round_points,) = [part for part in ax.collections if part is not star]
    np.testing.assert_allclose(np.abs(np.asarray(star.get_offsets())), np.abs(components(table)[0][:1]), atol=1e-8)
    assert len(star.get_paths()[0]) != len(round_points.get_paths()[0])
    assert stars(perturbations(table, control="DMSO")) == []
    assert len(drawn(perturbations(table, control="DMSO"))[0]) == len(table)


def test_names_stand_at_their_own_points(table):
    expected = dict(zip(table.index, np.abs(components(table)[0]), strict=True))
    found = named(perturbations(table))
    assert set(found) == set(table.index)
    for name, place in found.items():
        np.testing.assert_allclose(np.abs(place), expected[name], atol=1e-8)


def test_both_axes_have_one_scale(table, new_ax):
    for ax in (perturbations(table), perturbations(table, ax=new_ax(9, 3))):
        ax.figure.draw_without_rendering()
        (x_0, y_0), (x_1, y_1) = ax.transData.transform([(0, 0), (1, 1)])
        np.testing.assert_allclose(x_1 - x_0, y_1 - y_0)


def test_order_of_the_rows_changes_nothing(table):
    groups = dict.fromkeys(table.index[:7], "first")
    one, other = (named(perturbations(rows, groups=groups)) for rows in (table, table.iloc[::-1]))
    assert set(one) == set(other)
    for name, place in one.items():
        np.testing.assert_allclose(place, other[name], atol=1e-8)


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_distances_in_the_map_never_exceed_those_of_the_rows(n_rows, n_columns, seed):
    space = np.random.default_rng(seed).normal(size=(n_rows, n_columns))
    ax = perturbations(pd.DataFrame(space), n_labels=0, ax=Figure().subplots())
    shown, real = np.sort(pdist(places(ax))), np.sort(pdist(space))
    assert (shown <= real + 1e-9).all()
    if min(n_rows - 1, n_columns) <= 2:
        np.testing.assert_allclose(shown, real, atol=1e-9)


@pytest.mark.parametrize("n_columns", [1, 5])
def test_two_rows_lie_on_a_line(n_columns):
    ax = perturbations(pd.DataFrame(np.eye(2, n_columns), index=["A", "A+B"]))
    points = drawn(ax)[0]
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(pdist(points), pdist(np.eye(2, n_columns)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC1 (100%)", "PC2 (0%)")
    assert set(named(ax)) == {"A", "A+B"}


def test_mds_keeps_distances_better_than_the_components(table):
    def error(ax) -> float:
        shown, real = pdist([named(ax)[name] for name in table.index]), pdist(table)
        return float(np.sqrt(np.sum((real - shown) ** 2) / np.sum(real**2)))

    pca, mds = perturbations(table), perturbations(table, method="mds")
    assert error(mds) < 0.8 * error(pca)
    assert (mds.get_xlabel(), mds.get_ylabel()) == (f"MDS 1 (distances off by {error(mds):.0%})", "MDS 2")


def test_mds_of_what_fits_in_a_plane_is_exact():
    table = pd.DataFrame(np.random.default_rng(1).normal(size=(20, 2)) @ np.random.default_rng(2).normal(size=(2, 9)))
    ax = perturbations(table, method="mds")
    assert ax.get_xlabel() == "MDS 1 (distances off by 0%)"
    np.testing.assert_allclose(np.sort(pdist(places(ax))), np.sort(pdist(table.to_numpy())), rtol=1e-8)


def test_mds_takes_rows_at_the_same_place():
    table = pd.DataFrame(np.repeat(np.eye(3, 4), 2, axis=0), index=list("abcdef"))
    points = named(perturbations(table, method="mds", n_labels=6))
    assert np.isfinite(list(points.values())).all()
    np.testing.assert_allclose(points["a"], points["b"], atol=1e-12)


def test_groups_colour_the_points_and_are_counted_without_control(table, legend):
    groups = {f"P{i:02}": "early" if i < 5 else "late" for i in range(1, 11)} | {"control": "early", "absent": "gone"}
    ax = perturbations(table, groups=groups, n_labels=14)
    assert legend(ax) == ["early (4)", "late (6)", "no group (4)"]
    colour_of = {line.get_label().rsplit(" ", 1)[0]: line.get_color() for line in ax.lines}
    assert colour_of["no group"] == GREY
    assert len(set(colour_of.values())) == 3
    points, colours, _ = drawn(ax)
    place_of = dict(zip(table.index, np.abs(components(table)[0]), strict=True))
    for name in table.index[1:]:
        (row,) = np.flatnonzero(np.isclose(np.abs(points), place_of[name], atol=1e-8).all(axis=1))
        assert to_hex(colours[row]) == colour_of[groups.get(name, "no group")]


def test_series_gives_the_legend_its_name_and_categories_their_order(table, legend):
    column = pd.Categorical(["late", "early", None], categories=["late", "absent", "early"])
    groups = pd.Series(column, index=["P01", "P02", "P03"], name="pathway")
    ax = perturbations(table, groups=groups)
    assert legend(ax) == ["late (1)", "early (1)", "no group (12)"]
    assert ax.get_legend().get_title().get_text() == "pathway"
    assert perturbations(table).get_legend() is None


def test_many_groups_differ_in_colour_or_marker():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), index=[f"P{i}" for i in range(50)])
    ax = perturbations(table, groups={f"P{i}": f"g{i % 25:02}" for i in range(50)})
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 25
    assert len(drawn(ax)[0]) == 50


def test_doses_are_joined_from_control_in_their_order(doses):
    ax = perturbations(doses, n_labels=6)
    place_of = named(ax)
    paths = [
        [name for point in line.get_xydata() for name in place_of if np.allclose(place_of[name], point)]
        for line in ax.lines
    ]
    assert paths == [["control", "A@0.5", "A@2", "A@10"], ["control", "B@1", "B@30"]]
    assert [line.get_color() for line in ax.lines] == list(PALETTE[:2])


def test_points_grow_with_the_dose(doses):
    ax = perturbations(doses, n_labels=6)
    points, _, areas = drawn(ax)
    area_of = {name: areas[np.isclose(points, place).all(axis=1)] for name, place in named(ax).items()}
    assert area_of["A@0.5"] < area_of["A@2"] < area_of["A@10"]
    assert area_of["B@1"] < area_of["B@30"]


def test_doses_have_the_group_of_their_perturbation_unless_they_have_one(doses, legend):
    ax = perturbations(doses, groups={"A": "kinase", "A@10": "toxic", "C": "kinase"})
    assert legend(ax) == ["kinase (3)", "toxic (1)", "no group (2)"]


@pytest.mark.parametrize("delimiter", [None, "|"])
def test_without_its_delimiter_a_dose_is_part_of_the_name(doses, delimiter):
    ax = perturbations(doses, dose_delimiter=delimiter)
    assert len(ax.lines) == 0
    assert len(set(drawn(ax)[2])) == 1
    with pytest.raises(ValueError, match="none of the 6 perturbations, first 'A@10'"):
        perturbations(doses, groups={"A": "kinase"}, dose_delimiter=delimiter)


def test_what_only_looks_like_a_dose_is_a_name():
    names = ["A@B", "A@C", "@1", "@2", "A+B@1+5", "A+B@2+5", "x@nan", "x@inf", "y@1"]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 3)), index=names)
    assert len(perturbations(table).lines) == 0


def test_farthest_from_control_are_named_first(table):
    far = np.linalg.norm(components(table)[0] - components(table)[0][0], axis=1)
    assert set(named(perturbations(table, n_labels=1))) == {"control", table.index[np.argmax(far)]}
    assert set(named(perturbations(table, n_labels=0))) == {"control"}
    without = table.drop(index="control")
    far = np.linalg.norm(components(without)[0], axis=1)
    assert set(named(perturbations(without, n_labels=1))) == {without.index[np.argmax(far)]}


def test_every_perturbation_is_named_before_a_second_dose_of_one(doses):
    assert set(named(perturbations(doses, n_labels=3))) == {"control", "A@10", "B@30", "C"}
    assert set(named(perturbations(doses, n_labels=4))) == {"control", "A@10", "B@30", "C", "A@2"}


def test_of_points_close_together_the_farthest_is_named_first():
    at = {"control": (0, 0), "a": (9.9, 0.1), "b": (10, 0), "c": (9.8, 0), "d": (0, 4), "e": (0, -4)}
    table = pd.DataFrame(list(at.values()), index=list(at))
    assert set(named(perturbations(table, n_labels=3))) == {"control", "b", "d", "e"}


def test_names_do_not_touch_even_in_a_crowd(overlaps, new_ax):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_t(2, size=(3000, 6)), index=[f"GENE{i}" for i in range(3000)])
    table.loc["control"] = 0
    ax = perturbations(table, n_labels=60, ax=new_ax(4, 4))
    assert "control" in named(ax)
    assert 5 < len(named(ax)) < 61
    assert overlaps(ax, ax.texts) == []
    assert len(drawn(ax)[0]) == 3000


def test_names_stand_near_their_points(new_ax):
    from matplotlib.text import Text

    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(0, 1, size=(400, 2)), index=[f"GENE{i}" for i in range(400)])
    ax = perturbations(table, n_labels=100, ax=new_ax(4, 4))
    ax.figure.draw_without_rendering()
    assert ax.texts
    for text in ax.texts:
        box, place = Text.get_window_extent(text), ax.transData.transform(text.xy)
        gap = np.linalg.norm(np.clip(place, box.min, box.max) - place)
        assert gap * 72 / ax.figure.dpi < 31


def test_texts_already_on_the_axes_stay(table, new_ax):
    ax = new_ax()
    note = ax.text(0, 0, "note")
    perturbations(table, n_labels=0, ax=ax)
    assert note in ax.texts


def test_signs_of_mathematics_are_written_as_they_are(table):
    ax = perturbations(table.rename(index={"P01": "$a_1$"}), n_labels=14)
    ax.figure.draw_without_rendering()
    assert "$a_1$" in named(ax)


def test_numbers_as_labels_are_read_as_text(legend):
    table = pd.DataFrame(np.eye(3), index=[1, 2, 3])
    assert legend(perturbations(table, groups={1: "odd", 2: "even", 3: "odd"})) == ["even (1)", "odd (2)"]


def test_input_is_not_changed(table):
    before, groups = table.copy(), pd.Series("one", index=table.index)
    perturbations(table, groups=groups, method="mds")
    pd.testing.assert_frame_equal(table, before)
    assert groups.eq("one").all()


def test_table_of_a_model_with_doses_is_drawn_as_it_is():
    import multipert as mp

    adata = mp.datasets.simulate(n_cells=400, n_vars=40, n_contexts=2, n_perturbations=2, doses=[1, 10])
    mp.model.TwoFactor.setup_anndata(adata, context_key="context", dose_key="dose")
    model = mp.model.TwoFactor(adata)
    model.train()
    ax = perturbations(model.get_perturbation_embedding())
    assert set(named(ax)) == {"P1@1", "P1@10", "P2@1", "P2@10"}
    assert len(ax.lines) == 2


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (lambda t: t.to_numpy(), {}, TypeError, "`embedding` is a ndarray"),
        (lambda t: t.iloc[:1], {}, ValueError, "1 rows and 8 columns"),
        (lambda t: t.iloc[:, :0], {}, ValueError, "15 rows and 0 columns"),
        (lambda t: t.assign(pathway="x"), {}, TypeError, "1 columns that hold no numbers, first 'pathway'"),
        (lambda t: t.rename(index={"P02": "P01", "P03": "P01"}), {}, ValueError, "2 rows whose label .*, first 'P01'"),
        (lambda t: t.drop(index=["P05", "P07"]).reindex(t.index), {}, ValueError, "in 2 of 15 rows, first 'P05'"),
        (lambda t: t.replace(t.iloc[3, 2], np.inf), {}, ValueError, "infinite values in 1 of 15 rows, first 'P03'"),
        (lambda t: t * 0 + 1, {}, ValueError, "All 15 rows .* are the same"),
        (lambda t: t, {"method": "umap"}, ValueError, "`method` is 'umap'; it must be one of pca, mds"),
        (lambda t: pd.concat([t] * 140, ignore_index=True), {"method": "mds"}, ValueError, "2100 rows.*at most 2000"),
        (lambda t: t, {"n_labels": -1}, ValueError, "`n_labels` is -1"),
        (lambda t: t, {"groups": ["x"] * 15}, TypeError, "`groups` is a list"),
        (
            lambda t: t,
            {"groups": {"p01": "x"}},
            ValueError,
            "none of the 14 perturbations, first 'P01'; did you mean 'p01'",
        ),
        (lambda t: t, {"groups": {"control": "x"}}, ValueError, "none of the 14 perturbations"),
    ],
)
def test_bad_input(table, change, arguments, error, message):
    with pytest.raises(error, match=message):
        perturbations(change(table), **arguments)


def test_more_groups_than_can_be_told_apart():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(26, 3)), index=[f"P{i}" for i in range(26)])
    with pytest.raises(ValueError, match="26 groups; 25 can be told apart"):
        perturbations(table, groups={name: name for name in table.index})

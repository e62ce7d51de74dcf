import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import multipert as mp
from multipert.data._noise import cell_generator, cell_key
from multipert.data._pairing import check_pairs, paired_controls, transport_pairs

RNG = np.random.default_rng(0)
N = 200
NAMES = pd.Index([f"c{i:03}" for i in range(N)])
CONTEXTS = RNG.integers(0, 4, N)
IS_CONTROL = RNG.random(N) < 0.4
IS_CONTROL[CONTEXTS == 3] = False
ROWS = np.flatnonzero(RNG.random(N) < 0.8)


def draw(rows=ROWS, seed=0):
    return paired_controls(NAMES, CONTEXTS, IS_CONTROL, rows, seed=seed)


def test_partners_are_controls_of_the_own_context_among_the_rows():
    partners = draw()
    found = partners >= 0
    assert np.isin(partners[found], ROWS).all()
    assert IS_CONTROL[partners[found]].all()
    np.testing.assert_array_equal(CONTEXTS[partners[found]], CONTEXTS[ROWS[found]])
    np.testing.assert_array_equal(~found, CONTEXTS[ROWS] == 3)


def test_a_control_is_its_own_partner():
    control = IS_CONTROL[ROWS]
    np.testing.assert_array_equal(draw()[control], ROWS[control])


def test_the_seed_decides():
    np.testing.assert_array_equal(draw(seed=3), draw(seed=3))
    assert (draw(seed=3) != draw(seed=4)).mean() > 0.3


def test_partners_spread_over_the_controls():
    usable = ROWS[(CONTEXTS[ROWS] == 0)]
    partners = draw()[(CONTEXTS[ROWS] == 0) & ~IS_CONTROL[ROWS]]
    assert len(np.unique(partners)) > 0.5 * min(len(partners), IS_CONTROL[usable].sum())


def test_other_perturbed_cells_change_nothing():
    fewer = ROWS[IS_CONTROL[ROWS] | (ROWS % 2 == 0)]
    np.testing.assert_array_equal(draw(fewer), draw()[np.isin(ROWS, fewer)])


def test_the_order_of_cells_changes_nothing():
    order = RNG.permutation(N)
    rows = np.flatnonzero(np.isin(order, ROWS))
    shuffled = paired_controls(NAMES[order], CONTEXTS[order], IS_CONTROL[order], rows, seed=0)
    partner_of = dict(zip(NAMES[order][rows], np.where(shuffled < 0, -1, order[shuffled]), strict=True))
    assert partner_of == dict(zip(NAMES[ROWS], draw(), strict=True))


def test_noise_depends_on_seed_and_cell_only():
    draws = cell_generator(1, "AAAC").random(4)
    np.testing.assert_array_equal(draws, cell_generator(1, "AAAC").random(4))
    assert not np.array_equal(draws, cell_generator(1, "AAAG").random(4))
    assert not np.array_equal(draws, cell_generator(2, "AAAC").random(4))
    keys = {cell_key(seed, f"{cell}") for seed in range(20) for cell in range(20)}
    assert len(keys) == 400


@pytest.mark.parametrize(("left", "right"), [((1, "1:A"), (11, ":A")), ((0, "é"), (0, "e"))])
def test_keys_of_different_cells_differ(left, right):
    assert cell_key(*left) != cell_key(*right)


def screen(n_cells=360, **options):
    """Log-normalised cells of three contexts under two perturbations, dense."""
    adata = mp.datasets.simulate(n_cells=n_cells, n_vars=40, n_contexts=3, n_perturbations=2, **options)
    adata.X = adata.X.toarray()
    return adata


def codes_of(adata):
    """The arguments of `transport_pairs` that are not expression."""
    labels = adata.obs["perturbation"].astype(str)
    return {
        "conditions": pd.factorize(labels, sort=True)[0],
        "contexts": adata.obs["context"].astype(str).to_numpy(dtype=object),
        "is_control": (labels == "control").to_numpy(),
    }


def transported(adata, rows=None, **options):
    rows = np.arange(adata.n_obs) if rows is None else rows
    return transport_pairs(adata.X, **codes_of(adata), rows=rows, **options)


def as_names(pairs, adata):
    return set(zip(adata.obs_names[pairs["control"]], adata.obs_names[pairs["perturbed"]], strict=True))


@pytest.mark.parametrize("options", [{}, {"exact_up_to": 10}, {"partner": "sample"}, {"n_components": 1}])
def test_transport_uses_each_control_once_per_condition_of_its_context(options):
    adata = screen()
    rows = np.flatnonzero(np.random.default_rng(0).random(adata.n_obs) < 0.8)
    codes = codes_of(adata)
    pairs = transported(adata, rows, **options)
    check_pairs(pairs, **codes, rows=rows)
    np.testing.assert_array_equal(pairs["context"], codes["contexts"][pairs["control"]])
    controls = rows[codes["is_control"][rows]]
    for condition in (0, 1):
        np.testing.assert_array_equal(np.sort(pairs.loc[pairs["condition"] == condition, "control"]), controls)
    order = pairs.sort_values(["context", "condition", "control"], kind="stable").index
    np.testing.assert_array_equal(order, np.arange(len(pairs)))


def test_indices_within_a_context_are_refused_as_rows_of_a_condition():
    # three equal contexts in file order, each of 20 control and 20 perturbed cells
    contexts = np.repeat(["B", "NK", "T"], 40)
    is_control = np.tile(np.repeat([True, False], 20), 3)
    conditions = np.where(is_control, 0, 1)
    x = np.random.default_rng(0).normal(size=(120, 10)).astype(np.float32)
    rows = np.arange(120)
    pairs = transport_pairs(x, conditions, contexts, is_control, rows)
    check_pairs(pairs, contexts, is_control, conditions, rows)
    assert len(pairs) == 60

    of_condition = np.flatnonzero(~is_control)
    first_of_context = {name: np.flatnonzero(~is_control & (contexts == name))[0] for name in np.unique(contexts)}
    within_context = pairs["perturbed"] - pairs["context"].map(first_of_context)
    misread = pairs.assign(perturbed=of_condition[within_context])
    assert (contexts[misread["control"]] == contexts[misread["perturbed"]]).mean() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="40 of 60 pair.* leave their context, first control row 40 with"):
        check_pairs(misread, contexts, is_control, conditions, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": [9]}, "is no cell"),
        ({"perturbed": [-1]}, "is no cell"),
        ({"perturbed": [5]}, "outside the rows"),
        ({"control": [4]}, "outside the rows"),
        ({"control": [1]}, "a perturbed cell as control"),
        ({"perturbed": [0]}, "a control cell as perturbed"),
        ({"perturbed": [3]}, "leave their context"),
        ({"condition": [2]}, "another condition"),
    ],
)
def test_check_pairs_names_what_is_wrong(change, message):
    contexts, is_control = np.array([0, 0, 1, 1, 0, 0]), np.array([True, False] * 3)
    conditions = np.array([0, 1, 0, 1, 0, 1])
    pairs = pd.DataFrame({"control": [0], "perturbed": [1], "condition": [1]})
    check_pairs(pairs, contexts, is_control, conditions, np.arange(4))
    with pytest.raises(ValueError, match=f"1 of 1 pair.*{message}"):
        check_pairs(pairs.assign(**change), contexts, is_control, conditions, np.arange(4))


@pytest.mark.parametrize("exact_up_to", [2000, 8])
def test_a_cell_measured_twice_is_its_own_partner(exact_up_to):
    x = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    order = np.random.default_rng(1).permutation(50)
    both = np.concatenate([x, x[order]])
    is_control = np.arange(100) < 50
    pairs = transport_pairs(
        both, np.where(is_control, 0, 1), np.zeros(100), is_control, np.arange(100), exact_up_to=exact_up_to
    )
    np.testing.assert_array_equal(order[pairs["perturbed"] - 50], pairs["control"])


def test_partners_are_near_in_expression():
    # four states, of which perturbation shifts all alike
    rng = np.random.default_rng(0)
    states = rng.integers(0, 4, 400)
    is_control = rng.random(400) < 0.5
    x = 5.0 * np.eye(4, 30)[states] + rng.normal(scale=0.3, size=(400, 30)) + np.where(is_control, 0, 1)[:, None]
    pairs = transport_pairs(x, 1 - is_control, np.zeros(400), is_control, np.arange(400))
    assert (states[pairs["control"]] == states[pairs["perturbed"]]).mean() > 0.8


def test_held_out_cells_are_not_read():
    adata = screen()
    rows = np.flatnonzero(np.arange(adata.n_obs) % 3 > 0)
    expected = transported(adata, rows)
    held_out = np.setdiff1d(np.arange(adata.n_obs), rows)
    for value in (np.nan, 1e6):
        adata.X[held_out] = value
        pd.testing.assert_frame_equal(transported(adata, rows), expected)
    alone = adata[rows].copy()
    again = transported(alone)
    for column in ("control", "perturbed"):
        np.testing.assert_array_equal(rows[again[column]], expected[column])


def test_the_order_of_rows_given_changes_nothing():
    adata = screen()
    rows = np.arange(0, adata.n_obs, 2)
    pd.testing.assert_frame_equal(transported(adata, rows[::-1]), transported(adata, rows))


def test_other_contexts_change_nothing():
    adata = screen()
    contexts = codes_of(adata)["contexts"]
    here = np.flatnonzero(contexts == contexts[0])
    everywhere = transported(adata)
    expected = everywhere[everywhere["context"] == contexts[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(transported(adata, here), expected)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_another_order_of_the_cells_gives_the_same_pairs(seed):
    # as many control as perturbed cells, so that no cell's mass is parted between partners that tie
    adata = screen(240)
    adata = adata[adata.obs.groupby(["context", "perturbation"], observed=True).cumcount() < 12].copy()
    shuffled = adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()
    assert as_names(transported(shuffled), shuffled) == as_names(transported(adata), adata)


def test_sparse_and_backed_expression_equal_dense(tmp_path):
    adata = screen()
    rows = np.arange(0, adata.n_obs, 2)
    expected = transported(adata, rows)
    for convert in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array):
        other = adata.copy()
        other.X = convert(adata.X)
        pd.testing.assert_frame_equal(transported(other, rows), expected)
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(
        mp.data.pair(backed, context_key="context"), mp.data.pair(adata, context_key="context")
    )


def test_components_of_many_cells_are_fitted_on_some(monkeypatch):
    adata = screen(600)
    expected = transported(adata)
    monkeypatch.setattr("multipert.data._pairing._FIT_CELLS", 100)
    pairs = transported(adata)
    np.testing.assert_array_equal(pairs["control"], expected["control"])
    # genes of any cell can be written in all components, so which cells they are fitted on changes nothing then
    full = transported(adata, n_components=40)
    monkeypatch.undo()
    assert (full["perturbed"] == transported(adata, n_components=40)["perturbed"]).mean() > 0.95


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_expression_gives_valid_pairs(value):
    adata = screen(90)
    adata.X[:] = value
    check_pairs(transported(adata), **codes_of(adata), rows=np.arange(90))


def test_one_cell_a_side_and_one_gene():
    is_control = np.array([True, False])
    pairs = transport_pairs(np.array([[1.0], [2.0]]), 1 - is_control, np.zeros(2), is_control, np.arange(2))
    assert pairs[["control", "perturbed"]].to_numpy().tolist() == [[0, 1]]
    assert pairs.attrs["groups"][0]["cost"] == pytest.approx(1)


def test_incomplete_contexts_give_no_pairs_and_one_warning(caplog):
    contexts = np.repeat(["both", "control only", "left", "right"], 10)
    is_control = np.concatenate([np.arange(10) < 5, np.ones(10, bool), np.zeros(20, bool)])
    x = np.random.default_rng(0).normal(size=(40, 5))
    with caplog.at_level(logging.INFO, logger="multipert.data._pairing"):
        pairs = transport_pairs(x, 1 - is_control, contexts, is_control, np.arange(40))
    assert set(pairs["context"]) == {"both"}
    assert len(pairs) == 5
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "2 context(s) have perturbed cells but no control cell and give no pairs: 'left' (10 cells), 'right' (10 cells)."
    ]
    assert "exact: 1 group(s), the largest of 5 control and 5 perturbed cells" in caplog.text
    none = transport_pairs(x, 1 - is_control, contexts, is_control, np.arange(20, 40))
    assert list(none.columns) == list(pairs.columns)
    assert len(none) == 0


def test_groups_tell_method_and_cost():
    adata = screen()
    groups = pd.DataFrame(transported(adata, exact_up_to=30).attrs["groups"])
    sizes = adata.obs.groupby(["context", "perturbation"], observed=True).size()
    for group in groups.itertuples():
        label = ("P1", "P2")[group.condition]
        assert group.n_control == sizes[group.context, "control"]
        assert group.n_perturbed == sizes[group.context, label]
        assert group.method == ("exact" if group.n_control * group.n_perturbed <= 900 else "minibatch-exact")
    assert len(groups) == 6
    assert (groups["cost"] > 0).all()


def test_expression_that_is_not_finite_is_refused():
    adata = screen(90)
    adata.X[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN|nan"):
        transported(adata)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_components": 0}, "n_components=0"), ({"exact_up_to": 0}, "exact_up_to=0"), ({"partner": "x"}, "partner='x'")],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        transported(screen(90), **options)


class TestPair:
    def test_is_what_training_uses(self):
        adata = screen()
        adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3, "train", "test")
        rows = np.flatnonzero(np.arange(adata.n_obs) % 3)
        pairs = mp.data.pair(adata, context_key="context", split_key="split", seed=2)
        core = transported(adata, rows, seed=2)
        np.testing.assert_array_equal(pairs[["control", "perturbed"]], core[["control", "perturbed"]])
        np.testing.assert_array_equal(pairs["context"], adata.obs["context"].iloc[pairs["control"]])
        np.testing.assert_array_equal(pairs["perturbation"], adata.obs["perturbation"].iloc[pairs["perturbed"]])
        assert pairs.attrs["groups"][0].keys() == {
            "context", "perturbation", "n_control", "n_perturbed", "method", "cost",
        }  # fmt: skip

    def test_held_out_expression_may_be_anything(self):
        adata = screen()
        adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3, "train", "test")
        expected = mp.data.pair(adata, context_key="context", split_key="split")
        adata.X[::3] = np.nan
        pd.testing.assert_frame_equal(mp.data.pair(adata, context_key="context", split_key="split"), expected)

    def test_without_a_context_all_cells_are_one(self):
        adata = screen(120)
        pairs = mp.data.pair(adata)
        assert list(pairs.columns) == ["control", "perturbed", "perturbation"]
        one = adata.copy()
        one.obs["context"] = "same"
        np.testing.assert_array_equal(mp.data.pair(one, context_key="context")["perturbed"], pairs["perturbed"])

    def test_labels_are_canonical_and_each_dose_is_a_condition(self):
        adata = screen(120)
        labels = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
        doses = np.where(labels == "control", "0", "1").astype(object)
        pick = np.flatnonzero(labels == "P2")
        labels[pick[::2]], doses[pick[::2]] = " P2 + P1", "5+0.5"
        adata.obs["perturbation"], adata.obs["dose"] = labels, doses
        pairs = mp.data.pair(adata, dose_key="dose")
        seen = set(zip(pairs["perturbation"], pairs["dose"], strict=True))
        assert seen == {("P1", "1"), ("P2", "1"), ("P1+P2", "0.5+5")}
        assert set(labels[pairs.loc[pairs["perturbation"] == "P1+P2", "perturbed"]]) == {" P2 + P1"}

    def test_at_random_each_perturbed_cell_has_the_control_of_training(self):
        adata = screen(120)
        codes = codes_of(adata)
        pairs = mp.data.pair(adata, context_key="context", method="random", seed=4)
        np.testing.assert_array_equal(pairs["perturbed"], np.flatnonzero(~codes["is_control"]))
        expected = paired_controls(adata.obs_names, codes["contexts"], codes["is_control"], np.arange(120), seed=4)
        np.testing.assert_array_equal(pairs["control"], expected[pairs["perturbed"]])
        np.testing.assert_array_equal(pairs["perturbation"], adata.obs["perturbation"].iloc[pairs["perturbed"]])

    def test_named_controls_are_taken(self, caplog):
        adata = screen(120)
        is_control = codes_of(adata)["is_control"]
        wanted = paired_controls(adata.obs_names, codes_of(adata)["contexts"], is_control, np.arange(120), seed=9)
        adata.obs["partner"] = np.where(is_control, None, adata.obs_names[wanted])
        pairs = mp.data.pair(adata, context_key="context", pairing_key="partner")
        np.testing.assert_array_equal(pairs["control"], wanted[~is_control])
        held_out = wanted[~is_control][0]
        adata.obs["split"] = np.where(np.arange(120) == held_out, "test", "train")
        pairs = mp.data.pair(adata, context_key="context", pairing_key="partner", split_key="split")
        n = int((wanted[~is_control] == held_out).sum())
        assert len(pairs) == (~is_control).sum() - n
        assert f"{n} perturbed cell(s) have no control cell" in caplog.text

    def test_a_named_control_of_another_context_is_refused(self):
        adata = screen(120)
        is_control = codes_of(adata)["is_control"]
        adata.obs["partner"] = adata.obs_names[np.flatnonzero(is_control)[0]]
        with pytest.raises(ValueError, match="leave their context"):
            mp.data.pair(adata, context_key="context", pairing_key="partner")
        adata.obs["partner"] = adata.obs_names[np.flatnonzero(~is_control)[0]]
        with pytest.raises(ValueError, match="names 84 partner.* no control cells"):
            mp.data.pair(adata, context_key="context", pairing_key="partner")

    def test_the_input_is_not_changed(self):
        adata = screen(120)
        before = adata.copy()
        mp.data.pair(adata, context_key="context")
        np.testing.assert_array_equal(adata.X, before.X)
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert adata.uns.keys() == before.uns.keys()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"perturbation_key": "perturbatoin"}, KeyError, "perturbation_key='perturbatoin'.*did you mean"),
            ({"context_key": "contxt"}, KeyError, "context_key='contxt'.*did you mean 'context'"),
            ({"dose_key": "dose"}, KeyError, "dose_key='dose'"),
            ({"split_key": "split"}, KeyError, "split_key='split'"),
            ({"split_key": "context"}, ValueError, "every cell must be one of"),
            ({"pairing_key": "partner"}, KeyError, "pairing_key='partner'"),
            ({"layer": "cuonts"}, KeyError, "layer='cuonts'.*did you mean 'counts'"),
            ({"layer": "counts"}, ValueError, "holds integers only"),
            ({"control": "ctrl"}, ValueError, "no label 'ctrl'"),
            ({"method": "near"}, ValueError, "method='near'"),
            ({"partner": "near"}, ValueError, "partner='near'"),
            ({"max_bytes": 1}, ValueError, "max_bytes=1"),
        ],
    )
    def test_bad_arguments_are_named(self, options, error, message):
        with pytest.raises(error, match=message):
            mp.data.pair(screen(90), **options)

    def test_bad_cells_are_named(self):
        adata = screen(90)
        adata.X[3, 3] = np.inf
        with pytest.raises(ValueError, match="X has 1 NaN or infinite"):
            mp.data.pair(adata)
        twice = screen(90)
        twice.obs_names = ["a", *twice.obs_names[1:-1], "a"]
        with pytest.raises(ValueError, match="obs_names holds 1 duplicate"):
            mp.data.pair(twice)

    def test_training_cells_of_one_kind_are_refused(self):
        adata = screen(90)
        is_control = codes_of(adata)["is_control"]
        for train, message in ((is_control, "is a control cell"), (~is_control, "is perturbed")):
            adata.obs["split"] = np.where(train, "train", "test")
            with pytest.raises(ValueError, match=f"'train' {message}"):
                mp.data.pair(adata, split_key="split")

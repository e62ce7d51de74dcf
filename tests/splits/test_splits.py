"""What every split promises, on screens of every shape, and what each one is for."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from multipert import datasets, splits
from multipert.splits._assign import TEST, TRAIN, VAL, halve
from multipert.splits._imbalance import normalised_entropy

quick = settings(max_examples=10, deadline=None)

WHOLE_PAIRS = {
    "partial_context_transfer": splits.partial_context_transfer,
    "several_contexts": partial(splits.partial_context_transfer, share=1.0, max_held_out=3),
    "combination": partial(splits.combination, share=0.5),
    "inverse_combination": partial(splits.inverse_combination, share=0.9),
    "unseen_perturbation": splits.unseen_perturbation,
    "manual": lambda adata, **kwargs: splits.manual(adata, {"k0": 0.7, "k1": 0.4}, **kwargs),
    "imbalance": partial(splits.imbalance, entropy=0.95, least=1, tolerance=0.2),
}
PUBLISHED = ["partial_context_transfer", "combination", "inverse_combination", "manual", "imbalance"]
KEEP_PARTS = [name for name in WHOLE_PAIRS if name not in ("unseen_perturbation", "manual")]


def cells_of(rows: list[tuple[str, str, int]], **columns: list) -> AnnData:
    """An AnnData from (context, label, number of cells)."""
    obs = pd.DataFrame(
        [(context, label) for context, label, n in rows for _ in range(n)], columns=["context", "perturbation"]
    )
    obs = obs.assign(**columns)
    obs.index = [f"c{i}" for i in range(len(obs))]
    return AnnData(np.zeros((len(obs), 2), dtype=np.float32), obs=obs)


@st.composite
def screens(draw) -> AnnData:
    """Contexts with controls, single perturbations and combinations, some of them missing, cells in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    contexts = [f"k{i}" for i in range(draw(st.integers(2, 5)))]
    singles = [f"P{i}" for i in range(draw(st.integers(4, 9)))]
    joint = [f"{b}+{a}" for i, a in enumerate(singles) for b in singles[i + 1 :]]
    labels = singles + rng.permutation(joint)[: draw(st.integers(2, 10))].tolist()
    share = draw(st.sampled_from([0.6, 1.0]))
    rows = [(context, "control", int(rng.integers(3, 9))) for context in contexts]
    rows += [(c, label, int(rng.integers(1, 4))) for c in contexts for label in labels if rng.random() < share]
    rows += [(c, "P0", 1) for c in contexts]
    adata = cells_of(rows)
    return adata[rng.permutation(adata.n_obs)].copy()


def make(name: str, adata: AnnData, **kwargs) -> pd.Series:
    """The split, or another example where this screen leaves nothing to hold out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return WHOLE_PAIRS[name](adata, **kwargs)
        except ValueError as error:
            if any(
                text in str(error) for text in ("Nothing is held out", "No combination", "no combination", "entropy=")
            ):
                reject()
            raise


def is_control(adata: AnnData) -> pd.Series:
    return adata.obs["perturbation"] == "control"


def pairs(adata: AnnData, rows: pd.Series) -> set[tuple[str, str]]:
    """Perturbed (context, label) pairs of some cells."""
    of = adata.obs[rows & ~is_control(adata)]
    return set(zip(of["context"].astype(str), of["perturbation"].astype(str), strict=True))


def parts(found: set[tuple[str, str]]) -> set[str]:
    return {part for _, label in found for part in label.split("+")}


# ---------------------------------------------------------------- every split


@pytest.mark.parametrize("name", WHOLE_PAIRS)
@quick
@given(adata=screens(), seed=st.integers(0, 1000), val_share=st.sampled_from([0.0, 0.3, 0.5]))
def test_pairs_are_whole_and_levels_are_three(name, adata, seed, val_share):
    split = make(name, adata, seed=seed, val_share=val_share)
    assert split.index.equals(adata.obs_names)
    missing = set(adata.obs_names[split.isna()]) if name == "imbalance" else set()
    assert set(adata.obs_names[~split.isin(["train", "val", "test"])]) == missing
    of = {level: pairs(adata, split == level) for level in ("train", "val", "test")}
    assert sum(map(len, of.values())) == len(set.union(*of.values()))
    assert of["val"] | of["test"]
    if val_share == 0:
        assert not (split == "val").any()


@pytest.mark.parametrize("name", WHOLE_PAIRS)
@quick
@given(adata=screens(), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_a_split_depends_on_the_seed_and_not_on_the_order_of_cells(name, adata, seed, order):
    split = make(name, adata, seed=seed)
    rows = list(range(adata.n_obs))
    order.shuffle(rows)
    again = make(name, adata[rows].copy(), seed=seed)
    assert again.equals(split.iloc[rows])
    assert splits.split_hash(again) == splits.split_hash(split)


@pytest.mark.parametrize("name", WHOLE_PAIRS)
@quick
@given(adata=screens(), seed=st.integers(0, 1000), val_share=st.sampled_from([0.0, 0.5]))
def test_every_tested_context_has_controls_at_every_level(name, adata, seed, val_share):
    split = make(name, adata, seed=seed, val_share=val_share)
    tested = {context for context, _ in pairs(adata, split.isin(["val", "test"]))}
    levels = split[is_control(adata)].groupby(adata.obs["context"], observed=True).agg(set)
    expected = {"train", "test"} if val_share == 0 else {"train", "val", "test"}
    for context, found in levels.items():
        assert found == (expected if context in tested else {"train"})


@pytest.mark.parametrize("name", KEEP_PARTS)
@quick
@given(adata=screens(), seed=st.integers(0, 1000), val_share=st.sampled_from([0.0, 0.5]))
def test_every_part_of_a_held_out_label_is_in_training(name, adata, seed, val_share):
    split = make(name, adata, seed=seed, val_share=val_share)
    # cells that a split leaves out altogether are neither held out nor seen
    assert parts(pairs(adata, split.isin(["val", "test"]))) <= parts(pairs(adata, split == "train"))


@pytest.mark.parametrize("name", PUBLISHED)
@quick
@given(adata=screens(), seed=st.integers(0, 1000))
def test_published_rules_drop_lonely_pairs_and_divide_controls_together(name, adata, seed):
    split = make(name, adata, seed=seed, algorithm="perturbench")
    for context in adata.obs["context"].unique():
        held = pairs(adata, split.isin(["val", "test"]) & (adata.obs["context"] == context))
        assert len(held) != 1
    controls = split[is_control(adata)].value_counts()
    n = is_control(adata).sum()
    assert controls["train"] == n - n // 2
    assert abs(controls["val"] - controls["test"]) <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 99))
def test_halves_are_even_within_contexts_and_overall(n_held, val_share, seed):
    held = np.zeros((len(n_held), 9), dtype=bool)
    for context, n in enumerate(n_held):
        held[context, :n] = True
    levels = halve(held, val_share, np.random.default_rng(seed), "train")
    n_val, n_test = ((levels == level).sum(axis=1) for level in (VAL, TEST))
    several = held.sum(axis=1) > 1
    assert (levels[~held] == TRAIN).all()
    assert (levels[~several] == TRAIN).all()
    assert (n_val + n_test == np.where(several, n_held, 0)).all()
    assert (n_val[several] > 0).all()
    assert (n_test[several] > 0).all()
    assert (np.abs(n_val - np.array(n_held) * val_share)[several] <= 1).all()
    if val_share == 0.5:
        assert abs(n_val.sum() - n_test.sum()) <= 1


def test_a_pair_alone_in_its_context_returns_to_training_with_a_warning():
    rows = [(c, "control", 4) for c in "AB"] + [(c, p, 2) for c in "AB" for p in ("x", "y", "z")]
    adata = cells_of(rows)
    with pytest.warns(UserWarning, match="one held-out pair only.*val_share=0"):
        split = splits.partial_context_transfer(adata, share=0.5, cap=2, seed=0)
    for context in "AB":
        assert len(pairs(adata, (split != "train") & (adata.obs["context"] == context))) != 1
    published = splits.partial_context_transfer(adata, share=0.5, cap=2, seed=0, algorithm="perturbench")
    assert published[~is_control(adata)].isna().any()


@pytest.mark.parametrize("control_cells", [1, 2])
def test_too_few_control_cells_are_reported(control_cells):
    rows = [(c, "control", control_cells) for c in "AB"] + [(c, p, 2) for c in "AB" for p in "xyzw"]
    with pytest.warns(UserWarning, match="2 context.*fewer than 3 control cells"):
        split = splits.manual(cells_of(rows), {"A": 0.5, "B": 0.5})
    n_train = split[is_control(cells_of(rows))].eq("train").sum()
    assert n_train == 2


def test_controls_can_all_train():
    adata = datasets.screen("small")
    split = splits.partial_context_transfer(adata, val_share=0, controls="train")
    assert (split[is_control(adata)] == "train").all()
    assert (split == "test").any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"share": 0}, "share=0 must lie in"),
        ({"share": 1.5}, "share=1.5"),
        ({"val_share": 1.0}, "val_share=1.0"),
        ({"controls": "some"}, "controls='some'"),
        ({"algorithm": "other"}, "algorithm='other'"),
        ({"max_held_out": 0}, "max_held_out=0"),
        ({"control": "ctrl"}, "No control cell.*did you mean 'control'"),
        ({"context_key": []}, "names no column"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        splits.partial_context_transfer(datasets.screen("small"), **kwargs)


def test_bad_columns_are_refused():
    adata = cells_of([("A", "control", 2), ("A", "x", 2), ("B", "control", 2), ("B", "x", 2)])
    with pytest.raises(KeyError, match="context_key='cell_type'"):
        splits.random(adata, context_key="cell_type")
    adata.obs.loc["c1", "perturbation"] = None
    with pytest.raises(ValueError, match="1 missing value"):
        splits.random(adata)
    adata.obs_names = ["c0"] * adata.n_obs
    with pytest.raises(ValueError, match="duplicate"):
        splits.random(adata)


def test_contexts_are_ordered_tuples():
    """("a", "b") and ("b", "a") are two contexts, and a column of one letter is no set of letters."""
    rows = [("a", label, 3) for label in ("control", "x", "y")] + [("b", label, 3) for label in ("control", "x", "y")]
    adata = cells_of(rows, second=["b"] * 9 + ["a"] * 9)
    split = splits.manual(adata, {("a", "b"): ["x", "y"]}, context_key=["context", "second"])
    assert set(adata.obs.loc[split != "train", "context"]) == {"a"}
    both = splits.context_transfer(adata, ("b", "a"), context_key=["context", "second"])
    assert set(adata.obs.loc[both == "test", "context"]) == {"b"}
    with pytest.raises(ValueError, match="one value per column"):
        splits.context_transfer(adata, "a", context_key=["context", "second"])


# ---------------------------------------------------------------- each split


@quick
@given(adata=screens(), seed=st.integers(0, 1000), share=st.floats(0.1, 1), cap=st.integers(1, 4))
def test_partial_transfer_stays_below_its_caps(adata, seed, share, cap):
    kwargs = {"share": share, "cap": cap, "max_held_out": 2, "val_share": 0, "seed": seed}
    split = make("partial_context_transfer", adata, **kwargs)
    held = pairs(adata, split == "test")
    n_labels = adata.obs.groupby("context", observed=True)["perturbation"].nunique()
    for context, n in n_labels.items():
        assert sum(c == context for c, _ in held) <= np.ceil(min(share * n, cap))
    n_held = pd.Series([label for _, label in held]).value_counts()
    measured = pd.Series([label for _, label in pairs(adata, split == split)]).value_counts()
    assert n_held.max() <= 2
    assert (n_held < measured[n_held.index]).all()


def test_partial_transfer_reaches_every_letter_of_the_alphabet():
    """Where caps bind, names decide nothing."""
    names = [f"P{i:03}" for i in range(100)]
    adata = cells_of([(c, label, 1) for c in "AB" for label in ["control"] * 3 + names])
    held = [parts(pairs(adata, splits.partial_context_transfer(adata, share=0.1, seed=s) != "train")) for s in range(5)]
    assert all(len(found) == 22 for found in held)
    late = sum(name >= "P050" for found in held for name in found)
    assert 30 <= late <= 80


def test_downsampling_leaves_whole_perturbations_out():
    adata = cells_of([(c, p, 3) for c in "ABC" for p in ["control", *(f"P{i}" for i in range(20))]])
    split = splits.partial_context_transfer(adata, downsample=0.5)
    gone = set(adata.obs.loc[split.isna(), "perturbation"])
    assert len(gone) == 10
    assert not gone & set(adata.obs.loc[split.notna(), "perturbation"])


@quick
@given(adata=screens(), seed=st.integers(0, 1000), share=st.sampled_from([0.3, 0.7, 1.0]))
def test_combinations_are_held_out_and_singles_train(adata, seed, share):
    try:
        split = splits.combination(adata, share=share, val_share=0, seed=seed)
    except ValueError:
        reject()
    held, present = pairs(adata, split == "test"), pairs(adata, split.notna())
    alone = {label for _, label in present if "+" not in label}
    possible = {(c, label) for c, label in present if "+" in label and parts({(c, label)}) <= alone}
    assert held <= possible
    for context in adata.obs["context"].unique():
        n_held, n_possible = (sum(c == context for c, _ in found) for found in (held, possible))
        assert n_held == int(share * n_possible)


@quick
@given(adata=screens(), seed=st.integers(0, 1000))
def test_inverse_combinations_keep_the_combination_and_the_partner(adata, seed):
    split = make("inverse_combination", adata, val_share=0, seed=seed)
    train = pairs(adata, split == "train")
    for context, label in pairs(adata, split == "test"):
        assert "+" not in label
        joint = [other for c, other in train if c == context and "+" in other and label in other.split("+")]
        assert any((context, partner) in train for other in joint for partner in other.split("+") if partner != label)


@quick
@given(adata=screens(), seed=st.integers(0, 1000))
def test_unseen_perturbations_are_nowhere_in_training(adata, seed):
    split = make("unseen_perturbation", adata, seed=seed, combination_share=0.5)
    seen = splits.seen_parts(adata, split)
    train = parts(pairs(adata, split == "train"))
    for label, own in zip(adata.obs["perturbation"], seen, strict=True):
        if label == "control":
            assert pd.isna(own)
        else:
            names = label.split("+")
            assert own == f"{len(train.intersection(names))}/{len(names)}"
    assert set(seen[split == "train"].dropna()) <= {"1/1", "2/2"}
    # a single is held out only if it is unseen, a combination also if all its parts are seen
    assert set(seen[split.isin(["val", "test"])].dropna()) <= {"0/1", "0/2", "1/2", "2/2"}


def test_all_classes_of_combinations_are_tested():
    adata = datasets.screen("combinations")
    split = splits.unseen_perturbation(adata, share=0.5)
    assert set(splits.seen_parts(adata, split)[split != "train"].dropna()) == {"0/1", "0/2", "1/2", "2/2"}
    assert not (splits.unseen_perturbation(adata, share=0.1, val_share=0) == "val").any()


def test_named_perturbations_are_held_out_with_their_combinations():
    adata = datasets.screen("combinations")
    split = splits.unseen_perturbation(adata, perturbation=["P01", "P02"], combination_share=0)
    names = adata.obs["perturbation"].astype(str).str.split("+").map(set)
    assert ((split != "train") == names.map(lambda own: bool(own & {"P01", "P02"})))[~is_control(adata)].all()
    with pytest.raises(ValueError, match="perturbation='P99'"):
        splits.unseen_perturbation(adata, perturbation="P99")
    with pytest.raises(ValueError, match="12 of 12 perturbations would be held out"):
        splits.unseen_perturbation(adata, perturbation=sorted(set.union(*names) - {"control"}))


@pytest.mark.parametrize(("which", "expected"), [("highest", {50.0}), ("lowest", {0.1}), ("inner", {0.5, 2.0, 10.0})])
def test_doses_are_held_out_per_perturbation(which, expected):
    adata = datasets.screen("doses")
    split = splits.dose(adata, which)
    held = adata.obs[(split != "train") & ~is_control(adata)]
    assert set(held["dose"]) <= expected
    assert (held.groupby("perturbation", observed=True)["dose"].nunique() == 1).all()
    assert held["perturbation"].nunique() == 3
    assert held["context"].nunique() == 4
    train = adata.obs[(split == "train") & ~is_control(adata)]
    assert not set(zip(train["perturbation"], train["dose"], strict=True)) & set(
        zip(held["perturbation"], held["dose"], strict=True)
    )


def test_a_combination_follows_the_held_out_dose_of_a_part():
    rows = [("A", "control", 4), ("A", "x", 3), ("A", "y", 3), ("A", "y+x", 2)]
    adata = cells_of(rows, dose=["0"] * 4 + ["1", "2", "3"] * 2 + ["1+3", "1+2"])
    split = splits.dose(adata, "highest", perturbation="x", val_share=0)
    held = adata.obs[(split == "test") & ~is_control(adata)]
    # the doses stand in the order of the label: y at 1, x at 3
    assert sorted(zip(held["perturbation"], held["dose"], strict=True)) == [("x", "3"), ("y+x", "1+3")]


def test_perturbations_with_too_few_doses_train():
    adata = cells_of([("A", "control", 4), ("A", "x", 3), ("A", "y", 2)], dose=[0] * 4 + [1, 2, 3] + [1, 2])
    with pytest.warns(UserWarning, match="1 perturbation.*fewer than 3 doses.*y"):
        split = splits.dose(adata, val_share=0)
    assert adata.obs.index[(split == "test") & ~is_control(adata)].tolist() == ["c5"]
    with pytest.raises(ValueError, match="alone at 3 doses"):
        splits.dose(adata, perturbation="y")
    assert splits.dose(adata, "highest", n_doses=9, perturbation="x", val_share=0)[["c4", "c5", "c6"]].tolist() == [
        "train",
        "test",
        "test",
    ]


def test_manual_holds_out_what_is_written():
    adata = datasets.screen("combinations")
    wanted = adata.obs.loc[adata.obs["perturbation"].str.contains("+", regex=False), "perturbation"].iloc[0]
    reversed_ = "+".join(reversed(wanted.split("+")))
    split = splits.manual(adata, {"context_1": [reversed_]})
    assert pairs(adata, split == "test") == {("context_1", wanted)}
    table = pd.DataFrame(
        {
            "context": ["context_1", "context_2"],
            "perturbation": ["P01", "P02"],
            "split": ["val", "test"],
        }
    )
    split = splits.manual(adata, table)
    assert pairs(adata, split == "val") == {("context_1", "P01")}
    assert pairs(adata, split == "test") == {("context_2", "P02")}
    without = splits.manual(adata, table.drop(columns="split"))
    assert pairs(adata, without == "test") == {("context_1", "P01"), ("context_2", "P02")}


def test_manual_shares_are_of_the_perturbations_of_the_context():
    adata = datasets.screen("combinations")
    n = adata.obs.loc[(adata.obs["context"] == "context_2") & ~is_control(adata), "perturbation"].nunique()
    split = splits.manual(adata, {"context_2": 0.7})
    assert len(pairs(adata, split != "train")) == int(0.7 * n)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"context_9": 0.5}, "held_out='context_9'.*did you mean"),
        ({"context_1": ["P9"]}, "names 'P9' in context 'context_1'"),
        ({"context_1": ["control"]}, "names 'control'"),
        ({"context_1": 1.5}, "1.5 must lie in"),
        (["P1"], "must map contexts"),
        (pd.DataFrame({"context": ["context_1"], "perturbation": ["P1"], "split": ["train"]}), "neither 'val' nor"),
    ],
)
def test_manual_refuses_what_is_not_in_the_data(held_out, message):
    with pytest.raises(ValueError, match=message):
        splits.manual(datasets.screen("small"), held_out)


@quick
@given(adata=screens(), seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
def test_random_cells_leave_every_group_one_to_train(adata, seed, share):
    split = splits.random(adata, share=share, seed=seed)
    groups = (split == "train").groupby([adata.obs["context"], adata.obs["perturbation"]], observed=True)
    assert groups.any().all()
    expected = (1 - share) * groups.size()
    assert ((groups.sum() - expected).abs() < 1).all()


def test_random_shares_are_right_on_average():
    adata = datasets.screen("small")
    counts = splits.random(adata, share=0.3, val_share=1 / 3).value_counts(normalize=True)
    assert counts["train"] == pytest.approx(0.7, abs=0.01)
    assert counts["val"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("by", ["context", "perturbation", "cell"])
@quick
@given(adata=screens(), seed=st.integers(0, 1000))
def test_sizes_are_nested_and_val_and_test_are_equal(by, adata, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = splits.manual(adata, {"k0": ["P0"]}, seed=seed)
    needed = {"context": 1 / adata.obs["context"].nunique(), "perturbation": 1 / 9, "cell": 0.01}[by]
    sizes = [1.0, max(0.5, needed), max(0.34, needed)]
    frame = splits.scaling(adata, split, sizes, by=by, seed=seed)
    assert list(frame.columns) == [f"{size:g}" for size in sorted(set(sizes))]
    held = split != "train"
    for column in frame:
        assert (frame.loc[held, column] == split[held]).all()
        assert frame.loc[~held, column].dropna().eq("train").all()
    trained = [set(frame.index[frame[column] == "train"]) for column in frame]
    assert all(small <= large for small, large in zip(trained, trained[1:], strict=False))
    assert (frame["1"] == split).all()
    smallest = frame.iloc[:, 0] == "train"
    if by == "context":
        assert adata.obs.loc[smallest, "context"].nunique() == max(1, round(sizes[2] * adata.obs["context"].nunique()))
        assert "k0" in set(adata.obs.loc[smallest, "context"])
    # what is asked about is never taken away
    assert "P0" in parts(pairs(adata, smallest)) or by == "context"


def test_named_sizes_are_those_contexts():
    adata = datasets.screen("small")
    split = splits.manual(adata, {"context_1": 0.5})
    sizes = {"full": [f"context_{i}" for i in range(1, 6)], "small": ["context_1", "context_3"]}
    frame = splits.scaling(adata, split, sizes)
    assert list(frame.columns) == ["small", "full"]
    assert set(adata.obs.loc[frame["small"] == "train", "context"].astype(str)) == {"context_1", "context_3"}
    assert (frame["full"] == split).all()
    for wrong, message in [
        ({"small": ["context_2"]}, "lacks 'context_1', which val or test need"),
        ({"a": ["context_1", "context_2"], "b": ["context_1", "context_3", "context_4"]}, "must be nested"),
    ]:
        with pytest.raises(ValueError, match=message):
            splits.scaling(adata, split, wrong)
    with pytest.raises(ValueError, match="smallest size is 0.2"):
        splits.scaling(adata, split, [0.05])


@pytest.mark.parametrize("algorithm", ["multipert", "perturbench"])
@pytest.mark.parametrize("entropy", [0.75, 0.85, 0.95])
def test_imbalance_reaches_the_entropy(entropy, algorithm):
    names = ["control", *(f"P{i}" for i in range(60))]
    adata = cells_of([(c, p, 1) for c in "ABC" for p in names for _ in range(4 if p == "control" else 1)])
    split = splits.imbalance(adata, entropy, least=5, algorithm=algorithm, seed=1)
    kept = split.notna()
    if algorithm == "perturbench":
        # pairs that are alone in their context are missing too
        assert (kept | ~is_control(adata)).all()
        return
    counts = adata.obs[kept & ~is_control(adata)].groupby("context", observed=True)["perturbation"].nunique()
    assert counts.max() == 60
    assert counts.min() >= 5
    assert abs(normalised_entropy(counts.to_numpy()) - entropy) < 0.01
    assert is_control(adata)[split.isna()].sum() == 0


def test_an_entropy_out_of_reach_is_refused_with_the_range():
    adata = cells_of([(c, p, 2) for c in "AB" for p in ["control", *(f"P{i}" for i in range(20))]])
    for algorithm in ("multipert", "perturbench"):
        with pytest.raises(ValueError, match="entropy=0.3"):
            splits.imbalance(adata, 0.3, least=10, algorithm=algorithm)
    with pytest.raises(ValueError, match="has 20 perturbations only"):
        splits.imbalance(adata, 0.9)


def test_the_hash_names_cells_and_levels():
    split = pd.Series(["train", "test", None], index=["a", "b", "c"])
    assert splits.split_hash(split) == splits.split_hash(split.astype("category").iloc[::-1])
    others = [split.rename({"a": "d"}), split.replace("test", "val"), split.iloc[:2], split.fillna("train")]
    assert len({splits.split_hash(s) for s in [split, *others]}) == 5


def test_seen_parts_reads_a_column_and_refuses_other_cells():
    adata = datasets.screen("combinations")
    split = splits.combination(adata)
    adata.obs["split"] = split
    assert splits.seen_parts(adata).equals(splits.seen_parts(adata, split[::-1]))
    assert set(splits.seen_parts(adata)[split == "test"].dropna()) == {"2/2"}
    with pytest.raises(ValueError, match="lacks 1 of"):
        splits.seen_parts(adata, split.iloc[1:])
    with pytest.raises(ValueError, match="'held'"):
        splits.seen_parts(adata, split.replace("test", "held"))


def test_highest_doses_hold_out_combinations_beyond_them():
    labels = [*["control"] * 6, *["A"] * 6, *["A+B"] * 4, *["B"] * 4]
    doses = ["0"] * 6 + ["1"] * 2 + ["10"] * 2 + ["100"] * 2 + ["1000+1"] * 2 + ["1+1"] * 2 + ["1"] * 2 + ["2"] * 2
    obs = pd.DataFrame({"perturbation": labels, "dose": doses, "context": "x"}, index=[f"c{i}" for i in range(20)])
    adata = AnnData(np.ones((20, 2)), obs=obs)
    split = splits.dose(adata, "highest", perturbation="A", dose_key="dose", controls="train", val_share=0.0)
    assert set(split[adata.obs["dose"] == "100"]) == {"test"}
    assert set(split[adata.obs["dose"] == "1000+1"]) == {"test"}
    assert set(split[adata.obs["dose"] == "1+1"]) == {"train"}

"""What is run, what is kept, what is skipped, and what is refused."""

import json
import random

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import multipert as mp
from multipert.benchmark import ModelSpec, Results, _fit, _work, run
from multipert.benchmark._cells import digest, slim
from multipert.benchmark._spec import as_specs
from multipert.model._setup import Setup

METRIC_NAMES = ["rmse", "pearson_delta", "edistance"]
CLOSED = ["NoPerturb", "TwoFactor"]


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def hold(screen, *contexts):
    return {name: mp.splits.context_transfer(screen, name) for name in contexts}


@pytest.fixture
def small(screen, tmp_path, inline):
    """Runs a small grid with what a test changes."""

    def call(models=CLOSED, **changes):
        arguments = {"split": hold(screen, "context_1"), "out": tmp_path / "out", "metrics": METRIC_NAMES}
        return run(changes.pop("adata", screen), models, **{**arguments, **changes})

    return call


def test_a_grid_has_every_model_split_seed_and_the_references_once(small, screen, inline):
    splits = hold(screen, "context_1", "context_3")
    results = small(split=splits, seeds=(0, 7))
    runs = results.runs
    assert set(runs["status"]) == {"done"}
    models = runs[runs["kind"] == "model"]
    assert sorted(zip(models["model"], models["split"], models["seed"], strict=True)) == sorted(
        (model, split, seed) for model in CLOSED for split in splits for seed in (0, 7)
    )
    assert list(runs.loc[runs["kind"] == "references", "split"]) == list(splits)
    assert len(inline.done) == len(set(inline.done)) == len(runs) == 10
    frame = results.frame
    assert {"no_change", "mean_shift", "ceiling"} <= set(frame.loc[frame["kind"] != "model", "model"])
    assert not frame.duplicated(["model", "split", "seed", "perturbation", "context", "metric"]).any()
    assert set(frame["metric"]) == set(METRIC_NAMES)
    # only the held-out context of a split is scored on it
    assert (frame["split"] == frame["context"]).all()


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("model", ["NoPerturb", "Raises"])
def test_a_run_leaves_the_seeds_of_its_process_as_they_were(seed, model, small, toys, monkeypatch):
    seen = []

    def fit(*args):
        seen.append((scvi.settings.seed, random.random(), np.random.random(), torch.rand(1).item()))  # noqa: NPY002
        return _fit.fit(*args)

    monkeypatch.setattr(_work, "fit", fit)

    def drawn():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = scvi.settings.seed
    try:
        scvi.settings.seed = seed
        np.random.random(7)  # noqa: NPY002
        states = drawn()
        small([model if model == "NoPerturb" else toys.Raises], seeds=(7, 8))
        assert scvi.settings.seed == seed
        assert drawn() == states
    finally:
        scvi.settings.seed = before
    assert [found[0] for found in seen] == [7, 8]
    assert len(set(seen)) == 2
    # each run drew the first numbers of its own seed
    assert seen[0][1] == random.Random(7).random()
    assert seen[1][2] == np.random.RandomState(8).random_sample()


def test_scores_are_those_of_a_model_trained_by_hand(small, screen):
    frame = small().frame
    adata = screen.copy()
    adata.obs["split"] = mp.splits.context_transfer(adata, "context_1")
    mp.model.TwoFactor.setup_anndata(adata, context_key="context")
    model = mp.model.TwoFactor(adata)
    model.train(split_key="split", seed=0)
    predicted = model.predict(context="context_1", realise="residual")
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    test = (adata.obs["split"] == "test").to_numpy()
    expected = mp.metrics.evaluate(
        predicted, adata[test], adata[is_control], metrics=METRIC_NAMES, training=adata[~test]
    )
    for ours, theirs in (("TwoFactor", "prediction"), ("mean_shift", "mean_shift"), ("ceiling", "ceiling")):
        keys = ["perturbation", "metric"]
        found = frame[frame["model"] == ours].set_index(keys)
        wanted = expected[expected["predictor"] == theirs].set_index(keys).loc[found.index]
        np.testing.assert_allclose(found["value"], wanted["value"], rtol=1e-9)
        np.testing.assert_allclose(found["calibrated"], wanted["calibrated"], rtol=1e-9)


def test_a_second_call_does_nothing(small, tmp_path, inline):
    first = small()
    before, n_done = times(tmp_path / "out"), len(inline.done)
    again = small()
    assert times(tmp_path / "out") == before
    assert len(inline.done) == n_done
    pd.testing.assert_frame_equal(again.frame, first.frame)


def test_what_is_added_later_stands_in_the_same_table(small, screen, inline):
    small()
    n_done = len(inline.done)
    results = small([ModelSpec("TwoFactor", "ols", {"estimator": "additive_ols"})], seeds=(0, 3))
    assert len(inline.done) == n_done + 2
    assert set(results.runs.loc[results.runs["kind"] == "model", "model"]) == {*CLOSED, "ols"}


def test_a_record_that_is_lost_or_cut_is_made_again(small, tmp_path, inline):
    first = small()
    lost, cut, *_ = sorted((tmp_path / "out" / "runs").iterdir())
    lost.unlink()
    cut.write_text(cut.read_text()[:100])
    stale = tmp_path / "out" / "runs" / ".half.json.1.tmp"
    stale.write_text("{")
    inline.done.clear()
    again = small()
    assert sorted(inline.done) == sorted([lost.stem, cut.stem])
    assert not stale.exists()
    pd.testing.assert_frame_equal(again.frame, first.frame)


def test_a_record_says_what_was_run_and_on_what(small, tmp_path):
    small([ModelSpec("TwoFactor", "ols", {"estimator": "additive_ols"})])
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").iterdir()]
    (record,) = [one for one in records if one["task"]["kind"] == "model"]
    assert record["task"]["arguments"] == {"estimator": "additive_ols"}
    assert record["scope"]["version"] == mp.__version__
    assert record["versions"]["torch"]
    assert record["peak_memory_mb"] > 0
    assert set(record["seconds"]) == {"read", "setup", "train", "predict", "score"}
    assert record["scope"]["data"] == records[0]["scope"]["data"]


def test_one_split_per_context_and_splits_by_column(screen, tmp_path, inline):
    by_context = run(screen, ["NoPerturb"], out=tmp_path / "a", metrics=["rmse"])
    assert set(by_context.frame["split"]) == {"context_1", "context_2", "context_3"}
    adata = screen.copy()
    adata.obs["mine"] = mp.splits.context_transfer(screen, "context_2")
    by_column = run(adata, ["NoPerturb"], split="mine", out=tmp_path / "b", metrics=["rmse"])
    assert set(by_column.frame["split"]) == {"mine"}
    keys = ["model", "perturbation"]
    one = by_context.frame[by_context.frame["split"] == "context_2"].set_index(keys)["value"]
    pd.testing.assert_series_equal(by_column.frame.set_index(keys)["value"], one)


def test_cells_that_a_split_leaves_out_are_not_read(screen, small):
    split = mp.splits.context_transfer(screen, "context_1")
    out = np.flatnonzero((split == "test").to_numpy())[::2]
    split.iloc[out] = None
    frame = small(split={"half": split}).frame
    n_test = screen.obs[(split == "test").to_numpy()].groupby("perturbation", observed=True).size()
    found = frame[frame["model"] == "NoPerturb"].drop_duplicates("perturbation").set_index("perturbation")
    assert found["n_observed"].to_dict() == n_test.to_dict()


def test_control_cells_marked_test_are_what_is_predicted_from(screen, small):
    split = mp.splits.context_transfer(screen, "context_1")
    own = (screen.obs["perturbation"].eq("control") & screen.obs["context"].eq("context_1")).to_numpy()
    held = np.flatnonzero(own)[:5]
    split.iloc[held] = "test"
    assert set(small(split=split).frame["n_control"]) == {5}


def test_doses_make_groups_of_their_own(tmp_path, inline, toys):
    screen = mp.datasets.simulate(n_cells=300, n_vars=30, n_contexts=2, n_perturbations=1, doses=(1.0, 5.0), seed=1)
    results = run(
        screen, ["NoPerturb", toys.NoDoses], split={"a": mp.splits.context_transfer(screen, "context_1")},
        out=tmp_path / "out", metrics=["rmse"], setup={"dose_key": "dose"},
    )  # fmt: skip
    groups = set(results.frame["perturbation"])
    assert len(groups) == 2
    assert all("@" in name for name in groups)
    (skipped,) = results.skipped.to_dict("records")
    assert skipped["model"] == "NoDoses"
    assert "tag doses is False" in skipped["reason"]


# ---------------------------------------------------------------- failures and skips


def test_a_model_that_raises_is_recorded_and_the_others_finish(small, toys, inline, capsys):
    results = small([toys.Raises, "NoPerturb"])
    (failed,) = results.failed.to_dict("records")
    assert failed["model"] == "Raises"
    assert "ArithmeticError: the toy cannot add" in failed["reason"]
    assert "in train" in failed["traceback"]
    assert set(results.frame.loc[results.frame["kind"] == "model", "model"]) == {"NoPerturb"}
    n_done = len(inline.done)
    small([toys.Raises, "NoPerturb"], retry_failed=False)
    assert len(inline.done) == n_done
    small([toys.Raises, "NoPerturb"])
    assert len(inline.done) == n_done + 1


def test_skips_say_why(screen, small, toys):
    # P2 has no training cell
    split = pd.Series(np.where(screen.obs["perturbation"] == "P2", "test", "train"), index=screen.obs_names)
    results = small([toys.NeedsEmbedding, toys.SeesOnly, toys.Refuses, "NoPerturb"], split={"P2": split})
    reasons = results.skipped.set_index("model")["reason"]
    assert "tag needs_embedding" in reasons["NeedsEmbedding"]
    assert "tag unseen_perturbations is False" in reasons["SeesOnly"]
    assert "the toy predicts nothing" in reasons["Refuses"]
    assert set(results.frame.loc[results.frame["kind"] == "model", "model"]) == {"NoPerturb"}


def test_an_embedding_makes_unseen_perturbations_legal_for_a_model_that_needs_one(screen, tmp_path, inline, toys):
    adata = screen.copy()
    adata.uns["table"] = pd.DataFrame({"x": [0.0, 1.0]}, index=["P1", "P2"])
    split = {"P2": pd.Series(np.where(adata.obs["perturbation"] == "P2", "test", "train"), index=adata.obs_names)}
    models = [toys.NeedsTable, "NoPerturb"]
    for setup, expected in (({}, ["NeedsTable"]), ({"perturbation_embedding_key": "table"}, [])):
        out = tmp_path / f"out{len(setup)}"
        results = run(adata, models, split=split, out=out, metrics=["rmse"], setup=setup)
        assert results.skipped["model"].tolist() == expected
        assert results.skipped["reason"].str.contains("unseen_perturbations").all()


def test_groups_that_a_model_cannot_predict_are_counted_and_it_is_not_ranked_as_complete(screen, small, toys):
    # all of P2 and the P1 cells of one context are held out
    held = (screen.obs["perturbation"] == "P2") | (
        (screen.obs["perturbation"] == "P1") & (screen.obs["context"] == "context_1")
    )
    split = pd.Series(np.where(held, "test", "train"), index=screen.obs_names)
    results = small([toys.SeesOnly, "NoPerturb"], split={"both": split})
    part = results.runs.set_index("model")
    assert part.loc["SeesOnly", "n_groups"] == 1
    assert part.loc["NoPerturb", "n_groups"] == 4
    assert part.loc["SeesOnly", "dropped"] == "3 group(s): perturbation unseen in training"
    complete = results.leaderboard()["is_complete"]
    assert not complete["SeesOnly"]
    assert complete["NoPerturb"]
    # calibrated on the groups that it was scored on, it is what no_change is there
    here = results.frame[(results.frame["perturbation"] == "P1") & (results.frame["metric"] == "rmse")]
    means = results.mean().set_index(["model", "metric"])
    no_change = here.set_index("model").loc["no_change", "calibrated"]
    assert means.loc[("SeesOnly", "rmse"), "calibrated"] == pytest.approx(no_change, rel=1e-6)


def test_combinations(tmp_path, inline, toys):
    screen = mp.datasets.simulate(n_cells=600, n_vars=30, n_contexts=2, n_perturbations=3, combinations=1, seed=2)
    pair = screen.obs["perturbation"].astype(str).str.contains("+", regex=False)
    assert pair.any()
    split = pd.Series(np.where(pair, "test", "train"), index=screen.obs_names)
    results = run(
        screen, ["NoPerturb", toys.NoCombinations], split={"pairs": split}, out=tmp_path / "o", metrics=["rmse"]
    )
    assert "tag combinations is False" in results.skipped["reason"].iloc[0]
    assert "additive" in set(results.frame["model"])


# ---------------------------------------------------------------- refused before anything is run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["MTAE"]}, "no model 'MTAE'; did you mean 'MTAe'"),
        ({"models": []}, "`models` is empty"),
        ({"models": ["MTAe", "MTAe"]}, "several called MTAe; give each ModelSpec a `name`"),
        ({"models": [ModelSpec("MTAe", "ceiling")]}, "the name of a reference"),
        ({"models": [ModelSpec("MTAe", arguments={"n_hiden": 3})]}, "'n_hiden'; did you mean 'n_hidden'"),
        ({"models": [ModelSpec("MTAe", arguments={"n_hidden": object()})]}, "cannot be written into a record"),
        ({"models": [ModelSpec("MTAe", training={"seed": 3})]}, "which the benchmark sets itself"),
        ({"metrics": "defualt"}, "no preset; did you mean 'default'"),
        ({"metrics": ["rsme"]}, "'rsme'; did you mean"),
        ({"seeds": (1, 1)}, "must be different numbers"),
        ({"seeds": ()}, "at least one"),
        ({"n_jobs": 0}, "n_jobs=0 must be at least 1"),
        ({"executor": "slurm"}, "executor='slurm' is unknown"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
        ({"setup": {"dose": "x"}}, "`setup` has 'dose'; did you mean 'dose_key'"),
        ({"split": {}}, "`split` is empty"),
        ({"split": "contxt"}, "neither 'context' nor a column of obs"),
        ({"split": "context", "context_key": None}, "needs `context_key`"),
        ({"val_size": 0.2}, "goes with split='context' only"),
        ({"realise": "plane"}, "realise='plane' is unknown"),
        ({"search": 3}, "no perturbed cell 'val'.*Pass val_size=0.1"),
        ({"control": "ctrl"}, "No control cell"),
    ],
)
def test_bad_arguments(small, tmp_path, inline, changes, message):
    with pytest.raises((ValueError, KeyError), match=message):
        small(**changes)
    assert not (tmp_path / "out").exists()
    assert inline.done == []


def test_bad_splits(screen, small):
    split = mp.splits.context_transfer(screen, "context_1")
    for wrong, message in (
        (split.iloc[1:], "lacks 1 of 360 cells"),
        (split.replace("test", "tset"), "holds 'tset'"),
        (split.replace("test", "train"), "no cell as 'test'"),
    ):
        with pytest.raises(ValueError, match=message):
            small(split={"wrong": wrong})
    only_control = split.replace("test", "train")
    only_control.iloc[np.flatnonzero(screen.obs["perturbation"] == "control")[0]] = "test"
    with pytest.raises(ValueError, match="holds out control cells only"):
        small(split={"wrong": only_control})
    bare = split.copy()
    bare[(screen.obs["context"] == "context_1").to_numpy() & (split == "train").to_numpy()] = None
    with pytest.raises(ValueError, match="without a control cell"):
        small(split={"wrong": bare})


def test_raw_counts_are_refused_with_the_remedy(screen, small):
    counts = screen.copy()
    counts.X = counts.layers["counts"]
    with pytest.raises(ValueError, match="counts"):
        small(adata=counts)


def test_a_class_that_no_other_process_can_import(small):
    class Local(mp.model.NoPerturb):
        pass

    with pytest.raises(ValueError, match="cannot be imported as .*<locals>.Local.*define it at the top level"):
        small([Local])
    with pytest.raises(ValueError, match="no subclass of PerturbationModel"):
        small([dict])


def test_other_cells_metrics_or_settings_in_one_folder(small, screen):
    small()
    changed = screen.copy()
    changed.X = changed.X * 1.5
    with pytest.raises(ValueError, match="a benchmark with other data"):
        small(adata=changed)
    with pytest.raises(ValueError, match="a benchmark with other metrics"):
        small(metrics=["rmse"])
    with pytest.raises(ValueError, match="TwoFactor on split 'context_1' with seed 0 already, with another arguments"):
        small([ModelSpec("TwoFactor", arguments={"estimator": "additive_ols"})])
    other = {"context_1": mp.splits.context_transfer(screen, "context_2")}
    with pytest.raises(ValueError, match="with another split_id"):
        small(split=other)


def test_the_digest_sees_what_decides_a_result_and_nothing_else(screen):
    setup = Setup(context_key="context")
    first = digest(slim(screen, setup))
    other = screen.copy()
    other.obs["unused"], other.var["unused"], other.X = 1, 2, other.X.toarray()
    assert digest(slim(other, setup)) == first
    for change in (
        lambda a: a.X.__setitem__((3, 4), 7.0),
        lambda a: a.obs.__setitem__("context", np.roll(a.obs["context"], 1)),
        lambda a: setattr(a, "var_names", a.var_names[::-1]),
        lambda a: setattr(a, "obs_names", a.obs_names[::-1]),
    ):
        changed = screen.copy()
        changed.X = changed.X.toarray()
        change(changed)
        assert digest(slim(changed, setup)) != first


def test_the_digest_survives_the_file(screen, tmp_path):
    cells = slim(screen, Setup(context_key="context"))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert digest(anndata.read_h5ad(tmp_path / "cells.h5ad")) == digest(cells)


def test_no_folder_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no benchmark"):
        Results.load(tmp_path)


def test_all_is_the_registry():
    assert [spec.name for spec in as_specs("all")] == list(mp.model.__all__)

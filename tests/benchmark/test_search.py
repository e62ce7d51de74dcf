"""Searching settings: on validation cells alone, seeded, and able to go on."""

import json

import numpy as np
import pytest

import multipert as mp
from multipert.benchmark import ModelSpec, run
from multipert.benchmark._search import Trial, best_of, error_and_rank, search

optuna = pytest.importorskip("optuna", reason="needs the optional package optuna")

SPACE = {"a": ("float", -3.0, 3.0), "b": ("int", 1, 9), "c": ("choice", ((1, 2), (3,))), "d": ("log", 1e-4, 1.0)}


def bowl(settings):
    if not settings:
        return 50.0
    if settings["b"] == 1:
        raise ValueError("no")
    return (settings["a"] - 1) ** 2 + settings["b"] + len(settings["c"]) + abs(np.log10(settings["d"]) + 2)


def test_a_search_that_was_cut_is_the_same_as_one_that_was_not():
    whole = search(SPACE, bowl, 14, 3, [], lambda trials: None)
    kept = []
    for n in (1, 6, 13, 14):
        kept = search(SPACE, bowl, n, 3, kept, lambda trials: None)
        assert len(kept) == n
    assert kept == whole
    assert whole != search(SPACE, bowl, 14, 4, [], lambda trials: None)
    best = best_of(whole)
    assert best.objective == min(trial.objective for trial in whole if trial.objective is not None)
    assert all(-3 <= trial.settings["a"] <= 3 and trial.settings["c"] in ([1, 2], [3]) for trial in whole[1:])


def test_every_trial_is_kept_and_the_first_is_the_model_as_it_stands():
    lengths = []
    trials = search(SPACE, bowl, 5, 0, [], lambda kept: lengths.append(len(kept)))
    assert lengths == [1, 2, 3, 4, 5]
    assert trials[0] == Trial(0, {}, 50.0)


def test_failing_trials_are_answers():
    trials = search(
        {"b": ("int", 1, 2)}, lambda s: bowl({"a": 1, "c": (), "d": 1e-2, "b": s.get("b", 2)}), 8, 0, [], print
    )
    failed = [trial for trial in trials if trial.objective is None]
    assert failed
    assert all(trial.error == "ValueError: no" for trial in failed)
    with pytest.raises(RuntimeError, match="All 1 trials of the search failed.*no"):
        best_of(failed[:1])


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of int, float, log, choice"):
        search({"a": ("normal", 0, 1)}, bowl, 2, 0, [], print)


def test_objective_is_the_error_plus_a_tenth_of_the_rank():
    observed = {("A", "x"): np.array([1.0, 0.0]), ("B", "x"): np.array([0.0, 1.0])}
    assert error_and_rank(observed, observed) == 0
    swapped = {("A", "x"): observed["B", "x"], ("B", "x"): observed["A", "x"]}
    assert error_and_rank(swapped, observed) == pytest.approx(1.0 + 0.1)
    # one perturbation has no rank
    assert error_and_rank({("A", "x"): np.zeros(2)}, observed) == pytest.approx(np.sqrt(0.5))


def with_val(screen):
    split = mp.splits.context_transfer(screen, "context_1", val_size=0.3)
    assert {"train", "val", "test"} == set(split)
    return {"context_1": split}


def trials_of(folder):
    (path,) = (folder / "searches").iterdir()
    return json.loads(path.read_text())["trials"]


def test_the_best_settings_are_used_and_recorded(screen, tmp_path, inline, toys):
    results = run(
        screen, [toys.Scaled, "NoPerturb"], split=with_val(screen), out=tmp_path / "o", metrics=["rmse"], search=6
    )
    runs = results.runs.set_index(["kind", "model"])
    assert set(results.runs["status"]) == {"done"}
    # NoPerturb has nothing to search
    assert ("search", "NoPerturb") not in runs.index
    trials = trials_of(tmp_path / "o")
    assert len(trials) == 6
    best = min((trial for trial in trials if trial["objective"] is not None), key=lambda trial: trial["objective"])
    assert json.loads(runs.loc[("model", "Scaled"), "settings"]) == best["settings"]
    value = results.frame.set_index(["model", "perturbation"])["value"]
    if best["settings"].get("factor", 1.0) != 1.0:
        assert value["Scaled", "P1"] != value["NoPerturb", "P1"]


def test_a_fixed_argument_is_not_searched(screen, tmp_path, inline, toys):
    spec = ModelSpec(toys.Scaled, arguments={"factor": 0.9})
    run(screen, [spec], split=with_val(screen), out=tmp_path / "o", metrics=["rmse"], search=3)
    assert all("factor" not in trial["settings"] for trial in trials_of(tmp_path / "o"))


def test_test_cells_take_no_part(screen, tmp_path, inline, toys):
    split, dense = with_val(screen), screen.copy()
    dense.X = dense.X.toarray()
    spoilt = dense.copy()
    rng = np.random.default_rng(0)
    is_test, is_val = ((split["context_1"] == level).to_numpy() for level in ("test", "val"))
    spoilt.X[is_test] = rng.uniform(0, 9, spoilt.X[is_test].shape)

    def searched(adata, name):
        run(adata, [toys.Scaled], split=split, out=tmp_path / name, metrics=["rmse"], search=5)
        return trials_of(tmp_path / name)

    plain = searched(dense, "plain")
    assert searched(spoilt, "spoilt") == plain
    # validation cells do
    spoilt.X = dense.X.copy()
    spoilt.X[is_val] = 0
    assert searched(spoilt, "val") != plain


def test_a_search_goes_on_where_it_was(screen, tmp_path, inline, toys, monkeypatch):
    def call(name):
        return run(screen, [toys.Scaled], split=with_val(screen), out=tmp_path / name, metrics=["rmse"], search=6).frame

    whole = call("whole")
    call("cut")
    (path,) = (tmp_path / "cut" / "searches").iterdir()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "trials": content["trials"][:2]}))
    for record in (tmp_path / "cut" / "runs").iterdir():
        record.unlink()
    np.testing.assert_array_equal(call("cut")["value"], whole["value"])
    assert trials_of(tmp_path / "cut") == trials_of(tmp_path / "whole")


def test_a_failed_search_is_told_by_its_runs(screen, tmp_path, inline, toys, monkeypatch):
    monkeypatch.setattr(toys.Scaled, "search_space", {"facter": ("float", 0, 1)})
    with pytest.raises(ValueError, match="search_space of Scaled names 'facter'"):
        run(screen, [toys.Scaled], split=with_val(screen), out=tmp_path / "a", metrics=["rmse"], search=2)
    monkeypatch.setattr(toys.Raises, "search_space", {"max_epochs": ("int", 1, 3)})
    results = run(screen, [toys.Raises], split=with_val(screen), out=tmp_path / "b", metrics=["rmse"], search=2)
    failed = results.failed.set_index("kind")["reason"]
    assert "All 2 trials of the search failed" in failed["search"]
    assert "The search for the model's arguments gave none" in failed["model"]

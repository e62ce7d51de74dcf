"""Runs as processes: what happens when one dies, when the parent is killed, and on ray."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import multipert as mp
from multipert.benchmark import ModelSpec, Results, run
from multipert.benchmark._files import only_writer

METRICS = ["rmse", "pearson_delta", "edistance", "rank_rmse"]
MODELS = ["NoPerturb", "TwoFactor", ModelSpec("MTAe", training={"max_epochs": 3, "accelerator": "cpu"})]
posix = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")


def grid(screen, out, **changes):
    split = {"context_1": mp.splits.context_transfer(screen, "context_1")}
    return run(screen, MODELS, **{"split": split, "out": out, "metrics": METRICS, "seeds": (0, 1), **changes})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The last digits of a training depend on the number of threads, and so on how many runs share the CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def undisturbed(screen, tmp_path_factory):
    return grid(screen, tmp_path_factory.mktemp("undisturbed"))


def assert_same_scores(found, expected):
    frames = [one.frame.sort_values(list(one.frame.columns.drop(["value", "calibrated"]))) for one in (found, expected)]
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames), check_exact=True)


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_bytes().decode(errors="replace").split("\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def killed_after(n_records, screen, out):
    """Run the grid in a process that is killed once some records are there."""
    parent = os.fork()
    if parent == 0:
        os.setsid()
        grid(screen, out)
        os._exit(0)
    try:
        wait_for(lambda: len(list((out / "runs").glob("[0-9a-f]*.json"))) >= n_records)
    finally:
        os.kill(parent, signal.SIGKILL)
        _, status = os.waitpid(parent, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_grid_in_processes(undisturbed):
    runs = undisturbed.runs
    assert set(runs["status"]) == {"done"}
    assert len(runs) == 7
    assert (runs["peak_memory_mb"] > 50).all()
    assert (runs["seconds"] > 0).all()
    seeds = undisturbed.frame[undisturbed.frame["model"] == "MTAe"].pivot_table(
        index=["perturbation", "metric"], columns="seed", values="value"
    )
    assert not np.allclose(seeds[0], seeds[1])


@posix
def test_killed_twice_the_table_is_that_of_an_undisturbed_grid(screen, tmp_path, undisturbed):
    assert killed_after(2, screen, tmp_path) == -signal.SIGKILL
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    wait_for(lambda: not processes_of(tmp_path), 20)
    assert killed_after(len(first) + 2, screen, tmp_path) == -signal.SIGKILL
    wait_for(lambda: not processes_of(tmp_path), 20)
    results = grid(screen, tmp_path)
    assert_same_scores(results, undisturbed)
    assert set(results.runs["status"]) == {"done"}
    # what was there before the first kill was not done again
    for name, time_ns in first.items():
        assert (tmp_path / "runs" / name).stat().st_mtime_ns == time_ns
    assert list(tmp_path.rglob(".*.tmp")) == []


def test_a_process_that_dies_is_told_and_the_others_finish(screen, tmp_path, toys):
    split = {"context_1": mp.splits.context_transfer(screen, "context_1")}
    models = [toys.Dies, toys.Exits, toys.Raises, toys.Hangs, "NoPerturb"]
    results = run(screen, models, split=split, out=tmp_path / "out", metrics=["rmse"], timeout=10)
    failed = results.failed.set_index("model")
    assert set(failed.index) == {"Dies", "Exits", "Raises", "Hangs"}
    assert "ended by SIGKILL" in failed.loc["Dies", "reason"]
    assert "last words" in failed.loc["Dies", "traceback"]
    assert "exit status 1" in failed.loc["Exits", "reason"]
    assert "SystemExit" in failed.loc["Exits", "traceback"]
    assert "ArithmeticError" in failed.loc["Raises", "reason"]
    assert "longer than the timeout of 10 s" in failed.loc["Hangs", "reason"]
    assert set(results.frame.loc[results.frame["kind"] == "model", "model"]) == {"NoPerturb"}


@posix
def test_interrupt_ends_the_children_and_keeps_what_is_done(screen, tmp_path):
    parent = os.fork()
    if parent == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            grid(screen, tmp_path)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    wait_for(lambda: len(list((tmp_path / "runs").glob("[0-9a-f]*.json"))) >= 1)
    os.kill(parent, signal.SIGINT)
    _, status = os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    wait_for(lambda: not processes_of(tmp_path), 20)
    status = Results.load(tmp_path).runs["status"].value_counts()
    assert status["done"] >= 1
    assert status["waiting"] >= 1
    assert "failed" not in status


def test_one_writer_at_a_time(screen, tmp_path, undisturbed):
    with (
        only_writer(tmp_path),
        pytest.raises(BlockingIOError, match=f"in use by another benchmark .process {os.getpid()}"),
    ):
        grid(screen, tmp_path)
    # the lock went with its holder
    with only_writer(tmp_path):
        pass


def test_ray_gives_the_same_records(screen, tmp_path, undisturbed):
    pytest.importorskip("ray", reason="needs the optional package ray")
    results = grid(screen, tmp_path, executor="ray", n_jobs=2)
    assert set(results.runs["status"]) == {"done"}
    assert_same_scores(results, undisturbed)

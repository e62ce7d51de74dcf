"""What one run does, in the process that is its own."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import anndata
import numpy as np
import pandas as pd

from ._facts import Facts
from ._files import FORMAT, Folder, write_json
from ._fit import SPLIT_KEY, NothingToPredictError, Stopwatch, fit, predict
from ._release import release
from ._score import as_rows, score
from ._search import Trial, best_of, divide, search, searched_space, validation_objective
from ._spec import as_arguments, imported
from ._task import Scope, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PACKAGES: Final = ("multipert", "scvi-tools", "torch", "lightning", "anndata", "numpy", "scipy", "pandas", "optuna")


def do(root: Path, run_id: str) -> None:
    """Do a run of a benchmark and write its record, also when it fails.

    Parameters
    ----------
    root
        The folder of the benchmark.
    run_id
        Which run.
    """
    folder = Folder(root)
    grid = json.loads(folder.grid.read_text(encoding="utf-8"))
    scope, task = Scope(**grid["scope"]), Task.of(grid["tasks"][run_id])
    watch = Stopwatch()
    made: dict[str, Any]
    try:
        with _seeded(task.seed):
            made = {"status": "done", **_JOBS[task.kind](folder, scope, task, run_id, watch)}
    except NothingToPredictError as reason:
        made = {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - whatever a model raises is what the record is for
        made = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    write_json(folder.record(run_id), record(run_id, task, scope, made, watch.seconds))


def record(
    run_id: str, task: Task, scope: Scope, made: dict[str, Any], seconds: dict[str, float] | None = None
) -> dict[str, Any]:
    """What is known of a run, as plain values.

    Parameters
    ----------
    run_id
        Which run.
    task
        The run.
    scope
        What all runs of the folder share.
    made
        `status`, and what it made or why it made nothing.
    seconds
        Time of each phase; None if the process that did the run is gone.

    Returns
    -------
    The record.
    """
    gone = seconds is None
    return {
        "format": FORMAT,
        "id": run_id,
        **made,
        "task": asdict(task),
        "scope": asdict(scope),
        "seconds": seconds or {},
        "peak_memory_mb": None if gone else _peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {"platform": platform.platform(), "device": None if gone else _device()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _run_model(folder: Folder, scope: Scope, task: Task, run_id: str, watch: Stopwatch) -> dict[str, Any]:
    with watch("read"):
        adata, facts = _read(folder, scope, task)
    arguments, training, searched = _settings(folder, task)
    cls, setup = imported(str(task.cls)), scope.as_setup
    model = fit(cls, adata, setup, arguments, training, task.seed, watch)
    with watch("predict"):
        predicted, dropped = predict(model, adata, facts, setup, "test", task.realise, task.seed)
    release(model)
    with watch("score"):
        frame, notes = score(predicted, adata, facts, setup, scope.metrics)
    return {"scores": as_rows(frame), "notes": notes, "dropped": dropped, "searched": searched}


def _score_references(folder: Folder, scope: Scope, task: Task, run_id: str, watch: Stopwatch) -> dict[str, Any]:
    with watch("read"):
        adata, facts = _read(folder, scope, task)
    with watch("score"):
        frame, notes = score(None, adata, facts, scope.as_setup, scope.metrics)
    return {"scores": as_rows(frame), "notes": notes}


def _run_search(folder: Folder, scope: Scope, task: Task, run_id: str, watch: Stopwatch) -> dict[str, Any]:
    assert task.search is not None
    with watch("read"):
        adata, facts = _read(folder, scope, task, ("train", "val"))
    cls, setup = imported(str(task.cls)), scope.as_setup
    arguments, training = as_arguments(task.arguments or {}), as_arguments(task.training or {})
    objective = validation_objective(cls, adata, facts, setup, arguments, training, task.realise, task.seed)
    path = folder.trials(run_id)

    def keep(trials: list[Trial]) -> None:
        write_json(path, {"format": FORMAT, "id": run_id, "trials": [asdict(trial) for trial in trials]})

    space = searched_space(cls, arguments, training)
    with watch("search"):
        trials = search(space, objective, task.search["n_trials"], task.seed, _tried_before(path, run_id), keep)
    best = best_of(trials)
    return {
        "best": best.settings,
        "objective": best.objective,
        "n_trials": len(trials),
        "n_failed": sum(trial.objective is None for trial in trials),
    }


_JOBS: Final = {"model": _run_model, "references": _score_references, "search": _run_search}


def _tried_before(path: Path, run_id: str) -> list[Trial]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [Trial(**trial) for trial in kept["trials"]] if kept.get("id") == run_id else []


def _read(
    folder: Folder, scope: Scope, task: Task, levels: tuple[str, ...] = ("train", "val", "test")
) -> tuple[anndata.AnnData, Facts]:
    """The cells of some levels of a split, and what is known of them."""
    adata = anndata.read_h5ad(folder.data)
    split = pd.read_csv(folder.split(task.split_id), index_col=0, dtype=str, keep_default_na=False)["level"]
    kept = np.isin(split.to_numpy(), levels)
    if not kept.all():
        adata = adata[kept].copy()
    adata.obs[SPLIT_KEY] = pd.Categorical(split.to_numpy()[kept])
    return adata, Facts.of(adata, adata.obs[SPLIT_KEY].astype(object), scope.as_setup)


def _settings(folder: Folder, task: Task) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Arguments of `__init__` and of `train`, and what a search found of them."""
    arguments, training = as_arguments(task.arguments or {}), as_arguments(task.training or {})
    if task.search is None:
        return arguments, training, None
    found = folder.read_record(task.search["id"])
    if found is None or found["status"] != "done":
        why = "it has no record" if found is None else found.get("reason", found["status"])
        raise RuntimeError(f"The search for the model's arguments gave none: {why}")
    own, of_train = divide(imported(str(task.cls)), as_arguments(found["best"]))
    return {**arguments, **own}, {**training, **of_train}, found["best"]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix the generators of the process for models that draw from them; afterwards they are as before."""
    import random

    import scvi
    import torch

    before = scvi.settings.seed
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - for models that draw from it
    with torch.random.fork_rng():
        try:
            # seeds all three
            scvi.settings.seed = seed
            yield
        finally:
            scvi.settings.seed = before
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _peak_memory() -> float | None:
    """The most memory that this process has held, in MB."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

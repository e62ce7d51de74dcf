from __future__ import annotations

import json
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.data._splithash import split_hash
from multipert.metrics import METRICS, PRESETS
from multipert.model import ModelTags
from multipert.model._realise import check_realise
from multipert.model._setup import Setup

from ._carryout import carry_out, shown
from ._cells import CONTEXTS, as_splits, digest, slim
from ._facts import Facts, reason_to_skip
from ._files import FORMAT, Folder, only_writer, write_json, write_whole
from ._results import Results
from ._search import searched_space
from ._slots import Executor, slots, threads_of
from ._spec import ModelSpec, as_plain, as_specs, import_path, source_digest
from ._task import Scope, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    import pandas as pd
    from anndata import AnnData

    from multipert.model._realise import Realise

REFERENCES: Final = "references"
_SETUP: Final = (
    "layer",
    "categorical_covariate_keys",
    "dose_key",
    "perturbation_embedding_key",
    "cell_embedding_key",
    "pairing_key",
    "signed",
    "delimiter",
)
# any model that takes the benchmark's expression
_ANY: Final = ModelTags(combinations=True, doses=True, several_perturbations=True)


def run(
    adata: AnnData,
    models: str | type | ModelSpec | Sequence[str | type | ModelSpec] = "all",
    *,
    split: str | pd.Series | Mapping[str, pd.Series] = CONTEXTS,
    out: str | PathLike[str],
    metrics: str | Sequence[str] = "default",
    seeds: Sequence[int] = (0,),
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | None = _keys.CONTEXT,
    control: str = _keys.CONTROL,
    setup: Mapping[str, Any] | None = None,
    realise: Realise = "residual",
    search: int | None = None,
    val_size: float = 0.0,
    n_jobs: int = 1,
    executor: Executor = "local",
    timeout: float | None = None,
    retry_failed: bool = True,
) -> Results:
    """Train, predict and score every model on every split with every seed, and keep what is done.

    Each run is a process of its own and leaves one record in the folder, whole or not at all. Called again with the same
    folder, `run` does only what has no record yet, so that a grid that was killed goes on where it was. A run is named by
    a digest of all that decides its result: the cells, the model and its arguments, the split, the seed, the metrics and
    the version of this package. What needs no training (no change, mean shift, ..., the ceiling) is scored once per split.

    A model is skipped on a split that its tags exclude, and the results say why. A run that fails, or whose process dies,
    is recorded with the reason, and the others go on.

    Parameters
    ----------
    adata
        Log-normalised cells x genes.
    models
        "all", or names, classes and :class:`ModelSpec`, one or several. A class must be importable by module and name.
    split
        "context" holds out each context in turn (:func:`multipert.splits.context_transfer`); else an obs column, a
        Series by obs name, or a dictionary of Series: "train", "val", "test", or missing for a cell that is left out.
    out
        Folder of the records; made when absent. All runs of a folder share cells, setup, metrics and version; models,
        splits and seeds may be added later.
    metrics
        A preset or names of metrics, as :func:`multipert.metrics.evaluate` knows them.
    seeds
        Seeds of training and prediction. Scoring has one seed for all.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts; None if there are none.
    control
        Label of the control cells.
    setup
        Further arguments of `setup_anndata`, such as `{"dose_key": "dose"}`.
    realise
        How decoded expression becomes cells; "plain" is taken for models that do not map cells.
    search
        Number of settings to try for each model and split before its runs, on the validation cells alone; None takes
        every model as it stands. Needs the extra "optuna".
    val_size
        For `split="context"`, the share of the training cells that becomes "val".
    n_jobs
        Runs done at once; the CPUs are divided among them.
    executor
        "local", or "ray" (extra "ray") for the connected cluster, else one on this machine.
    timeout
        Seconds after which a run is ended and recorded as failed.
    retry_failed
        Whether runs that failed before are done again.

    Returns
    -------
    All scores and runs of the folder.

    Raises
    ------
    ValueError
        If something asked for cannot be used; nothing is run then.
    KeyError
        If a column, layer or key is absent.
    BlockingIOError
        If another process works in the folder.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> results = mp.benchmark.run(adata, ["NoPerturb", "TwoFactor"], out="bench")  # doctest: +SKIP
    >>> results.leaderboard()  # doctest: +SKIP
    """
    _check_numbers(n_jobs, executor, search, timeout)
    full = _as_setup(perturbation_key, context_key, control, setup)
    specs = as_specs(models)
    names = _metric_names(metrics)
    full.check(adata, _ANY, "The benchmark")
    check_realise(realise, full.signed, "cell")
    cells = slim(adata, full)
    splits = as_splits(adata, split, full, val_size)
    scope = Scope(digest(cells), as_plain(vars(full), "`setup`"), names, version("multipert"))
    facts = {name: Facts.of(cells, one, full) for name, one in splits.items()}
    _check_splits(facts, search)
    tasks, skipped = _grid(specs, splits, facts, scope, list(map(int, seeds)), realise, search)
    return _do(Folder(Path(out)), cells, splits, scope, tasks, skipped, n_jobs, executor, timeout, retry_failed)


def _do(
    folder: Folder,
    cells: AnnData,
    splits: dict[str, pd.Series],
    scope: Scope,
    tasks: dict[str, Task],
    skipped: list[dict[str, str]],
    n_jobs: int,
    executor: Executor,
    timeout: float | None,
    retry_failed: bool,
) -> Results:
    folder.root.mkdir(parents=True, exist_ok=True)
    with only_writer(folder.root):
        folder.make()
        grid = _joined(folder, scope, tasks, skipped)
        if not folder.data.exists():
            write_whole(folder.data, cells.write_h5ad)
        for one in splits.values():
            path = folder.split(split_hash(one))
            if not path.exists():
                write_whole(path, one.fillna("").rename("level").to_csv)
        write_json(folder.grid, grid)
        left = {run_id: task for run_id, task in tasks.items() if not _is_done(folder, run_id, retry_failed)}
        if left:
            n = min(n_jobs, len(left))
            with (
                slots(executor, folder.root, n, threads_of(n_jobs)) as places,
                shown(len(tasks) - len(left), len(tasks)) as tell,
            ):
                for is_search in (True, False):
                    part = {run_id: task for run_id, task in left.items() if (task.kind == "search") == is_search}
                    carry_out(part, folder, scope, places, timeout, tell)
    return Results.load(folder.root)


def _is_done(folder: Folder, run_id: str, retry_failed: bool) -> bool:
    record = folder.read_record(run_id)
    if record is None:
        return False
    if record["status"] == "failed" and retry_failed:
        # a record that stays until it is replaced could be taken for the outcome of this call
        folder.record(run_id).unlink()
        return False
    return True


def _grid(
    specs: list[ModelSpec],
    splits: dict[str, pd.Series],
    facts: dict[str, Facts],
    scope: Scope,
    seeds: list[int],
    realise: str,
    n_trials: int | None,
) -> tuple[dict[str, Task], list[dict[str, str]]]:
    """All runs by id, searches and references first, and what is skipped."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds={seeds} must be different numbers from 0 on, at least one.")
    first: list[Task] = []
    rest: list[Task] = []
    skipped: list[dict[str, str]] = []
    for split, one in splits.items():
        split_id = split_hash(one)
        first.append(Task("references", REFERENCES, split, split_id, 0))
        for spec in specs:
            cls: Any = spec.model
            reason = reason_to_skip(cls.tags, scope.as_setup, facts[split])
            if reason is not None:
                skipped.append({"model": str(spec.name), "split": split, "reason": reason})
                continue
            wanted = spec.realise or realise
            values: dict[str, Any] = {
                "cls": import_path(cls),
                "source": source_digest(cls),
                "arguments": dict(spec.arguments),
                "training": dict(spec.training),
                "realise": wanted if cls.tags.output == "cell" else "plain",
            }
            found = None
            if n_trials is not None and searched_space(cls, values["arguments"], values["training"]):
                search = Task(
                    "search", str(spec.name), split, split_id, seeds[0], search={"n_trials": n_trials}, **values
                )
                first.append(search)
                found = {"id": search.id(scope)}
            rest += [Task("model", str(spec.name), split, split_id, seed, search=found, **values) for seed in seeds]
    return {task.id(scope): task for task in [*first, *rest]}, skipped


def _joined(folder: Folder, scope: Scope, tasks: dict[str, Task], skipped: list[dict[str, str]]) -> dict[str, Any]:
    """The grid of the folder with these runs; an error if they cannot stand in one table with what is there."""
    known: dict[str, Any] = {"tasks": {}, "skipped": []}
    if folder.grid.exists():
        known = json.loads(folder.grid.read_text(encoding="utf-8"))
        if known.get("format") != FORMAT:
            raise ValueError(f"{folder.grid} has format {known.get('format')!r}, not {FORMAT}; name another `out`.")
        before, now = known["scope"], asdict(scope)
        changed = [field.name for field in fields(Scope) if before[field.name] != now[field.name]]
        if changed:
            shown_values = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
            raise ValueError(
                f"{folder.root} holds a benchmark with other {', '.join(changed)}, whose scores cannot stand in one table "
                f"with these ({shown_values}). Name another folder with `out`."
            )
    places = {Task.of(values).place: run_id for run_id, values in known["tasks"].items()}
    for run_id, task in tasks.items():
        if places.get(task.place, run_id) != run_id:
            before = known["tasks"][places[task.place]]
            changed = sorted(key for key, value in asdict(task).items() if before.get(key) != value)
            raise ValueError(
                f"{folder.root} holds {task.model} on split {task.split!r} with seed {task.seed} already, with another "
                f"{', '.join(changed)}. Give the ModelSpec or the split another name, or name another folder with `out`."
            )
    old = [one for one in known["skipped"] if one not in skipped]
    return {
        "format": FORMAT,
        "scope": asdict(scope),
        "tasks": {**known["tasks"], **{run_id: asdict(task) for run_id, task in tasks.items()}},
        "skipped": [*old, *skipped],
    }


def _as_setup(perturbation_key: str, context_key: str | None, control: str, setup: Mapping[str, Any] | None) -> Setup:
    for key in setup or {}:
        if key not in _SETUP:
            raise ValueError(f"`setup` has {key!r}{close_matches(key, _SETUP)}")
    return Setup(perturbation_key, control, context_key=context_key, **(setup or {}))


def _metric_names(metrics: str | Sequence[str]) -> list[str]:
    if isinstance(metrics, str):
        if metrics not in PRESETS:
            raise ValueError(f"metrics={metrics!r} is no preset{close_matches(metrics, PRESETS)}")
        return list(PRESETS[metrics])
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"`metrics` holds {name!r}{close_matches(name, METRICS)}")
    if not metrics:
        raise ValueError("`metrics` is empty; name at least one.")
    return list(dict.fromkeys(metrics))


def _check_numbers(n_jobs: int, executor: str, search: int | None, timeout: float | None) -> None:
    if n_jobs < 1:
        raise ValueError(f"n_jobs={n_jobs} must be at least 1.")
    if executor not in get_args(Executor):
        raise ValueError(f"executor={executor!r} is unknown{close_matches(executor, get_args(Executor))}")
    if search is not None and search < 1:
        raise ValueError(f"search={search} must be at least 1, or None.")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout={timeout} must be above 0, or None.")


def _check_splits(facts: dict[str, Facts], search: int | None) -> None:
    for name, one in facts.items():
        if not one.pairs("test"):
            raise ValueError(f"Split {name!r} holds out control cells only; mark perturbed cells 'test'.")
        bare = one.without_controls("test")
        if bare:
            raise ValueError(
                f"Split {name!r} holds out cells of {len(bare)} context(s) without a control cell to predict from, first "
                f"{bare[0]!r}; mark control cells of theirs 'test' or 'train', or leave the context out."
            )
        if search is not None and not one.pairs("val"):
            raise ValueError(
                f"search={search} chooses settings on validation cells, and split {name!r} marks no perturbed cell 'val'. "
                "Pass val_size=0.1 with split='context', or mark held-out groups 'val' in your split; test cells are "
                "never used for this."
            )

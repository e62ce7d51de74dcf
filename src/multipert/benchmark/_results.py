from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from multipert.metrics import calibrate

from . import _compare
from ._files import FORMAT, Folder, write_whole
from ._score import PREDICTION, as_frame
from ._task import Scope, Task

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from ._compare import Correction, Test

CEILING = "ceiling"
_COUNTS = ("n_predicted", "n_observed", "n_control", "n_competitors")
_PHASES = ("train", "predict", "score")


@dataclass(frozen=True)
class Results:
    """What a benchmark found, read from its folder.

    Parameters
    ----------
    frame
        One row per model, split, seed, group and metric: `model`, `kind` ("model", "reference" or "ceiling"), `split`,
        `seed` (missing for references, which have none), the columns of the group, `metric`, `value`, `calibrated` (see
        :func:`multipert.metrics.calibrate`) and numbers of cells. A group is a perturbation in a context.
    runs
        One row per run: `model`, `kind`, `split`, `seed`, `status` ("done", "failed", "skipped", "waiting"), `reason`,
        `seconds` in all and by phase, `peak_memory_mb`, `settings`, `n_groups` scored, `dropped` groups with reasons,
        `notes`, `traceback`, and what decides whether scores may stand in one table (`data`, `metrics`, `version`).
    scope
        Digest of the cells, setup, metrics and version that all runs share.
    versions
        Versions of the packages, as the records name them.
    """

    frame: pd.DataFrame
    runs: pd.DataFrame
    scope: Scope
    versions: dict[str, list[str]]

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Results:
        """Read the records of a folder, also while a benchmark works in it.

        Parameters
        ----------
        folder
            The folder.

        Returns
        -------
        The results.

        Raises
        ------
        FileNotFoundError
            If there is no benchmark in the folder.
        ValueError
            If a record was made on other cells or with other metrics than the folder's.
        """
        home = Folder(Path(folder))
        if not home.grid.exists():
            raise FileNotFoundError(f"{home.root} holds no benchmark (no {home.grid.name}); name the folder of a run.")
        grid = json.loads(home.grid.read_text(encoding="utf-8"))
        if grid.get("format") != FORMAT:
            raise ValueError(f"{home.grid} has format {grid.get('format')!r}; this version reads {FORMAT}.")
        scope = Scope(**grid["scope"])
        records = {run_id: home.read_record(run_id) for run_id in grid["tasks"]}
        runs = [_row(Task.of(values), records[run_id], scope) for run_id, values in grid["tasks"].items()]
        runs += [
            {**one, "kind": "model", "status": "skipped", **_decisive(scope), "n_groups": 0} for one in grid["skipped"]
        ]
        table = pd.DataFrame(runs)
        table["seed"] = table["seed"].astype("Int64")
        versions: dict[str, list[str]] = {}
        for record in filter(None, records.values()):
            for name, one in record["versions"].items():
                if one not in versions.setdefault(name, []):
                    versions[name].append(one)
        return cls(_frame(records, scope), table, scope, versions)

    @property
    def by(self) -> list[str]:
        """Columns that make a group."""
        return self.scope.by

    @property
    def failed(self) -> pd.DataFrame:
        """The runs that failed."""
        return self.runs[self.runs["status"] == "failed"]

    @property
    def skipped(self) -> pd.DataFrame:
        """The runs that were left out, with the reasons."""
        return self.runs[self.runs["status"] == "skipped"]

    def mean(self, *, per_split: bool = False) -> pd.DataFrame:
        """Mean and standard deviation over seeds, raw and calibrated.

        Within a seed the mean is taken over all groups of all splits, each weighing the same. Calibrated means are made
        from these means, against the references on the same groups, so that a group with hardly any effect cannot
        dominate.

        Parameters
        ----------
        per_split
            Whether splits are kept apart.

        Returns
        -------
        One row per model and metric (and split): `value`, `value_sd`, `calibrated`, `calibrated_sd` (missing for one
        seed), `dynamic_range` (how much of the way from the baseline to a perfect score the ceiling goes), `n_groups` and
        `n_undefined` of a seed, `n_seeds`, and `is_complete`, whether all groups of the folder (of the split) were scored.

        Raises
        ------
        ValueError
            If the runs are on different cells, or have other metrics or versions.
        """
        self._check_one_table()
        return _compare.mean(self.frame, self.by, per_split=per_split)

    def leaderboard(self) -> pd.DataFrame:
        """Models and references, the best first, with their calibrated means.

        The score is the mean over metrics of the calibrated means, each limited to -1 to 1. A metric counts if it is a
        score (`METRICS[name].is_score`) and its dynamic range is at least 0.2, as in
        :func:`multipert.metrics.leaderboard`.

        Returns
        -------
        One row per model: `kind`, `score`, `score_sd` over seeds, `is_complete`, then the metrics; index `model`.
        """
        self._check_one_table()
        return _compare.leaderboard(self.frame, self.by)

    def test(
        self,
        baseline: str = "best",
        *,
        test: Test = "wilcoxon",
        correction: Correction = "holm",
    ) -> pd.DataFrame:
        """Test each model against a baseline, paired over groups.

        The unit is a group: a perturbation in a context of a split, its scores averaged over seeds. Groups of one context
        share their control cells, and those of one split their training, so they are not quite independent, and p values
        are rather too small.

        Parameters
        ----------
        baseline
            A reference or model; "best" takes for each metric the reference with the best mean, the ceiling aside.
        test
            "wilcoxon" (signed rank) or "t" (paired t).
        correction
            "holm" controls the chance of any false finding over all models and metrics, "bh" the share of false ones.

        Returns
        -------
        One row per model and metric: `baseline`, `n` groups, `difference` (mean, positive if the model is better),
        `n_better` groups, `statistic`, `p`, `p_adjusted`.

        Raises
        ------
        ValueError
            If there is no such baseline, or no reference was scored.
        """
        self._check_one_table()
        return _compare.compare(self.frame, self.by, baseline, test, correction)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write `frame` as CSV, whole or not at all.

        Parameters
        ----------
        path
            The file.
        """
        write_whole(Path(path), lambda scratch: self.frame.to_csv(scratch, index=False, lineterminator="\n"))

    def plot(self, **kwargs: Any) -> Axes:
        """Draw models by metrics with :func:`multipert.pl.benchmark_table`.

        Parameters
        ----------
        **kwargs
            Its arguments. Without `metrics`, those that :meth:`leaderboard` counts are drawn.

        Returns
        -------
        The axes.
        """
        from multipert import pl

        self._check_one_table()
        # a reference has no seed, and rows without one would be left out of the means over seeds
        by_seed = _compare.per_seed(self.frame, self.by)
        counted = _compare.counted_metrics(_compare.mean(self.frame, self.by, per_split=False))
        if counted:
            kwargs.setdefault("metrics", counted)
        return pl.benchmark_table(by_seed.assign(seed=by_seed["seed"].fillna(0)), **kwargs)

    def report(self, path: str | PathLike[str]) -> Path:
        """Write everything as one HTML page that needs nothing beside itself.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        The file.
        """
        from ._page import benchmark_page

        text = benchmark_page(self)
        path = Path(path)
        write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        return path

    def _check_one_table(self) -> None:
        for column in ("data", "metrics", "version"):
            found = self.runs[column].dropna().unique()
            if len(found) > 1:
                raise ValueError(
                    f"The runs have {len(found)} different values of {column} ({', '.join(map(str, found[:3]))}); their "
                    "scores cannot be averaged. Keep one, with results.runs and results.frame."
                )


def _decisive(scope: Scope) -> dict[str, str]:
    return {"data": scope.data, "metrics": ", ".join(scope.metrics), "version": scope.version}


def _row(task: Task, record: dict[str, Any] | None, scope: Scope) -> dict[str, Any]:
    """A row of `runs`."""
    row: dict[str, Any] = {
        "model": task.model,
        "kind": task.kind,
        "split": task.split,
        "seed": task.seed if task.kind != "references" else None,
        "status": "waiting",
        **_decisive(scope),
    }
    if record is None:
        return row
    if record["scope"]["data"] != scope.data or record["scope"]["metrics"] != scope.metrics:
        raise ValueError(
            f"The record {record['id']} ({task.model} on {task.split}) was made on other cells or with other metrics than "
            "the folder's; was it copied from another folder?"
        )
    seconds = record["seconds"]
    settings = {
        **(task.arguments or {}),
        **(task.training or {}),
        **(record.get("searched") or record.get("best") or {}),
    }
    return {
        **row,
        **_decisive(Scope(**record["scope"])),
        "status": record["status"],
        "reason": record.get("reason"),
        "seconds": sum(seconds.values()) if seconds else None,
        **{f"seconds_{phase}": seconds.get(phase) for phase in _PHASES},
        "peak_memory_mb": record["peak_memory_mb"],
        "settings": json.dumps(settings) if task.cls is not None else None,
        "realise": task.realise if task.kind == "model" else None,
        "n_groups": _n_groups(record, scope),
        "dropped": "; ".join(f"{n} group(s): {why}" for why, n in (record.get("dropped") or {}).items()) or None,
        "notes": "\n".join(record.get("notes") or []) or None,
        "traceback": record.get("traceback"),
        "device": record["machine"]["device"],
    }


def _n_groups(record: dict[str, Any], scope: Scope) -> int:
    if "scores" not in record:
        return 0
    return len(as_frame(record["scores"])[scope.by].drop_duplicates())


def _frame(records: dict[str, dict[str, Any] | None], scope: Scope) -> pd.DataFrame:
    """All scores in one tidy frame, calibrated within each split."""
    parts = []
    for record in records.values():
        if record is None or "scores" not in record:
            continue
        task = record["task"]
        scores = as_frame(record["scores"])
        is_reference = task["kind"] == "references"
        parts.append(
            scores.assign(
                model=scores["predictor"] if is_reference else task["model"],
                kind="model"
                if not is_reference
                else scores["predictor"].eq(CEILING).map({True: CEILING, False: "reference"}),
                split=task["split"],
                seed=pd.array([None if is_reference else task["seed"]] * len(scores), dtype="Int64"),
            )
        )
    by = scope.by
    front = ["model", "kind", "split", "seed", *by, "metric", "value"]
    if not parts:
        return pd.DataFrame(columns=[*front, "calibrated", *_COUNTS])
    frame = pd.concat(parts, ignore_index=True)
    # a reference that the data do not suffice for is not there
    frame = frame[(frame["n_predicted"] > 0) | (frame["kind"] == "model")].reset_index(drop=True)
    frame["predictor"] = frame["model"].where(frame["kind"] != "model", PREDICTION)
    frame["calibrated"] = calibrate(frame, by=["split", *by])["calibrated"]
    columns = [*front, "calibrated", *(column for column in _COUNTS if column in frame)]
    order = frame["kind"].map({"model": 0, "reference": 1, CEILING: 2})
    return frame.loc[order.sort_values(kind="stable").index, columns].reset_index(drop=True)

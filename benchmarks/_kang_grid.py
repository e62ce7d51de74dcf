"""Models on the two Kang files, cell types held out in turn: what `kang_family.py` and `kang_baselines.py` share.

One job trains one model with its default preset, one held-out type and one seed, on one thread, and leaves a record in the
work folder; a record that is there is not made again, so the run may be stopped and continued. Jobs go seed by seed. A seed
counts once all models and types of a file have it.
Writes benchmarks/results/<benchmark>_<file>.csv (every run), _short.csv (means over types and seeds) and, with several
seeds, _sd.csv (standard deviations of the means over types, over seeds). `--collect` only does that. With some of
the models their names stand in the names of the files; with some of the types, and with `--quick`, the tables go to the
work folder.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from _kang import RESULTS, TYPES, read, select
from _records import run_all, write

import multipert as mp

if TYPE_CHECKING:
    from anndata import AnnData

FILES = ("kang18_scgen_valid", "kang18_ifnb2800")
SEEDS = (1, 2, 19193)
REALISATIONS = ("plain", "residual", "counts")
REFERENCES: tuple[tuple[str, dict[str, str], tuple[str, ...]], ...] = (
    ("NoPerturb", {}, ("plain",)),
    ("TwoFactor", {}, ("plain", "counts")),
    ("ContextShift", {"kind": "similarity"}, ("plain", "counts")),
    ("ContextShift", {"kind": "ridge"}, ("plain", "counts")),
)
# rank_rmse compares perturbations, and here is one
METRICS = [
    name for name in (*mp.metrics.PRESETS["thesis-joint"], *mp.metrics.PRESETS["default"]) if name != "rank_rmse"
]
SHORT = {
    "r2_pearson_bootstrap": "R2",
    "r2_pearson_bootstrap_top20": "R2-20",
    "r2_pearson_bootstrap_top100": "R2-100",
    "pearson_delta": "delta",
    "mean_distance_ratio_joint": "Eu",
    "edistance_ratio_joint": "E",
    "edistance_ratio": "E train",
    "de_overlap_up": "DEG up",
    "de_overlap_absolute": "DEG abs",
    "cpu_seconds": "s",
}
WORK = Path(__file__).resolve().parents[1] / "build" / "kang_family"


class Job(NamedTuple):
    """One record: a model and a seed, or without model the references."""

    file: str
    held: str
    model: str = ""
    seed: int = 0

    def path(self, work: Path) -> Path:
        """Where the record lies."""
        name = f"{self.model}-{self.held}-{self.seed}" if self.model else f"references-{self.held}"
        return work / self.file / f"{name}.csv"


class Cells(NamedTuple):
    """One file with one type held out."""

    adata: AnnData
    observed: AnnData
    control: AnnData
    training: AnnData


def train(name: str, adata: AnnData, arguments: dict, seed: int, max_epochs: int | None) -> tuple:
    """A trained model and the processor time that training took, which other programs hardly change."""
    cls = getattr(mp.model, name)
    cls.setup_anndata(adata, context_key="cell_type")
    model = cls(adata, **arguments)
    start = time.process_time()
    model.train(
        max_epochs,
        split_key="split",
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return model, time.process_time() - start


def score(predicted: AnnData, cells: Cells, references: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Metrics of each predictor."""
    frame = mp.metrics.evaluate(
        predicted,
        cells.observed,
        cells.control,
        by=("perturbation", "cell_type"),
        metrics=METRICS,
        training=cells.training,
        references=references,
    )
    return {name: rows.set_index("metric")["value"].to_dict() for name, rows in frame.groupby("predictor")}


def score_model(job: Job, cells: Cells, max_epochs: int | None) -> list[dict]:
    """Rows of one model, one for each realisation."""
    model, seconds = train(job.model, cells.adata, {}, job.seed, max_epochs)
    row = {"held_out": job.held, "model": job.model, "seed": job.seed, "cpu_seconds": seconds}
    predictions = {
        realise: model.predict(perturbation="IFNB", context=job.held, realise=realise, seed=job.seed)
        for realise in REALISATIONS
    }
    return [{**row, "realise": name, **score(cells_, cells)["prediction"]} for name, cells_ in predictions.items()]


def score_references(job: Job, cells: Cells) -> list[dict]:
    """Rows of the models without a network and of the ceiling."""
    rows = []
    for name, arguments, realisations in REFERENCES:
        model, seconds = train(name, cells.adata, arguments, 0, None)
        row = {"held_out": job.held, "model": f"{name} ({arguments['kind']})" if arguments else name}
        for realise in realisations:
            predicted = model.predict(perturbation="IFNB", context=job.held, realise=realise)
            rows.append({**row, "cpu_seconds": seconds, "realise": realise, **score(predicted, cells)["prediction"]})
    # the ceiling is the same beside any prediction
    return [*rows, {"held_out": job.held, "model": "ceiling", **score(predicted, cells, ("ceiling",))["ceiling"]}]


@lru_cache(maxsize=1)
def read_once(file: str) -> AnnData:
    """A file as this benchmark reads it."""
    return read(file, 5000 if file == "kang18_ifnb2800" else None)


def run(job: Job, deadline: float, work: Path, max_epochs: int | None) -> str:
    """Make the record of one job, unless it is there or the time is over."""
    path = job.path(work)
    if path.exists() or time.time() > deadline:
        return "there" if path.exists() else "no time"
    torch.set_num_threads(1)
    start = time.perf_counter()
    adata = read_once(job.file)
    adata.obs["split"] = mp.splits.context_transfer(adata, job.held, context_key="cell_type")
    training = adata[(adata.obs["split"] == "train").to_numpy()].copy()
    cells = Cells(adata, select(adata, job.held, "IFNB"), select(adata, job.held, "control"), training)
    rows = score_model(job, cells, max_epochs) if job.model else score_references(job, cells)
    write(pd.DataFrame(rows), path)
    return f"{time.perf_counter() - start:.0f} s"


def complete_seeds(file: str, args: argparse.Namespace) -> list[int]:
    """Seeds of which every model and type has its record."""
    return [
        seed
        for seed in args.seeds
        if all(Job(file, held, model, seed).path(args.work).exists() for model in args.models for held in args.types)
    ]


def named(table: pd.DataFrame) -> pd.Series:
    """Model and realisation in one word."""
    suffix = table["realise"].fillna("").map(lambda realise: f", {realise}" if realise else "")
    return table["model"] + suffix


def rounded(means: pd.DataFrame) -> pd.DataFrame:
    """The columns of the short table, with as many digits as can be told apart."""
    short = means[list(SHORT)].rename(columns=SHORT)
    return short.round({**dict.fromkeys(short, 3), "DEG up": 1, "DEG abs": 1, "s": 1})


def collect(file: str, args: argparse.Namespace, benchmark: str, every: tuple[str, ...]) -> None:
    """Tables of a file's complete seeds."""
    seeds = complete_seeds(file, args)
    jobs = [Job(file, held) for held in args.types]
    if not seeds or not all(job.path(args.work).exists() for job in jobs):
        print(f"{file}: no table, since no seed is complete for {len(args.models)} models and {len(args.types)} types")
        return
    jobs += [Job(file, held, model, seed) for seed in seeds for model in args.models for held in args.types]
    table = pd.concat([pd.read_csv(job.path(args.work)) for job in jobs], ignore_index=True)
    first = ["held_out", "model", "realise", "seed", "cpu_seconds"]
    table = table[[*first, *dict.fromkeys(METRICS)]].astype({"seed": "Int64"})
    folder = RESULTS if set(args.types) == set(TYPES) and not args.quick else args.work
    folder.mkdir(parents=True, exist_ok=True)
    stem = "_".join([benchmark, file, *(() if set(args.models) == set(every) else args.models)])
    table.to_csv(folder / f"{stem}.csv", index=False, float_format="%.4f")
    table["name"] = named(table)
    by_seed = table.assign(seed=table["seed"].fillna(0)).groupby(["name", "seed"], sort=False).mean(numeric_only=True)
    by_name = by_seed.groupby("name", sort=False)
    short = rounded(by_name.mean())
    short.insert(0, "seeds", by_name.size().where(table.groupby("name")["seed"].count() > 0).astype("Int64"))
    short.to_csv(folder / f"{stem}_short.csv")
    print(f"\n{file}, means over {len(args.types)} types and seeds {seeds}, in {folder}\n{short.to_string()}")
    if len(seeds) > 1:
        of_models = by_name.std()[by_name.size() > 1]
        rounded(of_models).to_csv(folder / f"{stem}_sd.csv")


def main(benchmark: str, doc: str, models: tuple[str, ...]) -> int:
    """Run what is asked for and make the tables."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", choices=FILES, default=FILES)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no job starts later than this")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the records")
    parser.add_argument("--collect", action="store_true", help="only make the tables of the records")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # one epoch; only to try the script
    args = parser.parse_args()
    if args.quick:
        args.work = args.work / "quick"
    n_failed = 0
    if not args.collect:
        jobs = [Job(file, held) for file in args.files for held in args.types]
        jobs += [
            Job(file, held, model, seed)
            for seed, file, model, held in itertools.product(args.seeds, args.files, args.models, args.types)
        ]
        task = partial(run, work=args.work, max_epochs=1 if args.quick else None)
        n_failed = run_all(task, jobs, args.workers, args.minutes)
    for file in args.files:
        collect(file, args, benchmark, models)
    return min(n_failed, 1)

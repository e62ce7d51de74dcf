"""How good each gradient model is after so many seconds: its default schedule, ten times as long, and the published one.

For each data set the perturbed cells of a test context are removed altogether, and those of a training context are held
out in their place and scored. Test contexts are never scored. "long" is the default with ten times the updates in every
pass; "published" is the preset of that name. Each schedule is a training of its own, since a learning rate that falls
during the training makes the short one no beginning of the long one.

Run: python benchmarks/time_to_quality.py [--minutes 90] [--workers 2] [--models MTAe ...] [--data ...]
One job is one training on one thread; it leaves a record in the work folder, and a record that is there is not made again,
so the run may be stopped and continued. Simulated cells go first, then the files of real cells, MTAe, MTAeOT and MTAeED
before the rest.
Writes benchmarks/results/time_to_quality.csv (scores along the last pass of each training), _short.csv (R2 and seconds at
the end, and whether the default is near the others) and _scores.csv (the other metrics there), from the records that are
there. `--collect` only does that.
The models beside the MTAe family are trained on simulated cells only. Where a model computes something from its weights
after the training (`conclude`), only the end of a schedule is scored. ScButterfly holds one perturbation and sees P1 alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from _kang import RESULTS, read
from _records import run_all, write
from lightning.pytorch.callbacks import Callback

import multipert as mp

if TYPE_CHECKING:
    from anndata import AnnData

SIMULATED = "simulated (small)"
# training context that is scored: test context whose perturbed cells are removed
PAIRS = {
    SIMULATED: {"context_2": "context_1", "context_4": "context_3"},
    "kang18_scgen_valid": {"CD8T": "B", "Dendritic": "FCGR3A+Mono"},
    "kang18_ifnb2800": {"CD14+Mono": "NK"},
}
FAMILY = ("MTAe", "MTAeOT", "MTAeED", "MTAeAdv", "MTAeAdvG", "MTAePlusOT", "MTVae", "MTVaeOT", "MTVaePlusOT")
FIRST = FAMILY[:3]
OTHERS = (
    "LinearAdditive",
    "LatentAdditive",
    "LatentAdditiveOT",
    "DecoderOnly",
    "CPA",
    "SAMSVAE",
    "Biolord",
    "GEARS",
    "ScGen",
    "ScVIDR",
    "ScPreGAN",
    "ScButterfly",
)
MODELS = FAMILY + OTHERS
SCHEDULES = ("default", "published", "long")
TIMES_LONGER = 10
# how far below the other schedule the default may stay, as a share of that one's R2
MARGINS = {"long": 0.02, "published": 0.01}
MOST_SECONDS = 60
FEWEST_UPDATES = 50
METRICS = ("r2_pearson_bootstrap", "pearson_delta", "edistance_ratio_joint", "edistance_ratio")
WORK = Path(__file__).resolve().parents[1] / "build" / "time_to_quality"


class Job(NamedTuple):
    """One training."""

    data: str
    held: str
    model: str
    schedule: str
    seed: int

    def path(self, work: Path) -> Path:
        """Where its record lies."""
        return work / self.data / f"{self.model}-{self.held}-{self.schedule}-{self.seed}.csv"

    def turn(self) -> tuple:
        """What is done first: quick data, then the models that the others are variants of."""
        pair = list(PAIRS[self.data]).index(self.held)
        return pair, self.seed, self.data != SIMULATED, self.model not in FIRST


class Snapshots(Callback):
    """Copies of the weights in the last pass, after numbers of updates that double up to the last update.

    Parameters
    ----------
    n_passes
        Passes of the training.
    """

    def __init__(self, n_passes: int) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.seconds: dict[int, float] = {}
        self._wanted: set[int] = set()
        self._n_passes_left, self._n_updates = n_passes, 0
        self._start, self._copying = time.process_time(), 0.0

    def on_train_start(self, trainer, plan) -> None:
        self._n_passes_left -= 1
        if self._n_passes_left == 0:
            n_updates = trainer.max_epochs * trainer.num_training_batches
            self._wanted = {n_updates}
            while n_updates >= 2 * FEWEST_UPDATES:
                n_updates //= 2
                self._wanted.add(n_updates)

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        if self._n_passes_left:
            return
        self._n_updates += 1
        if self._n_updates in self._wanted:
            reached = time.process_time()
            self.seconds[self._n_updates] = reached - self._start - self._copying
            self.states[self._n_updates] = {
                name: value.detach().clone()
                for name, value in plan.module.state_dict().items()
                if name not in plan.module.fitted
            }
            self._copying += time.process_time() - reached


def context_key(data: str) -> str:
    """Column of the contexts."""
    return "context" if data == SIMULATED else "cell_type"


@lru_cache(maxsize=1)
def cells_of(data: str, held: str, several: bool = True) -> AnnData:
    """The cells of a data set without the perturbed ones of the test context, and their split; of one perturbation or all."""
    key, test = context_key(data), PAIRS[data][held]
    if data == SIMULATED:
        adata = mp.datasets.screen("small")
        if not several:
            adata = adata[adata.obs["perturbation"].isin(["control", "P1"]).to_numpy()].copy()
    else:
        adata = read(data, 5000 if data == "kang18_ifnb2800" else None)
    removed = (adata.obs["perturbation"] != "control") & (adata.obs[key] == test)
    adata = adata[~removed.to_numpy()].copy()
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key=key)
    return adata


def new_model(job: Job, adata: AnnData) -> mp.model.PerturbationModel:
    """A model with its schedule in a preset."""
    cls = getattr(mp.model, job.model)
    if job.schedule == "long":
        longer = {**cls.presets["default"], "n_updates": TIMES_LONGER * cls.presets["default"]["n_updates"]}
        cls = type(job.model, (cls,), {"presets": {**cls.presets, "long": longer}})
    cls.setup_anndata(adata, context_key=context_key(job.data))
    return cls(adata, preset=job.schedule)


def train(model: mp.model.PerturbationModel, seed: int, max_epochs: int | None, **arguments) -> float:
    """Processor seconds of a training, which other programs hardly change."""
    start = time.process_time()
    model.train(
        max_epochs,
        split_key="split",
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    return time.process_time() - start


def score(predictions: dict[int, AnnData], adata: AnnData, data: str, held: str) -> pd.DataFrame:
    """Metrics of each prediction, and R2 of no change, means over the perturbations."""
    key = context_key(data)
    here, is_control = adata.obs[key] == held, adata.obs["perturbation"] == "control"
    table = mp.metrics.evaluate(
        {str(n_updates): predicted for n_updates, predicted in predictions.items()},
        adata[(here & ~is_control).to_numpy()],
        adata[(here & is_control).to_numpy()],
        by=("perturbation", key),
        metrics=list(METRICS),
        training=adata[(adata.obs["split"] == "train").to_numpy()],
        references=["no_change"],
    )
    means = table.groupby(["predictor", "metric"])["value"].mean().unstack()[list(METRICS)]
    means["r2_no_change"] = means["r2_pearson_bootstrap"].pop("no_change")
    means = means.drop(index="no_change")
    return means.set_index(means.index.astype(int).rename("n_updates")).sort_index()


def score_job(job: Job, max_epochs: int | None) -> pd.DataFrame:
    """Scores along one training."""
    tags = getattr(mp.model, job.model).tags
    adata = cells_of(job.data, job.held, tags.several_perturbations)
    # the callback keeps training at one update per batch, so the time of a user's run is taken in one without it
    alone = train(new_model(job, adata), job.seed, max_epochs) if job.schedule == "default" else None
    model = new_model(job, adata)
    snapshots = Snapshots(len(model.stages))
    train(model, job.seed, max_epochs, callbacks=[snapshots])
    predictions = {}
    if type(model.module).conclude is not mp.model.PerturbationModule.conclude:
        last = max(snapshots.states)
        snapshots.states = {last: snapshots.states[last]}
    for n_updates, state in snapshots.states.items():
        # what is fitted in closed form stays
        model.module.load_state_dict(state, strict=False)
        model.module.eval()
        predictions[n_updates] = model.predict(
            context=job.held, realise="residual" if tags.output == "cell" else "plain"
        )
    table = score(predictions, adata, job.data, job.held).reset_index()
    table.insert(1, "seconds", table["n_updates"].map(snapshots.seconds))
    table["seconds_alone"] = alone
    for name, value in reversed(job._asdict().items()):
        table.insert(0, name, value)
    return table


def run(job: Job, deadline: float, work: Path, max_epochs: int | None) -> str:
    """Make the record of one job, unless it is there or the time is over."""
    path = job.path(work)
    if path.exists() or time.time() > deadline:
        return "there" if path.exists() else "no time"
    torch.set_num_threads(1)
    start = time.perf_counter()
    table = score_job(job, max_epochs)
    write(table, path)
    return f"{time.perf_counter() - start:.0f} s, R2 {table['r2_pearson_bootstrap'].iloc[-1]:.3f}"


def at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """Scores and seconds at the end of each schedule, means over pairs and seeds; columns are of two levels.

    A schedule that lacks some of a model's trainings is left empty.
    """
    keys = ["data", "model", "schedule"]
    last = table[table.groupby([*keys, "held", "seed"])["n_updates"].transform("max") == table["n_updates"]]
    last = last.assign(seconds=last["seconds_alone"].fillna(last["seconds"]))
    of_schedule = last.groupby(keys)
    n_trainings = of_schedule.size()
    means = of_schedule[[*METRICS, "r2_no_change", "seconds"]].mean()
    means = means[n_trainings == n_trainings.groupby(["data", "model"]).transform("max")]
    means = means.assign(trainings=n_trainings).unstack()
    rows = pd.MultiIndex.from_product([PAIRS, MODELS], names=["data", "model"]).intersection(means.index)
    return means.reindex(index=rows, columns=pd.MultiIndex.from_product([means.columns.levels[0], SCHEDULES]))


def shorten(means: pd.DataFrame) -> pd.DataFrame:
    """R2 of the schedules, whether the default is near the others, and what each costs."""
    r2, delta = means["r2_pearson_bootstrap"], means["pearson_delta"]
    short = pd.DataFrame({"trainings": means["trainings"].max(axis=1).astype("Int64")})
    short["R2 no change"] = means["r2_no_change"].mean(axis=1)
    short["R2 default"] = r2["default"]
    for other, margin in MARGINS.items():
        ratio = r2["default"] / r2[other]
        short[f"R2 {other}"], short[f"R2 / {other}"] = r2[other], ratio
        short[f"within {margin:.0%}"] = (ratio >= 1 - margin).map({True: "yes", False: "no"}).where(ratio.notna())
        short[f"delta / {other}"] = delta["default"] / delta[other]
    for schedule in SCHEDULES:
        short[f"s {schedule}"] = means["seconds", schedule].round(1)
    return short.round(3)


def list_scores(means: pd.DataFrame) -> pd.DataFrame:
    """The other metrics of the schedules."""
    names = {"pearson_delta": "delta", "edistance_ratio_joint": "E", "edistance_ratio": "E train"}
    columns = {
        f"{name} {schedule}": means[metric, schedule] for metric, name in names.items() for schedule in SCHEDULES
    }
    return pd.DataFrame(columns).round(3)


def tell(short: pd.DataFrame) -> None:
    """Say in words what holds and what does not."""
    for (data, model), row in short.iterrows():
        for other, margin in MARGINS.items():
            if pd.notna(row[f"R2 / {other}"]):
                holds = "holds" if row[f"within {margin:.0%}"] == "yes" else "DOES NOT HOLD"
                told = f"R2 {row['R2 default']:.3f} against {row[f'R2 {other}']:.3f}, delta {row[f'delta / {other}']:.3f} of it"
                print(f"{data}, {model}: default within {margin:.0%} of {other} {holds} ({told})")
        if data != SIMULATED and pd.notna(row["s default"]):
            holds = "holds" if row["s default"] < MOST_SECONDS else "DOES NOT HOLD"
            print(f"{data}, {model}: default below {MOST_SECONDS} s {holds} ({row['s default']:.0f} s)")


def collect(jobs: list[Job], args: argparse.Namespace) -> None:
    """Tables of the records that are there."""
    there = [job for job in jobs if job.path(args.work).exists()]
    print(f"{len(there)} of {len(jobs)} trainings have their record")
    if not there:
        return
    table = pd.concat([pd.read_csv(job.path(args.work)) for job in there], ignore_index=True)
    table = table.sort_values(
        ["data", "model", "schedule", "held", "seed", "n_updates"],
        key=lambda column: column.map({name: i for i, name in enumerate((*PAIRS, *MODELS, *SCHEDULES))}).fillna(column),
    )
    args.tables.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.tables / "time_to_quality.csv", index=False, float_format="%.4f")
    means = at_the_end(table)
    short, others = shorten(means), list_scores(means)
    short.to_csv(args.tables / "time_to_quality_short.csv")
    others.to_csv(args.tables / "time_to_quality_scores.csv")
    print(f"{short.to_string()}\n\n{others.to_string()}\n")
    tell(short)


def main() -> int:
    """Run what is asked for and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--data", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a test and a scored context of each data set")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no job starts later than this")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the records")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--collect", action="store_true", help="only make the tables of the records")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # one epoch; only to try the script
    args = parser.parse_args()
    if args.quick:
        args.work = args.tables = args.work / "quick"
    jobs = [
        Job(data, held, *others)
        for data in args.data
        for held in list(PAIRS[data])[: args.pairs]
        for others in itertools.product(args.models, args.schedules, args.seeds)
        if data == SIMULATED or others[0] in FAMILY
    ]
    # MTAeED has no published schedule
    jobs = [job for job in jobs if job.schedule in ("long", *getattr(mp.model, job.model).presets)]
    jobs.sort(key=Job.turn)
    task = partial(run, work=args.work, max_epochs=1 if args.quick else None)
    n_failed = 0 if args.collect else run_all(task, jobs, args.workers, args.minutes)
    collect(jobs, args)
    return min(n_failed, 1)


if __name__ == "__main__":
    sys.exit(main())

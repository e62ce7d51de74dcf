"""Speed and memory of training and prediction, beside other ways to train the same or a like network.

Run: python benchmarks/speed.py [--part steps floor ...] [--threads 1] [--repeats 5] [--resume]
Linux only. Parts: `steps` cells per second at the size of the Kang data, `same_losses` the check that this speed is that of
the same training, `floor` a tiny network, `models` every registered model trained by gradient, `critics` those with one
beside their first version, `scaling` growth with the number of cells in memory and on disk, `predict`, `labels` prediction
by number of perturbations, and `gpu` where there is one. All is measured in child processes pinned to as many cores as they
have threads; variants take turns, and a table holds medians over the turns. Needs an idle machine: each measurement
comes with the cores that other programs used meanwhile, and a warning above a half.
Writes benchmarks/results/speed_<part>.csv and speed_machine.csv. Each measurement is kept in build/speed; `--resume` goes on
with those that are there, which must be of the same code. The cells on disk, 2 GB, stay in build/speed/cells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from _speed_tables import against, summary
from _speed_worker import Worker

ROOT = Path(__file__).resolve().parents[1]
RESULTS, WORK = ROOT / "benchmarks" / "results", ROOT / "build" / "speed"
WIDTH, LATENT = 512, 100
KANG = {"n_cells": 16_893, "n_vars": 6_998, "density": 0.0466}
OF_KANG = {"model": "MTAe", "arguments": {"n_hidden": WIDTH, "n_latent": LATENT}}
NEAREST = {"width": WIDTH, "n_latent": LATENT}
# row of the table: process, function, arguments
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "multipert": ("torch", "ours", {}),
    "multipert, bf16": ("torch", "ours", {"precision": "bf16-mixed"}),
    "scvi-tools plan": ("torch", "scvi_default", {}),
    "plain loop": ("torch", "plain", {}),
    "LatentAdditive (re-stated)": ("torch", "latent_additive", NEAREST),
    "pertpy Scgen": ("jax", "scgen", NEAREST),
}
FLOOR = ("multipert", "scvi-tools plan", "plain loop")
WITH_CRITIC = ("MTAeAdv", "MTAeAdvG")
OF_LABELS = ("MTAe", "LatentAdditive", "LinearAdditive", "DecoderOnly", "CPA", "Biolord")


class Run:
    """The measurements of a run, each made once and kept in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work = args.work / "quick" if args.quick else args.work
        self.results = self.work if args.quick else RESULTS
        for folder in (self.work, self.results):
            folder.mkdir(parents=True, exist_ok=True)
        self._records = self.work / "records.jsonl"
        self._done: dict[str, dict] = {}
        if args.resume and self._records.exists():
            self._done = dict(map(json.loads, self._records.read_text().splitlines()))
        else:
            self._records.write_text("")
        self._workers: dict[str, Worker] = {}

    def size(self, full: Any, quick: Any) -> Any:
        return quick if self.args.quick else full

    def ask(self, worker: str, task: str, *, turn: int = 0, source: Path | None = None, **arguments: Any) -> dict:
        """Result of a task in the process of that name, which is started anew for the name "fresh"."""
        key = json.dumps([worker, task, turn, arguments], sort_keys=True)
        if key in self._done:
            return self._done[key]
        load = os.getloadavg()[0]
        if worker not in self._workers:
            self._workers[worker] = Worker(self.args.threads, self.work / "log.txt", source)
        try:
            result = self._workers[worker].ask(task, **arguments)
        except RuntimeError as error:
            self._workers.pop(worker)
            result = {"error": str(error)}
        if worker == "fresh" and worker in self._workers:
            self.close(worker)
        self._done[key] = result
        with self._records.open("a") as file:
            file.write(json.dumps([key, result]) + "\n")
        shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}
        print(f"{time.strftime('%H:%M:%S')} load {load:.2f} {worker} {task} {turn} {arguments}: {shown}", flush=True)
        if result.get("others", 0) > 0.5:
            print(f"WARNING: other programs used {result['others']:.2f} cores meanwhile", flush=True)
        return result

    def close(self, *names: str) -> None:
        for name in names or tuple(self._workers):
            if name in self._workers:
                self._workers.pop(name).close()

    def store(self, name: str, table: pd.DataFrame) -> None:
        path = self.results / f"speed_{name}.csv"
        table.to_csv(path, index=False, float_format="%.4g")
        print(f"\n{path}\n{table.to_string(index=False, float_format='%.4g')}\n", flush=True)


def machine(run: Run) -> None:
    """Where and with what this was measured."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    rows = {"processor": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "threads": run.args.threads}
    rows |= {"memory, GB": round(memory / 1e6, 1), "Python": platform.python_version()}
    for package in ("multipert", "torch", "scvi-tools", "lightning", "pertpy", "jax", "anndata"):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not there"
    rows["GPU"] = run.ask("torch", "tasks.cuda")["name"] or "none"
    run.store("machine", pd.DataFrame({"what": list(rows), "value": list(map(str, rows.values()))}))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def steps(run: Run) -> None:
    """Cells per second at the size of the Kang data, and their share of what the products alone would allow."""
    kang = run.size(KANG, {"n_cells": 600, "n_vars": 300, "density": 0.0466})
    rows: list[dict] = []
    rates: dict[tuple[int, str], list[float]] = {}
    batches = run.size((64, 128, 512, 2048), (64, 128))
    for turn in range(run.args.repeats):
        for batch_size in batches:
            case = {**OF_KANG, **kang, "visited": run.size(max(1024, 2 * batch_size), 256)}
            for dtype in ("float32", "bfloat16"):
                shape = {"batch_size": batch_size, "n_in": kang["n_vars"], "n_out": WIDTH}
                rate = run.ask("torch", "tasks.gemm", turn=turn, dtype=dtype, **shape)["rate"]
                rates.setdefault((batch_size, dtype), []).append(rate)
            for name, (worker, task, arguments) in VARIANTS.items():
                given = {"case": case, "batch_size": batch_size, "epochs": 2, **arguments}
                result = run.ask(worker, f"variants.{task}", turn=turn, **given)
                rows.append({"batch_size": batch_size, "variant": name, **result})
    table = summary(rows, ["batch_size", "variant"])
    dtypes = ["bfloat16" if "bf16" in name else "float32" for name in table["variant"]]
    limit = [pd.Series(rates[key]).median() for key in zip(table["batch_size"], dtypes, strict=True)]
    table["gemm_gflops"] = [rate / 1e9 for rate in limit]
    table["share_of_limit"] = table["cells_per_second"] * table.pop("flops") / limit
    table["to_scvi"], table["to_scgen"] = against(table, "scvi-tools plan"), against(table, "pertpy Scgen")
    run.store("steps", table)


def same_losses(run: Run) -> None:
    """Loss of each epoch, ours and that of the plain loop."""
    kang = run.size(KANG, {"n_cells": 600, "n_vars": 300, "density": 0.0466})
    case = {**OF_KANG, **kang, "visited": run.size(1024, 256)}
    result = run.ask("torch", "tasks.same_losses", case=case, batch_size=64, epochs=run.size(5, 3))
    if "error" in result:
        print(f"same_losses failed: {result['error']}")
        return
    table = pd.DataFrame({"epoch": range(len(result["ours"])), "multipert": result["ours"], "plain": result["plain"]})
    table["difference"] = (table["multipert"] - table["plain"]).abs()
    print(
        f"largest difference {table['difference'].max():.2g}; {'same' if table['difference'].max() < 1e-4 else 'NOT'}"
    )
    path = run.results / "speed_same_losses.csv"
    table.to_csv(path, index=False, float_format="%.7g")
    print(f"\n{path}\n{table.to_string(index=False)}\n", flush=True)


def floor(run: Run) -> None:
    """Milliseconds per update of a network so small that only the loop around it is left."""
    case = {"model": "MTAe", "arguments": {"n_hidden": 8, "n_latent": 4}, "n_cells": 2048, "n_vars": 20}
    case |= {"density": 0.3, "visited": run.size(2048, 256)}
    rows = []
    for turn in range(run.args.repeats):
        for name in FLOOR:
            given = {"case": case, "batch_size": 32, "epochs": run.size(4, 1)}
            rows.append({"variant": name, **run.ask("torch", f"variants.{VARIANTS[name][1]}", turn=turn, **given)})
    table = summary([{"batch_size": 32, **row} for row in rows], ["batch_size", "variant"])
    table["to_scvi"] = against(table, "scvi-tools plan")
    run.store("floor", table[["variant", "ms_per_step", "cells_per_second", "slowest", "fastest", "to_scvi", "others"]])


def first_version(folder: Path) -> Path | None:
    """Sources of the first version that had the models with a critic; None outside a clone."""
    log = ["log", "--format=%h", "--reverse", "-Sclass MTAeAdv", "--", "src/multipert/model/_mtae.py"]
    found = subprocess.run(["git", *log], cwd=ROOT, capture_output=True, text=True)
    if found.returncode or not found.stdout.split():
        return None
    commit = found.stdout.split()[0]
    source = folder / commit / "src"
    if not source.exists():
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(source.parent, filter="data")
    return source


def models(run: Run) -> None:
    """Milliseconds per update of every registered model, and of scvi-tools' plan where one optimiser does."""
    listed = run.ask("torch", "tasks.gradient_models")
    if "error" in listed:
        raise SystemExit(listed["error"])
    cells = {"n_cells": 1024, "n_vars": run.size(2000, 100), "density": 0.1, "visited": run.size(1024, 512)}
    rows = []
    # passes last a quarter as long in some models
    given = {"batch_size": 64, "epochs": 4}
    for turn in range(run.args.repeats):
        for name in listed["names"]:
            case = {"model": name, **cells}
            result = run.ask("torch", "variants.ours", turn=turn, case=case, **given)
            rows.append({"model": name, "variant": "multipert", **result})
            if result.get("single"):
                other = run.ask("torch", "variants.scvi_default", turn=turn, case=case, **given)
                rows.append({"model": name, "variant": "scvi-tools plan", **other})
    millions = {row["model"]: row["parameters"] / 1e6 for row in rows if "parameters" in row}
    table = summary(rows, ["model", "variant"]).pivot(index="model", columns="variant", values="ms_per_step")
    table = table.reindex(listed["names"]).reindex(columns=["multipert", "scvi-tools plan"])
    table.insert(0, "million_parameters", table.index.map(millions))
    table["scvi-tools to multipert"] = table["scvi-tools plan"] / table["multipert"]
    run.store("models", table.reset_index())


def critics(run: Run) -> None:
    """Milliseconds per update of the models with a critic and of the first version that had them, in three times the turns."""
    source = first_version(run.work)
    if source is None:
        print("critics: not measured, since the first version is in no clone of the repository")
        return
    file = run.ask("first", "tasks.gradient_models", source=source)["file"]
    if not file.startswith(str(source)):
        raise SystemExit(f"the first version was not measured: {file} is not in {source}")
    cells = {"n_cells": 1024, "n_vars": run.size(2000, 100), "density": 0.1, "visited": run.size(1024, 512)}
    rows = []
    for turn in range(3 * run.args.repeats):
        for name in WITH_CRITIC:
            given = {"case": {"model": name, **cells}, "batch_size": 64, "epochs": 8}
            for variant, worker, path in (("multipert", "torch", None), ("first version", "first", source)):
                result = run.ask(worker, "variants.ours", turn=turn, source=path, **given)
                rows.append({"model": name, "variant": variant, **result})
    table = summary(rows, ["model", "variant"]).pivot(index="model", columns="variant", values="ms_per_step")
    table = table[["multipert", "first version"]]
    table["first to multipert"] = table["first version"] / table["multipert"]
    run.store("critics", table.reset_index())


def scaling(run: Run) -> None:
    """Seconds and peak memory by number of cells, in memory and on disk."""
    rows, n_vars = [], run.size(2000, 100)
    folder = run.work / "cells"
    folder.mkdir(exist_ok=True)
    for n_cells in run.size((10_000, 50_000, 200_000, 1_000_000), (1000, 2000)):
        path = str(folder / f"{n_cells}.h5ad")
        run.ask("fresh", "tasks.write_cells", path=path, n_cells=n_cells, n_vars=n_vars, density=0.1)
        for where in ("memory", "disk", "read_backed"):
            given = {"path": path, "where": where, "batch_size": 512, "visit": run.args.visit}
            result = run.ask("fresh", "tasks.scaling", **given)
            if "error" in result:
                print(f"no figure for {n_cells} cells, {where}: {result['error']}")
                continue
            mb = {name: result[name] / 1e6 for name in ("peak", "csr", "parameters")}
            row = {"cells": n_cells, "where": where, "setup_s": result["setup"], "train_s": result["call"]}
            row |= {"visited": result["visited"], "cells_per_second": result["visited"] / result["epoch"]}
            row |= {"epoch_s": n_cells / row["cells_per_second"], "peak_mb": mb["peak"], "csr_mb": mb["csr"]}
            row |= {"parameters_mb": mb["parameters"], "bound_mb": 1.2 * mb["csr"] + 6 * mb["parameters"] + 300}
            rows.append({**row, "within": row["peak_mb"] <= row["bound_mb"], "others": result["others"]})
    run.store("scaling", pd.DataFrame(rows))


def predict(run: Run) -> None:
    """Cells predicted and annotated per second of processor time, and means of many targets."""
    kang = run.size(KANG, {"n_cells": 600, "n_vars": 300, "density": 0.0466})
    case, rows = {**OF_KANG, **kang, "visited": run.size(1024, 256)}, []
    for turn in range(run.args.repeats):
        for what in ("predict", "annotate", "annotate(latent=False)"):
            rows.append({"what": what, **run.ask("predict", "tasks.predict_cells", turn=turn, case=case, what=what)})
    run.close("predict")
    sizes = dict(zip(("n_targets", "n_control", "n_vars"), run.size((1000, 5000, 2000), (20, 100, 50)), strict=True))
    rows.append(
        {"what": "means of {n_targets} targets".format(**sizes), **run.ask("fresh", "tasks.predict_means", **sizes)}
    )
    failed = [f"{row['what']}: {row['error']}" for row in rows if "error" in row]
    if failed:
        print("no figure for", *failed, sep="\n")
    frame = pd.DataFrame([row for row in rows if "error" not in row])
    frame["cells_per_cpu_second"] = frame["cells"] / frame["cpu_seconds"]
    frame["peak_mb"] = frame.get("peak", pd.Series(dtype=float)) / 1e6
    columns = ["cells", "cells_per_cpu_second", "cpu_seconds", "seconds", "peak_mb", "others"]
    run.store("predict", frame.groupby("what", sort=False)[columns].median().reset_index())


def labels(run: Run) -> None:
    """Counterfactual and annotated cells per second of processor time, by number of perturbations."""
    rows = []
    for model in OF_LABELS:
        for n in run.size((100, 1000, 10_000), (10, 100)):
            of_turns = [
                run.ask("predict", "tasks.predict_labels", turn=turn, model=model, n_perturbations=n)
                for turn in range(run.args.repeats)
            ]
            rows += [{"model": model, "perturbations": n, **result} for result in of_turns]
    columns = ["counterfactuals", "annotated", "others"]
    run.store(
        "labels", pd.DataFrame(rows).groupby(["model", "perturbations"], sort=False)[columns].median().reset_index()
    )


def gpu(run: Run) -> None:
    """Training on a GPU, and the share of time that it waits for data."""
    if not run.ask("torch", "tasks.cuda")["there"]:
        print("gpu: not measured, since torch finds no GPU here")
        return
    million = {"model": "MTAe", "n_cells": 1_000_000, "n_vars": 2000, "density": 0.1, "visited": 1_000_000}
    rows = []
    for data, case, batches in (
        ("Kang", {**OF_KANG, **KANG, "visited": KANG["n_cells"]}, (128, 512, 2048)),
        ("million", million, (2048,)),
    ):
        for turn in range(run.args.repeats if data == "Kang" else 1):
            for batch_size in batches:
                for variant in ("ours", "ours bf16", "scvi", "resident"):
                    given = {
                        "case": case,
                        "variant": variant,
                        "batch_size": batch_size,
                        "epochs": 2 if data == "Kang" else 1,
                    }
                    result = run.ask("torch", "tasks.gpu", turn=turn, **given)
                    rows.append({"data": data, "batch_size": batch_size, "variant": variant, **result})
    table = summary(rows, ["data", "batch_size", "variant"]).drop(columns="flops")
    stays = table[table["variant"] == "resident"].set_index(["data", "batch_size"])["ms_per_step"]
    # the batch that stays on the GPU waits for nothing; it is of fp32
    waits = 1 - pd.MultiIndex.from_frame(table[["data", "batch_size"]]).map(stays) / table["ms_per_step"]
    table["waiting"] = waits.where(table["variant"].isin(["ours", "scvi"]))
    run.store("gpu", table)


PARTS = {part.__name__: part for part in (steps, same_losses, floor, models, critics, predict, labels, scaling, gpu)}


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--visit", type=int, default=200_000, help="most cells of an epoch in the part scaling; 0 takes all"
    )
    parser.add_argument("--resume", action="store_true", help="keep the measurements that are there")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the measurements and of the cells")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # tiny sizes; only to try the script
    args = parser.parse_args()
    load = os.getloadavg()
    print(f"load average {' '.join(f'{value:.2f}' for value in load)}")
    if load[0] > 0.5:
        print("WARNING: the load average is above 0.5; figures of a busy machine mean little", flush=True)
    run, start = Run(args), time.perf_counter()
    try:
        machine(run)
        for part in args.part:
            PARTS[part](run)
            print(f"{part}: done after {time.perf_counter() - start:.0f} s", flush=True)
            # models of a part are not kept for the next
            run.close()
    finally:
        run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

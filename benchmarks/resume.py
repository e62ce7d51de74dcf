"""A benchmark that is killed twice ends with the table of one that was not, on processes and on ray.

Run: python benchmarks/resume.py [features | small | combinations] [epochs]
Every registered model x 3 splits x 2 seeds on a simulated screen. Prints the largest difference of any score between the
undisturbed grid, one whose process was killed twice by SIGKILL, and one on a local ray cluster of two workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import multipert as mp
from multipert.benchmark import ModelSpec, Results, run

SEEDS = (0, 1)
N_SPLITS = 3
JOBS = 2


def splits(adata, name: str) -> dict[str, pd.Series]:
    if name != "combinations":
        contexts = sorted(adata.obs["context"].unique())[:N_SPLITS]
        return {context: mp.splits.context_transfer(adata, context) for context in contexts}
    labels = adata.obs["perturbation"].astype(str)
    pairs = sorted({label for label in labels if "+" in label})
    held = {f"pairs_{i}": set(pairs[i::N_SPLITS]) for i in range(N_SPLITS)}
    return {
        key: pd.Series(np.where(labels.isin(some), "test", "train"), index=adata.obs_names)
        for key, some in held.items()
    }


def specs(epochs: int) -> list[ModelSpec]:
    training = {"max_epochs": epochs, "accelerator": "cpu"}
    return [ModelSpec(name, training=training) for name in mp.model.__all__]


def grid(name: str, epochs: int, out: Path, executor: str = "local") -> Results:
    if name == "features":
        # an embedding of the perturbations, which two of the models need
        adata = mp.datasets.simulate(n_cells=1500, n_vars=100, n_contexts=4, n_perturbations=4, features=4, seed=0)
    else:
        adata = mp.datasets.screen(name)
    setup = {}
    if "perturbation_embedding" in adata.uns:
        setup = {"perturbation_embedding_key": "perturbation_embedding"}
    return run(
        adata, specs(epochs), split=splits(adata, name), out=out, seeds=SEEDS, n_jobs=JOBS, executor=executor, setup=setup
    )  # fmt: skip


def killed(name: str, epochs: int, out: Path, n_records: int) -> int:
    """Start the grid in a process of its own, kill it once some records are there, and count what it left."""
    process = subprocess.Popen([sys.executable, __file__, name, str(epochs), str(out)], start_new_session=True)
    while process.poll() is None and count(out) < n_records:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return count(out)


def count(out: Path) -> int:
    return len(list((out / "runs").glob("[0-9a-f]*.json")))


def compare(found: Results, expected: Results) -> tuple[float, int]:
    """Largest difference of a score, and how many rows only one of them has or only one defines."""
    keys = ["model", "kind", "split", "seed", *expected.by, "metric"]
    one, other = (results.frame.fillna({"seed": -1}).set_index(keys)["value"] for results in (found, expected))
    alone = len(one.index.symmetric_difference(other.index))
    one = one.reindex(other.index)
    undefined = int((one.isna() != other.isna()).sum())
    return float(np.nanmax(np.abs(one - other))), alone + undefined


def report(what: str, results: Results, seconds: float) -> None:
    status = results.runs["status"].value_counts().to_dict()
    print(f"{what}: {status}, {seconds:.0f} s", flush=True)
    for _, row in results.failed.iterrows():
        print(f"  failed: {row['model']} on {row['split']}, seed {row['seed']}: {row['reason']}")


def timed(*arguments) -> tuple[Results, float]:
    start = time.perf_counter()
    return grid(*arguments), time.perf_counter() - start


def main(name: str, epochs: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        places = {key: Path(folder, key) for key in ("undisturbed", "killed", "ray")}
        undisturbed, seconds = timed(name, epochs, places["undisturbed"])
        report("undisturbed", undisturbed, seconds)
        n_runs = count(places["undisturbed"])
        for share in (0.25, 0.6):
            print(f"killed with {killed(name, epochs, places['killed'], round(share * n_runs))} of {n_runs} records")
        resumed, seconds = timed(name, epochs, places["killed"])
        report("killed twice, then finished", resumed, seconds)
        on_ray, seconds = timed(name, epochs, places["ray"], "ray")
        report("ray", on_ray, seconds)
        failed = 0
        for what, results in (("killed twice", resumed), ("ray", on_ray)):
            difference, unmatched = compare(results, undisturbed)
            print(f"{what} against undisturbed: largest difference {difference:.3g}, rows without a match {unmatched}")
            failed += difference > 0 or unmatched > 0
        print(undisturbed.skipped[["model", "split", "reason"]].to_string(index=False))
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    screen_name = sys.argv[1] if len(sys.argv) > 1 else "features"
    n_epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    if len(sys.argv) > 3:
        grid(screen_name, n_epochs, Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main(screen_name, n_epochs))

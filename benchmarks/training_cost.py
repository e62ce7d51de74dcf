"""Seconds and memory of a training with the default preset on `kang18_scgen_valid` (1,975 x 6,998), all models.

Run: python benchmarks/training_cost.py [--models ScGen MTAe] [--preset published] [--threads 2] [--repeats 3] [--data ...]
Each training is a process of its own that does nothing else; the machine should be idle. The cells of one type (CD8T; of
`kang18_ifnb2800`, which has its 5,000 genes of highest variance over control cells, CD14+Mono) that are perturbed are test
cells. Memory is the highest resident memory of the process, and how far that lies above the
memory before the training, when packages and cells were loaded.
The prediction of the test cells is scored, so that two schedules can be compared.
Writes benchmarks/results/training_cost.csv, of other data or with a preset training_cost_<data>_<preset>.csv: medians over
the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from _kang import RESULTS, read, select

# type whose perturbed cells are held out, and number of genes
DATA = {"kang18_scgen_valid": ("CD8T", None), "kang18_ifnb2800": ("CD14+Mono", 5000)}
SCORES = {"r2_pearson_bootstrap": "r2", "pearson_delta": "delta"}


def resident() -> float:
    """Resident memory in MB now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def highest() -> float:
    """Highest resident memory in MB since it was last set back."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def train_one(name: str, data: str, threads: int, preset: str | None) -> dict[str, float | int | str]:
    """Train in this process and tell what it took."""
    import torch

    import multipert as mp

    torch.set_num_threads(threads)
    held, n_genes = DATA[data]
    adata = read(data, n_genes)
    adata.obs["split"] = mp.splits.context_transfer(adata, held, context_key="cell_type")
    cls = getattr(mp.model, name)
    cls.setup_anndata(adata, context_key="cell_type")
    model = cls(adata, preset=preset) if preset else cls(adata)
    n_weights = sum(parameter.numel() for parameter in model.module.parameters())
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest back to the present
    started, of_processor = time.perf_counter(), time.process_time()
    model.train(
        split_key="split",
        seed=0,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    cost = {
        "model": name,
        "weights": n_weights,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - of_processor,
        "peak_mb": highest(),
        "above_start_mb": highest() - before,
    }
    found = mp.metrics.evaluate(
        model.predict(perturbation="IFNB", context=held),
        select(adata, held, "IFNB"),
        select(adata, held, "control"),
        by=("perturbation", "cell_type"),
        metrics=list(SCORES),
    )
    values = found[found["predictor"] == "prediction"].set_index("metric")["value"]
    return cost | {short: float(values[metric]) for metric, short in SCORES.items()}


def main() -> int:
    """Run every model in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="all registered models where nothing is given")
    parser.add_argument("--data", choices=DATA, default=next(iter(DATA)))
    parser.add_argument("--preset", help="the default one where nothing is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the table goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own is asked for
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train_one(args.one, args.data, args.threads, args.preset)))
        return 0
    import multipert as mp

    models = args.models or [
        name
        for name in mp.model.__all__
        if hasattr(getattr(mp.model, name), "tags") and not getattr(mp.model, name).tags.needs_embedding
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "NUMBA_NUM_THREADS": str(args.threads)}
    rows = []
    for name in models:
        for _ in range(args.repeats):
            command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--threads", str(args.threads)]
            command += ["--data", args.data, *(["--preset", args.preset] if args.preset else [])]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    table = (
        pd.DataFrame(rows)
        .groupby("model", sort=False)
        .median()
        .round({"seconds": 1, "cpu_seconds": 1, "peak_mb": 0, "above_start_mb": 0, "r2": 3, "delta": 3})
    )
    table["weights"] = table["weights"].astype(int)
    other = [args.data] if args.data != next(iter(DATA)) else []
    stem = "_".join(["training_cost", *other, *([args.preset] if args.preset else [])])
    table.to_csv(args.out or RESULTS / f"{stem}.csv")
    print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())

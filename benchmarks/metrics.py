"""Our metrics against the usual way, in one run: seconds, ratio, largest difference.

Run from anywhere: `python benchmarks/metrics.py [de] [rank] [transport] [edistance] [evaluate]`, all without arguments. Needs the
extra `pertpy`. Writes `benchmarks/results/metrics.csv`. Only the last part has no alternative: it is one call of `evaluate` on
200 perturbations x 200 cells x 2,000 genes in a process of its own, with its peak memory.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

RESULT = Path(__file__).parent / "results" / "metrics.csv"
COLUMNS = ["what", "ours_s", "theirs_s", "ratio", "largest_difference"]


def parts() -> dict[str, list]:
    import _metrics_de
    import _metrics_distribution
    import _metrics_rank

    return {
        "de": [_metrics_de.wilcoxon_rows, _metrics_de.t_rows],
        "rank": [_metrics_rank.rank],
        "transport": [_metrics_distribution.sinkhorn],
        "edistance": [_metrics_distribution.edistance],
        "evaluate": [evaluate_rows],
    }


def evaluate_rows() -> list[tuple]:
    """The default preset in a fresh process, so that its memory is its own; with 200 and with thousands of control cells."""
    rows = []
    for n_control in (200, 12_000):
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(n_control)], capture_output=True, text=True, check=True
        )
        seconds, before, peak = map(float, done.stdout.split()[-3:])
        what = (
            f"evaluate, 200 perturbations x 200 cells x 2,000 genes, {n_control:,} control cells, default preset; "
            f"{peak:.2f} GB at most, {before:.2f} GB before"
        )
        rows.append((what, seconds, np.nan, np.nan, np.nan))
    return rows


def one(n_control: int) -> None:
    """Evaluate in one of two contexts, with training cells of the other; every perturbation is offered as another one."""
    import multipert as mp

    share = n_control / (n_control + 200 * 200)
    n_cells = 2 * (n_control + 200 * 200)
    screen = mp.datasets.simulate(
        n_cells=n_cells, n_vars=2000, n_contexts=2, n_perturbations=200, control_fraction=share, seed=0
    )
    contexts, labels = screen.obs["context"].astype(str), screen.obs["perturbation"].astype(str)
    here, control = (contexts == sorted(contexts.unique())[0]).to_numpy(), (labels == "control").to_numpy()
    observed, controls, training = (
        screen[here & ~control].copy(),
        screen[here & control].copy(),
        screen[~here | control].copy(),
    )
    predicted = observed.copy()
    predicted.obs["perturbation"] = np.roll(observed.obs["perturbation"].astype(str).to_numpy(), 1)
    del screen
    before = _peak()
    start = time.perf_counter()
    mp.metrics.evaluate(predicted, observed, controls, training=training)
    print(time.perf_counter() - start, before, _peak())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(wanted: list[str]) -> None:
    functions = parts()
    rows = [row for name in wanted or functions for function in functions[name] for row in _shown(function)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    if not wanted:
        frame.to_csv(RESULT, index=False, float_format="%.4g")
    with pd.option_context("display.width", 250, "display.max_colwidth", 110):
        print(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def _shown(function) -> list[tuple]:
    rows = [tuple(row) for row in function()]
    for row in rows:
        print(*row, sep="  ", flush=True)
    return rows


if __name__ == "__main__":
    one(int(sys.argv[2])) if sys.argv[1:2] == ["--one"] else main(sys.argv[1:])

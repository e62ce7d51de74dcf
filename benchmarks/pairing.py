"""Optimal transport pairing against POT's exact solver: seconds, peak memory, cost.

Run from anywhere: `python benchmarks/pairing.py [--exact-up-to N]`; Linux only. Writes `benchmarks/results/pairing.csv`.
Points are 50 principal components of simulated control and perturbed cells, and two Gaussian clouds. Every figure comes from
a process of its own that loads the points and solves a small problem first; its memory is the peak above what it held then.
POT's solver runs up to N cells a side, 5,000 unless told otherwise: 10,000 take over a minute and several GB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

RESULT = Path(__file__).parent / "results" / "pairing.csv"
SIZES = [(500, 500), (1000, 1000), (2000, 2000), (2000, 1900), (5000, 5000), (10_000, 10_000), (10_000, 9000)]
LARGEST = (20_000, 20_000)
N_PCS = 50


def simulated(n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    import multipert as mp

    adata = mp.datasets.simulate(
        n_cells=2 * n, n_vars=1000, n_contexts=1, n_perturbations=1, control_fraction=0.5, seed=0
    )
    scores = PCA(N_PCS, svd_solver="randomized", random_state=0).fit_transform(adata.X.toarray())
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    return scores[is_control], scores[~is_control]


def gaussian(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    deviations = np.linspace(5, 0.5, N_PCS)
    control, perturbed = rng.normal(size=(2, n, N_PCS)) * deviations
    return control, perturbed + 0.3 * rng.normal(size=N_PCS)


def ours(control: np.ndarray, perturbed: np.ndarray) -> tuple[float, str]:
    from multipert.data._transport import match

    found = match(control, perturbed)
    return found.cost, found.method


def emd(control: np.ndarray, perturbed: np.ndarray) -> tuple[float, str]:
    import ot
    from scipy.spatial.distance import cdist

    distance = cdist(control, perturbed)
    masses = (np.full(len(points), 1 / len(points)) for points in (control, perturbed))
    plan = ot.emd(*masses, distance, numItermax=10**9)
    # in parts, so that no further matrix of this size counts as the solver's
    return sum(float(row @ cost) for row, cost in zip(plan, distance, strict=True)), "exact"


SOLVERS = {"ours": ours, "emd": emd}


def megabytes(field: str) -> float:
    """`VmRSS`, held now, or `VmHWM`, the peak of this process alone; `ru_maxrss` would include the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def one(solver: str, file: str, repeats: int) -> None:
    """Solve one problem and print seconds, megabytes, cost and method."""
    with np.load(file) as points:
        control, perturbed = points["control"], points["perturbed"]
    solve = SOLVERS[solver]
    solve(control[:40], perturbed[:40])
    solve(control[:40], perturbed[:30])
    before, seconds = megabytes("VmRSS"), []
    for _ in range(repeats):
        start = time.perf_counter()
        cost, method = solve(control, perturbed)
        seconds.append(time.perf_counter() - start)
    print(min(seconds), max(0.0, megabytes("VmHWM") - before), cost, method)


def measure(solver: str, file: Path, repeats: int) -> tuple[float, float, float, str]:
    command = [sys.executable, __file__, "--one", solver, str(file), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *numbers, method = done.stdout.split()[-4:]
    seconds, memory, cost = map(float, numbers)
    return seconds, memory, cost, method


def rows(exact_up_to: int, folder: Path) -> list[dict]:
    table = []
    for name, make in (("simulated cells", simulated), ("Gaussian clouds", gaussian)):
        for n, m in [*SIZES, LARGEST]:
            control, perturbed = make(n)
            file = folder / "points.npz"
            np.savez(file, control=control, perturbed=perturbed[:m])
            seconds, memory, cost, method = measure("ours", file, 3)
            row = {"points": name, "n_control": n, "n_perturbed": m, "method": method, "seconds": seconds, "mb": memory}
            if n <= exact_up_to:
                row["emd_seconds"], row["emd_mb"], exact, _ = measure("emd", file, 1)
                row["cost_ratio"] = cost / exact
            table.append(row)
            print(pd.DataFrame([row]).to_string(index=False, header=len(table) == 1), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact-up-to", type=int, default=5000, metavar="N")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        solver, file, repeats = arguments.one
        one(solver, file, int(repeats))
        return
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(rows(arguments.exact_up_to, Path(folder)))
    RESULT.parent.mkdir(exist_ok=True)
    table.to_csv(RESULT, index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

"""Time and peak memory of simulating 100,000 cells x 2,000 genes.

Run from the project's folder: `python benchmarks/simulate_speed.py [n_cells] [n_vars]`.
"""

from __future__ import annotations

import resource
import sys
import time

from multipert.datasets import simulate


def main(n_cells: int = 100_000, n_vars: int = 2_000) -> None:
    start = time.perf_counter()
    adata = simulate(n_cells=n_cells, n_vars=n_vars)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    filled = adata.X.nnz / (n_cells * n_vars)
    print(f"{n_cells} cells x {n_vars} genes, {filled:.1%} non-zero: {seconds:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

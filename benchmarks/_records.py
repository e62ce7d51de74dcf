"""Many jobs in processes of one thread, each of which leaves a record."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

JobT = TypeVar("JobT", bound=tuple)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    table.to_csv(unfinished, index=False)
    unfinished.replace(path)


def end_with_parent(parent: int) -> None:
    """End this process when its parent is no more, which would else go on with the jobs that are queued.

    Parameters
    ----------
    parent
        Number of the parent process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_all(task: Callable[[JobT, float], str], jobs: Sequence[JobT], workers: int, minutes: float) -> int:
    """Run `task(job, deadline)` for each job and print what it returns; the number of jobs that failed."""
    # read by the numerical libraries when a process imports them
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    deadline = time.time() + 60 * minutes
    n_failed = 0
    ends = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **ends) as pool:
        given: dict[Any, JobT] = {pool.submit(task, job, deadline): job for job in jobs}
        for i, future in enumerate(as_completed(given), 1):
            error = future.exception()
            n_failed += error is not None
            told = f"{type(error).__name__}: {error}" if error else future.result()
            print(
                f"{i}/{len(jobs)} {time.strftime('%H:%M:%S')} {' '.join(map(str, given[future]))}: {told}", flush=True
            )
    return n_failed

"""Processes in which `speed.py` measures: fixed threads, pinned to as many cores, one task after another.

A task is a function of `_speed_variants` or `_speed_tasks`, its arguments and its result plain values. What else a process
prints goes to a log.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """A child process that runs tasks.

    Parameters
    ----------
    threads
        Threads of every library, and cores that the process may use.
    log
        File of what the process prints.
    source
        Folder put before all others on the path of imports, such as another version of the package.
    """

    def __init__(self, threads: int, log: Path, source: Path | None = None) -> None:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        env = {**os.environ, **dict.fromkeys(names, str(threads)), "JAX_PLATFORMS": "cpu"}
        env["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        if source is not None:
            env["PYTHONPATH"] = str(source)
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(threads)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a task; its result, with the cores that other programs used meanwhile."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        start, busy, own = time.perf_counter(), busy_seconds(), self._cpu_seconds()
        self._process.stdin.write(json.dumps([task, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {task} ended with {self._process.wait()}; see {self._log.name}")
        result = json.loads(answer)
        others = busy_seconds() - busy - (self._cpu_seconds() - own)
        return {**result, "others": max(0.0, others / (time.perf_counter() - start))}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Core-seconds that all programs have used since the machine started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:10])
    return (user + nice + system + irq + softirq) / _TICKS


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most; `ru_maxrss` would include what the parent held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def forget_peak() -> int:
    """Set the peak back to what is held now, where the kernel allows it; bytes held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the kernel keeps the peak of the imports and of reading: peaks are upper bounds", file=sys.stderr)
    return resident("VmRSS")


def main() -> None:
    """Answer one line for each line of the standard input."""
    threads = int(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # what libraries print must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    for line in sys.stdin:
        task, arguments = json.loads(line)
        module, _, name = task.partition(".")
        start = time.perf_counter()
        try:
            result = getattr(importlib.import_module(f"_speed_{module}"), name)(**arguments)
        except Exception as error:  # noqa: BLE001 - a variant that cannot run is a line of the table, not the end of it
            import traceback

            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        print(f"{task} {arguments}: {time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()

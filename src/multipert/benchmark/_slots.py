"""Places where runs are done, each run in a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Executor = Literal["local", "ray"]
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_RAY_HINT: Final = "executor='ray' needs the package ray: pip install 'multipert[ray]'"


@dataclass(frozen=True)
class Ending:
    """How the process of a run ended.

    Parameters
    ----------
    code
        Exit status; negative for a signal.
    timed_out
        Whether it was ended for taking too long.
    """

    code: int
    timed_out: bool = False

    def describe(self, timeout: float | None) -> str:
        """What happened, for a reader."""
        if self.timed_out:
            return f"the run took longer than the timeout of {timeout:g} s and was ended"
        if self.code >= 0:
            return f"the process of the run ended with exit status {self.code} and left no record"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        memory = "; the system does this when memory runs out" if name == "SIGKILL" else ""
        return f"the process of the run was ended by {name}{memory}"


class Slot(Protocol):
    """What does one run at a time."""

    def do(self, run_id: str, timeout: float | None) -> Ending:
        """Do a run and wait for its end."""

    def kill(self) -> None:
        """End what is being done."""


class LocalSlot:
    """A worker process on this machine, started when it is first needed.

    Parameters
    ----------
    root
        The folder of the benchmark.
    threads
        Threads of each run.
    path
        Where modules are looked for; None is this process's own.
    """

    def __init__(self, root: str, threads: int, path: list[str] | None = None) -> None:
        self.root, self.threads = root, threads
        self.path = [entry or str(Path.cwd()) for entry in (sys.path if path is None else path)]
        self._worker: subprocess.Popen[bytes] | None = None

    def do(self, run_id: str, timeout: float | None) -> Ending:
        """Do a run and wait for its end.

        Parameters
        ----------
        run_id
            Which run.
        timeout
            Seconds after which it is ended; None waits.

        Returns
        -------
        How it ended; whether it wrote a record is for the caller to see.
        """
        worker = self._started(run_id)
        assert worker.stdin is not None
        log = Path(self.root, "logs", f"{run_id}.txt")
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            self.kill()

        timer = threading.Timer(timeout, end) if timeout is not None else None
        if timer is not None:
            timer.start()
        try:
            worker.stdin.write(json.dumps({"id": run_id, "log": str(log)}).encode() + b"\n")
            worker.stdin.flush()
            answer = _answer(worker)
        except (BrokenPipeError, ValueError):
            answer = None
        finally:
            if timer is not None:
                timer.cancel()
        if answer is not None:
            return Ending(answer["code"])
        code = worker.wait()
        self._worker = None
        return Ending(code, timed_out.is_set())

    def kill(self) -> None:
        """End the worker and the run that it does."""
        if self._worker is not None and self._worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # the worker leads a session, in which its run is
                if hasattr(os, "killpg"):
                    os.killpg(self._worker.pid, signal.SIGKILL)
                else:
                    self._worker.kill()

    def close(self) -> None:
        """Let the worker end."""
        if self._worker is not None:
            self.kill()
            self._worker.communicate()
            self._worker = None

    def _started(self, run_id: str) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            log = Path(self.root, "logs", f"{run_id}.txt")
            environment = {
                **os.environ,
                **dict.fromkeys(_THREAD_VARIABLES, str(self.threads)),
                "PYTHONPATH": os.pathsep.join(self.path),
                # asking whether there is a GPU must not start CUDA, which cannot be forked
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            }
            with log.open("wb") as errors:
                self._worker = subprocess.Popen(
                    [sys.executable, "-m", "multipert.benchmark._worker", self.root],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
                    # Ctrl-C in the terminal is for this process, which then ends its workers
                    start_new_session=True,
                )  # fmt: skip
            # the timeout is for the run and not for loading the models
            _answer(self._worker)
        return self._worker


def _answer(worker: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The next line of a worker; None if it is gone."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    return json.loads(line) if line else None


class RaySlot:
    """An actor of a ray cluster that holds a :class:`LocalSlot` where it runs.

    Parameters
    ----------
    ray
        The package.
    root
        The folder of the benchmark, which every node must see.
    threads
        Threads of each run, for which the actor takes as many CPUs.
    """

    def __init__(self, ray: Any, root: str, threads: int) -> None:
        self.ray = ray
        path = [entry or str(Path.cwd()) for entry in sys.path]
        actor = ray.remote(num_cpus=threads, max_restarts=0)(LocalSlot)
        self.actor = actor.options(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path)}}).remote(
            root, threads, path
        )

    def do(self, run_id: str, timeout: float | None) -> Ending:
        """Do a run and wait for its end; see :meth:`LocalSlot.do`."""
        return self.ray.get(self.actor.do.remote(run_id, timeout))

    def kill(self) -> None:
        """End the actor; the run ends with it."""
        self.ray.kill(self.actor)

    def close(self) -> None:
        """End the actor."""
        self.kill()


@contextlib.contextmanager
def slots(executor: Executor, root: Path, n: int, threads: int) -> Iterator[list[LocalSlot] | list[RaySlot]]:
    """Places for runs.

    Parameters
    ----------
    executor
        "local", or "ray" for the cluster that is connected, else one on this machine.
    root
        The folder of the benchmark.
    n
        How many.
    threads
        Threads of each run.

    Yields
    ------
    The places; their processes are gone afterwards.

    Raises
    ------
    ImportError
        If ray is not installed.
    """
    made: Any
    if executor == "local":
        made = [LocalSlot(str(root), threads) for _ in range(n)]
        try:
            yield made
        finally:
            for slot in made:
                slot.close()
        return
    try:
        import ray
    except ImportError as error:
        raise ImportError(_RAY_HINT) from error
    own = not ray.is_initialized()
    if own:
        ray.init(num_cpus=n * threads, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    made = [RaySlot(ray, str(root), threads) for _ in range(n)]
    try:
        yield made
    finally:
        for slot in made:
            slot.close()
        if own:
            ray.shutdown()


def threads_of(n_jobs: int) -> int:
    """Threads of each of some runs that are done at once.

    Parameters
    ----------
    n_jobs
        How many are done at once.

    Returns
    -------
    The share of the CPUs, at least 1 and at most what OMP_NUM_THREADS says.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cpus // n_jobs)
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(most)) if most.isdigit() and int(most) > 0 else share

"""Many runs over a few slots, with what went wrong written down and how far it is shown."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ._files import write_json
from ._slots import Ending
from ._work import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ._files import Folder
    from ._slots import Slot
    from ._task import Scope, Task

_LAST_LINES: Final = 20


def carry_out(
    runs: Mapping[str, Task],
    folder: Folder,
    scope: Scope,
    places: Sequence[Slot],
    timeout: float | None,
    tell: Callable[[Task, str], None],
) -> None:
    """Do runs, each as soon as a slot is free, in their order.

    Parameters
    ----------
    runs
        The runs by id.
    folder
        Where they are recorded.
    scope
        What they share.
    places
        Where they are done.
    timeout
        Seconds after which one is ended.
    tell
        Called with each run and its status when it has ended.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupted; what was running is ended, and leaves no record.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Ending | Exception]] = queue.SimpleQueue()
    for run_id in runs:
        waiting.put(run_id)
    stop = threading.Event()

    def serve(place: Slot) -> None:
        while not stop.is_set():
            try:
                run_id = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((run_id, place.do(run_id, timeout)))
            except Exception as error:  # noqa: BLE001 - shown as the run's failure, and the others go on
                ended.put((run_id, error))

    threads = [threading.Thread(target=serve, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    try:
        for _ in runs:
            # with a timeout, because a wait without one does not hear Ctrl-C everywhere
            item = None
            while item is None:
                try:
                    item = ended.get(timeout=0.5)
                except queue.Empty:
                    continue
            run_id, ending = item
            tell(runs[run_id], _settle(run_id, runs[run_id], folder, scope, ending, timeout))
    finally:
        stop.set()
        for thread, place in zip(threads, places, strict=True):
            while thread.is_alive():
                place.kill()
                thread.join(0.2)


def _settle(
    run_id: str, task: Task, folder: Folder, scope: Scope, ending: Ending | Exception, timeout: float | None
) -> str:
    """The status of a run that has ended; one that left no record gets one that says so."""
    made, log = folder.read_record(run_id), folder.log(run_id)
    if made is None:
        why = ending.describe(timeout) if isinstance(ending, Ending) else f"{type(ending).__name__}: {ending}"
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
        failure = {"status": "failed", "reason": why, "traceback": "\n".join(last)}
        made = record(run_id, task, scope, failure)
        write_json(folder.record(run_id), made)
    if made["status"] != "failed":
        log.unlink(missing_ok=True)
    return made["status"]


@contextmanager
def shown(n_done: int, n_runs: int) -> Iterator[Callable[[Task, str], None]]:
    """Show how many runs have ended and how long the others will take; nothing where stderr is no terminal.

    Parameters
    ----------
    n_done
        Runs that had ended before.
    n_runs
        All runs.

    Yields
    ------
    Called with each run and its status when it has ended.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns: list[Any] = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("Runs", total=n_runs, completed=n_done)

        def tell(task: Task, status: str) -> None:
            progress.update(bar, advance=1)
            if status == "failed":
                progress.console.print(f"failed: {task.model} on {task.split}, seed {task.seed}", highlight=False)

        yield tell

"""The folder of a benchmark: whole files or none, and one writer at a time."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMAT: Final = 1
_SCRATCH: Final = ".tmp"


@dataclass(frozen=True)
class Folder:
    """Where everything of one benchmark lies.

    Parameters
    ----------
    root
        The folder.
    """

    root: Path

    @property
    def grid(self) -> Path:
        """What is to be run, and on what."""
        return self.root / "benchmark.json"

    @property
    def data(self) -> Path:
        """The cells, as every run reads them."""
        return self.root / "data.h5ad"

    def split(self, split_id: str) -> Path:
        """Level of every cell."""
        return self.root / "splits" / f"{split_id}.csv"

    def record(self, run_id: str) -> Path:
        """What a run made."""
        return self.root / "runs" / f"{run_id}.json"

    def trials(self, run_id: str) -> Path:
        """What a search has tried so far."""
        return self.root / "searches" / f"{run_id}.json"

    def log(self, run_id: str) -> Path:
        """What a run printed; kept only if it failed."""
        return self.root / "logs" / f"{run_id}.txt"

    def make(self) -> None:
        """Make the folders, and clear away what a killed process left half-written."""
        for name in ("runs", "splits", "searches", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for path in self.root.rglob(f".*{_SCRATCH}"):
            path.unlink(missing_ok=True)

    def read_record(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run; None if there is none, or it is not one."""
        try:
            record = json.loads(self.record(run_id).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        is_record = isinstance(record, dict) and record.get("id") == run_id and record.get("format") == FORMAT
        return record if is_record else None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, bring it to disk, then move it there: it is never seen half-written.

    Parameters
    ----------
    path
        Where it goes; replaced if it exists.
    write
        Writes it to the path it is given.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}{_SCRATCH}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    if os.name == "posix":
        # the name is safe only when the folder is on disk too
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as JSON, one line per key, whole or not at all.

    Parameters
    ----------
    path
        Where it goes.
    content
        Plain values; `nan` must have become None.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Parameters
    ----------
    root
        The folder.

    Yields
    ------
    Nothing.

    Raises
    ------
    BlockingIOError
        If another process holds it; the message names it.
    """
    with (root / "lock").open("a+", encoding="utf-8") as file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise BlockingIOError(
                f"{root} is in use by another benchmark ({file.read().strip() or 'not named'}); wait for it to end, or "
                "name another folder with `out`."
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(handle: int) -> bool:
    """Lock a file without waiting; False if another process has it."""
    try:
        import fcntl
    except ImportError:
        return _lock_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_windows(handle: int) -> bool:
    import msvcrt

    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True

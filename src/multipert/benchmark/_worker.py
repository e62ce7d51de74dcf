"""A process that has loaded the models and starts a process of its own for each run it is told of.

`python -m multipert.benchmark._worker FOLDER` writes a JSON line when it is ready, then reads one per run,
`{"id": ..., "log": ...}`, and answers with one, `{"code": ...}`. Loading the models takes many times as long as a small
run; a forked child has them at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Final, TextIO

FORKS: Final = sys.platform == "linux"
"""Elsewhere forking a process that has loaded torch is not safe, and every run loads it anew."""


def main(root: Path) -> int:
    """Serve until the other end of stdin is closed.

    Parameters
    ----------
    root
        The folder of the benchmark.

    Returns
    -------
    Exit status.
    """
    answers = os.fdopen(os.dup(1), "w")
    # what libraries print while they load must not be taken for an answer
    os.dup2(2, 1)
    from . import _work  # noqa: F401 - loads the models

    _answer(answers, {"ready": True})
    # unbuffered, so that a child finds nothing left over in it
    requests = open(0, "rb", buffering=0, closefd=False)
    while line := requests.readline():
        request = json.loads(line)
        log = Path(request["log"])
        if not FORKS:
            return _run(root, request["id"], log)
        child = os.fork()
        if child == 0:
            answers.close()
            os._exit(_run(root, request["id"], log))
        _, status = os.waitpid(child, 0)
        _answer(answers, {"code": os.waitstatus_to_exitcode(status)})
    return 0


def _answer(stream: TextIO, content: dict[str, int | bool]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def _run(root: Path, run_id: str, log: Path) -> int:
    """Do a run with all that it prints going to a file; 0 if it wrote its record."""
    from ._work import do

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    _die_with_parent()
    try:
        do(root, run_id)
    except BaseException:  # noqa: BLE001 - also a library's sys.exit, which must not look like success
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _die_with_parent() -> None:
    """End at once when the other end of stdin is closed, which happens however the process there ends."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

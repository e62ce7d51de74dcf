"""Result files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multipert._jobs._preprocess import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILES: Final = ("counterfactual.h5ad", "metrics.csv", "report.html")


def check_folder(out: Path, source: Path | None = None) -> None:
    """Refuse a folder that the result cannot be written into.

    Parameters
    ----------
    out
        The folder; need not exist.
    source
        File that the cells come from.

    Raises
    ------
    InputError
        If a file stands where a folder is needed, the folder is not writable, or a result would replace the source.
    """
    try:
        home = _nearest(out)
        for name in FILES:
            if (out / name).is_dir():
                raise InputError(f"--out: {out / name} is a folder, and a file of this name is to be written.")
            if source is not None and source.exists() and (out / name).exists() and (out / name).samefile(source):
                raise InputError(f"--out {out} holds the input {source.name}, which the result would replace.")
    except OSError as error:
        raise InputError(f"--out {out} cannot be used: {error.strerror}.") from error
    if not home.is_dir():
        raise InputError(f"--out {out} cannot be made: {home} is a file; name a folder.")
    if not os.access(home, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} is not writable (no permission in {home}); name another folder.")


def write(out: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files beside their place, then move all of them there.

    A folder that was not there appears with all its files; in one that was there, files of these names are replaced
    and others stay. When anything fails or the user interrupts, what was there is as it was.

    Parameters
    ----------
    out
        The folder.
    writers
        Name of each file, and what writes it to a path.
    """
    # inside the folder where there is one: a move between file systems would copy
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=_nearest(out)))
    try:
        whole = scratch / "result"
        whole.mkdir()
        for name, writer in writers.items():
            writer(whole / name)
        if out.is_dir():
            for name in writers:
                (whole / name).replace(out / name)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            whole.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _nearest(out: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    out = out.absolute()
    return next(path for path in (out, *out.parents) if path.exists())

"""A progress bar that shows itself only when the work takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar once a second has passed.

    Parameters
    ----------
    items
        What to iterate over.
    description
        What is being done.
    total
        How many items there are; None asks `len`.

    Yields
    ------
    The items.
    """
    from rich.progress import Progress

    if total is None and isinstance(items, Sized):
        total = len(items)
    start = time.perf_counter()
    progress, task = None, None
    try:
        for done, item in enumerate(items):
            yield item
            if progress is None and time.perf_counter() - start > 1:
                progress = Progress(transient=True)
                task = progress.add_task(description, total=total)
                progress.start()
            if progress is not None and task is not None:
                progress.update(task, completed=done + 1)
    finally:
        if progress is not None:
            progress.stop()

"""Blocks of work on plain threads, because many products of small blocks are slow on the threads of BLAS."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_info, threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# the limit is one of the process: two callers at once would restore what the other had set
_ONE_AT_A_TIME = Lock()


@contextmanager
def thread_map() -> Iterator[Callable[[Callable, Iterable], Iterable[Any]]]:
    """A `map` over as many threads as BLAS has, while BLAS itself keeps to the thread that calls it."""
    with _ONE_AT_A_TIME:
        n_threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
        with threadpool_limits(1, user_api="blas"):
            if n_threads == 1:
                yield map
                return
            with ThreadPoolExecutor(n_threads) as pool:
                yield pool.map

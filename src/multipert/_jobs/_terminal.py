"""What the reader sees in the terminal."""

from __future__ import annotations

import logging
import re
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pandas import DataFrame
    from rich.console import Console
    from rich.table import Table

    from multipert._jobs._job import Result


def steps(console: Console) -> Callable[..., AbstractContextManager[None]]:
    """What shows a step while it is done: a spinner in a terminal, a line elsewhere or where the step has a bar."""
    from rich.text import Text

    @contextmanager
    def step(what: str, *, bar: bool = False) -> Iterator[None]:
        if bar or not console.is_terminal:
            console.print(Text(what))
            yield
            return
        start = time.perf_counter()
        with console.status(Text(what)):
            yield
        console.print(Text(f"{what} ({time.perf_counter() - start:.1f} s)"))

    return step


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of libraries: what the reader should know is in the notes of the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hush_training() -> None:
    """No remarks of Lightning on devices, epochs reached and products; to be called once it is imported."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def show(result: Result, out: Path) -> None:
    """The table, the verdict and the names of the files."""
    from rich.console import Console
    from rich.text import Text

    from multipert._jobs import _output
    from multipert._jobs._summary import DEFAULT, TRUTH, truth_scores, verdict

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a pipe or file has no edge to wrap at
    console.print(_rich_table(result.scores, DEFAULT, result.job.model, f"{result.job.hold_out}, held out"))
    if result.truth is not None:
        console.print(_rich_table(truth_scores(result), TRUTH, result.job.model, "against the truth"))
    sentence, lines = verdict(result)
    console.print(Text(sentence, style="bold"))
    for line in lines:
        console.print(Text(f"- {line}"))
    for note in result.notes:
        console.print(Text(f"Note: {note}"))
    console.print()
    for name in _output.FILES:
        console.print(Text(str(out / name)), soft_wrap=True)


def _rich_table(scores: DataFrame, metrics: list[str], model: str, title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from multipert._jobs._summary import LOWER_IS_BETTER, best, number, table

    frame = table(scores, metrics)
    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("metric", no_wrap=True)
    for name in frame.columns:
        # "TwoFactor" and "no_change" take two lines, so that seven columns fit into a narrow terminal
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", "\n", str(name)) if len(str(name)) > 6 else str(name)
        made.add_column(Text(words), justify="right", vertical="bottom", style="bold" if name == model else "")
    for metric, row in frame.iterrows():
        leaders = best(row)
        cells = [Text(number(value), style="green" if name in leaders else "") for name, value in row.items()]
        made.add_row(f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}", *cells)
    return made

"""What every command shows a person: progress bars, notes, tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Results go to stdout, so that they can be piped; everything else goes to stderr.
out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars with count, elapsed and remaining time, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=notes) as progress:
        yield progress


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar from the first step on, driven by the callback that library functions take.

    A total of None stands for an unknown one.
    """
    with progress_bars() as bars:

        def tell(step: str, done: int, total: int | None) -> None:
            task = bars.task_ids[0] if bars.task_ids else bars.add_task(step, figures="")
            bars.update(task, description=step, completed=done, total=total)

        yield tell


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, in UTF-8; a reader that has enough (``| head``) ends it quietly."""
    stream = click.get_binary_stream("stdout")
    try:
        for line in lines:
            stream.write(line.encode() + b"\n")
            stream.flush()
    except BrokenPipeError:
        # What is still in the buffer goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

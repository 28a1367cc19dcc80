"""What every command shows a person: progress, notes, tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column

from trbert_deploy.plain_progress import plain_progress
from trbert_deploy.progress import Progress

#: Results go to stdout, so that they can be piped; everything else goes to stderr.
out = Console(highlight=False)
notes = Console(stderr=True, highlight=False, markup=False)  # names of files have brackets


def progress(title: str = "", *, transient: bool = False) -> AbstractContextManager[Progress]:
    """Shows what the callback is told that library functions take.

    On a terminal as bars; elsewhere (a log, a file, a pipe) as plain lines, about steps that
    take long. Colours may be forced where no terminal is: bars would fill a log all the same.

    Args:
        title: stands before every step.
        transient: no bar stays when the context ends; lines in a log do.
    """
    if has_terminal():
        return _bars(title, transient)
    return plain_progress(notes.out, title)  # which neither wraps nor colours


def has_terminal() -> bool:
    """Whether a person sees stderr as it is written."""
    return notes.file.isatty()


@contextmanager
def _bars(title: str, transient: bool) -> Iterator[Progress]:
    """A bar from the first step on.

    Another total, or fewer steps done than before, begins another bar, so that the time left is
    estimated from like steps alone. A bar of an unknown total goes when the next one begins.
    """
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # Last, and cut where the terminal ends, so that the time left is always to be seen.
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    bars = Bars(*columns, console=notes, transient=transient)

    def tell(step: str, done: int, total: int | None) -> None:
        step = f"{title}  {step}" if title else step
        last = bars.tasks[-1] if bars.tasks else None
        if last is None or total != last.total or done < last.completed:
            if last is not None and last.total is None:
                bars.remove_task(last.id)
            bars.add_task(step, total=total, completed=done)
        bars.update(bars.task_ids[-1], description=step, completed=done)
        bars.start()

    try:
        yield tell
    finally:
        if bars.tasks:  # a bar that was never begun would leave an empty line
            bars.stop()


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, in UTF-8; a reader that has enough (``| head``) ends it quietly."""
    stream = sys.stdout.buffer
    try:
        for line in lines:
            stream.write(line.encode() + b"\n")
            stream.flush()
    except BrokenPipeError:
        # What is still in the buffer goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What every command shows a person: progress bars, notes, tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

#: Results go to stdout, so that they can be piped; everything else goes to stderr.
out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


@contextmanager
def progress(title: str = "") -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar from the first step on, driven by the callback that library functions take.

    A total of None stands for an unknown one. Another total, or fewer steps done than before,
    begins another bar, so that the time left is estimated from like steps alone.
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
    bars = Progress(*columns, console=notes)

    def tell(step: str, done: int, total: int | None) -> None:
        step = f"{title}  {step}" if title else step
        last = bars.tasks[-1] if bars.tasks else None
        if last is None or total != last.total or done < last.completed:
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

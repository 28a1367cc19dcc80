"""What every command shows a person: progress bars, notes, tables. All of it on stderr or stdout."""

from __future__ import annotations

from collections.abc import Iterator
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

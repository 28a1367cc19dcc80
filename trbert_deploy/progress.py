"""How library functions tell what they are doing; the command line shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

#: Called with (what is being done, steps done, steps in all or None where that is unknown).
Progress = Callable[[str, int, int | None], None]


def no_progress(step: str, done: int, total: int | None) -> None:
    """Tell nobody."""


def told(
    step: str, items: Iterable[_T], progress: Progress, total: int | None = None
) -> Iterator[_T]:
    """The items, while ``progress`` is told how many were taken."""
    progress(step, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        progress(step, done, total)

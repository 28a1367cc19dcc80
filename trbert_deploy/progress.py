"""How library functions tell what they are doing; the command line draws bars from it."""

from __future__ import annotations

from collections.abc import Callable

#: Called with (what is being done, steps done, steps in all).
Progress = Callable[[str, int, int], None]


def no_progress(step: str, done: int, total: int) -> None:
    """Tell nobody."""

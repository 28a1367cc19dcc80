"""Tells a request's answer at which threshold it was answered, where it is not the model's own.

The service's outermost part begins to note, what runs rows notes, and an answer's headers tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_THRESHOLDS: ContextVar[list[float] | None] = ContextVar("thresholds", default=None)


@contextmanager
def noting() -> Iterator[None]:
    """Note thresholds meanwhile, in this task and those that it starts."""
    token = _THRESHOLDS.set([])
    try:
        yield
    finally:
        _THRESHOLDS.reset(token)


def note_threshold(threshold: float) -> None:
    """Rows of the request under way ran at this threshold."""
    thresholds = _THRESHOLDS.get()
    if thresholds is not None:
        thresholds.append(threshold)


def noted_threshold() -> float | None:
    """The highest at which rows of the request under way ran; None for the model's own."""
    return max(_THRESHOLDS.get() or [], default=None)

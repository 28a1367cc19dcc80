"""Options of several numbers with commas between them."""

from __future__ import annotations

from collections.abc import Callable

import click

Reader = Callable[[click.Context, click.Parameter, str], tuple[float, ...]]


def numbers(expected: str, allowed: Callable[[float], bool]) -> Reader:
    """Reads numbers that are allowed each; what others are told to be is ``expected``."""

    def read(context: click.Context, option: click.Parameter, value: str) -> tuple[float, ...]:
        try:
            found = [float(part) for part in value.split(",")]
        except ValueError:
            found = []
        if not found or not all(map(allowed, found)):
            raise click.BadParameter(f"{value!r}: expected {expected}")
        return tuple(found)

    return read

"""Whole numbers as options take them: none so large that it ends in a traceback further in."""

from __future__ import annotations

from typing import Any

import click

from trbert_deploy.bounds import expected


class Whole(click.ParamType):  # type: ignore[type-arg]
    """A whole number from ``least`` to ``most``, or one of some ``words`` instead.

    Unlike click's own ranges it leaves its bounds out of the help.
    """

    name = "n"

    def __init__(self, least: int, most: int, *words: str) -> None:
        self.least = least
        self.most = most
        self.words = words

    def convert(
        self, value: Any, option: click.Parameter | None, context: click.Context | None
    ) -> int | str:
        if value in self.words:
            return str(value)
        number = _whole(str(value))
        if number is None or not self.least <= number <= self.most:
            wanted = ", or ".join([expected(self.least, self.most), *self.words])
            self.fail(f"{value!r}: expected {wanted}", option, context)
        return number


class Wholes(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers from 1 with commas between them, such as 512,2048."""

    name = "n,n"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(
        self, value: Any, option: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        numbers = tuple(_whole(part) or 0 for part in str(value).split(","))
        if not 1 <= min(numbers) <= max(numbers) <= self.most:
            self.fail(
                f"{value!r}: expected whole numbers from 1 to {self.most:,}, such as 512,2048",
                option,
                context,
            )
        return numbers


def _whole(text: str) -> int | None:
    """The number that a text is, if it is one."""
    try:
        return int(text)
    except ValueError:
        return None

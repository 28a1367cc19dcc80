"""How large whole numbers may be that a user gives, on the command line or in Python."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from trbert_deploy.errors import ConfigError

#: More than any machine has, and what every backend counts up to.
MOST_THREADS = 1024
#: More than any text has, and what no array's arithmetic overflows with.
MOST_TOKENS = 2**31 - 1
#: Texts of one call; graphs are traced for no more rows.
MOST_TEXTS = 65536
#: Times that something is measured.
MOST_ROUNDS = 1_000_000


def require_whole(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``.

    Raises:
        ConfigError: it is none.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= most
    ):
        raise ConfigError(f"{name} is {value}: expected {expected(least, most)}")


def expected(least: int, most: int) -> str:
    """What messages call the numbers that are taken."""
    return f"a whole number from {least} to {most:,}"

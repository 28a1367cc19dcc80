"""Messages of other libraries, as one line that a terminal can show."""

from __future__ import annotations

import pytest

from trbert_deploy.errors import first_line, printable


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("  why\n  at which place\n", "why"),
        ("", "ValueError"),
        ("\n \n", "ValueError"),
        ("graph \x1b[31m\x00", "graph \ufffd[31m\ufffd"),
        ("half \ud800 of a pair", "half \ufffd of a pair"),
    ],
)
def test_first_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_what_a_terminal_shows_stays() -> None:
    assert printable("Grüße, 世界 😀") == "Grüße, 世界 😀"

"""What a person is shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trbert_deploy import console, plain_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    """What is written of a step that is due at once."""
    monkeypatch.setattr(console, "notes", Console(file=stream, width=80, highlight=False))
    monkeypatch.setattr(plain_progress, "FIRST_AFTER", 0.0)
    with console.progress("1/2 train", **options) as progress:
        for done in (1, 2):
            progress(f"joint  [loss] {'0' * 200}", done, 2)
    return stream.getvalue()


def test_without_a_terminal_there_are_whole_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many a CI has it
    lines = shown(io.StringIO(), monkeypatch).splitlines()
    assert [line[: len("1/2 train  joint  [loss] 0")] for line in lines] == [
        "1/2 train  joint  [loss] 0"
    ] * 2
    assert "  50 %  (1 of 2)  for 0:00" in lines[0] and "  100 %  (2 of 2)  in 0:00" in lines[1]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("transient", [False, True])
def test_a_terminal_has_bars(transient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch, transient=transient)
    assert "\x1b[?25l" in text and "1/2 train  joint" in text  # the cursor is hidden meanwhile
    assert "50 %" not in text
    assert text.endswith("\x1b[1A\x1b[2K") is transient  # back to the bar's line, and clear it


def test_nothing_told_is_nothing_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(console, "notes", Console(file=stream, width=80, highlight=False))
        with console.progress():
            pass
        assert stream.getvalue() == ""

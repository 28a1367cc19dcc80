"""What commands answer text by text: a line for each, to a file, a pipe or a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trbert_deploy import console

if TYPE_CHECKING:
    from trbert_deploy.runtime.tokenizing import TextTokenizer


def write_answers(
    lines: Iterable[str],
    output: Path | None,
    doing: str,
    count: Callable[[], int | None],
    *,
    waits: bool,
) -> None:
    """Write lines as they are made, with a bar unless it would stand among them.

    Args:
        output: a file, which is written whole or not at all; None for standard output.
        doing: what the bar says.
        count: how many lines there will be, as far as that can be told.
        waits: whether what is read comes when it comes: a filter has no news of waiting.
    """
    from trbert_deploy.files import staged_file
    from trbert_deploy.progress import told

    if output is None and (console.has_terminal() or waits):
        console.write_lines(lines)
        return
    with console.progress() as progress:
        progress("count texts", 0, None)
        lines = told(doing, lines, progress, count())
        if output is None:
            console.write_lines(lines)
            return
        with staged_file(output) as staging, staging.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def note_truncated(tokenizer: TextTokenizer) -> None:
    """Say how many texts were cut, if any were."""
    if tokenizer.truncated:
        console.notes.print(
            f"{tokenizer.truncated} of {tokenizer.encoded} texts were cut to "
            f"{tokenizer.max_length} tokens"
        )

"""Sample texts on disk, in a checkpoint or a bundle: a few of the texts that a model is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trbert_deploy.errors import FileFormatError
from trbert_deploy.files import read_json_lines, write_json_lines

_TEXT, _PAIR = "text", "text_pair"

#: A text, or a pair of them, as tasks take them.
Sample = str | tuple[str, str] | list[str]


def write_samples(path: Path, texts: Sequence[Sample]) -> None:
    """Write texts, one JSON object a line."""
    records = [
        {_TEXT: text} if isinstance(text, str) else dict(zip((_TEXT, _PAIR), text, strict=True))
        for text in texts
    ]
    write_json_lines(path, records)


def read_samples(path: Path, error: type[FileFormatError]) -> list[Sample]:
    """Read what ``write_samples`` wrote; earlier releases wrote lone texts.

    Raises:
        error: the file cannot be read, or a line holds no text.
    """
    texts: list[Sample] = []
    for record in read_json_lines(path, error):
        text, pair = record.get(_TEXT), record.get(_PAIR)
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise error(
                f'{path}: expected a string "{_TEXT}" in every line, "{_PAIR}" too in pairs'
            )
        texts.append(text if pair is None else (text, pair))
    return texts

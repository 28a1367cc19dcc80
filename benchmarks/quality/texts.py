"""Makes texts without labels, such as a sentence encoder is compressed with.

    python benchmarks/quality/texts.py OUTPUT FILE... [--parts FILE] [--each 5000] [--seed 0]

Files are JSONL, gzipped or not, with a field ``context``, ``text`` or ``tokens``. OUTPUT gets each
text once, at most ``--each`` random ones of a file, all in random order. Of the texts of a file of
``--parts`` it gets a run of two sentences or more besides: other texts about the same.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click
from retrieval import sentence_starts

from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json_lines
from trbert_deploy.runtime.reading.examples import no_note
from trbert_deploy.runtime.reading.formats import read_records


def texts_of(path: Path) -> list[str]:
    """The texts of a file, each once, in order.

    Raises:
        DataError: a record has none.
    """
    found: dict[str, None] = {}
    for record in read_records(path, (), no_note):
        values = record.values
        text = values.get("context") or values.get("text") or " ".join(values.get("tokens") or [])
        if not text:
            raise DataError(f"{record.name}: expected a field context, text or tokens")
        found[text] = None
    return list(found)


def part_of(text: str, generator: random.Random) -> str | None:
    """A run of two sentences or more; None where there are fewer than four."""
    starts = sentence_starts(text)
    if len(starts) < 4:
        return None
    first = generator.randrange(len(starts) - 2)
    stop = generator.randrange(first + 2, len(starts) + 1)
    return text[starts[first] : [*starts, len(text)][stop]].strip()


def gathered(files: list[Path], in_parts: list[Path], each: int, seed: int) -> list[str]:
    """The texts of all files."""
    generator = random.Random(seed)
    found = []
    for path in (*files, *in_parts):
        texts = texts_of(path)
        texts = generator.sample(texts, min(each, len(texts)))
        found += texts
        if path in in_parts:
            parts = (part_of(text, generator) for text in texts)
            found += [part for part in parts if part]
    generator.shuffle(found)
    return found


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("files", nargs=-1, type=_FILE)
@click.option("--parts", "in_parts", multiple=True, type=_FILE)
@click.option("--each", default=5000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
def main(
    output: Path, files: tuple[Path, ...], in_parts: tuple[Path, ...], each: int, seed: int
) -> None:
    """Write the texts of FILES to OUTPUT."""
    try:
        texts = gathered(list(files), list(in_parts), each, seed)
        write_json_lines(output, ({"text": text} for text in texts))
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()

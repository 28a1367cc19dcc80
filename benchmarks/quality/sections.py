"""Makes long pages of documentation with several labels: which sections has this page?

    python benchmarks/quality/sections.py --output DIR [--pages N]

A page is a run of consecutive docstrings of an installed library (those of the quickstart), 512 to
2048 tokens long. Its labels are the sections that these have (examples, references ...), whose
headings are taken out of the text, so that they have to be told by what stands in them. A section
may stand anywhere in a page. Units of source files are on one side of the split.

Writes DIR/train.jsonl, DIR/validation.jsonl and DIR/test.jsonl: text, labels.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.demo.corpus import approximate_tokens
from trbert_deploy.demo.docstrings import LIBRARIES, Library, Section, find_units, read_sections
from trbert_deploy.errors import TrbertError
from trbert_deploy.files import write_text

#: Label -> headings that say it, as numpy's, Google's and reStructuredText's docstrings have them.
HEADINGS = {
    "examples": ("Examples", "Example", "Example usage"),
    "notes": ("Notes", "Note", ".. note"),
    "parameters": ("Parameters", "Args", "Arguments", "Other Parameters"),
    "raises": ("Raises",),
    "references": ("References",),
    "returns": ("Returns", "Return"),
    "see also": ("See Also", "See also", ".. seealso"),
    "warnings": ("Warnings", "Warning", "Warns", ".. warning"),
}
#: Headings that are taken out, too, of sections too rare to be learned.
RARE = ("Attributes", "Yields", "Methods", "Todo")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SHORTEST, LONGEST = 512, 1900  # pieces of words, somewhat fewer than a tokenizer's

_LABELS = {heading: label for label, headings in HEADINGS.items() for heading in headings}
_HEADING = re.compile(
    rf"({'|'.join(map(re.escape, sorted((*_LABELS, *RARE), key=len, reverse=True)))})"
    r"(?:\s*[-=~]{3,}\s*|\s*::?(?:\s+|$))"
)


def without_headings(section: Section) -> tuple[str, set[str]]:
    """The text of a docstring without the headings of its sections, and their labels."""
    kept, labels = [], set()
    for paragraph in section.paragraphs:
        found = _HEADING.match(paragraph)
        if found:
            if found[1] in _LABELS:
                labels.add(_LABELS[found[1]])
            paragraph = paragraph[found.end() :]
        if paragraph:
            kept.append(paragraph)
    return "\n".join(kept), labels


def pages_of(sections: Sequence[Section], generator: random.Random) -> Iterator[dict[str, Any]]:
    """Runs of docstrings as pages; what is left too short for one is left out."""
    texts: list[str] = []
    labels: set[str] = set()
    length, wanted = 0, generator.uniform(SHORTEST, LONGEST)
    for section in sections:
        text, found = without_headings(section)
        tokens = approximate_tokens(text)
        if not text or tokens > LONGEST:
            continue
        if length + tokens > LONGEST or length >= wanted:
            if length >= SHORTEST:
                yield {"text": "\n".join(texts), "labels": sorted(labels)}
            texts, labels, length = [], set(), 0
            wanted = generator.uniform(SHORTEST, LONGEST)
        texts.append(text)
        labels |= found
        length += tokens
    if length >= SHORTEST:
        yield {"text": "\n".join(texts), "labels": sorted(labels)}


def pages_by_unit(library: Library, seed: int) -> list[list[dict[str, Any]]]:
    """The pages of each unit of a library, in random order of the units."""
    generator = random.Random(f"{seed} {library.label}")
    units = [list(pages_of(read_sections(u, library), generator)) for u in find_units(library)]
    generator.shuffle(units)
    return [unit for unit in units if unit]


def split(units: Sequence[list[dict[str, Any]]], pages: int) -> dict[str, list[dict[str, Any]]]:
    """Pages of whole units for each split, in the proportion of ``SHARES``; ``pages`` at most."""
    rest = iter(units)
    parts: dict[str, list[dict[str, Any]]] = {}
    available = min(pages, sum(map(len, units)))
    for name in ("test", "validation", "train"):
        part: list[dict[str, Any]] = []
        for unit in rest:
            part += unit
            if len(part) >= SHARES[name] * available:
                break
        parts[name] = part
    return parts


@click.command(help=__doc__)
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--pages", default=1200, show_default=True, type=click.IntRange(min=60))
@click.option("--seed", default=0, show_default=True)
def main(output: Path, pages: int, seed: int) -> None:
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in SHARES}
    try:
        with console.progress() as progress:
            for done, library in enumerate(LIBRARIES):
                progress("read documentation", done, len(LIBRARIES))
                found = split(pages_by_unit(library, seed), pages // len(LIBRARIES))
                for name, part in found.items():
                    parts[name] += part
        for name, part in parts.items():
            random.Random(f"{seed} {name}").shuffle(part)
            lines = [json.dumps(page, ensure_ascii=False) + "\n" for page in part]
            write_text(output / f"{name}.jsonl", "".join(lines))
            counts = Counter(label for page in part for label in page["labels"])
            told = ", ".join(f"{label} {counts[label]}" for label in HEADINGS)
            console.out.print(f"{name}: {len(part)} pages; {told}", soft_wrap=True)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()

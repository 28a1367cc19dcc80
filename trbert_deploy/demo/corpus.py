"""The quickstart's data: which library does this page of documentation describe?

Real English text with real labels, made offline in seconds from the packages beside this one.
The choices that make it a fair exercise in dropping tokens:

- A page is a run of consecutive paragraphs, with the headings that a reference manual prints: a
  title over each module, dotted names over classes and functions, bare names over methods. Pages
  start at any paragraph, so what tells the library stands anywhere in them: in headings, in
  imports of examples, in terms such as ``digraph`` or ``ndarray``. The first words alone do not
  always tell, and no single word always does.
- Names are left in the text, and mislead too: more than half of the Transformers pages also name
  torch, and half of the Python pages never say Python.
- All text of one unit of source files is on one side of the split, and a paragraph that nearly
  repeats an earlier one, of any library, is left out, so no test page has a twin in training.
- Pages have the same range of lengths for every label, and each label is equally frequent.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trbert_deploy.demo.docstrings import LIBRARIES, Library, Unit, find_units, read_sections
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.files import staged_file
from trbert_deploy.progress import Progress, no_progress

LABELS = tuple(library.label for library in LIBRARIES)
SPLITS = ("train", "validation", "test")

#: Number of tokens of a text, without special tokens; ``approximate_tokens`` or a tokenizer's.
TokenCount = Callable[[str], int]

_SHINGLE = 8  # words
_PIECES = re.compile(r"[A-Za-z]{1,6}|[0-9]{1,3}|[^\sA-Za-z0-9]")


@dataclass(frozen=True)
class Page:
    """One text; ``module`` names the source file at the head of the unit that it comes from."""

    text: str
    label: str
    module: str


@dataclass(frozen=True)
class Corpus:
    """Pages in shuffled order, each label equally often; no unit gives pages to two splits."""

    train: tuple[Page, ...]
    validation: tuple[Page, ...]
    test: tuple[Page, ...]


@dataclass(frozen=True)
class CorpusOptions:
    """Sizes of a corpus: pages of each split over all labels, and tokens of a page.

    Page lengths lie between ``min_tokens`` and ``max_tokens``, and have a long tail: a page
    of at least n tokens is about half as frequent as one of at least n / 2.

    Raises:
        ConfigError: a size is out of range, or a count is no multiple of the number of labels.
    """

    train: int = 600
    validation: int = 120
    test: int = 240
    min_tokens: int = 100
    max_tokens: int = 2400
    pages_per_unit: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            count = getattr(self, split)
            if count < 1 or count % len(LABELS):
                raise ConfigError(
                    f"{split} is {count} pages: expected a positive multiple of {len(LABELS)}, "
                    f"the number of labels"
                )
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ConfigError(
                f"pages of {self.min_tokens} to {self.max_tokens} tokens: "
                f"expected 1 <= min_tokens <= max_tokens"
            )
        if self.pages_per_unit < 1:
            raise ConfigError(f"pages_per_unit is {self.pages_per_unit}: expected at least 1")


def approximate_tokens(text: str) -> int:
    """About the number of word pieces of a BERT tokenizer for technical English."""
    return sum(1 for _ in _PIECES.finditer(text))


def build_corpus(
    options: CorpusOptions,
    count_tokens: TokenCount = approximate_tokens,
    progress: Progress = no_progress,
) -> Corpus:
    """Make the corpus; the same for the same options and the same installed versions.

    Raises:
        MissingDependencyError: a documented library is not installed.
        DataError: a library has too little documentation for the pages asked for.
    """
    splits: dict[str, list[Page]] = {split: [] for split in SPLITS}
    originals = _Originals()
    wanted = {split: getattr(options, split) // len(LABELS) for split in SPLITS}
    total = sum(wanted.values())
    for done, library in enumerate(LIBRARIES):
        progress("read documentation", done, len(LIBRARIES))
        units = find_units(library)
        random.Random(f"{options.seed} {library.label}").shuffle(units)
        remaining = iter(units)
        found = 0
        for split in reversed(SPLITS):  # the test pages first: they show the most modules
            pages: list[Page] = []
            for unit in remaining:
                pages += _pages(unit, library, options, count_tokens, originals)
                if len(pages) >= wanted[split]:
                    break
            found += len(pages)
            if len(pages) < wanted[split]:
                raise DataError(
                    f"the documentation of {library.title} gives {found} pages of {total}: "
                    f"ask for fewer pages, shorter pages or more pages_per_unit"
                )
            splits[split] += pages[: wanted[split]]
    progress("read documentation", len(LIBRARIES), len(LIBRARIES))
    for split, pages in splits.items():
        random.Random(f"{options.seed} {split}").shuffle(pages)
    return Corpus(**{split: tuple(pages) for split, pages in splits.items()})


def write_corpus(corpus: Corpus, directory: Path) -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``: text, label and module."""
    for split in SPLITS:
        pages: tuple[Page, ...] = getattr(corpus, split)
        with staged_file(directory / f"{split}.jsonl") as staging:
            lines = (json.dumps(asdict(page), ensure_ascii=False) + "\n" for page in pages)
            staging.write_text("".join(lines), encoding="utf-8")


class _Originals:
    """Lets a paragraph pass unless it nearly repeats earlier ones, of any library or split.

    A near-copy has more than half of its runs of 8 words in common with what was seen before.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_new(self, paragraph: str) -> bool:
        words = re.findall(r"[a-z]+", paragraph.lower())
        runs = {
            hash(tuple(words[start : start + _SHINGLE]))
            for start in range(max(1, len(words) - _SHINGLE + 1))
        }
        repeated = len(runs & self._seen)
        self._seen |= runs
        return repeated <= len(runs) / 2


def _pages(
    unit: Unit,
    library: Library,
    options: CorpusOptions,
    count_tokens: TokenCount,
    originals: _Originals,
) -> list[Page]:
    """Up to ``pages_per_unit`` pages, from anywhere in the unit."""
    generator = random.Random(f"{options.seed} {library.label} {unit.name}")
    paragraphs = [(text, count_tokens(text)) for text in _paragraphs(unit, library, originals)]
    texts = list(_runs(paragraphs, options, generator))
    chosen = generator.sample(texts, min(options.pages_per_unit, len(texts)))
    return [Page(text, library.label, unit.name) for text in chosen]


def _runs(
    paragraphs: list[tuple[str, int]], options: CorpusOptions, generator: random.Random
) -> Iterator[str]:
    """Cut (paragraph, tokens) into consecutive texts, each of a length drawn at random."""
    run: list[str] = []
    length, target = 0, _draw_length(options, generator)
    for text, tokens in paragraphs:
        if tokens > options.max_tokens:
            continue
        if length >= target or length + tokens > options.max_tokens:
            if length >= options.min_tokens:
                yield "\n".join(run)
            run, length, target = [], 0, _draw_length(options, generator)
        run.append(text)
        length += tokens
    if length >= options.min_tokens:
        yield "\n".join(run)


def _draw_length(options: CorpusOptions, generator: random.Random) -> float:
    """Tokens of a page: the inverse of a uniform number, so twice as long is half as frequent."""
    return 1.0 / generator.uniform(1.0 / options.max_tokens, 1.0 / options.min_tokens)


def _paragraphs(unit: Unit, library: Library, originals: _Originals) -> Iterator[str]:
    """Paragraphs worth reading, the first of each section under the section's heading."""
    for section in read_sections(unit, library):
        kept = [each for each in section.paragraphs if _is_text(each) and originals.is_new(each)]
        for place, paragraph in enumerate(kept):
            yield paragraph if place else f"{section.heading}\n{paragraph}"


def _is_text(paragraph: str) -> bool:
    """Whether letters are most of it: tables of numbers, drawings and formulas are not."""
    return 2 * sum(map(str.isalpha, paragraph)) > len(paragraph)

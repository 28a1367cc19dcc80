"""The quickstart's corpus: balanced, split by module, free of copies, the same for a seed."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pytest

from trbert_deploy.demo import docstrings
from trbert_deploy.demo.corpus import (
    LABELS,
    SPLITS,
    Corpus,
    CorpusOptions,
    Page,
    _Originals,
    approximate_tokens,
    build_corpus,
    write_corpus,
)
from trbert_deploy.demo.docstrings import Library, Section, find_units, read_sections
from trbert_deploy.errors import ConfigError, DataError, MissingDependencyError

SMALL = CorpusOptions(train=36, validation=12, test=24)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(SMALL)


def pages(corpus: Corpus) -> list[Page]:
    return [*corpus.train, *corpus.validation, *corpus.test]


def test_every_split_has_the_size_asked_for_and_is_balanced(corpus: Corpus) -> None:
    for split in SPLITS:
        labels = Counter(page.label for page in getattr(corpus, split))
        assert labels == dict.fromkeys(LABELS, getattr(SMALL, split) // len(LABELS))


def test_labels_are_mixed_not_sorted(corpus: Corpus) -> None:
    labels = [page.label for page in corpus.train]
    assert labels != sorted(labels, key=LABELS.index)


def test_same_seed_same_corpus_other_seed_other_corpus(corpus: Corpus) -> None:
    assert build_corpus(SMALL) == corpus
    other = build_corpus(CorpusOptions(train=36, validation=12, test=24, seed=1))
    assert other.test != corpus.test


def test_no_module_gives_pages_to_two_splits(corpus: Corpus) -> None:
    modules = [{page.module for page in getattr(corpus, split)} for split in SPLITS]
    for one, other in combinations(modules, 2):
        assert not one & other


def test_modules_belong_to_the_labelled_library(corpus: Corpus) -> None:
    for page in pages(corpus):
        if page.label == "python":
            assert page.module.partition(".")[0] in sys.stdlib_module_names
        else:
            assert page.module.partition(".")[0] == page.label


def test_lengths_spread_over_the_range(corpus: Corpus) -> None:
    lengths = sorted(approximate_tokens(page.text) for page in pages(corpus))
    assert lengths[0] >= SMALL.min_tokens
    assert lengths[-1] <= SMALL.max_tokens
    assert lengths[len(lengths) // 2] < 400  # most are short
    assert lengths[-len(lengths) // 20] > 900  # some are long


def test_the_count_given_decides_the_lengths() -> None:
    def words(text: str) -> int:
        return len(text.split())

    options = CorpusOptions(train=6, validation=6, test=6, min_tokens=20, max_tokens=30)
    for page in pages(build_corpus(options, count_tokens=words)):
        assert 20 <= words(page.text) <= 30


def test_no_paragraph_of_a_test_page_stands_in_training(corpus: Corpus) -> None:
    def paragraphs(split: tuple[Page, ...]) -> set[str]:
        lines = (line for page in split for line in page.text.split("\n"))
        return {line for line in lines if len(line.split()) >= 8 and "(" not in line}

    assert paragraphs(corpus.test)
    assert not paragraphs(corpus.test) & paragraphs(corpus.train)
    texts = [page.text for page in pages(corpus)]
    assert len(set(texts)) == len(texts)


def test_near_copies_are_recognized() -> None:
    originals = _Originals()
    text = "the encoder of this model reads tokens and gives one vector for each token of the text"
    assert originals.is_new(text)
    assert not originals.is_new(text)
    assert not originals.is_new(f"  {text.upper()}!  (17)")
    assert not originals.is_new(f"{text} again")
    assert originals.is_new("a graph is a set of nodes and a set of edges between pairs of nodes")


def test_progress_ends_at_its_total() -> None:
    steps: list[tuple[str, int, int]] = []
    build_corpus(CorpusOptions(6, 6, 6), progress=lambda *step: steps.append(step))
    assert steps[0] == ("read documentation", 0, len(LABELS))
    assert steps[-1] == ("read documentation", len(LABELS), len(LABELS))


def test_written_files_hold_the_pages(corpus: Corpus, tmp_path: Path) -> None:
    write_corpus(corpus, tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    for split in SPLITS:
        lines = (tmp_path / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [asdict(p) for p in getattr(corpus, split)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 100}, "train is 100 pages: expected a positive multiple of 6"),
        ({"test": 0}, "test is 0 pages: expected a positive multiple of 6"),
        ({"min_tokens": 0}, "expected 1 <= min_tokens <= max_tokens"),
        ({"min_tokens": 300, "max_tokens": 200}, "pages of 300 to 200 tokens"),
        ({"pages_per_unit": 0}, "pages_per_unit is 0: expected at least 1"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CorpusOptions(**changes)


def test_more_pages_than_a_library_has_are_refused(
    sample_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trbert_deploy.demo.corpus.LIBRARIES", (sample_library,))
    with pytest.raises(DataError, match=r"documentation of Sample gives 0 pages of 160: ask for"):
        build_corpus(CorpusOptions())


@pytest.mark.parametrize("library", docstrings.LIBRARIES[:-1], ids=lambda each: each.label)
def test_a_missing_package_is_named_with_its_extra(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        find_units(library)
    assert f"package {library.package}, which is not installed" in str(caught.value)
    assert f"pip install 'trbert-deploy[{library.extra}]'" in str(caught.value)


def test_a_library_without_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="source files of Python are missing"):
        find_units(Library("python", "Python", None))


SOURCE = '''
"""What the module is for.

A second
paragraph.
"""

class Shape:
    """A shape."""

    def area(self, unit, *, digits=2):
        """Its area."""

    def _hidden(self):
        """Not for users."""

if True:
    async def draw(*shapes, **style):
        """Draw \\d shapes."""

add_newdoc("sample", "compiled", """
Attached {place}text.
""")
scale = _add_docstr(sample.scale, r"""
Scaled.
""".format())
other("no", """
documentation
""")
'''


@pytest.fixture
def sample_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A package named sample whose import would fail."""
    package = tmp_path / "sample"
    for folder in ("tests", "models/one", "models/two"):
        (package / folder).mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "shapes.py").write_text(SOURCE)
    (package / "broken.py").write_text("def (:\n")
    (package / "tests" / "test_it.py").write_text('"""A test."""\n')
    for model in ("one", "two"):
        for name in ("big", "small"):
            text = f'"""Module {name} of {model}."""\n' + "#" * 30_000
            (package / "models" / model / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return Library("sample", "Sample", "sample", "demo", whole="models")


def test_units_join_small_neighbours_and_whole_directories(sample_library: Library) -> None:
    units = {unit.name: [path.name for path in unit.files] for unit in find_units(sample_library)}
    assert units == {
        "sample": ["__init__.py", "broken.py", "shapes.py"],
        "sample.models.one.big": ["big.py", "small.py"],
        "sample.models.two.big": ["big.py", "small.py"],
    }


def test_sections_in_file_order_with_headings(sample_library: Library) -> None:
    unit = find_units(sample_library)[0]
    assert read_sections(unit, sample_library) == [
        Section(
            "sample.shapes — Sample documentation",
            ("What the module is for.", "A second paragraph."),
        ),
        Section("class sample.shapes.Shape", ("A shape.",)),
        Section("area(unit, digits)", ("Its area.",)),
        Section("sample.shapes.draw(*shapes, **style)", ("Draw \\d shapes.",)),
        Section("sample.compiled", ("Attached text.",)),
        Section("sample.scale", ("Scaled.",)),
    ]
    assert "sample" not in sys.modules

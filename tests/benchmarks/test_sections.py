"""Pages of several labels: headings say them, and are gone from the text."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import sections
from click.testing import CliRunner

from trbert_deploy.demo.docstrings import LIBRARIES, Section

NUMPY = Section(
    "numpy.f(x)",
    (
        "Compute something of the examples that are given.",
        "Parameters ---------- x : array_like What is taken.",
        "Examples -------- >>> f(1)",
        "Yields ------ int",
    ),
)
GOOGLE = Section("torch.g(x)", ("Does it.", "Args: x: What.", "Returns: Another.", "Example::"))
RST = Section("os.h()", ("Says so.", ".. note:: Only on Unix.", "Note that it may fail."))


@pytest.mark.parametrize(
    ("section", "text", "labels"),
    [
        (
            NUMPY,
            "Compute something of the examples that are given.\nx : array_like What is taken.\n"
            ">>> f(1)\nint",
            {"parameters", "examples"},
        ),
        (GOOGLE, "Does it.\nx: What.\nAnother.", {"parameters", "returns", "examples"}),
        (RST, "Says so.\nOnly on Unix.\nNote that it may fail.", {"notes"}),
    ],
)
def test_headings_become_labels(section: Section, text: str, labels: set[str]) -> None:
    assert sections.without_headings(section) == (text, labels)


def test_pages_are_long_enough_and_have_the_labels_of_all_their_docstrings() -> None:
    words = "A paragraph of many words, one behind the other. " * 20
    part = [
        Section("f", (words, "Raises ------ ValueError")),
        *[Section("g", (words,))] * 20,
        Section("h", (words, "References ---------- [1] A book.")),
    ]
    pages = list(sections.pages_of(part, Random(0)))
    assert len(pages) > 1
    for page in pages:
        assert sections.SHORTEST <= sections.approximate_tokens(page["text"]) <= sections.LONGEST
    assert pages[0]["labels"] == ["raises"]
    assert all("----" not in page["text"] for page in pages)


def test_units_are_on_one_side_of_the_split() -> None:
    units = [[{"text": f"{unit} {page}", "labels": []} for page in range(3)] for unit in range(20)]
    parts = sections.split(units, 50)
    found = {name: {page["text"].split()[0] for page in part} for name, part in parts.items()}
    assert not found["train"] & found["test"] and not found["validation"] & found["test"]
    assert not found["train"] & found["validation"]
    assert 10 <= len(parts["test"]) <= 12 and len(parts["train"]) <= 36


def test_the_command_writes_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sections, "LIBRARIES", [each for each in LIBRARIES if each.label == "networkx"]
    )
    options = ["--output", str(tmp_path), "--pages", "60"]
    done = CliRunner().invoke(sections.main, options)
    assert done.exit_code == 0, done.output
    for name in sections.SHARES:
        text = (tmp_path / f"{name}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines and all(set(page["labels"]) <= set(sections.HEADINGS) for page in lines)

"""What stands in one place alone: read off the source itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trbert_deploy"

#: What -> (pattern, where it may stand).
ONE_PLACE = {
    "labels compared by argmax": (
        r"argmax",
        ("tasks/", "modeling/heads/", "evaluation/sweep.py", "alignment/methods.py"),  # of places
    ),
    "cross-entropy": (r"(?<!binary_)cross_entropy\b(?!_with)", ("modeling/heads/",)),
    "names of transformers' modules": (
        r"attention\.self|word_embeddings|Wqkv|q_lin|ForSequenceClassification\"",
        ("modeling/families/", "modeling/checkpoints/adapters.py"),  # which shows a line to run
    ),
    "the first token survives": (r"def first_token\b", ("selection/select.py",)),
    "whole rows' positions": (r"arange\(length, device=device\) for", ("modeling/layouts/",)),
}


@pytest.mark.parametrize("what", ONE_PLACE)
def test_it_stands_in_one_place(what: str) -> None:
    pattern, places = ONE_PLACE[what]
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert found, "the pattern finds nothing any more"
    assert {name for name in found if not name.startswith(places)} == set()

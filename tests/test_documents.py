"""The documents: the README is short, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MOST_LINES = 119


def prose(document: Path) -> str:
    """A document without its code, in which brackets are no links and # heads nothing."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"^ {4}.*$", "", text, flags=re.M)


def anchors_of(document: Path) -> set[str]:
    """What GitHub calls the headings: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(document), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    """The relative links of a document that lead to no file, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", prose(document))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    return dead


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    assert dead_links(document) == []


def test_the_readme_leads_to_every_document() -> None:
    links = re.findall(r"\]\((docs/[^()#\s]+\.md)", prose(ROOT / "README.md"))
    assert set(links) == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# 1. A heading\n\n    # no heading\n")
    document = tmp_path / "page.md"
    document.write_text(
        "## How to `do` it\n[a](other.md) [b](other.md#1-a-heading) [c](#how-to-do-it)\n"
        "[d](https://example.org/x) `[e](nowhere.md)` ![f](gone.png)\n[g](other.md#no-heading)\n"
        "[h](#nothing) [`i`](missing.md)\n\n    [j](code.md)\n"
    )
    assert dead_links(document) == ["gone.png", "other.md#no-heading", "#nothing", "missing.md"]

"""Which phrases of a lexicon stand in a text, as whole words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.lexicon.entries import Entry

#: Scripts that are written without spaces: a word may begin and end at any of their letters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


class Match(NamedTuple):
    """A phrase that was found in a text.

    Attributes:
        start, end: its first letter, and the one behind it.
        tag: of its entry.
    """

    start: int
    end: int
    tag: str


class Matcher(Protocol):
    """What finds phrases."""

    def find(self, text: str) -> list[Match]:
        """All that are in a text: in its order, longer ones first, each once."""
        ...


class Lexicon:
    """Entries that texts are searched for, by an automaton after Aho and Corasick.

    A phrase is found letter by letter as it was given: upper and lower case differ. It must begin
    and end where a word does. Phrases that overlap, or are part of others, are all found.

    Args:
        entries: any number; a phrase may have several tags.

    Raises:
        MissingDependencyError: the package that searches is not installed.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        try:
            from ahocorasick_rs import AhoCorasick, Implementation
        except ModuleNotFoundError:
            raise MissingDependencyError("a lexicon", "ahocorasick_rs", "lexicon") from None
        tags: dict[str, tuple[str, ...]] = {}
        for phrase, tag in entries:
            known = tags.get(phrase, ())
            if tag not in known:
                tags[phrase] = (*known, tag)
        self._tags: Sequence[tuple[str, ...]] = list(tags.values())
        # Of a million phrases the contiguous automaton takes less than half of what others take.
        self._automaton = AhoCorasick(
            list(tags), implementation=Implementation.ContiguousNFA, store_patterns=False
        )

    def __len__(self) -> int:
        """How many phrases there are."""
        return len(self._tags)

    def find(self, text: str) -> list[Match]:
        """All phrases of the lexicon in a text."""
        found = [
            Match(start, end, tag)
            for phrase, start, end in self._automaton.find_matches_as_indexes(
                text, overlapping=True
            )
            if is_boundary(text, start) and is_boundary(text, end)
            for tag in self._tags[phrase]
        ]
        return sorted(found, key=_in_order)


class Matchers:
    """What several lexicons find."""

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        self._matchers = tuple(matchers)

    def find(self, text: str) -> list[Match]:
        """All phrases of any of them in a text."""
        found = {match for matcher in self._matchers for match in matcher.find(text)}
        return sorted(found, key=_in_order)


def _in_order(match: Match) -> tuple[int, int, str]:
    return match.start, -match.end, match.tag


def is_boundary(text: str, place: int) -> bool:
    """Whether a word may begin or end before the letter at ``place``: both sides are not of one."""
    if place <= 0 or place >= len(text):
        return True
    return not (_is_of_word(text[place - 1]) and _is_of_word(text[place]))


@lru_cache(maxsize=1 << 14)
def _is_of_word(letter: str) -> bool:
    """Whether a letter goes on with the word of its neighbour: letters, digits, and their marks."""
    return unicodedata.category(letter)[0] in "LNM" and not _UNSPACED.match(letter)

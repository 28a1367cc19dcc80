"""What is aligned of a text: its words, or its characters, and the tokens of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\S+")

#: First letter of a part of a text, and the one behind it.
Span = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """A part of a text that is aligned as one.

    Attributes:
        index: of a word, which one of the text's it is; of characters, where they begin.
        start, end: its first letter in the text, and the one behind it.
        text: what stands there.
        tokens: [T] int64, places of its tokens in the row.
    """

    index: int
    start: int
    end: int
    text: str
    tokens: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "start": self.start, "end": self.end, "text": self.text}


def words_of(text: str, encoding: Any) -> list[Place]:
    """The words of a text, which spaces part, as data for word alignment has them.

    A token that reaches into two words counts for both. Words without a token (of letters that the
    tokenizer removes, or behind the length where the text was cut) are left out; ``index`` counts
    them.

    Args:
        encoding: of this text alone, as the tokenizers library gives it.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    tokens = list(_tokens_of(text, encoding))
    places, first = [], 0
    for index, (start, end) in enumerate(words):
        while first < len(tokens) and tokens[first][1][1] <= start:
            first += 1
        inside, last = [], first
        while last < len(tokens) and tokens[last][1][0] < end:
            inside.append(tokens[last][0])
            last += 1
        if inside:
            places.append(_place(index, (start, end), text, inside))
    return places


def characters_of(text: str, encoding: Any) -> list[Place]:
    """The characters of a text, as far as its tokens part them.

    What one token covers is one place, which is a character where tokens are characters, or less
    (bytes). Characters that no token covers, such as spaces, are left out.

    Args:
        encoding: as ``words_of`` takes it.
    """
    groups: list[tuple[Span, list[int]]] = []
    for token, (start, end) in _tokens_of(text, encoding):
        if groups and start < groups[-1][0][1]:
            (first, last), tokens = groups[-1]
            groups[-1] = ((first, max(last, end)), [*tokens, token])
        else:
            groups.append(((start, end), [token]))
    return [_place(span[0], span, text, tokens) for span, tokens in groups]


#: Name -> what is aligned at this level.
LEVELS: dict[str, Callable[[str, Any], list[Place]]] = {
    "words": words_of,
    "characters": characters_of,
}


def _tokens_of(text: str, encoding: Any) -> Iterator[tuple[int, Span]]:
    """Tokens with letters in the text, by their places in the row, and where these letters are.

    Some tokenizers count the space before a word as part of its token.
    """
    pairs = zip(encoding.offsets, encoding.sequence_ids, strict=True)
    for token, ((start, end), owner) in enumerate(pairs):
        letters = text[start:end]
        if owner is not None and letters.strip():
            behind = len(letters) - len(letters.rstrip())
            yield token, (end - len(letters.lstrip()), end - behind)


def _place(index: int, span: Span, text: str, tokens: Sequence[int]) -> Place:
    return Place(index, *span, text[slice(*span)], np.array(tokens, np.int64))

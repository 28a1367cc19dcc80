"""The part of a long text that decides which tokens it is cut to."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from trbert_deploy.runtime.endless_runs import endless_runs

#: Characters for each token: texts of up to ``_SHORT`` of them are encoded as they are, longer ones
#: from ``_FIRST`` on.
_SHORT, _FIRST = 16, 2
#: Words between the tokens that are used and the place where a text was cut.
_WORDS = 2
_BEGINNING_OF_SPACES = re.compile(r"(?<=\S)\s")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Excerpt:
    """What is encoded in a text's place.

    Attributes:
        text: one or several pieces of it.
        complete: it gives all tokens of the text; otherwise as many as were wanted, and more.
        start: the place of its beginning in the text that ``left_out`` speaks of.
        left_out: (place, characters left out there and before), ascending.
    """

    text: str
    complete: bool = True
    start: int = 0
    left_out: tuple[tuple[int, int], ...] = ()

    def origin(self, place: int) -> int:
        """A place in the excerpt -> the same in the whole text."""
        place += self.start
        found = bisect_right(self.left_out, place, key=lambda gap: gap[0])
        return place + (self.left_out[found - 1][1] if found else 0)


class Excerpts:
    """Finds excerpts, with one tokenizer.

    A text is cut anywhere and encoded. If two more words and the longest added token lie between
    the tokens that are wanted and the cut, these are the tokens of the whole text, since words are
    encoded each on its own. Otherwise twice as much of the text is tried, up to all of it. So the
    cost depends on the number of tokens, but for:

    - a single word without end (Chinese for a Unigram tokenizer, say): it is encoded whole. The
      first token of a row of letters may depend on how many there are;
    - spaces without end, for tokenizers that make no tokens of them. BERT's are known well enough
      to shorten these, and words of Latin, Cyrillic or Korean letters, kana and digits that are
      so long as to be unknown;
    - two long texts as a pair, where one token more belongs to the longer of them: the shorter
      one is counted.

    Patterns of a tokenizer's own are taken to look no further than over two words and a space.

    Args:
        tokenizer: with its truncation set, or without.
        side: which side is cut: right, or left.
        max_length: most tokens of a row.
    """

    def __init__(self, tokenizer: Tokenizer, side: str, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._left = side == "left"
        self._max_length = max_length
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._longest = max(map(len, added), default=0)
        parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
        written = json.dumps([part and json.loads(part.__getstate__()) for part in parts])
        self._patterns = any(f'"{name}"' in written for name in ("Regex", "Split"))
        # What counts from the beginning on has to begin there.
        self._anchored = self._left and (
            '"FixedLength"' in written or any(re.search(r"\S\s|\s\S", token) for token in added)
        )
        self._runs = endless_runs(tokenizer)

    def of(self, text: str, check: Callable[[str], None], tokens: int | None = None) -> Excerpt:
        """An excerpt that gives the text's first ``tokens`` tokens (or its last) and more, or all.

        Args:
            check: told what is about to be encoded; raises if that is no text.
            tokens: the maximum length by default.
        """
        wanted = self._max_length if tokens is None else tokens
        if self._anchored or len(text) <= _SHORT * wanted:
            return Excerpt(text)
        size = _FIRST * wanted
        found = self._cut(text, size, wanted, check)
        if found is not None:
            return found
        shorter, left_out = (text, ()) if self._runs is None else self._runs.shortened(text)
        while (size := 2 * size) < len(shorter):
            found = self._cut(shorter, size, wanted, check, left_out)
            if found is not None:
                return found
        return Excerpt(shorter, left_out=left_out)

    def of_texts(self, texts: tuple[str, ...], check: Callable[[str], None]) -> tuple[Excerpt, ...]:
        """Excerpts of a text alone, or of a pair, the longer of which is cut first."""
        parts = [self.of(text, check) for text in texts]
        if len(parts) == 1 or all(part.complete for part in parts):
            return tuple(parts)
        room = self._max_length - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if room % 2 == 0 or not self._tokenizer.truncation:
            return tuple(parts)
        wanted = self._max_length
        while not any(part.complete for part in parts):
            wanted *= 2
            parts = [self.of(text, check, wanted) for text in texts]
        known = 0 if parts[0].complete else 1
        count = self._count(parts[known], check)
        if count <= room:
            return tuple(parts)
        # Both are cut to half of an odd room, and the longer one gets the token that is left over.
        other = self.of(texts[1 - known], check, count)
        counts = [count, self._count(other, check)]
        longer = 0 if counts[known] > counts[1 - known] else 1
        return self._in_order(texts, longer, check)

    def _in_order(
        self, texts: tuple[str, ...], longer: int, check: Callable[[str], None]
    ) -> tuple[Excerpt, ...]:
        """Excerpts of a pair, of which that of the longer one gives more tokens, too.

        The words that a cut breaks may give an excerpt more tokens than its text has.
        """
        wanted = self._max_length
        while True:
            less = self.of(texts[1 - longer], check, wanted)
            count = self._count(less, check)
            more = self.of(texts[longer], check, max(count, self._max_length))
            if less.complete or not more.complete or self._count(more, check) > count:
                return (less, more) if longer else (more, less)
            wanted *= 2

    def restored(self, encoding: Encoding, parts: tuple[Excerpt, ...]) -> Encoding:
        """An encoding of excerpts, with its offsets in the whole texts.

        Words of a text that was cut from the left are counted from the excerpt's beginning on.
        """
        if not any(part.start or part.left_out for part in parts):
            return encoding
        described = json.loads(encoding.__getstate__())
        described["offsets"] = [
            offsets if owner is None else [parts[owner].origin(place) for place in offsets]
            for offsets, owner in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]
        restored = Encoding()
        restored.__setstate__(json.dumps(described).encode())
        return restored

    def _count(self, part: Excerpt, check: Callable[[str], None]) -> int:
        """How many tokens an excerpt gives."""
        check(part.text)
        return len(self._tokens(part.text)[0])

    def _cut(
        self,
        text: str,
        size: int,
        wanted: int,
        check: Callable[[str], None],
        left_out: tuple[tuple[int, int], ...] = (),
    ) -> Excerpt | None:
        """An excerpt of about ``size`` characters, if that is enough of the text."""
        start = 0
        if self._left:
            begins = _BEGINNING_OF_SPACES.search(text, len(text) - size)
            if begins is None:
                return None
            start = begins.start()
        part = text[start:] if self._left else text[:size]
        check(part)
        places, words = self._tokens(part)
        if len(places) <= wanted:
            return None
        if self._left:
            between = part[: places[-wanted][0]]
            enough = words[-wanted] - words[0] >= _WORDS
        else:
            between = part[places[wanted - 1][1] :]
            enough = words[-1] - words[wanted - 1] >= _WORDS
        if not enough or len(between) <= self._longest:
            return None
        if self._patterns and not _SPACE.search(between):
            return None
        return Excerpt(part, False, start, left_out)

    def _tokens(self, text: str) -> tuple[list[tuple[int, int]], list[Any]]:
        """Offsets and words of a text's own tokens, all of them, in order."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        chunks = [encoding, *encoding.overflowing]
        if self._left:  # what was cut off follows in the order in which it was cut
            chunks.reverse()
        places = [place for chunk in chunks for place in chunk.offsets]
        return places, [word for chunk in chunks for word in chunk.word_ids]

"""A lexicon as training sees it: with matches that are missing, and with wrong ones.

Every entity of the training texts may be in the lexicon. A model that always finds it there learns
to look nowhere else, and to believe whatever it is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trbert_deploy.lexicon.matcher import Match, Matcher

_WORDS = re.compile(r"\w+")
#: Words of a wrong match that stands anywhere.
_LONGEST_WRONG = 3


class NoisyLexicon:
    """Finds what a lexicon finds, but for some of it, and more.

    Args:
        lexicon: what is found.
        tags: of the model.
        missing_share: of the matches that are left out, each for itself.
        wrong_share: wrong matches, for each that is found; of a text without any as for one. Half
            of them give a match another tag, half stand at words anywhere.
        seed: the same one makes the same noise of the same texts in the same order.
    """

    def __init__(
        self,
        lexicon: Matcher,
        tags: Sequence[str],
        missing_share: float,
        wrong_share: float,
        seed: int,
    ) -> None:
        self._lexicon = lexicon
        self._tags = tuple(tags)
        self._missing_share = missing_share
        self._wrong_share = wrong_share
        self._rng = np.random.default_rng(seed)

    def find(self, text: str) -> list[Match]:
        """What training is told of a text."""
        found = self._lexicon.find(text)
        left = self._rng.random(len(found)) >= self._missing_share
        told = {match for match, is_left in zip(found, left, strict=True) if is_left}
        wrong = self._rng.binomial(max(1, len(found)), self._wrong_share)
        words = [word.span() for word in _WORDS.finditer(text)]
        for _ in range(int(wrong)):
            if found and self._rng.random() < 0.5:
                match = found[int(self._rng.integers(len(found)))]
                told.add(match._replace(tag=self._any_tag()))
            elif words:
                told.add(self._anywhere(words))
        return sorted(told)

    def _anywhere(self, words: Sequence[tuple[int, int]]) -> Match:
        first = int(self._rng.integers(len(words)))
        last = min(first + int(self._rng.integers(_LONGEST_WRONG)), len(words) - 1)
        return Match(words[first][0], words[last][1], self._any_tag())

    def _any_tag(self) -> str:
        return self._tags[int(self._rng.integers(len(self._tags)))]

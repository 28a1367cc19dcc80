"""How right a short answer is, by the rules of SQuAD (Rajpurkar et al. 2016 and 2018).

Answers are compared without case, punctuation, articles and spaces. A question without an answer is
answered right by the empty text.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> list[str]:
    """The words of an answer that are compared."""
    plain = answer.lower().translate(_NO_PUNCTUATION)
    return _ARTICLES.sub(" ", plain).split()


def exact_match(answer: str, true: Sequence[str]) -> float:
    """1 where the answer is one of the true ones; none of these means that there is no answer."""
    found = normalized(answer)
    return float(any(found == normalized(each) for each in _asked(true)))


def f1(answer: str, true: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, for the true answer that is closest."""
    found = normalized(answer)
    return max(_f1(found, normalized(each)) for each in _asked(true))


def _asked(true: Sequence[str]) -> list[str]:
    """The true answers that have a word, or the empty one."""
    return [each for each in true if normalized(each)] or [""]


def _f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    shared = sum((Counter(found) & Counter(true)).values())
    return 2.0 * shared / (len(found) + len(true))

"""Places of tokens in a text, by the offsets that the tokenizers library gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Target of a token that is asked of, where the example does not say what is right. A token that
#: nothing is asked of has ``task.NO_TOKEN``.
UNKNOWN = -1


def special_tokens(encoding: Any) -> NDArray[np.bool_]:
    """Which tokens the tokenizer added to the text: [S]."""
    return np.array(encoding.special_tokens_mask, np.bool_)


def begins(encoding: Any, text: str, sequence: int = 0) -> NDArray[np.int64]:
    """Where the letters of each token begin in the text: [S], -1 for tokens without any.

    Some tokenizers count the space before a word as part of its token.

    Args:
        text: one of those that were encoded.
        sequence: which of them it is; tokens of others have no letters in it.
    """
    found = np.full(len(encoding.ids), -1, np.int64)
    pairs = zip(encoding.offsets, encoding.sequence_ids, strict=True)
    for place, ((start, end), owner) in enumerate(pairs):
        letters = text[start:end].lstrip() if owner == sequence else ""
        if letters:
            found[place] = end - len(letters)
    return found


def letters_of(
    encoding: Any, text: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The tokens that have letters of a text: their places, and where their letters begin and end.

    Returns:
        [T] each.
    """
    starts = begins(encoding, text)
    (places,) = np.nonzero(starts >= 0)
    ends = np.array([end for _, end in encoding.offsets], np.int64)
    return places, starts[places], ends[places]


def first_tokens(
    encoding: Any, text: str, words: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first token of each word: the first whose letters begin in it.

    Args:
        words: [W, 2] first letter of each word and the one behind it, in order.

    Returns:
        The places of the tokens, and the words that they begin; a word of no token is left out.
    """
    starts = begins(encoding, text)
    (places,) = np.nonzero(starts >= 0)
    if not len(places):
        return places, places
    order = np.searchsorted(starts[places], words[:, 0])
    found = places[np.minimum(order, len(places) - 1)]
    inside = (starts[found] >= words[:, 0]) & (starts[found] < words[:, 1])
    return found[inside], np.flatnonzero(inside)

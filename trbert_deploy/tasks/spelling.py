"""How a tokenizer writes texts as tokens: what answers in words need to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spelling:
    """What tells words from their parts, and makes text of tokens again.

    Attributes:
        prefix: beginning of a token that continues a word, such as ``##``; empty where there is
            none.
        unknown: id of the token that stands for what cannot be written; None where there is none.
        added: id -> token, of those that are found in texts as they are; an encoding has them with
            the spaces around them.
        joined: tokens -> the text that they make.
        mask: id of the token that stands for a masked one; None where nobody says which it is.
        ids: text -> ids of its tokens, without special ones around it.
        id_of: token -> its id, None for one that there is not.
        decoded: (ids, whether to leave special tokens out) -> the text that they make.
    """

    prefix: str = ""
    unknown: int | None = None
    added: Mapping[int, str] = field(default_factory=dict)
    joined: Callable[[Sequence[str]], str] = " ".join
    mask: int | None = None
    ids: Callable[[str], Sequence[int]] = lambda text: ()
    id_of: Callable[[str], int | None] = lambda token: None
    decoded: Callable[[Sequence[int], bool], str] = lambda ids, skip: ""

    def tokens(self, encoding: Any) -> list[str]:
        """The tokens of a text: [S]."""
        pairs = zip(encoding.ids, encoding.tokens, strict=True)
        return [self.added.get(token_id, token) for token_id, token in pairs]

    def one_token(self, word: str) -> int | None:
        """The id of the one token that a word is, or None for one that is several, or none.

        First what it is behind a space; then the token that is written so; then what it is alone.
        """
        behind, alone = self.ids(f" {word}"), self.ids(word)
        found = behind[0] if len(behind) == 1 else self.id_of(word)
        if found is None and len(alone) == 1:
            found = alone[0]
        return None if found == self.unknown else found

    def words(self, encoding: Any, text: str) -> list[str]:
        """The same, but for one that could not be written what stands in the text: [S]."""
        triples = zip(encoding.ids, self.tokens(encoding), encoding.offsets, strict=True)
        return [
            text[start:end] if token_id == self.unknown else token
            for token_id, token, (start, end) in triples
        ]

    def continues(self, encoding: Any, text: str) -> NDArray[np.bool_]:
        """Which tokens continue the word of the token before them: [S].

        By transformers' rule: where continuing tokens have a prefix, it is those that are longer
        than what they stand for (or shorter, where normalization changed that); elsewhere those
        with no space before them. A token that could not be written never does.
        """
        triples = zip(encoding.ids, self.tokens(encoding), encoding.offsets, strict=True)
        return np.array(
            [
                token_id != self.unknown
                and (
                    len(token) != end - start
                    if self.prefix
                    else start > 0 and " " not in text[start - 1 : start + 1]
                )
                for token_id, token, (start, end) in triples
            ],
            np.bool_,
        )

"""Rows of one length, whatever the length of the texts that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.token_state import TokenRow

#: Rows of ``_Parts``: number of a token, its type, whether it must survive every cut.
_IDS, _TYPES, _PROTECTED = range(3)


@dataclass(frozen=True)
class _Parts:
    """The tokens of a text, or of a pair: [3, ...] int64 each.

    Attributes:
        opening: special tokens, and the first text of a pair.
        first: places of that text in ``opening``.
        body: the text, or the second one of a pair.
        closing: special tokens.
    """

    opening: NDArray[np.int64]
    first: NDArray[np.int64]
    body: NDArray[np.int64]
    closing: NDArray[np.int64]

    @classmethod
    def of(
        cls, encoding: Encoding, protected: Callable[[Encoding], NDArray[np.bool_]]
    ) -> Self | None:
        """Those of an encoding; None where there is no token to go on with."""
        tokens = np.array([encoding.ids, encoding.type_ids, protected(encoding)], np.int64)
        owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
        (body,) = np.nonzero(owners == encoding.n_sequences - 1)
        if not len(body):
            return None
        start, end = body[0], body[-1] + 1
        (first,) = np.nonzero(owners[:start] >= 0)
        return cls(tokens[:, :start], first, tokens[:, start:end], tokens[:, end:])

    def opening_within(self, size: int) -> NDArray[np.int64]:
        """What opens a row, of at most so many tokens: one of a first text stays in any case."""
        excess = max(0, self.opening.shape[1] - size)
        kept = max(1, len(self.first) - excess)
        return np.delete(self.opening, self.first[kept:], axis=1)


def joined_rows(
    encodings: Sequence[Encoding],
    length: int,
    count: int,
    protected: Callable[[Encoding], NDArray[np.bool_]],
) -> list[TokenRow]:
    """Rows of exactly ``length`` tokens: texts joined or cut, never padded.

    Row r starts with text r, and goes on with those after it. Of a pair the second text is what
    goes on, with the second texts of pairs; the first one takes half of a row at most.

    Args:
        encodings: of the texts.
        protected: encoding -> which of its tokens must survive every cut, [S].

    Raises:
        DataError: there is no token in any of them.
    """
    found = [_Parts.of(encoding, protected) for encoding in encodings]
    full = [parts for parts in found if parts is not None]
    if not full:
        raise DataError("the texts have no token that the tokenizer knows how to keep")
    rows = []
    for start in range(count):
        parts = full[start % len(full)]
        opening = parts.opening_within(length // 2)
        after = parts.closing.shape[1]
        bodies, size, place = [parts.body], opening.shape[1] + parts.body.shape[1], start
        while size < length - after:
            place += 1
            bodies.append(full[place % len(full)].body)
            size += bodies[-1].shape[1]
        body = np.concatenate(bodies, axis=1)
        body[_TYPES] = parts.body[_TYPES, 0]
        begun = np.concatenate([opening, body], axis=1)[:, : max(length - after, 1)]
        tokens = np.concatenate([begun, parts.closing], axis=1)[:, :length]
        rows.append(TokenRow(tokens[_IDS], tokens[_TYPES], tokens[_PROTECTED].astype(np.bool_)))
    return rows

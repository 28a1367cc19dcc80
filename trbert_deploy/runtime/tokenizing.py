"""Texts to rows of tokens, with the bundle's own tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from trbert_deploy.errors import ConfigError, DataError, FileFormatError, LengthError
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.task import Text


def rows_of(
    encodings: Sequence[Encoding], protected: Callable[[Encoding], NDArray[np.bool_]]
) -> list[TokenRow]:
    """Encodings as rows of tokens.

    Args:
        protected: encoding -> which of its tokens must survive, [S].
    """
    return [
        TokenRow(
            np.array(encoding.ids, np.int64),
            np.array(encoding.type_ids, np.int64),
            protected(encoding),
        )
        for encoding in encodings
    ]


class TruncationWarning(UserWarning):
    """Texts were cut to the model's maximum length."""


class TextTokenizer:
    """Turns texts (or pairs of texts) into rows of tokens.

    Args:
        path: a tokenizer.json.
        max_length: most tokens of a row, special tokens included.
        truncate: cut longer texts (``truncated`` counts them, and the first one warns);
            otherwise refuse them.

    Attributes:
        encoded, truncated: texts so far, and those of them that were cut.

    Raises:
        FileFormatError: the file cannot be read.
        ConfigError: ``max_length`` leaves no room beside the special tokens.
    """

    def __init__(self, path: Path, max_length: int, truncate: bool = True) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as problem:  # noqa: BLE001 - the library raises plain Exception
            raise FileFormatError(f"{path} is not a readable tokenizer: {problem}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        least = self._tokenizer.num_special_tokens_to_add(is_pair=True) + 1
        if max_length < least:  # the library would cut nothing, without a word
            raise ConfigError(
                f"maximum length is {max_length}: expected at least {least}, for the special "
                "tokens of a pair of texts and one token"
            )
        if truncate:
            self._tokenizer.enable_truncation(max_length)
        self.max_length = max_length
        self.truncate = truncate
        self.encoded = 0
        self.truncated = 0

    def encode(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> list[Encoding]:
        """The tokenizer's own encodings, with token strings and offsets in the text.

        Args:
            names: what errors call each text; ``text 1`` and so on by default.
        """
        names = names or [f"text {place + 1}" for place in range(len(texts))]
        encodings = self._encode(texts, names)
        self.encoded += len(encodings)
        for name, encoding in zip(names, encodings, strict=True):
            if encoding.overflowing:
                self._count_truncated()
            elif len(encoding.ids) > self.max_length:
                raise LengthError(
                    f"{name} has {len(encoding.ids)} tokens: the model takes at most "
                    f"{self.max_length}; shorten it, allow truncation, or train with a larger "
                    "--max-length, which extends the encoder's positions"
                )
        return encodings

    def _encode(self, texts: Sequence[Text], names: Sequence[str]) -> list[Encoding]:
        for name, text in zip(names, texts, strict=True):
            for part in text if isinstance(text, tuple) else (text,):
                if not isinstance(part, str):
                    raise DataError(f"{name} is of type {type(part).__name__}: expected a string")
                if not part.strip():
                    raise DataError(f"{name} is empty: expected at least one word")
                if not part.isascii() and any("\ud800" <= letter <= "\udfff" for letter in part):
                    raise DataError(f"{name} is no valid Unicode: it has half of a surrogate pair")
        encodings: list[Encoding] = self._tokenizer.encode_batch(list(texts))
        return encodings

    def rows_of_length(self, texts: Sequence[str], length: int, count: int) -> list[TokenRow]:
        """Rows of exactly ``length`` tokens of real text: texts joined or cut, never padded.

        Args:
            texts: at least one; row r starts with text r, and goes on with those after it.
            length: tokens per row, special tokens included, from 1 to ``max_length``.
            count: rows.

        Raises:
            LengthError: a length out of range.
            DataError: no texts, an empty one, or no token in any of them.
        """
        if not 1 <= length <= self.max_length:
            raise LengthError(
                f"length is {length}: the model takes 1 to {self.max_length} tokens a row"
            )
        if not texts:
            raise DataError("no texts to make rows of: expected at least one")
        # A text may be longer than a row: that is no truncation to warn of.
        encodings = self._encode(texts, [f"text {place + 1}" for place in range(len(texts))])
        masks = [np.array(encoding.special_tokens_mask, dtype=bool) for encoding in encodings]
        full = [place for place, special in enumerate(masks) if not special.all()]
        if not full:
            raise DataError("the texts have no token that the tokenizer knows how to keep")
        ids = [np.array(encodings[place].ids, np.int64) for place in full]
        before = int(np.argmin(masks[full[0]]))  # special tokens that open a row
        after = int(np.argmin(masks[full[0]][::-1]))
        opening, closing = ids[0][:before], ids[0][len(ids[0]) - after :]
        bodies = [row[before : len(row) - after] for row in ids]
        rows = []
        for start in range(count):
            parts, size, place = [opening], before, start
            while size < length - after:
                parts.append(bodies[place % len(bodies)])
                size += len(parts[-1])
                place += 1
            tokens = np.concatenate(parts)[: max(length - after, 1)]
            tokens = np.concatenate([tokens, closing])[:length]
            rows.append(TokenRow(tokens, np.zeros_like(tokens)))
        return rows

    def _count_truncated(self) -> None:
        if not self.truncated:
            warnings.warn(
                f"texts longer than {self.max_length} tokens are cut to that length",
                TruncationWarning,
                stacklevel=3,
            )
        self.truncated += 1

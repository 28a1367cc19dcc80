"""Texts to rows of tokens, with the bundle's own tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from trbert_deploy.errors import DataError, FileFormatError, LengthError
from trbert_deploy.runtime.chain import TokenRow

Text = str | tuple[str, str]


class TruncationWarning(UserWarning):
    """Texts were cut to the model's maximum length."""


class TextTokenizer:
    """Turns texts (or pairs of texts) into rows of tokens.

    Args:
        path: a tokenizer.json.
        max_length: most tokens of a row, special tokens included.
        truncate: cut longer texts (``truncated`` counts them, and the first one warns);
            otherwise refuse them.

    Raises:
        FileFormatError: the file cannot be read.
    """

    def __init__(self, path: Path, max_length: int, truncate: bool = True) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as problem:  # the library raises plain Exception
            raise FileFormatError(f"{path} is not a readable tokenizer: {problem}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if truncate:
            self._tokenizer.enable_truncation(max_length)
        self.max_length = max_length
        self.truncate = truncate
        self.truncated = 0

    def __call__(self, texts: Sequence[Text]) -> list[TokenRow]:
        """Tokenize texts.

        Raises:
            DataError: a text is empty or no string.
            LengthError: a text is too long, and truncation is off.
        """
        return self.rows(self.encode(texts))

    @staticmethod
    def rows(encodings: Sequence[Encoding]) -> list[TokenRow]:
        """Encodings as rows of tokens."""
        return [
            TokenRow(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64))
            for encoding in encodings
        ]

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """The tokenizer's own encodings, with token strings and offsets in the text."""
        for place, text in enumerate(texts):
            for part in (text,) if isinstance(text, str) else text:
                if not isinstance(part, str):
                    raise DataError(
                        f"text {place + 1} is of type {type(part).__name__}: expected a string"
                    )
                if not part.strip():
                    raise DataError(f"text {place + 1} is empty: expected at least one word")
        encodings: list[Encoding] = self._tokenizer.encode_batch(list(texts))
        for place, encoding in enumerate(encodings):
            if encoding.overflowing:
                self._count_truncated()
            elif len(encoding.ids) > self.max_length:
                raise LengthError(
                    f"text {place + 1} has {len(encoding.ids)} tokens: the model takes at most "
                    f"{self.max_length}; shorten it, or allow truncation"
                )
        return encodings

    def rows_of_length(self, texts: Sequence[str], length: int, count: int) -> list[TokenRow]:
        """Rows of exactly ``length`` tokens of real text: texts joined or cut, never padded.

        Args:
            texts: at least one; row r starts with text r, and goes on with those after it.
            length: tokens per row, special tokens included, from 1 to ``max_length``.
            count: rows.

        Raises:
            LengthError: a length out of range.
            DataError: no texts, or an empty one.
        """
        if not 1 <= length <= self.max_length:
            raise LengthError(
                f"length is {length}: the model takes 1 to {self.max_length} tokens a row"
            )
        if not texts:
            raise DataError("no texts to make rows of: expected at least one")
        encodings = self.encode(texts)
        special = np.array(encodings[0].special_tokens_mask, dtype=bool)
        before = int(np.argmin(special))  # special tokens that open a row
        after = int(np.argmin(special[::-1]))
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
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


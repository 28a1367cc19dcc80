"""Texts to rows of tokens, with the bundle's own tokenizer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import TOKENIZER
from trbert_deploy.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    LengthError,
    TrbertError,
    first_line,
)
from trbert_deploy.runtime.excerpts import Excerpt, Excerpts
from trbert_deploy.runtime.joined_rows import joined_rows
from trbert_deploy.runtime.pair_truncation import PairTruncation
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.windows import Window, windows_of
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.pairs import LONGEST_FIRST
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.spelling import Spelling
from trbert_deploy.tasks.task import Task, first_of

#: Of any number of texts, so many at a time: encodings are large.
TOKENIZED_AT_A_TIME = 2000

_SURROGATE = re.compile("[\ud800-\udfff]")
#: What the token is called that stands for what cannot be written, where a model does not say.
_UNKNOWN_TOKENS = ("[UNK]", "<unk>")
_EXPECTED = "expected a string, or a pair of two strings"


def tokenizer_for(
    path: Path, task: Task, max_length: int, truncate: bool = True, truncation: str | None = None
) -> TextTokenizer:
    """A tokenizer.json, with texts cut, refused or read in windows as a task asks for.

    Args:
        path, max_length, truncate: as ``TextTokenizer`` takes them.
        truncation: which text of a pair is cut; None for what the task says.

    Raises:
        FileFormatError, ConfigError: as ``TextTokenizer``.
    """
    truncation = truncation or task.pair_rules.truncation
    return TextTokenizer(path, max_length, truncate, task.overlap, truncation)


def tokenizer_of(
    bundle: Bundle,
    max_length: int | None = None,
    truncate: bool = True,
    truncation: str | None = None,
) -> TextTokenizer:
    """A bundle's tokenizer; ``max_length`` and ``truncation`` are the bundle's own by default.

    Raises:
        BundleError: the bundle was replaced since it was opened.
        ConfigError: the bundle does not take so many tokens.
        FileFormatError, ConfigError: as ``TextTokenizer``.
    """
    most = bundle.manifest.max_length
    limit = most if max_length is None else max_length
    if not 1 <= limit <= most:
        raise ConfigError(
            f"maximum length is {limit}: the bundle {bundle.path} takes 1 to {most} tokens"
        )
    with bundle.reading(TOKENIZER) as path:
        return tokenizer_for(path, task_of(bundle.manifest.encoder), limit, truncate, truncation)


@contextmanager
def _failing_in_one_line(what: str) -> Iterator[None]:
    """Says of the library's failures, which are plain exceptions and panics, what they are of."""
    try:
        yield
    except TrbertError:
        raise
    except BaseException as problem:
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise FileFormatError(f"{what}: {first_line(problem)}") from None


class TruncationWarning(UserWarning):
    """Texts were cut to the model's maximum length."""


class TextTokenizer:
    """Turns texts (or pairs of texts) into rows of tokens.

    Args:
        path: a tokenizer.json. What it says of special tokens, types of tokens and the side to
            cut holds; its padding and maximum length do not.
        max_length: most tokens of a row, special tokens included.
        truncate: cut longer texts (``truncated`` counts them, and the first one warns);
            otherwise refuse them.
        overlap: instead, read longer texts in windows that share so many tokens; 0 for no windows.
        truncation: which text of a pair is cut, one of ``TRUNCATIONS``.

    Attributes:
        encoded, truncated: texts so far, and those of them that were cut.

    Raises:
        FileFormatError: the file cannot be read.
        ConfigError: ``max_length`` leaves no room beside the special tokens.
    """

    def __init__(
        self,
        path: Path,
        max_length: int,
        truncate: bool = True,
        overlap: int = 0,
        truncation: str = LONGEST_FIRST,
    ) -> None:
        with _failing_in_one_line(f"{path} is not a readable tokenizer"):
            self._tokenizer = Tokenizer.from_file(str(path))
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        for nothing in ("", ("", "")):
            with _failing_in_one_line(f"{path} is not a usable tokenizer"):
                special = self._tokenizer.encode_batch([nothing])[0]
            if not len(special.ids) == len(special.tokens) == len(special.type_ids):
                raise FileFormatError(
                    f"{path} has special tokens with {len(special.ids)} numbers and "
                    f"{len(special.tokens)} names: expected one name for each"
                )
        least = self._tokenizer.num_special_tokens_to_add(is_pair=True) + 1
        if max_length < least:  # the library would cut nothing, without a word
            raise ConfigError(
                f"maximum length is {max_length}: expected at least {least}, for the special "
                "tokens of a pair of texts and one token"
            )
        truncate = truncate and not overlap
        if truncate:
            self._tokenizer.enable_truncation(max_length, direction=side)
        self._one_sided: PairTruncation | None = None
        if truncate and truncation != LONGEST_FIRST:
            self._one_sided = PairTruncation(self._tokenizer, truncation, side, max_length)
        self._excerpts = Excerpts(self._tokenizer, side if truncate else "right", max_length)
        self.max_length = max_length
        self.truncate = truncate
        self.overlap = overlap
        self.encoded = 0
        self.truncated = 0

    @property
    def spelling(self) -> Spelling:
        """How it writes words."""
        return spelling_of(self._tokenizer)

    def encode(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> list[Encoding]:
        """The tokenizer's own encodings, with token strings and offsets in the text.

        Args:
            names: what errors call each text; ``text 1`` and so on by default.

        Raises:
            DataError, LengthError: as for a call.
        """
        require_texts(texts)
        names = names or [f"text {place + 1}" for place in range(len(texts))]
        found = self._encode(texts, names)
        self.encoded += len(found)
        for name, (encoding, complete) in zip(names, found, strict=True):
            if encoding.overflowing:
                self._count_truncated()
            elif not len(encoding):  # without special tokens, a row of nothing
                raise DataError(
                    f"{name} gives no token: expected a character that the tokenizer keeps"
                )
            elif len(encoding) > self.max_length and not self.overlap:
                tokens = len(encoding) if complete else f"more than {self.max_length}"
                raise LengthError(
                    f"{name} has {tokens} tokens: the model takes at most "
                    f"{self.max_length}; shorten it, allow truncation, or train with a larger "
                    "--max-length, which extends the encoder's positions"
                )
        return [encoding for encoding, _ in found]

    def _encode(self, texts: Sequence[Text], names: Sequence[str]) -> list[tuple[Encoding, bool]]:
        """Encodings, and whether each would have all tokens of its text if nothing were cut."""
        parts = [self._parts(text, name) for name, text in zip(names, texts, strict=True)]
        with _failing_in_one_line(
            f"the tokenizer cannot split {', '.join(names[:1])} or one behind it"
        ):
            encodings = self._encodings_of(parts, names)
        return [
            (self._excerpts.restored(encoding, pair), all(part.complete for part in pair))
            for encoding, pair in zip(encodings, parts, strict=True)
        ]

    def _encodings_of(
        self, parts: Sequence[tuple[Excerpt, ...]], names: Sequence[str]
    ) -> list[Encoding]:
        """Encodings of texts and pairs, cut to the maximum length."""
        pairs = [place for place, pair in enumerate(parts) if len(pair) == 2]
        if self._one_sided is None or not pairs:
            inputs = [
                pair[0].text if len(pair) == 1 else tuple(part.text for part in pair)
                for pair in parts
            ]
            return list(self._tokenizer.encode_batch(inputs))
        alone = [place for place, pair in enumerate(parts) if len(pair) == 1]
        found = self._tokenizer.encode_batch([parts[place][0].text for place in alone])
        found += self._one_sided.encode(
            [parts[place] for place in pairs], [names[place] for place in pairs]
        )
        encodings = dict(zip((*alone, *pairs), found, strict=True))
        return [encodings[place] for place in range(len(parts))]

    def _parts(self, text: Text, name: str) -> tuple[Excerpt, ...]:
        """What is encoded of a text, or of the two of a pair."""
        parts = (text,) if isinstance(text, str) else _pair(text, name)
        if any(not part or part.isspace() for part in parts):
            raise DataError(f"{name} is empty: expected at least one word")

        def check(part: str) -> None:
            if not part.isascii() and _SURROGATE.search(part):
                raise DataError(f"{name} is no valid Unicode: it has half of a surrogate pair")

        if self.overlap:  # nothing is cut
            for part in parts:
                check(part)
            return tuple(map(Excerpt, parts))
        with _failing_in_one_line(f"the tokenizer cannot split {name}"):
            found = self._excerpts.of_texts(parts, check)
        for excerpt in found:
            check(excerpt.text)
        return found

    def rows(
        self,
        encodings: Sequence[Encoding],
        protected: Callable[[Encoding], NDArray[np.bool_]],
        names: Sequence[str] | None = None,
    ) -> list[TokenRow]:
        """Encodings as rows of tokens, those that are too long with the windows they are read in.

        Args:
            protected: encoding -> which of its tokens must survive, [S].
            names: as ``encode`` takes them.

        Raises:
            LengthError: a pair whose first text leaves no room in a window.
        """
        rows = []
        for place, encoding in enumerate(encodings):
            windows: tuple[Window, ...] = ()
            if len(encoding) > self.max_length:
                name = names[place] if names else f"text {place + 1}"
                windows = tuple(windows_of(encoding, self.max_length, self.overlap, name))
            ids, types = np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64)
            rows.append(TokenRow(ids, types, protected(encoding), windows))
        return rows

    def rows_of_length(
        self,
        texts: Sequence[Text],
        length: int,
        count: int,
        protected: Callable[[Encoding], NDArray[np.bool_]] = first_of,
    ) -> list[TokenRow]:
        """Rows of exactly ``length`` tokens of real text (see ``joined_rows``).

        Args:
            texts: at least one.
            length: tokens per row, special tokens included, from 1 to ``max_length``.
            count: rows.
            protected: encoding -> which of its tokens must survive, [S]; the first one by default.

        Raises:
            ConfigError: a count under 1.
            LengthError: a length out of range.
            DataError: no texts, one that is none (see a call), or no token in any of them.
        """
        require_texts(texts)
        require_whole("count", count, 1, MOST_TEXTS)
        if not 1 <= length <= self.max_length:
            raise LengthError(
                f"length is {length}: the model takes 1 to {self.max_length} tokens a row"
            )
        if not len(texts):
            raise DataError("no texts to make rows of: expected at least one")
        # A text may be longer than a row: that is no truncation to warn of.
        names = [f"text {place + 1}" for place in range(len(texts))]
        encodings = [encoding for encoding, _ in self._encode(texts, names)]
        return joined_rows(encodings, length, count, protected)

    def _count_truncated(self) -> None:
        if not self.truncated:
            warnings.warn(
                f"texts longer than {self.max_length} tokens are cut to that length",
                TruncationWarning,
                stacklevel=3,
            )
        self.truncated += 1


def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """How a tokenizer writes words."""
    model, decoder = tokenizer.model, tokenizer.decoder
    named = (getattr(model, "unk_token", None), *_UNKNOWN_TOKENS)
    unknown = (tokenizer.token_to_id(token) for token in named if token)
    return Spelling(
        getattr(model, "continuing_subword_prefix", None) or "",
        next((each for each in unknown if each is not None), None),
        {
            token_id: token.content
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        },
        " ".join if decoder is None else decoder.decode,
        ids=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        id_of=tokenizer.token_to_id,
        decoded=lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip),
    )


def require_texts(texts: object, *, counted: bool = True) -> None:
    """Refuse what holds no texts in order: a lone string would be taken for its letters.

    Args:
        counted: how many there are must be known, as it is of a list.

    Raises:
        DataError: it is something else.
    """
    if isinstance(texts, list | tuple):  # nearly always, and quicker to tell
        return
    kind = Collection if counted else Iterable
    if not isinstance(texts, kind) or isinstance(texts, str | bytes | bytearray | Mapping | Set):
        raise DataError(
            f"the texts are of type {type(texts).__name__}: expected a list of strings, or of "
            "pairs of two strings"
        )


def _pair(text: object, name: str) -> tuple[str, str]:
    """The two texts of a pair.

    Raises:
        DataError: it is no pair, or not of strings.
    """
    if not isinstance(text, tuple | list):
        hint = ", so decode it" if isinstance(text, bytes | bytearray) else ""
        raise DataError(f"{name} is of type {type(text).__name__}: {_EXPECTED}{hint}")
    if len(text) != 2:
        raise DataError(f"{name} is a {type(text).__name__} of {len(text)}: {_EXPECTED}")
    for place, part in zip(("first", "second"), text, strict=True):
        if not isinstance(part, str):
            kind = type(part).__name__
            raise DataError(f"{name} is a pair whose {place} is of type {kind}: expected a string")
    return text[0], text[1]

"""Pairs of texts of which one alone is cut where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from tokenizers import Encoding, Tokenizer

from trbert_deploy.errors import LengthError
from trbert_deploy.runtime.excerpts import Excerpt
from trbert_deploy.tasks.pairs import ONLY_FIRST


class PairTruncation:
    """Encodes pairs, cut at one of their texts, beside a tokenizer that cuts the longer one.

    Args:
        tokenizer: with its truncation set.
        truncation: ``only_first`` or ``only_second``.
        side: of that text that is cut: right, or left.
        max_length: most tokens of a row.
    """

    def __init__(self, tokenizer: Tokenizer, truncation: str, side: str, max_length: int) -> None:
        self._plain, self._tokenizer = tokenizer, deepcopy(tokenizer)
        self._tokenizer.enable_truncation(max_length, strategy=truncation, direction=side)
        self._truncation = truncation
        self._stays = 1 if truncation == ONLY_FIRST else 0
        self._max_length = max_length
        self._room = max_length - tokenizer.num_special_tokens_to_add(is_pair=True)

    def encode(self, pairs: Sequence[tuple[Excerpt, ...]], names: Sequence[str]) -> list[Encoding]:
        """Encodings of pairs.

        Args:
            names: what errors call each pair.

        Raises:
            LengthError: the text that stays leaves no room for the other one.
        """
        staying = [pair[self._stays] for pair in pairs]
        alone = self._plain.encode_batch([part.text for part in staying], add_special_tokens=False)
        for part, encoding, name in zip(staying, alone, names, strict=True):
            tokens = sum(len(each) for each in (encoding, *encoding.overflowing))
            if tokens >= self._room:
                told = tokens if part.complete else f"more than {self._max_length}"
                raise LengthError(
                    f"the {('first', 'second')[self._stays]} text of {name} has {told} tokens and "
                    f"is not to be cut ({self._truncation}): the model takes "
                    f"{self._max_length}, so expected at most {self._room - 1}; shorten it, or "
                    "take longest_first"
                )
        return self._tokenizer.encode_batch([tuple(part.text for part in pair) for pair in pairs])

"""Rows that a model is measured and checked with: of sample texts, or else of random tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.samples import Sample
from trbert_deploy.config import EncoderSpec
from trbert_deploy.runtime.matching import with_random_matches
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TextTokenizer, tokenizer_of
from trbert_deploy.tasks.outputs import Output, asked_token
from trbert_deploy.tasks.registry import task_of

#: (length, count) -> that many rows of exactly that length.
RowMaker = Callable[[int, int], Sequence[TokenRow]]


def row_maker(tokenizer: TextTokenizer, encoder: EncoderSpec, texts: Sequence[Sample]) -> RowMaker:
    """Makes rows of sample texts, or of random tokens where there are none.

    Args:
        encoder: shape of the model, whose task says what is protected in the texts, and may ask for
            a token, of which there is one in every row. One that takes a lexicon has random matches
            in them, as there is no text to search.
    """
    task = task_of(encoder)

    def ready(rows: Sequence[TokenRow]) -> list[TokenRow]:
        return with_random_matches(asking(rows, task.outputs), len(task.lexicon_tags))

    if texts:
        return lambda length, count: ready(
            tokenizer.rows_of_length(texts, length, count, task.protected)
        )
    rng = np.random.default_rng(0)

    def random_rows(length: int, count: int) -> list[TokenRow]:
        ids = rng.integers(0, encoder.vocab_size, (count, length))
        return ready([TokenRow(row, np.zeros_like(row)) for row in ids])

    return random_rows


def asking(rows: Sequence[TokenRow], outputs: Sequence[Output]) -> list[TokenRow]:
    """Rows of tokens that nobody encoded, in which what the outputs are of is there, and protected.

    Where outputs are of one token alone, a row that has none gets one in its middle.
    """
    token = asked_token(outputs)
    return list(rows) if token is None else [_asking(row, token) for row in rows]


def _asking(row: TokenRow, token: int) -> TokenRow:
    ids = row.input_ids.copy()
    if token not in ids:
        ids[len(ids) // 2] = token
    return TokenRow(ids, row.token_type_ids, row.protected | (ids == token))


def bundle_rows(bundle: Bundle) -> RowMaker:
    """Makes rows of the bundle's sample texts, or of random tokens where it has none."""
    return row_maker(tokenizer_of(bundle), bundle.manifest.encoder, bundle.samples())


def are_random(bundle: Bundle) -> bool:
    """Whether the bundle has no sample texts, so that its rows are of random tokens.

    A policy may keep more of these than of text, or fewer: what is measured with them says so.
    """
    return not bundle.samples()


def sample_rows(bundle: Bundle, lengths: Sequence[int], count: int) -> list[TokenRow]:
    """Rows of the bundle, ``count`` of each length up to the longest it takes (``are_random``)."""
    lengths = sorted({min(length, bundle.manifest.max_length) for length in lengths})
    rows_of = bundle_rows(bundle)
    return [row for length in lengths for row in rows_of(length, count)]

"""Rows that a bundle is measured with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import tokenizer_of


def sample_rows(bundle: Bundle, lengths: Sequence[int], count: int) -> list[TokenRow]:
    """Rows of the bundle's sample texts, ``count`` of each length up to the longest it takes.

    Without sample texts, one row of random tokens of each length.
    """
    manifest = bundle.manifest
    lengths = sorted({min(length, manifest.max_length) for length in lengths})
    texts = bundle.samples()
    if texts:
        tokenizer = tokenizer_of(bundle)
        return [row for length in lengths for row in tokenizer.rows_of_length(texts, length, count)]
    ids = np.random.default_rng(0).integers(0, manifest.encoder.vocab_size, max(lengths))
    return [TokenRow(ids[:length], np.zeros(length, np.int64)) for length in lengths]

"""Any number of pairs of texts to alignments, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

from trbert_deploy.alignment.aligner import Aligner, Alignment
from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import DataError
from trbert_deploy.tasks.examples import Example


def align_examples(
    aligner: Aligner, examples: Iterable[Example], batch_size: int = 32
) -> Iterator[Alignment]:
    """The alignment of each pair, in order; ``batch_size`` pairs at a time.

    Raises:
        ConfigError: a batch size under 1, at once.
        DataError: an example of one text; or as the aligner, by the pair's name.
        LengthError, OutputError: as the aligner.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    remaining = iter(examples)
    batches = iter(lambda: list(islice(remaining, batch_size)), [])
    return (
        alignment
        for batch in batches
        for alignment in aligner(
            [_pair_of(example) for example in batch], [example.name for example in batch]
        )
    )


def _pair_of(example: Example) -> tuple[str, str]:
    if isinstance(example.text, tuple):
        return example.text
    raise DataError(
        f"{example.name} has one text: expected two, such as text and text_pair; name their "
        "columns with --text-column and --pair-column"
    )


def to_json_line(alignment: Alignment) -> str:
    """An alignment as JSON, without a line end."""
    return json.dumps(alignment.to_json(), ensure_ascii=False, allow_nan=False)

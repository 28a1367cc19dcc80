"""Any number of named texts to JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.predictions import Prediction


def predict_lines(
    pipeline: Pipeline,
    texts: Iterable[Example],
    *,
    batch_size: int = 32,
    return_kept: bool = False,
    dense: bool = False,
) -> Iterator[str]:
    """One JSON object per text, in order, without a line end; ``batch_size`` texts at a time.

    Raises:
        ConfigError: a batch size under 1, at once.
        DataError, LengthError: a text that the model cannot take, by its name.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    remaining = iter(texts)
    batches = iter(lambda: list(islice(remaining, batch_size)), [])
    return (
        to_json_line(prediction)
        for batch in batches
        for prediction in pipeline(
            [example.text for example in batch],
            names=[example.name for example in batch],
            return_kept=return_kept,
            dense=dense,
        )
    )


def name_texts(texts: Iterable[Text]) -> Iterator[Example]:
    """Texts without names of their own, as ``text 1`` and so on."""
    return (Example(text, name=f"text {place}") for place, text in enumerate(texts, start=1))


def to_json_line(prediction: Prediction) -> str:
    """A prediction as JSON; survivors are there only where they were asked for."""
    return json.dumps(prediction.to_json(), ensure_ascii=False, allow_nan=False)

"""Embeddings as sentence-transformers' ``encode`` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.tokenizing import require_texts
from trbert_deploy.tasks.feature_extraction import FeatureExtraction, of_length_one

if TYPE_CHECKING:
    from trbert_deploy.runtime.pipeline import Pipeline

#: Texts that are on their way at a time, if nobody says otherwise: enough of each length.
BATCH_SIZE = 256
#: What ``encode_query`` and ``encode_document`` put before a text: the first prompt that there is.
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


def encode(
    pipeline: Pipeline,
    sentences: str | Sequence[str],
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = BATCH_SIZE,
    *,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
) -> NDArray[np.float32]:
    """See ``Pipeline.encode``."""
    task = embedding_task(pipeline)
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    if truncate_dim is not None:
        require_whole("truncate_dim", truncate_dim, 1, task.width)
    if prompt is None:
        prompt = task.prompt if prompt_name is None else task.prompt_named(prompt_name)
    if isinstance(sentences, str):
        return encode(
            pipeline,
            [sentences],
            prompt=prompt,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )[0]
    require_texts(sentences)
    found = np.empty((len(sentences), task.dimensions or task.width), np.float32)
    for start in range(0, len(sentences), batch_size):
        part = sentences[start : start + batch_size]
        names = [f"text {start + place}" for place in range(1, len(part) + 1)]
        texts = [prompt + text if isinstance(text, str) else text for text in part]
        rows = pipeline.rows(pipeline.tokenizer.encode(texts, names), texts)
        for place, result in enumerate(pipeline.run(rows), start=start):
            found[place] = task.embedding(result.outputs)
    found = found[:, :truncate_dim]
    if normalize_embeddings:
        found = of_length_one(found)
    return found


def prompt_for(pipeline: Pipeline, uses: Sequence[str]) -> str | None:
    """The name of the first prompt that the model has for one of some uses."""
    prompts = embedding_task(pipeline).prompts
    return next((name for name in uses if name in prompts), None)


def embedding_task(pipeline: Pipeline) -> FeatureExtraction:
    """The task of a model that makes embeddings.

    Raises:
        ConfigError: it makes none.
    """
    task = pipeline.task
    if not isinstance(task, FeatureExtraction):
        raise ConfigError(
            f"a model for {task.name} makes no embeddings: expected a sentence encoder"
        )
    return task

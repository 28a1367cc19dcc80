"""What several APIs ask of a model, each in its own words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.serving.routes.common import Body, require_few
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SIGMOID
from trbert_deploy.tasks.feature_extraction import FeatureExtraction, of_length_one
from trbert_deploy.tasks.text_classification import logits_of


async def embeddings(
    body: Body,
    model: ServedModel,
    texts: Sequence[str],
    field: str,
    *,
    normalize: bool = True,
    prompt: str | None = None,
    dimensions: int | None = None,
) -> tuple[NDArray[np.float32], int]:
    """Embeddings of texts.

    Args:
        model: makes embeddings.
        field: what errors call the texts.
        normalize: give them the length 1, whether the model does or not.
        prompt: name of the one that is put before every text.
        dimensions: values that are kept.

    Returns:
        [N, D] float32, and the number of tokens.

    Raises:
        TrbertError: as ``ServedModel.ask``.
    """
    names = require_few(model, texts, field)
    pipeline = body.pipeline_of(model, prompt=prompt, dimensions=dimensions)
    task = pipeline.task
    assert isinstance(task, FeatureExtraction)  # as the route requires
    asked, results = await body.ask(model, pipeline, texts, names)
    found = np.stack([task.embedding(result.outputs) for result in results])
    return of_length_one(found) if normalize else found, sum(map(len, asked.rows))


async def relevance(
    body: Body,
    model: ServedModel,
    query: str,
    texts: Sequence[str],
    field: str,
    *,
    raw: bool = False,
) -> tuple[list[tuple[int, float]], int]:
    """How well texts answer a query.

    Args:
        model: a reranker.
        field: what errors call the texts.
        raw: give logits instead of probabilities.

    Returns:
        Place and score of each text, best first, equal ones in the given order; and the number of
        tokens.

    Raises:
        TrbertError: as ``ServedModel.ask``.
    """
    names = require_few(model, texts, field)
    pairs = [(query, text) for text in texts]
    asked, results = await body.ask(model, body.pipeline_of(model), pairs, names)
    logits = np.array([logits_of(result.outputs, 1)[0] for result in results])
    scores = ACTIVATIONS[IDENTITY if raw else SIGMOID](logits)
    order = np.argsort(-scores, kind="stable").tolist()
    return [(place, float(scores[place])) for place in order], sum(map(len, asked.rows))

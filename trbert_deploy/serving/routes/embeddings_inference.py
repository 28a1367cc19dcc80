"""The routes of text-embeddings-inference, so that its clients need no change.

After the published schema of its version 1.8. A text that is too long is cut where the service cuts
texts, unless a request says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.tasks.activations import ACTIVATIONS, SIGMOID
from trbert_deploy.tasks.feature_extraction import FeatureExtraction, of_length_one
from trbert_deploy.tasks.task import Text
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification, logits_of
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.version import __version__

router = APIRouter()


def served(request: Request) -> ServedModel:
    """The model of the service."""
    model = request.app.state.model
    assert isinstance(model, ServedModel)
    return model


Model = Annotated[ServedModel, Depends(served)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    truncate: bool | None = Field(None, description="Cut texts that are too long, or refuse them.")

    def pipeline_of(self, model: ServedModel) -> Pipeline:
        """The model, cutting texts or not."""
        return model.strict if self.truncate is False else model.pipeline


class EmbedRequest(_Body):
    """Texts to embed."""

    inputs: str | list[str] = Field(examples=[["What is deep learning?"]])
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: int | None = Field(None, ge=1)


class RerankRequest(_Body):
    """Texts to rank by how well they answer a query."""

    query: str = Field(examples=["who returns"])
    texts: list[str] = Field(
        min_length=1, examples=[["The house was sold.", "The sailor returns to his village."]]
    )
    raw_scores: bool = False
    return_text: bool = False


class PredictRequest(_Body):
    """Texts, or pairs of texts, to classify."""

    inputs: str | list[str] | list[list[str]] = Field(examples=["A superb film."])
    raw_scores: bool = False


class Rank(BaseModel):
    """How well a text answers."""

    index: int
    text: str | None = None
    score: float


class Label(BaseModel):
    """How probable a label is."""

    score: float
    label: str


def require_task(model: ServedModel, *kinds: type) -> None:
    """Refuse what the model does not answer.

    Raises:
        ConfigError: it is for another task.
    """
    if not isinstance(model.pipeline.task, kinds):
        raise ConfigError(
            f"the model is for {model.pipeline.task.name}: ask the route of that task"
        )


def require_few(model: ServedModel, texts: list[Any], field: str) -> list[str]:
    """What errors call the texts of a request.

    Raises:
        DataError: there are none, or more than a request may have.
    """
    if not texts:
        raise DataError(f"{field} is empty: expected at least one text")
    most = model.limits.texts
    if len(texts) > most:
        raise DataError(f"{field} has {len(texts):,} texts: expected at most {most:,}")
    return [f"{field}[{place}]" for place in range(len(texts))]


@router.post("/embed", tags=["text-embeddings-inference"])
async def embed(body: EmbedRequest, model: Model) -> list[list[float]]:
    """Embeddings of texts."""
    require_task(model, FeatureExtraction)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    names = require_few(model, texts, "inputs")
    pipeline = body.pipeline_of(model).set_up(prompt=body.prompt_name, dimensions=body.dimensions)
    task = pipeline.task
    assert isinstance(task, FeatureExtraction)
    _, results = await model.ask(pipeline, texts, names)
    found = np.stack([task.embedding(result.outputs) for result in results])
    if body.normalize:
        found = of_length_one(found)
    return found.tolist()


@router.post("/rerank", tags=["text-embeddings-inference"], response_model_exclude_none=True)
async def rerank(body: RerankRequest, model: Model) -> list[Rank]:
    """Texts by how well they answer a query, best first."""
    require_task(model, TextRanking)
    names = require_few(model, body.texts, "texts")
    pairs = [(body.query, text) for text in body.texts]
    _, results = await model.ask(body.pipeline_of(model), pairs, names)
    logits = np.array([logits_of(result.outputs, 1)[0] for result in results])
    scores = logits if body.raw_scores else ACTIVATIONS[SIGMOID](logits)
    order = np.argsort(-scores, kind="stable").tolist()
    return [
        Rank(
            index=place,
            score=float(scores[place]),
            text=body.texts[place] if body.return_text else None,
        )
        for place in order
    ]


@router.post("/predict", tags=["text-embeddings-inference"])
async def predict(body: PredictRequest, model: Model) -> list[Label] | list[list[Label]]:
    """Labels of a text by how probable they are, or of each of several: best first.

    As there, a list of strings is a pair of texts, and a list of lists has texts or pairs.
    """
    require_task(model, TextClassification)
    many = isinstance(body.inputs, list) and not all(isinstance(each, str) for each in body.inputs)
    given = body.inputs if many else [body.inputs]
    names = require_few(model, list(given), "inputs")
    texts = [_text_of(each, name) for each, name in zip(given, names, strict=True)]
    asked, results = await model.ask(body.pipeline_of(model), texts, names)
    if body.raw_scores:
        scores = [
            dict(zip(model.pipeline.labels, map(float, result.outputs[LOGITS]), strict=True))
            for result in results
        ]
    else:
        scores = [
            prediction.to_json()["scores"] for prediction in model.pipeline.told(asked, results)
        ]
    labels = [
        [
            Label(label=label, score=score)
            for label, score in sorted(each.items(), key=lambda one: -one[1])
        ]
        for each in scores
    ]
    return labels if many else labels[0]


def _text_of(given: Any, name: str) -> Text:
    """A text or a pair, as a request has it."""
    if isinstance(given, str):
        return given
    if len(given) == 1:
        return str(given[0])
    if len(given) == 2:
        return given[0], given[1]
    raise DataError(f"{name} has {len(given)} strings: expected a text, or a pair of two")


@router.get("/info", tags=["text-embeddings-inference"])
async def info(model: Model) -> dict[str, Any]:
    """What is served."""
    pipeline = model.pipeline
    labels = dict(enumerate(pipeline.labels))
    named = {"id2label": labels, "label2id": {label: place for place, label in labels.items()}}
    kind = (
        {"embedding": {"pooling": pipeline.task.pooling}}
        if isinstance(pipeline.task, FeatureExtraction)
        else {"reranker" if isinstance(pipeline.task, TextRanking) else "classifier": named}
    )
    return {
        "model_id": pipeline.path.name,
        "model_dtype": pipeline.chain.backend.description["precision"],
        "model_type": kind,
        "max_input_length": pipeline.tokenizer.max_length,
        "max_batch_tokens": pipeline.chain.max_batch_tokens,
        "max_client_batch_size": model.limits.texts,
        "auto_truncate": pipeline.tokenizer.truncate,
        "version": __version__,
    }


@router.get("/health", tags=["text-embeddings-inference"])
async def health(model: Model) -> None:
    """Whether the service answers."""

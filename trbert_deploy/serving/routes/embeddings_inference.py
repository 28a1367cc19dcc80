"""The routes of text-embeddings-inference, so that its clients need no change.

After the schema of its version 1.9. A text that is too long is cut where the service cuts texts,
unless a request says otherwise.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from tokenizers import Encoding

from trbert_deploy.errors import DataError
from trbert_deploy.serving.error_answers import documented
from trbert_deploy.serving.routes.asking import embeddings, relevance
from trbert_deploy.serving.routes.common import (
    Body,
    Models,
    TextsOrIds,
    decoded,
    listed,
    require_few,
    texts_of,
)
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.version import __version__

router = APIRouter(tags=["text-embeddings-inference"], responses=documented())


class EmbedRequest(Body):
    """Texts to embed."""

    inputs: TextsOrIds = Field(
        examples=[["What is deep learning?"]],
        description="Texts, each by itself or as the numbers of its tokens.",
    )
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: int | None = Field(default=None, ge=1)


class Sentences(BaseModel):
    """A sentence and others."""

    source_sentence: str = Field(examples=["What is deep learning?"])
    sentences: list[str] = Field(examples=[["What is machine learning?", "Where is the sea?"]])


class SimilarityParameters(Body):
    """How sentences are embedded."""

    prompt_name: str | None = None


class SimilarityRequest(BaseModel):
    """A sentence to compare with others."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class RerankRequest(Body):
    """Texts to rank by how well they answer a query."""

    query: str = Field(examples=["who returns"])
    texts: list[str] = Field(
        examples=[["The house was sold.", "The sailor returns to his village."]]
    )
    raw_scores: bool = False
    return_text: bool = False


class PredictRequest(Body):
    """Texts, or pairs of texts, to classify."""

    inputs: str | list[str] | list[list[str]] = Field(examples=["A superb film."])
    raw_scores: bool = False


class TokenizeRequest(Body):
    """Texts to tokenize."""

    inputs: str | list[str] = Field(examples=["A superb film."])
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Body):
    """Numbers of tokens, of one text or several."""

    ids: list[int] | list[list[int]] = Field(examples=[[101, 2023, 102]])
    skip_special_tokens: bool = True


class Rank(BaseModel):
    """How well a text answers."""

    index: int
    text: str | None = None
    score: float


class Label(BaseModel):
    """How probable a label is."""

    score: float
    label: str


class SimpleToken(BaseModel):
    """A token, and where it stands in its text: in bytes of UTF-8, as there."""

    id: int
    text: str
    special: bool
    start: int | None = None
    stop: int | None = None


@router.post("/embed")
async def embed(body: EmbedRequest, models: Models) -> list[list[float]]:
    """Embeddings of texts."""
    model = models.find(body.model, FeatureExtraction)
    found, _ = await embeddings(
        body,
        model,
        await texts_of(model, body.inputs, "inputs"),
        "inputs",
        normalize=body.normalize,
        prompt=body.prompt_name,
        dimensions=body.dimensions,
    )
    return found.tolist()


@router.post("/similarity")
async def similarity(body: SimilarityRequest, models: Models) -> list[float]:
    """How near others are to a sentence: the cosine of their embeddings."""
    parameters = body.parameters or SimilarityParameters()
    model = models.find(parameters.model, FeatureExtraction)
    require_few(model, body.inputs.sentences, "inputs.sentences")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    found, _ = await embeddings(
        parameters, model, texts, "sentences", prompt=parameters.prompt_name
    )
    return (found[1:] @ found[0]).tolist()


@router.post("/rerank", response_model_exclude_none=True)
async def rerank(body: RerankRequest, models: Models) -> list[Rank]:
    """Texts by how well they answer a query, best first."""
    model = models.find(body.model, TextRanking)
    found, _ = await relevance(body, model, body.query, body.texts, "texts", raw=body.raw_scores)
    return [
        Rank(index=place, score=score, text=body.texts[place] if body.return_text else None)
        for place, score in found
    ]


@router.post("/predict")
async def predict(body: PredictRequest, models: Models) -> list[Label] | list[list[Label]]:
    """Labels of a text by how probable they are, or of each of several: best first.

    As there, a list of strings is a pair of texts, and a list of lists has texts or pairs.
    """
    model = models.find(body.model, TextClassification)
    many = isinstance(body.inputs, list) and not all(isinstance(each, str) for each in body.inputs)
    given = body.inputs if many or not body.inputs else [body.inputs]
    names = require_few(model, list(given), "inputs")
    texts = [_text_of(each, name) for each, name in zip(given, names, strict=True)]
    pipeline = body.pipeline_of(model)
    asked, results = await body.ask(model, pipeline, texts, names)
    if body.raw_scores:
        scores = [
            dict(zip(pipeline.labels, map(float, result.outputs[LOGITS]), strict=True))
            for result in results
        ]
    else:
        scores = [answer.to_json()["scores"] for answer in pipeline.told(asked, results)]
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


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, models: Models) -> list[list[SimpleToken]]:
    """The tokens of texts as the model reads them, so that one that is too long is cut."""
    model = models.find(body.model)
    texts = listed(body.inputs)
    names = require_few(model, texts, "inputs")
    pipeline = body.pipeline_of(model, prompt=body.prompt_name)
    read = [str(text) for text in pipeline.inputs_of(texts)]
    encodings = await asyncio.to_thread(pipeline.tokenizer.encode, read, names)
    found = [_tokens(encoding, text) for encoding, text in zip(encodings, read, strict=True)]
    return [[each for each in one if body.add_special_tokens or not each.special] for one in found]


@router.post("/decode")
async def decode(body: DecodeRequest, models: Models) -> list[str]:
    """The texts that tokens make."""
    model = models.find(body.model)
    texts = [ids for ids in body.ids if isinstance(ids, list)]
    if one := [each for each in body.ids if isinstance(each, int)]:
        texts = [one]
    names = require_few(model, texts, "ids")
    return await decoded(model, texts, names, body.skip_special_tokens)


def _tokens(encoding: Encoding, text: str) -> list[SimpleToken]:
    """The tokens of a text, each with the part of the text that it stands for."""
    found = []
    for place, (start, stop) in enumerate(encoding.offsets):
        special = bool(encoding.special_tokens_mask[place])
        found.append(
            SimpleToken(
                id=encoding.ids[place],
                text=encoding.tokens[place] if special else text[start:stop],
                special=special,
                start=None if special else len(text[:start].encode()),
                stop=None if special else len(text[:stop].encode()),
            )
        )
    return found


@router.get("/info")
async def info(models: Models, model: str | None = None) -> dict[str, Any]:
    """What is served."""
    found = models.find(model)
    pipeline, limits = found.pipeline, found.limits
    labels = dict(enumerate(pipeline.labels))
    named = {"id2label": labels, "label2id": {label: place for place, label in labels.items()}}
    kind = (
        {"embedding": {"pooling": pipeline.task.pooling}}
        if isinstance(pipeline.task, FeatureExtraction)
        else {"reranker" if isinstance(pipeline.task, TextRanking) else "classifier": named}
    )
    return {
        "model_id": pipeline.path.name,
        "served_model_name": found.name,
        "model_dtype": pipeline.chain.backend.description["precision"],
        "model_type": kind,
        "max_concurrent_requests": limits.waiting_tokens,  # none waits without a token
        "max_input_length": pipeline.tokenizer.max_length,
        "max_batch_tokens": found.batch_tokens,
        "max_client_batch_size": limits.texts,
        "auto_truncate": pipeline.tokenizer.truncate,
        "tokenization_workers": 1,
        "version": __version__,
    }


@router.get("/health")
@router.get("/ping", include_in_schema=False)
async def health(models: Models) -> None:
    """Whether the service answers."""

"""The embeddings of the OpenAI API, so that its clients need no change."""

from __future__ import annotations

import base64
import time
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from trbert_deploy.serving.error_answers import OpenAIErrorBody, documented
from trbert_deploy.serving.routes.asking import embeddings
from trbert_deploy.serving.routes.common import Body, Models, TextsOrIds, texts_of
from trbert_deploy.tasks.feature_extraction import FeatureExtraction

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=documented(OpenAIErrorBody))
STARTED = int(time.time())


class EmbeddingsRequest(Body):
    """Texts to embed."""

    input: TextsOrIds = Field(
        examples=[["What is deep learning?"]],
        description="Texts, each by itself or as the numbers of its tokens: the model's, which "
        "`/tokenize` tells.",
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


class Embedding(BaseModel):
    """The embedding of a text; float32 in little-endian order where it is base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """The embeddings of all texts, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


@router.post("/embeddings")
async def embed(body: EmbeddingsRequest, models: Models) -> EmbeddingsResponse:
    """Embeddings of texts, of length 1."""
    model = models.find(body.model, FeatureExtraction)
    texts = await texts_of(model, body.input, "input")
    found, tokens = await embeddings(body, model, texts, "input", dimensions=body.dimensions)
    data = [
        Embedding(index=place, embedding=_written(values, body.encoding_format))
        for place, values in enumerate(found)
    ]
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    return EmbeddingsResponse(data=data, model=model.name, usage=usage)


def _written(values: np.ndarray, encoding_format: str) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(values.astype("<f4").tobytes()).decode()
    return list(map(float, values))


@router.get("/models")
async def list_models(models: Models) -> dict[str, Any]:
    """The models of the service."""
    told = [
        {"id": name, "object": "model", "created": STARTED, "owned_by": "trbert-deploy"}
        for name in models.names
    ]
    return {"object": "list", "data": told}

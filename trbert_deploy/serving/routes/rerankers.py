"""Reranking as Cohere and Jina have it, so that their clients need no change.

Cohere's first and second version differ in nothing that is of use here but ``return_documents``,
which the first has; Jina's requests are Cohere's first. Documents may be strings, or objects with a
``text``.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from trbert_deploy.errors import DataError
from trbert_deploy.serving.error_answers import CohereErrorBody, documented
from trbert_deploy.serving.routes.asking import relevance
from trbert_deploy.serving.routes.common import Body, Models
from trbert_deploy.tasks.text_ranking import TextRanking

router = APIRouter(tags=["Cohere and Jina"], responses=documented(CohereErrorBody))


class RerankRequest(Body):
    """Documents to rank by how well they answer a query."""

    query: str = Field(examples=["who returns"])
    documents: list[str | dict[str, Any]] = Field(
        examples=[["The house was sold.", "The sailor returns to his village."]]
    )
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False


class Ranked(BaseModel):
    """How well a document answers: by a sigmoid, so from 0 to 1."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankResponse(BaseModel):
    """The best documents, best first."""

    id: str
    results: list[Ranked]
    model: str
    usage: dict[str, int]
    meta: dict[str, Any]


@router.post("/v1/rerank", response_model_exclude_none=True)
@router.post("/v2/rerank", response_model_exclude_none=True)
async def rerank(body: RerankRequest, models: Models) -> RerankResponse:
    """Documents by how well they answer a query, best first."""
    model = models.find(body.model, TextRanking)
    texts = [_text_of(each, f"documents[{place}]") for place, each in enumerate(body.documents)]
    found, tokens = await relevance(body, model, body.query, texts, "documents")
    results = [
        Ranked(
            index=place,
            relevance_score=score,
            document={"text": texts[place]} if body.return_documents else None,
        )
        for place, score in found[: body.top_n]
    ]
    return RerankResponse(
        id=str(uuid.uuid4()),
        results=results,
        model=model.name,
        usage={"total_tokens": tokens},
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    )


def _text_of(document: str | dict[str, Any], name: str) -> str:
    """The text of a document.

    Raises:
        DataError: it has none.
    """
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise DataError(f"{name} has no text: expected a string, or an object with text")
    return text

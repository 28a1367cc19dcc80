"""How errors are told: each API's clients look for them in a place of their own."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel
from starlette.responses import JSONResponse


class ErrorBody(BaseModel):
    """An error as text-embeddings-inference tells it."""

    error: str
    error_type: str

    @classmethod
    def of(cls, status: int, kind: str, message: str) -> Self:
        """The body of an answer with this status."""
        return cls(error=message, error_type=kind)


class OpenAIError(BaseModel):
    """What was wrong, for clients of OpenAI."""

    message: str
    type: str
    param: str | None = None
    code: int


class OpenAIErrorBody(BaseModel):
    """An error as OpenAI tells it."""

    error: OpenAIError

    @classmethod
    def of(cls, status: int, kind: str, message: str) -> Self:
        """The body of an answer with this status."""
        return cls(error=OpenAIError(message=message, type=kind, code=status))


class CohereErrorBody(BaseModel):
    """An error as Cohere tells it, and Jina."""

    message: str
    detail: str
    error_type: str

    @classmethod
    def of(cls, status: int, kind: str, message: str) -> Self:
        """The body of an answer with this status."""
        return cls(message=message, detail=message, error_type=kind)


Body = type[ErrorBody] | type[OpenAIErrorBody] | type[CohereErrorBody]

#: Path -> how its errors are told; all others as text-embeddings-inference does.
BODIES: dict[str, Body] = {
    "/v1/embeddings": OpenAIErrorBody,
    "/v1/models": OpenAIErrorBody,
    "/v1/rerank": CohereErrorBody,
    "/v2/rerank": CohereErrorBody,
}

#: Status -> when it is answered.
STATUSES = {
    400: "Nothing is asked, or the body is no JSON.",
    401: "The key is missing, or another one.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "A text or the body is too long.",
    422: "What is asked is malformed, or nothing that the model answers.",
    424: "The model's output is no number.",
    429: "Too much waits: ask again after the seconds in Retry-After.",
    500: "A fault of the service: its log says which.",
    503: "The request waited too long, or the service ends.",
}


def documented(body: Body = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The errors of routes, for their description.

    Args:
        body: how they are told.
    """
    return {status: {"description": when, "model": body} for status, when in STATUSES.items()}


def error_answer(path: str, status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    """The answer to a request that failed.

    Args:
        path: that was asked.
        kind: of error, as text-embeddings-inference calls it.
        message: one line.
    """
    body = BODIES.get(path, ErrorBody).of(status, kind, message)
    return JSONResponse(body.model_dump(), status, headers)

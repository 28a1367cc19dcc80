"""How errors are told: each API's clients look for them in a place of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

#: (status, kind, message) -> body.
Shape = Callable[[int, str, str], dict[str, Any]]


def _embeddings_inference(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": message, "error_type": kind}


def _openai(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _cohere(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"message": message, "detail": message, "error_type": kind}


#: Path -> how its errors are told; all others as text-embeddings-inference does.
SHAPES: dict[str, Shape] = {
    "/v1/embeddings": _openai,
    "/v1/models": _openai,
    "/v1/rerank": _cohere,
    "/v2/rerank": _cohere,
}


def error_answer(path: str, status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    """The answer to a request that failed.

    Args:
        path: that was asked.
        kind: of error, as text-embeddings-inference calls it.
        message: one line.
    """
    shape = SHAPES.get(path, _embeddings_inference)
    return JSONResponse(shape(status, kind, message), status, headers)

"""The HTTP application around a model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trbert_deploy.errors import ConfigError, DataError, LengthError, OutputError, TrbertError
from trbert_deploy.serving.refusals import QueueFull, Refusal
from trbert_deploy.serving.routes import embeddings_inference
from trbert_deploy.serving.served import ServedModel
from trbert_deploy.version import __version__

log = logging.getLogger("trbert_deploy.serving")

#: Error -> HTTP status and what text-embeddings-inference calls it; the first that fits.
_STATUS: dict[type[TrbertError], tuple[int, str]] = {
    LengthError: (413, "Validation"),
    DataError: (422, "Validation"),
    ConfigError: (422, "Validation"),
    OutputError: (424, "Backend"),
}


def create_app(model: ServedModel, grace_s: float = 30.0) -> FastAPI:
    """A service of a model.

    Args:
        grace_s: seconds that what waits may take when it ends.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(model.close, grace_s)

    app = FastAPI(title="trbert-deploy", version=__version__, lifespan=lifespan)
    app.state.model = model
    app.include_router(embeddings_inference.router)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(TrbertError, _refused)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(WatchedRequests, most_bytes=model.limits.body_bytes)
    return app


def _error(status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": message, "error_type": kind}, status, headers)


async def _malformed(request: Request, problem: Exception) -> JSONResponse:
    """Which field is wrong, and how."""
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return _error(422, "Validation", f"{where}: {first['msg']}")


async def _refused(request: Request, problem: Exception) -> JSONResponse:
    """Why a request is not answered, in one line."""
    if isinstance(problem, Refusal):
        kind = "Overloaded" if isinstance(problem, QueueFull) else "Unhealthy"
        retry = problem.retry_after_s
        headers = {} if retry is None else {"Retry-After": str(ceil(retry))}
        return _error(problem.status, kind, str(problem), **headers)
    for error, (status, kind) in _STATUS.items():
        if isinstance(problem, error):
            return _error(status, kind, str(problem))
    return await _failed(request, problem)  # such messages name files


async def _failed(request: Request, problem: Exception) -> JSONResponse:
    """A fault of the service: told in its log alone."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=problem)
    return _error(500, "Backend", "the service failed to answer: its log says why")


class WatchedRequests:
    """Refuses bodies that are too long, and lets requests go whose client is gone.

    Args:
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app = app
        self.most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        answer = asyncio.ensure_future(self.app(scope, messages.get, send))
        watch = asyncio.ensure_future(self._watch(receive, messages))
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            watch.cancel()
            await answer  # whatever it raised
            return
        answer.cancel()
        await asyncio.wait({answer})
        if watch.result():
            message = f"the body has more than {self.most_bytes:,} bytes: send fewer texts at once"
            await _error(413, "Validation", message)(scope, receive, send)

    async def _watch(self, receive: Receive, messages: asyncio.Queue[Message]) -> bool:
        """Hand on what a client sends, until it is gone (False) or has sent too much (True)."""
        left = self.most_bytes
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            left -= len(message.get("body", b""))
            if left < 0:
                return True
            await messages.put(message)

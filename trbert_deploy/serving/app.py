"""The HTTP application around models."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from math import ceil
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from trbert_deploy.errors import ConfigError, DataError, LengthError, OutputError, TrbertError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.error_answers import error_answer
from trbert_deploy.serving.flights import Flights, FollowedRequests
from trbert_deploy.serving.keys import RequiredKey
from trbert_deploy.serving.logs import LOGGER
from trbert_deploy.serving.metrics import Metrics
from trbert_deploy.serving.middleware import MeasuredRequests, WatchedRequests
from trbert_deploy.serving.refusals import Refusal
from trbert_deploy.serving.routes import (
    embeddings_inference,
    open_inference,
    openai,
    own,
    rerankers,
)
from trbert_deploy.serving.served import ServedModels
from trbert_deploy.serving.takeover import Takeover
from trbert_deploy.version import __version__

log = logging.getLogger(LOGGER)

#: Error -> HTTP status and what text-embeddings-inference calls it; the first that fits.
_STATUS: dict[type[TrbertError], tuple[int, str]] = {
    LengthError: (413, "Validation"),
    DataError: (422, "Validation"),
    ConfigError: (422, "Validation"),
    OutputError: (424, "Backend"),
}


def create_app(
    models: ServedModels,
    key: str | None = None,
    load: Callable[[Path], Pipeline] | None = None,
    watch: bool = False,
) -> FastAPI:
    """A service of models.

    A server that ends waits for its requests first, as long as it has patience; what waits for a
    model even then is refused.

    Args:
        key: that requests must bring; None where they need none.
        load: opens a bundle that was replaced, which SIGHUP asks for; None for no such takeover.
        watch: look for such bundles, too.
    """
    metrics, flights = Metrics(), Flights()
    for model in models:
        model.watch(metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _taking_over(Takeover(models, load, metrics, flights) if load else None, watch):
            yield
        await models.close(grace_s=0.0)

    app = FastAPI(title="trbert-deploy", version=__version__, lifespan=lifespan)
    app.state.models = models
    for api in (embeddings_inference, openai, rerankers, open_inference, own):
        app.include_router(api.router)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(TrbertError, _refused)
    app.add_exception_handler(Exception, _failed)

    @app.get("/metrics", tags=["trbert-deploy"], response_class=PlainTextResponse)
    async def tell_metrics() -> Response:
        """Figures of the service, for Prometheus (docs/serving.md)."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    limits = next(iter(models)).limits
    app.add_middleware(WatchedRequests, most_bytes=limits.body_bytes, most_seconds=limits.timeout_s)
    if key is not None:
        app.add_middleware(RequiredKey, key=key)
    app.add_middleware(FollowedRequests, flights=flights)
    app.add_middleware(MeasuredRequests, metrics=metrics)
    return app


@asynccontextmanager
async def _taking_over(takeover: Takeover | None, watch: bool) -> AsyncIterator[None]:
    """Take over replaced bundles meanwhile, on SIGHUP or as they come."""
    if takeover is None:
        yield
        return
    tasks: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)  # or nobody holds it
        task.add_done_callback(tasks.discard)

    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals in other threads
        loop.add_signal_handler(signal.SIGHUP, lambda: start(takeover.take_over()))
    if watch:
        start(takeover.watch())
    try:
        yield
    finally:
        for task in list(tasks):
            task.cancel()


async def _malformed(request: Request, problem: Exception) -> Response:
    """Which field is wrong, and how."""
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return error_answer(request.url.path, 422, "Validation", f"{where}: {first['msg']}")


async def _not_found(request: Request, problem: Exception) -> Response:
    """No such route or method, or a body that cannot be read."""
    assert isinstance(problem, HTTPException)
    message = f"{problem.detail}: /docs describes all routes"
    headers = problem.headers or {}
    return error_answer(request.url.path, problem.status_code, "Validation", message, **headers)


async def _refused(request: Request, problem: Exception) -> Response:
    """Why a request is not answered, in one line."""
    path = request.url.path
    if isinstance(problem, Refusal):
        retry = problem.retry_after_s
        headers = {} if retry is None else {"Retry-After": str(ceil(retry))}
        return error_answer(path, problem.status, problem.kind, str(problem), **headers)
    for error, (status, kind) in _STATUS.items():
        if isinstance(problem, error):
            return error_answer(path, status, kind, str(problem))
    return await _failed(request, problem)  # such messages name files


async def _failed(request: Request, problem: Exception) -> Response:
    """A fault of the service: told in its log alone."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=problem)
    message = "the service failed to answer: its log says why"
    return error_answer(request.url.path, 500, "Backend", message)

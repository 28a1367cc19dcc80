"""What every request passes on its way to its route."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trbert_deploy.serving import traces
from trbert_deploy.serving.answered_at import noted_threshold, noting
from trbert_deploy.serving.error_answers import error_answer
from trbert_deploy.serving.logs import FIELDS, LOGGER, request_id
from trbert_deploy.serving.metrics import Metrics

log = logging.getLogger(LOGGER)

#: Status of requests that nobody waits for any more, as nginx has it.
CLIENT_GONE = 499
REQUEST_ID = "X-Request-ID"
THRESHOLD = "X-Threshold"


class WatchedRequests:
    """Refuses bodies that are too long or too slow, and lets requests go whose client is gone.

    Args:
        most_bytes: of a body.
        most_seconds: that it may take to come; as long as it likes where None.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, most_seconds: float | None = None) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.most_seconds = most_seconds

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
        if refusal := watch.result():
            status, message = refusal
            refused = error_answer(scope["path"], status, "Validation", message)
            await refused(scope, receive, send)

    async def _watch(
        self, receive: Receive, messages: asyncio.Queue[Message]
    ) -> tuple[int, str] | None:
        """Hand on what a client sends, until it is gone (None), or its body is to be refused."""
        left = self.most_bytes
        try:
            async with asyncio.timeout(self.most_seconds) as time_left:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    left -= len(message.get("body", b""))
                    if left < 0:
                        return 413, (
                            f"the body has more than {self.most_bytes:,} bytes: send fewer texts "
                            "at once"
                        )
                    await messages.put(message)
                    if not message.get("more_body", False):
                        time_left.reschedule(None)
        except TimeoutError:
            return 408, f"the body did not come within {self.most_seconds:g} s: send it at once"


class MeasuredRequests:
    """Counts requests by route and status, times them, and writes a line of each to the log.

    A request has an id, its own (``X-Request-ID``) or a new one, which its answer brings, too.
    Where it was answered at another threshold than the model's own, ``X-Threshold`` says at which.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = CLIENT_GONE
        name = request_id(Headers(scope=scope).get(REQUEST_ID))

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = name
                if (threshold := noted_threshold()) is not None:
                    headers[THRESHOLD] = f"{threshold:.6g}"
            await send(message)

        try:
            with noting(), traces.request(scope["method"], Headers(scope=scope)) as span:
                try:
                    await self.app(scope, receive, sending)
                finally:
                    span.route, span.status = _route(scope), status
        finally:
            seconds, route = time.perf_counter() - start, _route(scope)
            self.metrics.answered(route, status, seconds)
            told = {"method": scope["method"], "route": route, "status": status}
            log.info(
                "%s %s %d in %.1f ms, %s",
                *told.values(),
                1e3 * seconds,
                name,
                extra={FIELDS: {**told, "ms": round(1e3 * seconds, 3), "request_id": name}},
            )


def _route(scope: Scope) -> str:
    """The route that a request found, as its description has it."""
    return str(getattr(scope.get("route"), "path", "other"))

"""Who may ask a service."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trbert_deploy.serving.error_answers import error_answer

#: Paths that need no key: what probes ask, and a page that asks for one.
OPEN_PATHS = frozenset({"/", "/health", "/ping", "/v2/health/live", "/v2/health/ready"})


class RequiredKey:
    """Lets requests pass that have the key as their bearer token.

    Args:
        key: compared in a time that tells nothing of it.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "")
            if not hmac.compare_digest(given.encode("latin-1"), self._expected):
                message = "no such key: send 'Authorization: Bearer KEY'"
                headers = {"WWW-Authenticate": "Bearer"}
                answer = error_answer(scope["path"], 401, "Validation", message, **headers)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

"""Requests that are under way."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send


class Flights:
    """Knows which requests are under way, so that somebody may wait for them."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Event] = set()

    async def landed(self) -> None:
        """Wait until all requests have ended that are under way now."""
        for ended in list(self._under_way):
            await ended.wait()

    async def follow(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request among those under way while an application answers it."""
        ended = asyncio.Event()
        self._under_way.add(ended)
        try:
            await app(scope, receive, send)
        finally:
            self._under_way.remove(ended)
            ended.set()


class FollowedRequests:
    """Counts requests among those under way."""

    def __init__(self, app: ASGIApp, flights: Flights) -> None:
        self.app = app
        self.flights = flights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.flights.follow(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

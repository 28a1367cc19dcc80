"""Services of models, for tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
import uvicorn

from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.app import create_app
from trbert_deploy.serving.served import Limits, ServedModel, ServedModels

SOON = 20.0


def free_ports(count: int) -> list[int]:
    """Ports of this machine at which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def serving(pipeline: Pipeline, **limits: Any) -> Iterator[httpx.Client]:
    """A client of a service of a model."""
    with answering(ServedModel(pipeline, Limits(**limits))) as client:
        yield client


@contextmanager
def answering(*models: ServedModel, key: str | None = None) -> Iterator[httpx.Client]:
    """A client of the service of some models."""
    app = create_app(ServedModels(models), key)
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(SOON)
    assert not thread.is_alive()

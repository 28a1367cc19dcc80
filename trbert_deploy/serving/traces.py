"""Traces of requests by OpenTelemetry, where the extra ``traces`` is installed.

A request is a span, within the one that its ``traceparent`` names; in it are ``tokenize``, ``wait``
(until the first of its rows runs) and ``run``. Without the packages, or without a collector that
the environment names, nothing is noted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trbert_deploy.errors import MissingDependencyError

try:
    from opentelemetry import propagate, trace
except ModuleNotFoundError:  # the extra is not installed
    _TRACER: Any = None
else:
    _TRACER = trace.get_tracer("trbert_deploy")

#: By which OpenTelemetry's own variables name a collector.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def set_up() -> None:
    """Send spans to the collector that the environment names, if it names one.

    Raises:
        MissingDependencyError: the packages are not installed.
    """
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as problem:
        raise MissingDependencyError(
            f"what {named[0]} asks for", "opentelemetry-exporter-otlp-proto-http", "traces"
        ) from problem
    resource = Resource({"service.name": "trbert-deploy"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@dataclass
class RequestSpan:
    """What a request's span gets to know as it ends.

    Attributes:
        route, status: as the metrics have them.
    """

    route: str = ""
    status: int = 0


@contextmanager
def request(method: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
    """A request's span, as long as it takes.

    Args:
        headers: of the request, in small letters.
    """
    told = RequestSpan()
    if _TRACER is None:
        yield told
        return
    with _TRACER.start_as_current_span(
        method, propagate.extract(headers), trace.SpanKind.SERVER, {"http.request.method": method}
    ) as span:
        try:
            yield told
        finally:
            span.update_name(f"{method} {told.route}")
            span.set_attribute("http.route", told.route)
            span.set_attribute("http.response.status_code", told.status)
            if told.status >= 500:
                span.set_status(trace.StatusCode.ERROR)


def part(name: str, start: float, end: float, **attributes: float | str) -> None:
    """Note a part of the request under way that is over.

    Args:
        start, end: on the monotonic clock, in seconds.
        attributes: of its span.
    """
    if _TRACER is None:
        return
    since = time.time() - time.monotonic()
    span = _TRACER.start_span(name, attributes=attributes, start_time=int(1e9 * (start + since)))
    span.end(int(1e9 * (end + since)))

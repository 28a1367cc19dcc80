"""Traces: a request is a span with its parts, within the caller's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from conftest import make_texts
from services_in_tests import SOON, serving

from trbert_deploy import load
from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving import traces

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TEXTS = [row["text"] for row in make_texts(3, seed=5)]
CALLER = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[memory.InMemorySpanExporter]:
    """What is noted."""
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_TRACER", provider.get_tracer("tests"))
    yield exporter
    provider.shutdown()


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


def test_a_request_is_a_span_with_its_parts(
    pipeline: Pipeline, spans: memory.InMemorySpanExporter, cache: Path
) -> None:
    with serving(pipeline, thresholds=(0.1, 0.9)) as client:
        client.post(
            "/predict",
            json={"inputs": [[text] for text in TEXTS], "threshold": 0.75},
            headers={"traceparent": f"00-{CALLER}-b7ad6b7169203331-01"},
        )
        client.post("/predict", json={"inputs": 3})
    tokenize, wait, run, request, refused = spans.get_finished_spans()
    assert [each.name for each in (tokenize, wait, run)] == ["tokenize", "wait", "run"]
    assert request.name == refused.name == "POST /predict"
    assert {f"{each.context.trace_id:032x}" for each in (tokenize, wait, run, request)} == {CALLER}
    assert {each.parent.span_id for each in (tokenize, wait, run)} == {request.context.span_id}
    moments = [request.start_time, tokenize.start_time, tokenize.end_time, wait.end_time]
    moments += [run.end_time, request.end_time]
    slack = 5_000_000  # ns: two clocks
    assert all(before <= after + slack for before, after in pairwise(moments))
    assert run.attributes == {"model": "bundle", "rows": 3, "threshold": 0.75}
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
    }
    assert refused.attributes["http.response.status_code"] == 422 and refused.parent is None
    noted = str([each.to_json() for each in spans.get_finished_spans()])
    assert not any(word in noted for word in TEXTS[0].split() if len(word) > 4)  # no user's text


def test_without_the_packages_nothing_is_noted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "_TRACER", None)
    with serving(pipeline) as client:
        assert client.post("/predict", json={"inputs": TEXTS[0]}).status_code == 200


def test_a_collector_without_the_packages_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingDependencyError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*\[traces\]"):
        traces.set_up()


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    """One that the environment names: in a process of its own, since it is set up once."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        code = (
            "from trbert_deploy.serving import traces\n"
            "traces.set_up()\n"
            "with traces.request('POST', {}) as span:\n"
            "    span.route, span.status = '/predict', 200\n"
        )
        named = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        subprocess.run([sys.executable, "-c", code], env=named, check=True, timeout=SOON)
        server.shutdown()
    assert len(bodies) == 1 and b"POST /predict" in bodies[0] and b"trbert-deploy" in bodies[0]

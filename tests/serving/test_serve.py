"""The service over a socket: answers are the library's, refusals say what is wrong."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import overload
import pytest
from conftest import make_texts
from services_in_tests import SOON, answering, serving
from starlette.types import Message, Receive, Scope, Send
from tasks.test_text_ranking import folder_of
from test_embeddings_end_to_end import write_folder

from trbert_deploy import load
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.middleware import WatchedRequests
from trbert_deploy.serving.served import Limits, ServedModel
from trbert_deploy.tasks.activations import IDENTITY, SIGMOID

pytestmark = pytest.mark.filterwarnings("ignore:texts longer than")

TEXTS = [row["text"] for row in make_texts(40, seed=5)]
BODY = {"inputs": TEXTS[0]}


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def client(classifier: Pipeline) -> Iterator[httpx.Client]:
    with serving(classifier, texts=50, body_bytes=20_000) as client:
        yield client


def test_labels_are_the_librarys(client: httpx.Client, classifier: Pipeline) -> None:
    (expected,) = classifier(TEXTS[:1])
    answer = client.post("/predict", json={"inputs": TEXTS[0]}).json()
    scores = expected.to_json()["scores"]
    assert [each["label"] for each in answer] == sorted(scores, key=scores.__getitem__)[::-1]
    for each in answer:
        assert each["score"] == pytest.approx(scores[each["label"]], abs=1e-6)
    raw = client.post("/predict", json={"inputs": TEXTS[0], "raw_scores": True}).json()
    probabilities = np.exp([each["score"] for each in raw])
    assert probabilities[0] / probabilities.sum() == pytest.approx(answer[0]["score"], abs=1e-5)


def test_many_at_a_time_get_their_own_answers(client: httpx.Client, classifier: Pipeline) -> None:
    expected = {
        text: each.to_json()["score"] for text, each in zip(TEXTS, classifier(TEXTS), strict=True)
    }

    def ask(number: int) -> None:
        texts = TEXTS[number % 7 : number % 7 + number % 5 + 1]
        answers = client.post("/predict", json={"inputs": [[text] for text in texts]}).json()
        best = [labels[0]["score"] for labels in answers]
        assert best == pytest.approx([expected[text] for text in texts], abs=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(80)))


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/predict", {"inputs": 3}, 422, "inputs"),
        ("/predict", {}, 422, "inputs: Field required"),
        ("/predict", [1], 422, "the body: Input should be a valid dictionary"),
        ("/predict", {"inputs": "a", "truncate": "no"}, 422, "truncate: .* valid boolean"),
        ("/predict", {"inputs": [["a"], ["a", "b", "c"]]}, 422, r"\[1\] has 3 strings: expected"),
        ("/predict", {"inputs": [["a"], [" "]]}, 422, r"inputs\[1\] .*empty"),
        ("/predict", {"inputs": [["a"]] * 51}, 422, "inputs has 51 texts: expected at most 50"),
        ("/predict", {"inputs": "war " * 400, "truncate": False}, 413, "the model takes at most"),
        ("/predict", {"inputs": "a" * 30_000}, 413, "more than 20,000 bytes"),
        ("/embed", {"inputs": "a"}, 422, "the model is for text-classification"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 422, "the model is for text-classification"),
        ("/predict", {"inputs": "a", "threshold": 0.5}, 422, "choose no operating point"),
        ("/predict", {"inputs": "a", "latency_budget_ms": 5}, 422, "choose no operating point"),
        ("/predict", {"inputs": "a", "latency_budget_ms": 0}, 422, "latency_budget_ms: .* than 0"),
        ("/predict", {"inputs": "a", "threshold": 2}, 422, "threshold: .* less than or equal to 1"),
        ("/answers", {"inputs": [{"txt": "a"}]}, 422, r"inputs\[0\].*txt"),
        ("/answers", {"inputs": "a", "parameters": {"top": 1}}, 422, "unknown option top"),
        ("/token-classification", {"inputs": "a"}, 422, "the model is for text-classification"),
        ("/v1/rerank", {"query": "a", "documents": [{}]}, 422, "the model is for"),
    ],
)  # fmt: skip
def test_bad_requests_are_told_what_is_wrong(
    client: httpx.Client, route: str, body: Any, status: int, message: str
) -> None:
    answer = client.post(route, json=body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    said = told.get("error") or told["message"]
    assert told["error_type"] == "Validation" and re.search(message, said), told
    assert "\n" not in said and "/tmp" not in said


@pytest.mark.parametrize(
    ("route", "body"), [("/predict", {"inputs": []}), ("/tokenize", {"inputs": []})]
)
def test_nothing_asked_is_no_question(client: httpx.Client, route: str, body: Any) -> None:
    answer = client.post(route, json=body)
    assert answer.status_code == 400 and answer.json()["error_type"] == "Empty"


def test_what_is_no_json_is_refused(client: httpx.Client) -> None:
    answer = client.post("/predict", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "JSON" in answer.json()["error"]


def test_the_service_says_what_it_is(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    info = client.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "bad", "1": "good"}
    assert info["max_client_batch_size"] == 50 and info["auto_truncate"]
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/embed", "/rerank", "/info", "/health"} <= set(paths)


@contextmanager
def busy(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any
) -> Iterator[tuple[httpx.Client, list[Future[httpx.Response]], threading.Event]]:
    """A service whose model runs one request until the event is set, while another one waits."""
    pipeline = load(bundle, threads=1)
    model = ServedModel(pipeline, Limits(**limits))
    free, running, run = threading.Event(), threading.Event(), pipeline.chain.run

    def waits(rows: Any, timing: Any = None) -> Any:
        running.set()
        assert free.wait(SOON)
        return run(rows, timing)

    monkeypatch.setattr(pipeline.chain, "run", waits)
    with answering(model) as client, ThreadPoolExecutor(2) as pool:
        try:
            asked = [pool.submit(client.post, "/predict", json=BODY)]
            assert running.wait(SOON)
            asked.append(pool.submit(client.post, "/predict", json=BODY))
            stop = time.monotonic() + SOON
            while not model.waiting_tokens:
                assert time.monotonic() < stop
                time.sleep(0.001)
            yield client, asked, free
        finally:
            free.set()


def test_a_full_service_says_when_to_ask_again(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(tiny_bundle, monkeypatch, waiting_tokens=5) as (client, asked, free):
        refused = client.post("/predict", json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        told = refused.json()
        assert told["error_type"] == "Overloaded" and "are waiting already" in told["error"]
        free.set()
        assert [each.result(SOON).status_code for each in asked] == [200, 200]


def test_a_request_that_waits_too_long_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(tiny_bundle, monkeypatch, timeout_s=0.05) as (_, (running, late), free):
        time.sleep(0.1)
        free.set()
        assert running.result(SOON).status_code == 200
        refused = late.result(SOON)
        assert refused.status_code == 503 and "would wait longer" in refused.json()["error"]


def test_a_fault_of_the_service_names_no_file(
    classifier: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(classifier) as client:
        monkeypatch.setattr(type(classifier), "ask", lambda *_: Path("/nowhere").read_text())
        answer = client.post("/predict", json={"inputs": "a"})
        assert answer.status_code == 500
        assert answer.json()["error"] == "the service failed to answer: its log says why"


def test_embeddings_are_the_librarys(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = write_folder(
        tmp_path, tokenizer_dir, "mean", False, prompts={"query": "the film ", "passage": "war "}
    )
    export_bundle(folder, tmp_path / "bundle")
    encoder = load(tmp_path / "bundle", threads=1)
    with serving(encoder) as client:

        def embed(**body: Any) -> np.ndarray:
            return np.array(client.post("/embed", json=body).json())

        plain = embed(inputs=TEXTS[:3], normalize=False)
        np.testing.assert_allclose(plain, encoder.encode(TEXTS[:3]), atol=1e-6)
        unit = encoder.encode(TEXTS[:3], normalize_embeddings=True)
        np.testing.assert_allclose(embed(inputs=TEXTS[:3]), unit, atol=1e-6)
        asked = encoder.encode(TEXTS[:3], prompt_name="query", truncate_dim=8)
        np.testing.assert_allclose(
            embed(inputs=TEXTS[:3], normalize=False, prompt_name="query", dimensions=8),
            asked,
            atol=1e-6,
        )
        wrong = client.post("/embed", json={"inputs": "a", "prompt_name": "no such"})
        assert wrong.status_code == 422 and "no such" in wrong.json()["error"]
        assert client.get("/info").json()["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize("raw", [False, True])
def test_passages_are_ranked_as_by_the_library(
    tmp_path: Path, tokenizer_dir: Path, raw: bool
) -> None:
    folder = folder_of(tmp_path / "folder", tokenizer_dir, "bert")
    export_bundle(folder, tmp_path / "bundle")
    reranker = load(tmp_path / "bundle", threads=1)
    expected = reranker.rank("the film", TEXTS[:9], activation_fn=IDENTITY if raw else SIGMOID)
    with serving(reranker) as client:
        body = {"query": "the film", "texts": TEXTS[:9], "raw_scores": raw, "return_text": True}
        found = client.post("/rerank", json=body).json()
        assert [each["index"] for each in found] == [each["corpus_id"] for each in expected]
        scores = [each["score"] for each in expected]
        assert [each["score"] for each in found] == pytest.approx(scores, abs=1e-6)
        assert all(each["text"] == TEXTS[each["index"]] for each in found)
        del body["return_text"]
        assert set(client.post("/rerank", json=body).json()[0]) == {"index", "score"}


def test_a_request_whose_client_is_gone_is_let_go() -> None:
    ended = []

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(SOON)
        finally:
            ended.append("let go")

    async def ask() -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"{}"},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError("nobody hears it")

        await WatchedRequests(waits, 100)({"type": "http"}, receive, send)

    start = time.monotonic()
    asyncio.run(ask())
    assert ended == ["let go"] and time.monotonic() - start < SOON / 2


def test_what_an_application_raises_is_not_lost() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("no luck")

    async def ask() -> None:
        await WatchedRequests(fails, 100)({"type": "http"}, asyncio.Event().wait, print)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="no luck"):
        asyncio.run(ask())


def test_the_command_serves_until_it_is_told_to_end(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ("--thresholds", "0.1", "0.9", "--shed", "quality")
    with (
        overload.service(tiny_bundle, *options) as service,
        closing(HTTPConnection("127.0.0.1", service.port, timeout=SOON)) as idle,
    ):
        idle.request("GET", "/health")
        assert idle.getresponse().read() is not None
        body = {"inputs": TEXTS[0], "latency_budget_ms": 1e6}
        url = f"http://127.0.0.1:{service.port}/predict"
        answer = httpx.post(url, json=body, timeout=SOON)
        assert answer.status_code == 200 and len(answer.json()) == 2
        assert 0.1 <= float(answer.headers["x-threshold"]) <= 0.9
        time.sleep(6)  # longer than the server closes idle connections after by default
        idle.request("GET", "/health")
        assert idle.getresponse().status == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(SOON) in (0, -signal.SIGTERM)

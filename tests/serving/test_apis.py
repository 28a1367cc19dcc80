"""The APIs that clients know, asked by these clients where there are any."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cohere
import httpx2 as httpx
import numpy as np
import openai
import pytest
import tritonclient.http as tritonclient
from conftest import make_texts
from huggingface_hub import InferenceClient
from prometheus_client.parser import text_string_to_metric_families
from services_in_tests import answering
from tasks.test_text_ranking import folder_of
from test_embeddings_end_to_end import write_folder
from transformers import AutoTokenizer
from tritonclient.utils import InferenceServerException

from trbert_deploy import load
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.drift import RECENT, Drift
from trbert_deploy.serving.logs import JsonLines
from trbert_deploy.serving.served import Limits, ServedModel, ServedModels
from trbert_deploy.tasks.activations import SIGMOID

pytestmark = pytest.mark.filterwarnings("ignore:texts longer than")

TEXTS = [row["text"] for row in make_texts(12, seed=5)]
QUERY = "the film"


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Pipeline:
    place = tmp_path_factory.mktemp("encoder")
    folder = write_folder(place, tokenizer_dir, "mean", False, prompts={"query": "the film "})
    export_bundle(folder, place / "bundle")
    return load(place / "bundle", threads=1)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Pipeline:
    place = tmp_path_factory.mktemp("reranker")
    export_bundle(folder_of(place / "folder", tokenizer_dir, "bert"), place / "bundle")
    return load(place / "bundle", threads=1)


@pytest.fixture(scope="module")
def client(classifier: Pipeline, encoder: Pipeline, reranker: Pipeline) -> Iterator[httpx.Client]:
    """Of a service of three models, whose routes know which of them is meant."""
    limits = Limits(texts=50, thresholds=(0.0, 0.6))
    named = {"labels": classifier, "vectors": encoder, "ranks": reranker}
    models = [ServedModel(pipeline, limits, name) for name, pipeline in named.items()]
    with answering(*models) as found:
        yield found


def base(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


@pytest.mark.parametrize("encoding_format", ["float", "base64", openai.omit])
def test_openai_embeds(client: httpx.Client, encoder: Pipeline, encoding_format: Any) -> None:
    with openai.OpenAI(base_url=f"{base(client)}/v1", api_key="any") as asked:
        found = asked.embeddings.create(
            model="vectors", input=TEXTS[:3], encoding_format=encoding_format, dimensions=8
        )
        names = [model.id for model in asked.models.list()]
    assert names == ["labels", "vectors", "ranks"]
    assert found.model == "vectors" and found.usage.prompt_tokens > 3
    expected = encoder.encode(TEXTS[:3], truncate_dim=8, normalize_embeddings=True)
    for place, each in enumerate(found.data):
        values: Any = each.embedding
        if encoding_format == "base64":
            values = np.frombuffer(base64.b64decode(values), "<f4")
        assert each.index == place
        np.testing.assert_allclose(values, expected[place], atol=1e-6)


def test_openai_is_told_what_is_wrong(client: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{base(client)}/v1", api_key="any", max_retries=0) as asked:
        with pytest.raises(openai.NotFoundError, match=r"no model 'nobody'.*vectors"):
            asked.embeddings.create(model="nobody", input="a")
        with pytest.raises(openai.UnprocessableEntityError, match="for text-classification"):
            asked.embeddings.create(model="labels", input="a")


@pytest.mark.parametrize("version", [1, 2])
def test_cohere_reranks(client: httpx.Client, reranker: Pipeline, version: int) -> None:
    kind: Any = cohere.Client if version == 1 else cohere.ClientV2
    with kind(api_key="any", base_url=base(client)) as asked:
        found = asked.rerank(model="ranks", query=QUERY, documents=TEXTS, top_n=5)
    expected = reranker.rank(QUERY, TEXTS, top_k=5, activation_fn=SIGMOID)
    assert [each.index for each in found.results] == [each["corpus_id"] for each in expected]
    assert [each.relevance_score for each in found.results] == pytest.approx(
        [each["score"] for each in expected], abs=1e-6
    )


def test_jina_gets_documents_back(client: httpx.Client) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1], "other": 1}]
    body = {"model": "ranks", "query": QUERY, "documents": documents, "return_documents": True}
    told = client.post("/v1/rerank", json=body).json()
    assert {each["document"]["text"] for each in told["results"]} == set(TEXTS[:2])
    assert told["usage"]["total_tokens"] > 0
    wrong = client.post("/v1/rerank", json={**body, "documents": ["a", {"txt": "b"}]})
    assert wrong.status_code == 422 and "documents[1] has no text" in wrong.json()["message"]


def test_cohere_is_told_what_is_wrong(client: httpx.Client) -> None:
    refused = pytest.raises(cohere.UnprocessableEntityError, match="for text-classification")
    with cohere.ClientV2(api_key="any", base_url=base(client)) as asked, refused:
        asked.rerank(model="labels", query=QUERY, documents=TEXTS)


def test_the_client_of_hugging_face(client: httpx.Client, encoder: Pipeline) -> None:
    found = InferenceClient(f"{base(client)}/embed").feature_extraction(TEXTS[0])
    expected = encoder.encode(TEXTS[:1], normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    near = InferenceClient(f"{base(client)}/similarity").sentence_similarity(
        TEXTS[0], other_sentences=TEXTS[:3]
    )
    assert near[0] == pytest.approx(1.0) and len(near) == 3


def test_tokens_stand_where_the_text_has_them(client: httpx.Client, tokenizer_dir: Path) -> None:
    text = "War \u00e9 film"
    (told,) = client.post("/tokenize", json={"inputs": text, "model": "labels"}).json()
    expected = AutoTokenizer.from_pretrained(tokenizer_dir)(text)["input_ids"]
    assert [each["id"] for each in told] == expected
    assert (told[0]["text"], told[0]["special"], told[0]["start"]) == ("[CLS]", True, None)
    for each in told[1:-1]:
        assert text.encode()[each["start"] : each["stop"]].decode() == each["text"]
    bare = {"inputs": [text], "add_special_tokens": False, "model": "labels"}
    assert client.post("/tokenize", json=bare).json() == [told[1:-1]]


def test_tokens_make_texts_again(client: httpx.Client, tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    ids = tokenizer(TEXTS[:2])["input_ids"]

    def decode(**body: Any) -> httpx.Response:
        return client.post("/decode", json={"model": "labels", **body})

    for skip in (True, False):
        expected = [tokenizer.decode(each, skip_special_tokens=skip) for each in ids]
        assert decode(ids=ids, skip_special_tokens=skip).json() == expected
        assert decode(ids=ids[0], skip_special_tokens=skip).json() == expected[:1]
    assert decode(ids=[]).status_code == 400
    refused = decode(ids=[[1], [10**6]])
    assert refused.status_code == 422 and "ids[1] has 1000000: expected numbers" in refused.text


def test_texts_may_come_as_numbers_of_tokens(
    client: httpx.Client, encoder: Pipeline, tokenizer_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    ids = tokenizer(TEXTS[:3])["input_ids"]
    said = [tokenizer.decode(each, skip_special_tokens=True) for each in ids]
    expected = encoder.encode(said, normalize_embeddings=True)

    def embed(**body: Any) -> httpx.Response:
        return client.post("/embed", json={"model": "vectors", **body})

    for inputs, places in ((ids, [0, 1, 2]), (ids[1], [1]), ([said[0], ids[2]], [0, 2])):
        np.testing.assert_allclose(embed(inputs=inputs).json(), expected[places], atol=1e-6)
    with openai.OpenAI(base_url=f"{base(client)}/v1", api_key="any") as asked:
        found = asked.embeddings.create(model="vectors", input=ids[:2], encoding_format="float")
    np.testing.assert_allclose([each.embedding for each in found.data], expected[:2], atol=1e-6)
    refused = embed(inputs=["a", [-1]])
    assert refused.status_code == 422 and "inputs[1] has -1: expected numbers" in refused.text
    assert embed(inputs=[[3, "a"]]).status_code == 422
    assert embed(inputs=[]).status_code == 400


def test_any_answer_with_what_was_kept(client: httpx.Client, classifier: Pipeline) -> None:
    body = {"model": "labels", "inputs": TEXTS[:2], "return_kept": True, "threshold": 0.6}
    told = client.post("/answers", json=body).json()
    expected = classifier.at_threshold(0.6)(TEXTS[:2], return_kept=True)
    assert told["threshold"] == 0.6 and told["model"] == "labels"
    for found, wanted in zip(told["answers"], expected, strict=True):
        assert found["label"] == wanted.to_json()["label"]
        kept = [each["positions"] for each in found["kept"]]
        assert kept == [list(each["positions"]) for each in wanted.to_json()["kept"]]
    refused = client.post("/answers", json={**body, "threshold": 0.7})
    assert refused.status_code == 422 and "allows 0 to 0.6" in refused.json()["error"]


def test_records_are_read_as_predict_reads_them(client: httpx.Client, reranker: Pipeline) -> None:
    records = [{"query": QUERY, "passage": text} for text in TEXTS[:3]]
    told = client.post("/answers", json={"model": "ranks", "inputs": records}).json()
    expected = [each.to_json()["score"] for each in reranker([(QUERY, t) for t in TEXTS[:3]])]
    assert [each["score"] for each in told["answers"]] == pytest.approx(expected, abs=1e-6)


def test_a_route_finds_its_only_model(client: httpx.Client) -> None:
    body = {"query": QUERY, "texts": TEXTS[:2]}
    assert client.post("/rerank", json=body).status_code == 200
    assert client.get("/info", params={"model": "ranks"}).json()["served_model_name"] == "ranks"
    unclear = client.get("/info")
    assert unclear.status_code == 422 and "labels, vectors, ranks" in unclear.json()["error"]


def test_models_have_names_of_their_own(classifier: Pipeline) -> None:
    two = [ServedModel(classifier, Limits()) for _ in range(2)]
    try:
        with pytest.raises(ConfigError, match="two models have one name"):
            ServedModels(two)
    finally:
        for model in two:
            model.close(0)


def test_figures_of_a_service(classifier: Pipeline) -> None:
    with answering(ServedModel(classifier, Limits(), "mine")) as client:
        rows = classifier.tokenize(TEXTS)
        client.post("/predict", json={"inputs": [[text] for text in TEXTS]})
        client.post("/predict", json={"inputs": []})
        client.get("/nowhere")
        told = client.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    figures = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    }
    model = ("model", "mine")

    def requests(route: str, status: str) -> float:
        return figures["trbert_requests_total", ("route", route), ("status", status)]

    assert requests("/predict", "200") == requests("/predict", "400") == 1
    assert requests("other", "404") == 1
    assert figures["trbert_tokens_total", model] == sum(map(len, rows))
    assert figures["trbert_rows_total", model] == len(TEXTS)
    assert figures["trbert_batch_rows_sum", model] == len(TEXTS)
    assert figures["trbert_queue_seconds_count", model] == 1
    assert figures["trbert_queue_tokens", model] == 0
    kept = sum(len(result.kept[0]) for result in classifier.run(rows))
    cut = str(0)
    assert figures["trbert_kept_tokens_total", ("cut", cut), model] == kept
    assert figures["trbert_slots_total", model] >= figures["trbert_filled_slots_total", model] > 0
    seconds = [
        value for (name, *_), value in figures.items() if name == "trbert_graph_seconds_total"
    ]
    assert len(seconds) >= 2 and 0 < sum(seconds) <= figures["trbert_run_seconds_total", model]


def test_drift_tells_other_texts_from_the_calibrated_ones() -> None:
    rng = np.random.default_rng(0)
    shares = rng.normal(0.4, 0.1, 200).clip(0, 1)
    drift = Drift(shares)
    drift.see(rng.normal(0.4, 0.1, RECENT - 1))
    assert drift.value == 0.0  # too few yet
    drift.see(rng.normal(0.4, 0.1, 3 * RECENT))
    assert abs(drift.value) < 0.3
    drift.see(rng.normal(0.8, 0.1, 3 * RECENT))
    assert drift.value > 2.5


@contextmanager
def guarded(classifier: Pipeline) -> Iterator[httpx.Client]:
    with answering(ServedModel(classifier, Limits()), key="s\u00e9same".encode().hex()) as client:
        yield client


def test_a_key_opens_what_it_guards(classifier: Pipeline) -> None:
    key = "s\u00e9same".encode().hex()
    with guarded(classifier) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": key}):
            refused = client.post("/predict", json={"inputs": "a"}, headers=headers)
            assert refused.status_code == 401 and "Bearer KEY" in refused.json()["error"]
        right = {"authorization": f"Bearer {key}"}
        assert client.post("/predict", json={"inputs": "a"}, headers=right).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert re.search("trbert_requests", client.get("/metrics", headers=right).text)


@pytest.mark.parametrize("as_bytes", [True, False])  # the client's default, and JSON
def test_triton_infers(
    client: httpx.Client, classifier: Pipeline, encoder: Pipeline, as_bytes: bool
) -> None:
    address = base(client).removeprefix("http://")
    asked = tritonclient.InferenceServerClient(address)
    assert asked.is_server_live() and asked.is_server_ready() and asked.is_model_ready("labels")
    told = asked.get_model_metadata("labels")
    assert [each["name"] for each in told["outputs"]] == ["answer", "scores"]
    texts = tritonclient.InferInput("text", [3], "BYTES")
    texts.set_data_from_numpy(np.array(TEXTS[:3], dtype=object), binary_data=as_bytes)

    def infer(model: str, *outputs: str) -> Any:
        wanted = [tritonclient.InferRequestedOutput(name, binary_data=as_bytes) for name in outputs]
        return asked.infer(model, [texts], outputs=wanted, request_id="7")

    found = infer("labels", "scores", "answer")
    assert found.get_response()["id"] == "7"
    expected = [each.to_json() for each in classifier(TEXTS[:3])]
    scores = [[each["scores"][label] for label in classifier.labels] for each in expected]
    np.testing.assert_allclose(found.as_numpy("scores"), scores, atol=1e-6)
    labels = [json.loads(each)["label"] for each in found.as_numpy("answer")]
    assert labels == [each["label"] for each in expected]
    vectors = infer("vectors", "embedding").as_numpy("embedding")
    wanted = [each.to_json()["embedding"] for each in encoder(TEXTS[:3])]
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    everything = asked.infer("labels", [texts])  # outputs unnamed, all of them come
    np.testing.assert_array_equal(everything.as_numpy("scores"), found.as_numpy("scores"))
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        asked.get_model_metadata("nobody")
    asked.close()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "there is no input text"),
        ([("words", [1], "BYTES", ["a"])], "input 'words': expected text"),
        ([("text", [2], "BYTES", ["a"])], r"text has 1 values and the shape \[2\]"),
        ([("text", [1, 1, 1], "BYTES", ["a"])], r"expected \[N\] or \[N, 1\]"),
        ([("text", [1], "FP32", [0.5])], "text is of type FP32: expected BYTES"),
        ([("text", [1], "BYTES", ["a"]), ("text_pair", [2], "BYTES", ["b", "c"])], "as many"),
        ([("text", [0], "BYTES", [])], "text is empty"),
    ],
)  # fmt: skip
def test_triton_is_told_what_is_wrong(
    client: httpx.Client, inputs: list[tuple[Any, ...]], message: str
) -> None:
    keys = ("name", "shape", "datatype", "data")
    body = {"inputs": [dict(zip(keys, each, strict=True)) for each in inputs]}
    answer = client.post("/v2/models/labels/infer", json=body)
    assert answer.status_code in (400, 422)
    assert re.search(message, answer.json()["error"])


def test_triton_reads_pairs(client: httpx.Client, reranker: Pipeline) -> None:
    def tensor(name: str, data: list[str]) -> dict[str, Any]:
        return {"name": name, "shape": [len(data), 1], "datatype": "BYTES", "data": data}

    body = {"inputs": [tensor("text", [QUERY] * 3), tensor("text_pair", TEXTS[:3])]}
    told = client.post("/v2/models/ranks/infer", json=body).json()
    outputs = {each["name"]: each for each in told["outputs"]}
    expected = [each.to_json()["score"] for each in reranker([(QUERY, t) for t in TEXTS[:3]])]
    assert outputs["scores"]["shape"] == [3, 1]
    assert outputs["scores"]["data"] == pytest.approx(expected, abs=1e-6)
    wrong = client.post("/v2/models/ranks/infer", json={**body, "outputs": [{"name": "labels"}]})
    assert wrong.status_code == 422 and "no output 'labels'" in wrong.json()["error"]


def test_the_log_has_each_request_and_no_text_of_a_user(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "labels", "inputs": "a very private word"}
    with caplog.at_level(logging.INFO):
        own = client.post("/predict", json=body, headers={"x-request-id": "mine-7"})
        new = client.post("/predict", json=body, headers={"x-request-id": "not\tone"})
        client.post("/embed", json={"model": "vectors", "inputs": ["private", ""]})
        time.sleep(0.05)  # a line comes behind its answer
    assert own.headers["x-request-id"] == "mine-7"
    assert re.fullmatch("[0-9a-f]{32}", new.headers["x-request-id"])
    lines = [JsonLines().format(record) for record in caplog.records]
    told = [json.loads(line) for line in lines if "request_id" in line]
    assert [each["status"] for each in told] == [200, 200, 422]
    assert told[0]["request_id"] == "mine-7" and told[0]["route"] == "/predict"
    assert told[0]["ms"] > 0 and "private" not in "".join(lines)


#: Cases that schemathesis makes for each route, and from which seed; ``make fuzz-api`` takes more.
API_EXAMPLES = int(os.environ.get("API_EXAMPLES") or 6)
API_SEED = int(os.environ.get("API_SEED") or 0)


def test_the_description_of_all_routes_holds(client: httpx.Client, tmp_path: Path) -> None:
    """By schemathesis: no fault of the service, and no answer that its description lacks."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{base(client)}/openapi.json",
        "--phases=examples,fuzzing",
        f"--max-examples={API_EXAMPLES}",
        f"--seed={API_SEED}",
        "--workers=1",
        # what a model does not answer is refused though its form is right
        "--exclude-checks=positive_data_acceptance",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,  # it keeps what it finds
        capture_output=True,
        text=True,
        timeout=300 + 60 * API_EXAMPLES,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Tested: 2" in done.stdout  # some twenty routes
    print(done.stdout[-3000:])

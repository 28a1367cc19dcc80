"""A repository in the real server, asked by its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import tritonclient.http as tritonclient
from conftest import CheckpointMaker, make_texts
from triton_in_tests import packages_with_server, triton_server
from tritonclient.utils import InferenceServerException

from trbert_deploy import load
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.predicting import to_json_line
from trbert_deploy.serving.triton.repository import write_repository
from trbert_deploy.serving.triton.settings import Loading, Settings
from trbert_deploy.tasks.examples import Text

TEXTS = [row["text"] for row in make_texts(24, seed=5)]
PAIRS = [("the film", text) for text in TEXTS[:6]]
SMALL = {"num_layers": 2, "cuts": "1"}
#: Model -> its shape: one for each kind of tensors that there is, besides the classifier's.
OTHERS: dict[str, dict[str, Any]] = {
    "ranks": {"task": "text-ranking", "labels": ("LABEL_0",)},
    "vectors": {"task": "feature-extraction", "labels": (), "answers": {"pooling": "mean"}},
    "tags": {"task": "token-classification", "labels": ("O", "I"), "answers_tokens": True},
    "questions": {
        "task": "question-answering",
        "labels": ("LABEL_0", "LABEL_1"),
        "answers_tokens": True,
    },
}
#: Texts are refused that are too long, and requests wait until there are four.
HELD = Settings(Loading(threads=1, truncate=False, threshold=0.4), 1, 4, 1_000_000)
Models = tuple[str, dict[str, Pipeline]]
PLAIN = Settings(Loading(threads=1))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository for each model."""
    packages_with_server()
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def served(
    tiny_bundle: Path, make_checkpoint: CheckpointMaker, repositories: Path
) -> Iterator[Models]:
    """The server's address, and the pipelines of its models by name."""
    place = repositories
    bundles = {"labels": tiny_bundle, "held": tiny_bundle}
    for name, shape in OTHERS.items():
        bundles[name] = place / "bundles" / name
        export_bundle(make_checkpoint(**{**SMALL, **shape}), bundles[name])
    bundles["replaced"] = tiny_bundle
    for name, bundle in bundles.items():
        write_repository(bundle, place / name, name, HELD if name == "held" else PLAIN)
    pipelines = {name: load(bundle, threads=1) for name, bundle in bundles.items()}
    pipelines["held"] = load(tiny_bundle, threads=1, threshold=0.4)
    (place / "server").mkdir()
    with triton_server([place / name for name in bundles], place / "server") as address:
        yield address, pipelines


def infer(
    address: str, model: str, texts: Sequence[Text | bytes], binary: bool = True
) -> dict[str, Any]:
    """What a model answers: name of a tensor -> its values."""
    pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
    with tritonclient.InferenceServerClient(address, network_timeout=60) as client:
        inputs = []
        for name, column in zip(("text", "text_pair"), zip(*pairs, strict=True), strict=False):
            tensor = tritonclient.InferInput(name, [len(column), 1], "BYTES")
            tensor.set_data_from_numpy(np.array(column, np.object_)[:, None], binary)
            inputs.append(tensor)
        outputs = [
            tritonclient.InferRequestedOutput(each["name"], binary)
            for each in client.get_model_metadata(model)["outputs"]
        ]
        found = client.infer(model, inputs, outputs=outputs)
        return {each.name(): found.as_numpy(each.name()) for each in outputs}


def numbers(pipeline: Pipeline, texts: Sequence[Text]) -> tuple[str, Any] | None:
    """The tensor of numbers that is expected, by what the pipeline answers."""
    told = [answer.to_json() for answer in pipeline(texts)]
    if pipeline.task.name == "feature-extraction":
        return "embedding", [each["embedding"] for each in told]
    if pipeline.task.name == "text-ranking":
        return "scores", [[each["score"]] for each in told]
    if pipeline.task.name == "text-classification":
        return "scores", [[each["scores"][label] for label in pipeline.labels] for each in told]
    return None


def rounded(value: Any) -> Any:
    """What a model says, with numbers as they are alike whoever their neighbours are."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def require_same(found: dict[str, Any], pipeline: Pipeline, texts: Sequence[Text]) -> None:
    lines = map(to_json_line, pipeline(texts))
    assert found["answer"].shape == (len(texts), 1)
    told = [json.loads(line) for line in found["answer"].ravel()]
    assert told == [rounded(json.loads(line)) for line in lines]
    expected = numbers(pipeline, texts)
    assert set(found) == {"answer"} | ({expected[0]} if expected else set())
    if expected:
        np.testing.assert_allclose(found[expected[0]], expected[1], atol=1e-5)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("model", ["labels", *OTHERS])
def test_every_task_answers_as_the_pipeline_does(served: Models, model: str, binary: bool) -> None:
    address, pipelines = served
    asks_pairs = model in ("ranks", "questions")
    texts: list[Any] = PAIRS if asks_pairs else TEXTS
    require_same(infer(address, model, texts, binary), pipelines[model], texts)


def test_a_classifier_takes_pairs_too(served: Models) -> None:
    address, pipelines = served
    require_same(infer(address, "labels", PAIRS), pipelines["labels"], PAIRS)


def test_the_server_knows_the_tensors(served: Models) -> None:
    address, _ = served
    with tritonclient.InferenceServerClient(address) as client:
        told = client.get_model_metadata("vectors")
        assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
        assert told["outputs"] == [
            {"name": "answer", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 32]},
        ]
        assert client.get_model_config("held")["max_batch_size"] == 4


def test_many_clients_get_their_own_answers(served: Models) -> None:
    address, pipelines = served
    requests = [TEXTS[place : place + 1 + place % 3] for place in range(20)] * 3
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda texts: infer(address, "labels", texts), requests))
    for texts, found in zip(requests, answers, strict=True):
        require_same(found, pipelines["labels"], texts)


def test_a_repository_that_is_replaced_is_taken_over(
    served: Models, tiny_bundle: Path, repositories: Path
) -> None:
    address, pipelines = served
    require_same(infer(address, "replaced", TEXTS), pipelines["replaced"], TEXTS)
    settings = Settings(Loading(threads=1, threshold=0.9))
    write_repository(tiny_bundle, repositories / "replaced", "replaced", settings)
    with tritonclient.InferenceServerClient(address, network_timeout=60) as client:
        client.load_model("replaced")
    found = infer(address, "replaced", TEXTS)
    require_same(found, load(tiny_bundle, threads=1, threshold=0.9), TEXTS)
    before = numbers(pipelines["replaced"], TEXTS)
    assert before is not None and np.abs(found["scores"] - before[1]).max() > 1e-3


BAD = {
    "empty": (" ", r"text\[0\] is empty: expected at least one word"),
    "too long": ("the " * 100, r"text\[0\] has .* tokens: the model takes at most 64"),
    "no UTF-8": (b"the \xff", r"text\[0\] is no UTF-8 from byte 4 on"),
}


def count_of(address: str, name: str) -> int:
    with tritonclient.InferenceServerClient(address) as client:
        (told,) = client.get_inference_statistics("held")["model_stats"]
        return int(told.get(name, 0))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_text_is_an_error_of_its_request_alone(served: Models, kind: str) -> None:
    address, pipelines = served
    bad, message = BAD[kind]
    before = count_of(address, "execution_count")
    together = Barrier(4)

    def ask(text: str | bytes) -> dict[str, Any]:
        together.wait()
        return infer(address, "held", [text])

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask, text) for text in (TEXTS[0], bad, *TEXTS[1:3])]
    with pytest.raises(InferenceServerException, match=message) as caught:
        futures.pop(1).result()
    assert caught.value.status() == "400"
    for text, future in zip(TEXTS, futures, strict=False):
        require_same(future.result(), pipelines["held"], [text])
    assert count_of(address, "execution_count") - before < 4  # some ran with others

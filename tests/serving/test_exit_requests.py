"""Requests that say how sure an exit must be: answered as by the library, others in the batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from conftest import make_texts, tiny_model
from services_in_tests import serving

from trbert_deploy import load
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.runtime.backends.backend import Tensors
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import TokenState
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint

TEXTS = [row["text"] for row in make_texts(12, seed=3)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Pipeline:
    model = tiny_model("1,2")
    model.set_reduction(model.reduction.with_exits(ExitRule(1.0)))
    place = tmp_path_factory.mktemp("exits") / "ckpt"
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), place)
    export_bundle(place, place.with_name("bundle"))
    return load(place.with_name("bundle"), threads=1)


@pytest.fixture(scope="module")
def middle(pipeline: Pipeline) -> float:
    """A confidence at which the first exit lets half of the texts go."""
    first = pipeline.at(OperatingPoint(exit_confidence=0.0)).run(pipeline.tokenize(TEXTS))
    return float(np.median([pipeline.task.confidence(result.outputs) for result in first]))


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[httpx.Client]:
    with serving(pipeline) as client:
        yield client


def test_rows_of_different_confidences_share_their_batches(
    pipeline: Pipeline, middle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, expected = [], []
    for confidence in (None, middle, 0.0, 1.0):
        rows += pipeline.leaving_from(confidence).tokenize(TEXTS)
        point = OperatingPoint(exit_confidence=confidence)
        expected += pipeline.at(point).run(pipeline.tokenize(TEXTS))
    found = pipeline.run(rows)
    assert [result.exit for result in found] == [result.exit for result in expected]
    assert {result.exit for result in found} >= {0, None}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], 0, 1e-5)
        assert all(map(np.array_equal, one.kept, other.kept))

    (row,) = pipeline.tokenizer.rows_of_length(TEXTS, 20, 1)
    sizes: list[tuple[str, int]] = []
    call = Chain._call

    def counted(self: Chain, name: str, batch: Sequence[TokenState], timing: Timing) -> Tensors:
        sizes.append((name, len(batch)))
        return call(self, name, batch, timing)

    monkeypatch.setattr(Chain, "_call", counted)
    results = pipeline.chain.run([row, replace(row, exit_rule=ExitRule(0.0))])
    assert [result.exit for result in results] == [None, 0]
    assert sizes == [("segment_0", 2), ("segment_1", 1), ("segment_2", 1)]


def test_a_call_may_say_how_sure_an_exit_must_be(pipeline: Pipeline, middle: float) -> None:
    expected = pipeline.at(OperatingPoint(exit_confidence=middle))(TEXTS, return_kept=True)
    found = pipeline(TEXTS, return_kept=True, exit_confidence=middle)
    assert [each.to_json() for each in found] == [each.to_json() for each in expected]
    assert pipeline.exit_rule is None  # for this call alone
    with pytest.raises(ConfigError, match=r"exit_confidence is 1\.5: expected a probability"):
        pipeline(TEXTS, exit_confidence=1.5)


@pytest.mark.parametrize("route", ["/answers", "/predict"])
def test_a_request_is_answered_as_by_the_library(
    client: httpx.Client, pipeline: Pipeline, middle: float, route: str
) -> None:
    def ask(confidence: float | None) -> Any:
        texts: list[Any] = TEXTS if route == "/answers" else [[text] for text in TEXTS]
        body: dict[str, Any] = {"inputs": texts}
        if confidence is not None:
            body["exit_confidence"] = confidence
        answer = client.post(route, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def scores(told: Any) -> list[float]:
        if route == "/answers":
            return [each["score"] for each in told["answers"]]
        return [labels[0]["score"] for labels in told]

    asked = (None, middle, 1.0, 1e-6) * 3
    with ThreadPoolExecutor(12) as pool:  # together in the queue
        answers = list(pool.map(ask, asked))
    for confidence, told in zip(asked, answers, strict=True):
        expected = pipeline(TEXTS, exit_confidence=confidence)
        np.testing.assert_allclose(
            scores(told), [each.to_json()["score"] for each in expected], atol=1e-4
        )
    assert scores(answers[0]) == pytest.approx(scores(answers[2]), abs=1e-6)  # 1: none leaves
    assert scores(answers[3]) != pytest.approx(scores(answers[2]), abs=1e-4)
    left = client.get("/metrics").text
    assert re.search(r'trbert_left_rows_total\{cut="0",model="bundle"\} [1-9]', left)


@pytest.mark.parametrize("confidence", [0, -0.1, 1.5, "high"])
def test_what_is_no_confidence_is_told(client: httpx.Client, confidence: Any) -> None:
    answer = client.post("/answers", json={"inputs": "a", "exit_confidence": confidence})
    assert answer.status_code == 422
    assert "exit_confidence" in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_a_model_without_exits_refuses_a_confidence(tiny_bundle: Path) -> None:
    plain = load(tiny_bundle, threads=1)
    with pytest.raises(ConfigError, match="the model has no exits"):
        plain(TEXTS, exit_confidence=0.9)
    with serving(plain) as client:
        answer = client.post("/answers", json={"inputs": "a", "exit_confidence": 0.9})
    assert answer.status_code == 422 and "the model has no exits" in answer.json()["error"]

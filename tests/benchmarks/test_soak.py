"""The soak: finds memory that grows and answers that change, and nothing where neither does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soak
from click.testing import CliRunner
from matplotlib.image import imread

import trbert_deploy
from trbert_deploy.runtime.backends.backend import Graph, Tensors
from trbert_deploy.runtime.pipeline import Pipeline


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(soak.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture
def opened(tiny_bundle: Path) -> Callable[[], Pipeline]:
    return lambda: trbert_deploy.load(tiny_bundle, threads=1)


class Faulty:
    """A pipeline's backend with a fault in what its graphs give.

    Args:
        fault: number of the call, outputs -> outputs.
    """

    def __init__(self, pipeline: Pipeline, fault: Callable[[int, Tensors], Tensors]) -> None:
        self._backend, self._fault, self._calls = pipeline.chain.backend, fault, 0
        pipeline.chain.backend = self

    def graph(self, name: str) -> Graph:
        graph = self._backend.graph(name)

        def call(inputs: Tensors) -> Tensors:
            self._calls += 1
            return self._fault(self._calls, graph(inputs))

        call.inputs = graph.inputs  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_backend_answers_as_it_began(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    figures, plot = tmp_path / "soak.json", tmp_path / "soak.png"
    code, output = run(
        tiny_bundle, "--backend", backend, "--texts", 200, "--precision", "fp32",
        "--json", figures, "--plot", plot,
    )  # fmt: skip
    assert code in (0, 3), output  # other tests' memory is in this process too
    written = json.loads(figures.read_text())
    assert written["name"] == f"{backend} fp32"
    assert written["wrong"] == 0 and written["repeated"] >= 4
    assert written["like_float32"] == 1.0
    readings = written["readings"]
    assert 50 <= readings[0]["texts"] < 100 and readings[-1]["texts"] == written["texts"] >= 200
    assert readings[0]["lengths"] < written["lengths"] <= 64
    assert all(0 < each["uss"] <= each["pss"] <= each["rss"] for each in readings)
    assert imread(plot).shape[2] == 4


def test_an_output_that_is_kept_is_found(opened: Callable[[], Pipeline]) -> None:
    kept: list[np.ndarray] = []
    leaking = opened()

    def keep(call: int, outputs: Tensors) -> Tensors:
        kept.extend(np.repeat(values, 400) for values in outputs.values())  # of a larger model
        return outputs

    Faulty(leaking, keep)
    found = soak.soak(leaking, opened, opened, 400, 1)
    held = sum(array.nbytes for array in kept) / 2**20
    grown = found.readings[-1].memory.rss - found.readings[0].memory.rss
    assert found.growth > soak.LIMIT and found.wrong == 0
    assert found.slope > 0 and found.late_slope > 0
    assert 0.5 * held < grown < 1.5 * held


def test_an_answer_that_changes_is_found(opened: Callable[[], Pipeline]) -> None:
    changing = opened()

    def change(call: int, outputs: Tensors) -> Tensors:
        if call < 400 or "logits" not in outputs:
            return outputs
        return {**outputs, "logits": outputs["logits"] + np.float32([0.0, 0.01])}

    Faulty(changing, change)
    found = soak.soak(changing, opened, opened, 400, 1)
    assert 0 < found.wrong < found.repeated


def test_survivors_that_change_are_found(opened: Callable[[], Pipeline]) -> None:
    (answer,) = opened()(["a film that tells of a sailor"], return_kept=True)
    fewer = replace(answer.kept[0], positions=answer.kept[0].positions[:-1])
    own = soak.Answer.of(answer)
    assert own.is_like(soak.Answer.of(answer))
    assert not own.is_like(soak.Answer.of(replace(answer, kept=(fewer, *answer.kept[1:]))))
    bad, good = own.scores
    assert own.is_like(replace(own, scores=(bad + 0.0009, good - 0.0009)))
    assert not own.is_like(replace(own, scores=(bad + 0.0011, good - 0.0011)))


def reading(texts: int, mib: float) -> soak.Reading:
    return soak.Reading(texts, 1, soak.Memory(mib, mib, mib))


def test_growth_and_slopes_are_those_of_the_readings() -> None:
    grown = soak.Soak(
        tuple(reading(50 + 1000 * n, 100.0 + 20 * min(n, 2)) for n in range(5)), 9, 0, 1.0
    )
    assert grown.growth == pytest.approx(1.4)
    assert grown.late_slope == pytest.approx(0.0)
    line = soak.Soak(tuple(reading(50 + 500 * n, 100.0 + 10 * n) for n in range(7)), 9, 0, 1.0)
    assert line.slope == pytest.approx(20.0) and line.late_slope == pytest.approx(20.0)
    assert line.to_json()["highest_mib"] == 160.0


@pytest.mark.parametrize(("last", "wrong", "code"), [(115.0, 0, 0), (115.1, 0, 3), (100.0, 1, 3)])
def test_the_exit_code_tells(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, last: float, wrong: int, code: int
) -> None:
    found = soak.Soak((reading(50, 100.0), reading(99, last)), 9, wrong, 1.0)
    monkeypatch.setattr(soak, "soak", lambda *arguments: found)
    assert run(tiny_bundle)[0] == code


def test_texts_are_of_every_length(opened: Callable[[], Pipeline]) -> None:
    pipeline = opened()
    words, special = soak.whole_words(pipeline)
    requests = [soak.request(words, special, 64, 0, number) for number in range(300)]
    assert requests[7] == soak.request(words, special, 64, 0, 7) != requests[8]
    assert requests[7] != soak.request(words, special, 64, 1, 7)
    lengths = {len(row) for request in requests for row in pipeline.tokenize(request)}
    assert lengths == set(range(special + 1, 65))
    assert {1} < {len(request) for request in requests} and max(map(len, requests)) > 16


def test_what_cannot_be_soaked_is_one_line(tmp_path: Path) -> None:
    code, output = run(tmp_path / "missing")
    assert code == 1 and output.startswith("error: ") and len(output.splitlines()) == 1

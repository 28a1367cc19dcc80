"""The benchmark of padding and calls: every limit answers the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import batching_cost
import numpy as np
import pytest
from click.testing import CliRunner

import trbert_deploy
from trbert_deploy.runtime.backends.backend import Backend, Graph, Tensors
from trbert_deploy.runtime.pipeline import Pipeline


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(batching_cost.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


class Watched:
    """A backend that notes its calls; the clock of the benchmark moves in them alone."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.description = backend.description
        self.padding, self.call_tokens = backend.padding, backend.call_tokens
        self.arrays = backend.arrays
        #: Graph, tokens, and places of the batch.
        self.calls: list[tuple[str, int, int]] = []
        self.clock = 0.0

    def process_time(self) -> float:
        return self.clock

    def graph(self, name: str) -> Graph:
        graph = self._backend.graph(name)

        def call(inputs: Tensors) -> Tensors:
            places = next(iter(inputs.values())).shape[:2]
            mask = inputs.get("attention_mask", np.ones(places, np.bool_))
            self.calls.append((name, int(mask.sum()), mask.size))
            self.clock += 7.0 if name == "dense" else 1.0
            return graph(inputs)

        call.inputs = graph.inputs  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The backends that the benchmark opens, watched."""
    opened: list[Watched] = []

    def load(*arguments: Any, **options: Any) -> Pipeline:
        pipeline = trbert_deploy.load(*arguments, **options)
        opened.append(Watched(pipeline.chain.backend))
        pipeline.chain.backend = opened[-1]
        monkeypatch.setattr(batching_cost, "time", opened[-1])
        return pipeline

    monkeypatch.setattr(batching_cost, "load", load)
    return opened


def figures_at(bundle: Path, data: Path, *limits: str) -> list[dict[str, float]]:
    figures = data.with_name("padding.json")
    code, output = run(
        bundle, "--data", data, "--batch", 12, "--batches", 1, "--rounds", 1,
        *limits, "--json", figures,
    )  # fmt: skip
    assert code == 0, output
    return json.loads(figures.read_text())["batch"]


@pytest.mark.parametrize("limit", [0.0, 0.2, 0.5])
def test_no_batch_is_padded_over_its_limit(
    tiny_bundle: Path, labelled: Path, watched: list[Watched], limit: float
) -> None:
    figures_at(tiny_bundle, labelled, "--shares", str(limit))
    calls = watched[0].calls
    padding = [1 - tokens / places for _, tokens, places in calls]
    assert max(padding) <= limit + 1e-9
    assert any(padding) == (limit > 0)
    # Every graph is given every text in both rounds, and behind the cuts fewer tokens of it.
    tokens = {name: sum(size for each, size, _ in calls if each == name) for name, _, _ in calls}
    assert tokens["dense"] == tokens["segment_0"] > tokens["segment_1"] > tokens["segment_2"] > 0


def test_what_each_limit_takes_is_written_down(
    tiny_bundle: Path, labelled: Path, watched: list[Watched]
) -> None:
    alone = [figures_at(tiny_bundle, labelled, "--shares", limit)[0] for limit in ("0", "0.5")]
    assert figures_at(tiny_bundle, labelled, "--shares", "0,0.5") == alone
    for backend, each, limit in zip(watched, alone, (0.0, 0.5), strict=False):
        dense = sum(name == "dense" for name, _, _ in backend.calls) / 2  # of two rounds
        reduced = len(backend.calls) / 2 - dense
        assert each == {
            "share": limit, "slots": 0, "call_tokens": 1024,
            "dense_ms": 7000 * dense, "reduced_ms": 1000 * reduced,
        }  # fmt: skip
    assert alone[1]["dense_ms"] < alone[0]["dense_ms"]  # fewer calls
    assert alone[1]["reduced_ms"] < alone[0]["reduced_ms"]


def test_calls_are_no_larger_than_their_limit(
    tiny_bundle: Path, labelled: Path, watched: list[Watched]
) -> None:
    padded = ("--shares", "0.5", "--calls")
    alone, together = figures_at(tiny_bundle, labelled, *padded, "1,100000")
    assert (alone["call_tokens"], together["call_tokens"]) == (1, 100000)
    assert alone["dense_ms"] == 7000 * 12 > together["dense_ms"]  # a call for each text
    figures_at(tiny_bundle, labelled, *padded, "1")
    assert all(tokens == places for _, tokens, places in watched[1].calls)


@pytest.mark.parametrize("wrong", ["few", "-1", "512,", "1.5"])
def test_calls_are_numbers_of_tokens(tiny_bundle: Path, labelled: Path, wrong: str) -> None:
    code, output = run(tiny_bundle, "--data", labelled, "--calls", wrong)
    assert (
        code == 2
        and "expected whole numbers from 1 to 2,147,483,647, such as 512,2048"
        in " ".join(output.split())
    )


@pytest.mark.parametrize("wrong", ["2", "-0.1", "little", "0,"])
def test_limits_are_shares(tiny_bundle: Path, labelled: Path, wrong: str) -> None:
    code, output = run(tiny_bundle, "--data", labelled, "--shares", wrong)
    assert code == 2 and "expected numbers from 0 to 1, as 0,0.5" in output


def test_a_missing_bundle_is_one_line(labelled: Path) -> None:
    code, output = run("missing", "--data", labelled)
    assert code == 1 and output.startswith("error: ") and len(output.splitlines()) == 1

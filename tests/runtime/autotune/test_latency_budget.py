"""Latency budgets: the threshold that drops least in time, measured once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from priced_backend import PricedBackend

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.autotune import latency_budget as budget
from trbert_deploy.runtime.autotune.latency_budget import measure, threshold_within
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.samples import sample_rows
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint

pytestmark = pytest.mark.usefixtures("cache")

TABLE = [[0.0, 9.0], [0.25, 6.0], [0.5, 4.0], [0.75, 5.0]]


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(budget_ms=st.floats(0.1, 20.0) | st.sampled_from([4.0, 5.0, 6.0, 9.0]))
def test_it_drops_least_of_what_is_in_time(pipeline: Pipeline, budget_ms: float) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "measure", lambda *_, **__: TABLE)
        bundle = Bundle.open(pipeline.path)
        threshold = threshold_within(bundle, pipeline.chain, budget_ms, said.append)
    spent = dict(map(tuple, TABLE))
    in_time = [each for each, taken in spent.items() if taken <= budget_ms]
    assert threshold == (min(in_time) if in_time else 0.5)
    (line,) = said
    assert line.startswith(f"threshold {threshold:.3f} takes {spent[threshold]:.1f} ms for 64 ")
    assert ("the fastest there is" in line) == (not in_time)


def test_latencies_are_measured_once(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_, **__: TABLE)
    said: list[str] = []
    loaded = load(tiny_bundle, threads=1, latency_budget_ms=6.5, note=said.append)
    assert {cut.rule.value for cut in loaded.reduction.cuts} == {0.25}
    assert len(said) == 1
    monkeypatch.setattr(budget, "measure", lambda *_, **__: 1 / 0)
    again = load(tiny_bundle, threads=1).at(OperatingPoint(latency_budget_ms=4.5))
    assert {cut.rule.value for cut in again.reduction.cuts} == {0.5}
    with pytest.raises(ZeroDivisionError):  # other rules, other latencies
        load(tiny_bundle, threads=1, latency_budget_ms=6.5, round_to=2)


def test_measured_are_thresholds_from_none_dropped_to_nearly_all(pipeline: Pipeline) -> None:
    """At a known price of each graph's call and of each token."""
    rows = sample_rows(Bundle.open(pipeline.path), [16, 32, 64], 1)
    backend = PricedBackend(pipeline.chain.backend, call=0.5, token=1.0)
    steps: list[tuple[int, int | None]] = []
    table = measure(
        Chain(backend, pipeline.reduction, 4),
        rows,
        backend.clock,
        lambda step, done, total: steps.append((done, total)),
    )
    assert steps == [(done, 216) for done in range(217)]  # 3 rows, 18 thresholds, 4 rounds
    thresholds = [threshold for threshold, _ in table]
    assert thresholds == sorted(thresholds) and thresholds[0] == 0.0
    assert 0.95 < thresholds[-1] < 1.0
    expected = []
    for threshold in thresholds:
        results = pipeline.chain.at(OperatingPoint(threshold)).run(rows)
        first, second = ([len(result.kept[cut]) for result in results] for cut in (0, 1))
        lengths = zip(map(len, rows), first, second, strict=True)
        expected.append(1e3 * float(np.median([1.5 + s + k + 2 * m for s, k, m in lengths])))
    assert [spent for _, spent in table] == expected
    assert expected[0] == 1e3 * (1.5 + 4 * 32)  # nothing is dropped of the row in the middle
    assert len(set(expected)) > 3


class Clocked:
    """A chain on a clock of its own: what each of its calls takes in seconds, for each threshold.

    The calls of a threshold are those of round after round, in each row after row.
    """

    def __init__(self, seconds: list[float]) -> None:
        self.now = 0.0
        self._seconds = seconds

    def at(self, point: OperatingPoint) -> Clocked:
        return self._At(self, iter(self._seconds))  # type: ignore[return-value]

    def clock(self) -> float:
        return self.now

    class _At:
        def __init__(self, whole: Clocked, seconds: Iterator[float]) -> None:
            self._whole, self._seconds = whole, seconds

        def run(self, rows: list[TokenRow]) -> None:
            self._whole.now += next(self._seconds)


@pytest.mark.parametrize(
    "disturbed",
    [
        [900.0, 900.0, 900.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0],  # while it warms up
        [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 900.0, 2.0, 900.0, 1.0, 2.0, 3.0],  # in a round
    ],
)
def test_a_disturbance_makes_no_latency(disturbed: list[float]) -> None:
    row = TokenRow(np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert (budget.ROWS, budget.ROUNDS) == (3, 3)
    chain = Clocked(disturbed)
    table = measure(chain, [row] * 3, chain.clock)  # type: ignore[arg-type]
    assert {spent for _, spent in table} == {2000.0}


def test_what_was_measured_on_random_tokens_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(tiny_checkpoint, tmp_path / "bundle", samples=False)
    monkeypatch.setattr(budget, "measure", lambda *_, **__: TABLE)
    said: list[str] = []
    load(tmp_path / "bundle", threads=1, latency_budget_ms=6.5, note=said.append)
    (line,) = said
    assert line.endswith(
        "6.0 ms for 64 tokens here; measured on random tokens, for the bundle has no sample texts"
    )


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_is_a_time(tiny_bundle: Path, wrong: float) -> None:
    with pytest.raises(ConfigError, match=r"latency budget is .*: expected more than 0"):
        load(tiny_bundle, latency_budget_ms=wrong)


def test_a_budget_decides_alone(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="a latency budget decides the threshold"):
        load(tiny_bundle, latency_budget_ms=5.0, threshold=0.5)


def test_a_checkpoint_has_no_latencies(tiny_checkpoint: Path) -> None:
    from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline

    with pytest.raises(BundleError, match="is not a bundle"):
        load_checkpoint_pipeline(tiny_checkpoint).at(OperatingPoint(latency_budget_ms=5.0))

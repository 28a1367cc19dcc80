"""Shedding: a load moves the operating point, no further than answers may differ."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_texts
from hypothesis import given
from hypothesis import strategies as st
from services_in_tests import SOON, answering, serving

from trbert_deploy import load
from trbert_deploy.cli import main
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.autotune import latency_budget
from trbert_deploy.runtime.autotune.latency_budget import THRESHOLDS
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.serving import shedding
from trbert_deploy.serving.served import Limits, ServedModel
from trbert_deploy.serving.shedding import FREE_SHARE, Measured, Shedding, choose, shedding_of

pytestmark = pytest.mark.usefixtures("cache")

TEXTS = [row["text"] for row in make_texts(12, seed=5)]
SHARES = st.floats(0.0, 1.0)
POINTS = tuple(OperatingPoint(threshold) for threshold in (0.6, 0.7, 0.9))


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@given(
    own=st.builds(Measured, SHARES, st.floats(1.0, 4.0)),
    measured=st.lists(st.builds(Measured, SHARES, st.floats(1.0, 9.0)), max_size=12),
    least=SHARES,
)
def test_points_save_more_and_more_and_agree(
    own: Measured, measured: list[Measured], least: float
) -> None:
    named = [(float(place), point) for place, point in enumerate(measured)]
    found = choose(own, named, least)
    steps = [own, *(measured[int(place)] for place in found)]
    assert all(point.agreement >= least for point in steps[1:])
    assert all(after.saving > before.saving for before, after in pairwise(steps))
    assert found == sorted(found)
    behind = [point for place, point in named if not found or place > found[-1]]
    cheaper = [point for point in behind if point.saving >= 1.05 * steps[-1].saving]
    assert not cheaper or cheaper[0].agreement < least


def test_what_drops_more_than_a_bad_point_is_not_trusted() -> None:
    measured = [(0.5, Measured(0.99, 2.0)), (0.6, Measured(0.9, 3.0)), (0.7, Measured(1.0, 4.0))]
    assert choose(Measured(1.0, 1.5), measured, 0.95) == [0.5]


@given(loads=st.lists(SHARES, min_size=2))
def test_a_higher_load_never_drops_less(loads: list[float]) -> None:
    shed = Shedding(POINTS)
    thresholds = [
        0.5 if (point := shed.point_at(load)) is None else point.threshold or 0.0
        for load in sorted(loads)
    ]
    assert thresholds == sorted(thresholds)
    assert shed.point_at(FREE_SHARE / 2) is None and shed.point_at(1.0) == POINTS[-1]
    assert Shedding(()).point_at(1.0) is None


def test_points_are_measured_once_on_the_sample_texts(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shed = shedding_of(pipeline, 0.0, said.append)
    samples = pipeline.require_bundle().samples()
    assert len(samples) == 6 and shed.points
    dense = [answer.to_json()["label"] for answer in pipeline(samples, dense=True)]
    for threshold in (None, shed.points[-1].threshold):
        model = pipeline if threshold is None else pipeline.at_threshold(threshold)
        labels = [answer.to_json()["label"] for answer in model(samples)]
        agreement = np.mean([one == other for one, other in zip(dense, labels, strict=True)])
        assert f"{agreement:.1%}" in said[-1]
    monkeypatch.setattr(shedding, "_measure", lambda *_: pytest.fail("measured twice"))
    assert shedding_of(pipeline, 0.0, said.append) == shed and said[0] == said[1]


def test_what_cannot_be_shed_is_said(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shedding, "_measure", lambda *_: [[1.0, 2.0], *([0.5, 9.0] for _ in THRESHOLDS)]
    )
    said: list[str] = []
    assert not shedding_of(pipeline, 0.9, said.append).points
    assert said[0].startswith("nothing is shed") and "90.0%" in said[0]


def test_a_model_without_cuts_or_samples_cannot_shed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = pipeline.require_bundle()
    monkeypatch.setattr(type(bundle), "samples", lambda self: [])
    with pytest.raises(ConfigError, match="no sample texts"):
        shedding_of(pipeline, 0.9, print)
    monkeypatch.setattr(type(pipeline), "reduction", type(pipeline.reduction)(()))
    with pytest.raises(ConfigError, match=r"drops no tokens.*leave out --shed"):
        shedding_of(pipeline, 0.9, print)


def test_a_loaded_service_drops_more_and_says_so(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [[1.0, 1.0], *([1.0, 1.0 + threshold] for threshold in THRESHOLDS)]
    monkeypatch.setattr(shedding, "_measure", lambda *_: points)
    own = load(pipeline.path, threads=1, threshold=0.0, max_batch_tokens=30)
    free, running = holding(monkeypatch)
    model = ServedModel(own, Limits(waiting_tokens=100, min_agreement=0.9))
    with answering(model) as client, ThreadPoolExecutor(8) as pool:

        def ask(text: str) -> Any:
            return client.post("/answers", json={"inputs": text, "return_kept": True})

        try:
            first = pool.submit(ask, TEXTS[0])
            assert running.wait(SOON)
            asked = [pool.submit(ask, text) for text in TEXTS[:6]]
            wait_until(lambda: model.waiting_tokens > 80)
        finally:
            free.set()
        assert "x-threshold" not in first.result(SOON).headers
        assert "threshold" not in first.result(SOON).json()
        answers = [each.result(SOON) for each in asked]
        shed = [each for each in answers if "x-threshold" in each.headers]
        assert shed and all(each.status_code in (200, 429) for each in answers)
        for text, answer in zip(TEXTS, answers, strict=False):
            if answer.status_code == 200:
                told = answer.json()
                threshold = told.get("threshold", 0.0)
                assert float(answer.headers.get("x-threshold", 0.0)) == pytest.approx(threshold)
                (expected,) = pipeline.at_threshold(threshold)([text], return_kept=True)
                kept = json.loads(json.dumps(expected.to_json()["kept"]))
                assert told["answers"][0]["kept"] == kept
        figures = client.get("/metrics").text
        assert 'trbert_load{model="bundle"}' in figures
        quiet = ask(TEXTS[0])
        assert "x-threshold" not in quiet.headers


def holding(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have models wait before they run: an event that sets them free, one that one is there."""
    free, running, run = threading.Event(), threading.Event(), ServedModel._run

    def waits(model: ServedModel, *given: Any) -> Any:
        running.set()
        assert free.wait(SOON)
        return run(model, *given)

    monkeypatch.setattr(ServedModel, "_run", waits)
    return free, running


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    stop = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < stop
        time.sleep(0.001)


def test_a_request_has_a_latency_budget(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [[0.0, 9.0], [0.25, 6.0], [0.5, 4.0], [0.75, 1.0]]
    monkeypatch.setattr(latency_budget, "measure", lambda *_, **__: table)
    with serving(pipeline, thresholds=(0.1, 0.6)) as client:

        def ask(**body: Any) -> Any:
            return client.post("/predict", json={"inputs": TEXTS[0], **body})

        for budget_ms, threshold in ((20.0, "0.25"), (6.0, "0.25"), (5.0, "0.5"), (0.5, "0.5")):
            answer = ask(latency_budget_ms=budget_ms)
            assert answer.headers["x-threshold"] == threshold
            same = ask(threshold=float(threshold))
            assert answer.json() == same.json() and same.headers["x-threshold"] == threshold
        both = ask(latency_budget_ms=5.0, threshold=0.5)
        assert both.status_code == 422 and "give one of the two" in both.json()["error"]
    with serving(pipeline, thresholds=(0.3, 0.4)) as client:
        refused = ask(latency_budget_ms=5.0)
        assert refused.status_code == 422 and "no latency is known between" in refused.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-agreement", "0.97"], "--min-agreement is 0.97: expected a percentage"),
        (["--min-agreement", "nan"], "--min-agreement is nan: expected a percentage"),
        (["--thresholds", "0.6", "0.1"], "--thresholds is 0.6 0.1: expected two from 0 to 1"),
        (["--shed", "requests"], "'requests' is not 'quality'"),
    ],
)
def test_bad_options_are_told_in_one_line(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["trbert-deploy", "serve", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err.replace("\n", " ")

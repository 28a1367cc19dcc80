"""Evaluating a bundle on labelled texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts

from trbert_deploy import cli, load
from trbert_deploy.bench import quality
from trbert_deploy.bench.quality import (
    bootstrap_interval,
    calibration_error,
    evaluate_quality,
    macro_f1,
)
from trbert_deploy.errors import DataError
from trbert_deploy.runtime.reading import NamedText, read_texts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_texts(21)))
    return path


def test_figures_are_those_of_the_predictions(tiny_bundle: Path, data: Path) -> None:
    pipeline = load(tiny_bundle)
    texts = list(read_texts(data))
    report = evaluate_quality(pipeline, texts)
    reduced = pipeline([named.text for named in texts], return_kept=True)
    dense = pipeline([named.text for named in texts], dense=True)
    right = [
        np.mean([answer.label == named.label for answer, named in zip(answers, texts, strict=True)])
        for answers in (dense, reduced)
    ]
    assert [report.dense.accuracy, report.reduced.accuracy] == pytest.approx(right)
    assert report.accuracy_change == pytest.approx(100 * (right[1] - right[0]))
    low, high = report.interval
    assert low <= report.accuracy_change <= high
    tokens = sum(answer.num_tokens for answer in reduced)
    kept = [
        sum(len(answer.kept[cut].positions) for answer in reduced if answer.kept) for cut in (0, 1)
    ]
    assert report.kept_share == pytest.approx([left / tokens for left in kept])
    assert report.flops_speedup > 1


def test_keeping_everything_changes_nothing(tiny_bundle: Path, data: Path) -> None:
    report = evaluate_quality(load(tiny_bundle, threshold=0.0), list(read_texts(data)))
    assert report.label_agreement == 1.0
    assert (report.accuracy_change, report.interval) == (0.0, (0.0, 0.0))
    assert report.kept_share == (1.0, 1.0)


def test_metrics_by_hand() -> None:
    truth, answers = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    assert macro_f1(truth, answers) == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    sure = np.array([[100.0, 0.0], [100.0, 0.0]], np.float32)
    assert calibration_error(sure, np.array([0, 1])) == pytest.approx(0.5)
    assert bootstrap_interval(np.full(9, 2.0)) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts to evaluate"),
        ([NamedText("line 3", "film")], 'line 3: expected a field "label"'),
        ([NamedText("line 3", "film", "ugly")], "does not know the label 'ugly'"),
    ],
)
def test_unusable_texts_are_named(tiny_bundle: Path, texts: list[NamedText], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_quality(load(tiny_bundle), texts)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["trbert-deploy", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_gate_exits_with_3_when_it_is_missed(
    tiny_bundle: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = evaluate_quality(load(tiny_bundle), list(read_texts(data)))
    worse = replace(report, accuracy_change=-2.0)
    monkeypatch.setattr(quality, "evaluate_quality", lambda *_, **__: worse)
    figures = tmp_path / "figures.json"
    gate = ("evaluate", tiny_bundle, "--data", data, "--json", figures, "--max-drop")
    assert run(monkeypatch, *gate, 2.0) == 0
    assert run(monkeypatch, *gate, 1.9) == 3
    assert "accuracy falls by 2.00 points, more than 1.9" in capfd.readouterr().err
    assert json.loads(figures.read_text())["accuracy_change"] == -2.0

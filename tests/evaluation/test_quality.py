"""Evaluating a bundle on labelled texts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy import cli, load
from trbert_deploy.errors import DataError
from trbert_deploy.evaluation import quality
from trbert_deploy.evaluation.metrics import bootstrap_interval, paired_change
from trbert_deploy.evaluation.quality import (
    DataWarning,
    ModelQuality,
    ModelRun,
    QualityReport,
    evaluate_quality,
    run_in_turns,
    warn_of_few_rows,
)
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import mean_score
from trbert_deploy.tasks.text_classification import TextClassification


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_texts(21)))
    return path


def test_figures_are_those_of_the_predictions(tiny_bundle: Path, data: Path) -> None:
    pipeline = load(tiny_bundle)
    texts = list(read_examples(data, TextClassification))
    report = evaluate_quality(pipeline, texts)
    reduced = pipeline([named.text for named in texts], return_kept=True)
    dense = pipeline([named.text for named in texts], dense=True)
    right = [
        np.mean(
            [answer.label == named.target for answer, named in zip(answers, texts, strict=True)]
        )
        for answers in (dense, reduced)
    ]
    assert [report.dense.score, report.reduced.score] == pytest.approx(right)
    assert report.score_change == pytest.approx(100 * (right[1] - right[0]))
    low, high = report.interval
    assert low <= report.score_change <= high
    tokens = sum(answer.num_tokens for answer in reduced)
    kept = [
        sum(len(answer.kept[cut].positions) for answer in reduced if answer.kept) for cut in (0, 1)
    ]
    assert report.kept_share == pytest.approx([left / tokens for left in kept])
    assert report.flops_speedup > 1


def test_keeping_everything_changes_nothing(tiny_bundle: Path, data: Path) -> None:
    report = evaluate_quality(
        load(tiny_bundle, threshold=0.0), list(read_examples(data, TextClassification))
    )
    assert report.agreement == 1.0
    assert (report.score_change, report.interval) == (0.0, (0.0, 0.0))
    assert report.kept_share == (1.0, 1.0)


def test_metrics_by_hand() -> None:
    truth, answers = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    outputs = [{"logits": row} for row in np.eye(3, dtype=np.float32)[answers]]
    measures = TextClassification(("a", "b", "c")).metrics(outputs, truth)
    assert measures["accuracy"] == 0.5
    assert measures["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    sure = [{"logits": np.array([100.0, 0.0], np.float32)}] * 2
    measures = TextClassification(("a", "b")).metrics(sure, np.array([0, 1]))
    assert measures["calibration_error"] == pytest.approx(0.5)
    assert bootstrap_interval(np.full(9, 2.0)) == (2.0, 2.0)


def test_a_change_is_that_of_the_measure_over_resampled_rows() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.random((4000, 1)) < share for share in (0.8, 0.75))
    one, other = one.astype(float), other.astype(float)
    change = paired_change(mean_score, one, other)
    difference = (other - one)[:, 0]
    low, high = bootstrap_interval(difference)
    assert change.value == pytest.approx(difference.mean())
    assert change.interval == pytest.approx((low, high), abs=2e-3)
    assert change.error == pytest.approx(difference.std() / 4000**0.5, rel=0.1)


def test_a_measure_that_is_no_mean() -> None:
    """Recall of the rows that count: some resamples have none of them."""

    def recall(statistics: np.ndarray) -> float:
        found, wanted = statistics.sum(axis=0)
        return float(found / max(wanted, 1))

    one = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    other = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    change = paired_change(recall, one, other)
    assert change.value == 0.5
    assert change.interval == (0.0, 1.0)
    assert paired_change(recall, one, one).error == 0.0


def report_with(rows: int, deviation: float) -> QualityReport:
    model = ModelQuality({"accuracy": 0.9, "macro_f1": 0.9, "calibration_error": 0.1}, 1.0)
    return QualityReport(
        backend="onnxruntime",
        teacher=None,
        rows=rows,
        tokens_per_row=50.0,
        dense=model,
        reduced=model,
        measure="accuracy",
        score_change=0.0,
        interval=(0.0, 0.0),
        deviation=deviation,
        agreement=1.0,
        kept_share=(0.5,),
        flops_speedup=2.0,
        measured_speedup=2.0,
    )


@given(st.floats(0.1, 100.0), st.floats(0.1, 20.0))
def test_rows_needed_are_the_fewest_that_do(deviation: float, points: float) -> None:
    rows = report_with(1, deviation).rows_needed(points)
    assert 1.96 * deviation / math.sqrt(rows) <= points * (1 + 1e-9)
    assert rows == 1 or 1.96 * deviation / math.sqrt(rows - 1) > points


def test_the_interval_is_about_the_normal_one_on_many_rows() -> None:
    change = np.repeat([-100.0, 0.0, 100.0], [60, 3900, 40])
    low, high = bootstrap_interval(change)
    half = 1.96 * change.std() / math.sqrt(len(change))
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.05)


def test_too_few_rows_are_told_with_how_many_it_takes() -> None:
    with pytest.warns(DataWarning, match=r"^500 texts are too few .* about 1,537 texts on$"):
        warn_of_few_rows(report_with(500, 10.0), 0.5)
    with pytest.warns(DataWarning, match="about 600 texts on"):  # none differs: rule of three
        warn_of_few_rows(report_with(21, 0.0), 0.5)
    warn_of_few_rows(report_with(1537, 10.0), 0.5)  # a warning would be an error here


def test_texts_of_one_label_are_told(tiny_bundle: Path, data: Path) -> None:
    texts = [named for named in read_examples(data, TextClassification) if named.target == "good"]
    with pytest.warns(DataWarning, match=f"all {len(texts)} texts have the label 'good'"):
        evaluate_quality(load(tiny_bundle), texts)
    evaluate_quality(load(tiny_bundle), texts[:1])


def test_models_take_turns_and_answer_in_order(
    tiny_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, texts = load(tiny_bundle), list(read_examples(data, TextClassification))
    runs = [ModelRun(pipeline, dense=True), ModelRun(pipeline)]
    order = []
    answer = ModelRun.answer

    def record(run: ModelRun, rows: list) -> None:
        order.append((runs.index(run), len(rows)))
        answer(run, rows)

    monkeypatch.setattr(ModelRun, "answer", record)
    steps: list[tuple[str, int, int]] = []
    run_in_turns(runs, texts, lambda *step: steps.append(step))
    assert order == [(0, 8), (1, 8), (1, 8), (0, 8), (0, 5), (1, 5)]
    assert [step[1:] for step in steps] == [(8, 21), (16, 21), (21, 21)]
    rows = pipeline.tokenize([named.text for named in texts])
    for run in runs:
        expected = [result.outputs["logits"] for result in pipeline.run(rows, dense=run.dense)]
        received = [outputs["logits"] for outputs in run.outputs]
        np.testing.assert_allclose(received, expected, atol=1e-5)
        assert [tokens[0] for tokens in run.tokens] == [len(row) for row in rows]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts to evaluate"),
        (
            [Example("film", "ugly", "line 3")],
            "does not know the label 'ugly'",
        ),
    ],
)
def test_unusable_texts_are_named(tiny_bundle: Path, texts: list[Example], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_quality(load(tiny_bundle), texts)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["trbert-deploy", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.filterwarnings("always")
def test_the_gate_exits_with_3_when_it_is_missed(
    tiny_bundle: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = evaluate_quality(load(tiny_bundle), list(read_examples(data, TextClassification)))
    worse = replace(report, score_change=-2.0)
    monkeypatch.setattr(quality, "evaluate_quality", lambda *_, **__: worse)
    figures = tmp_path / "figures.json"
    gate = ("evaluate", tiny_bundle, "--data", data, "--json", figures, "--max-drop")
    assert run(monkeypatch, *gate, 2.0) == 0
    assert run(monkeypatch, *gate, 1.9) == 3
    errors = capfd.readouterr().err
    assert "accuracy falls by 2.00 points, more than 1.9" in errors
    assert "warning: 21 texts are too few to judge a change by 2 points" in errors
    assert run(monkeypatch, *gate, 0) == 3
    assert "too few" not in capfd.readouterr().err  # no number of texts would do
    assert json.loads(figures.read_text())["score_change"] == -2.0

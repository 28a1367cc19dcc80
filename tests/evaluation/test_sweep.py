"""The sweep over the threshold: its points, its plot, the command."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CheckpointMaker, make_texts
from evaluation.test_quality import run
from PIL import Image

from trbert_deploy import load
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.evaluation.quality import QualityReport, evaluate_quality
from trbert_deploy.evaluation.sweep import POINTS, SweepReport, spread_thresholds, sweep_thresholds
from trbert_deploy.reports.plots.sweeps import draw_sweep
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.examples import Example

TEXTS = [Example(row["text"], row["label"], f"text {i}") for i, row in enumerate(make_texts(40))]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def report(pipeline: Pipeline) -> SweepReport:
    return sweep_thresholds(pipeline, TEXTS)


def without_times(report: QualityReport) -> dict:
    figures = asdict(report)
    for model in (figures, figures["dense"], figures["reduced"]):
        model.pop("seconds", None), model.pop("measured_speedup", None)
    return figures


def test_points_are_evaluations_at_their_thresholds(
    report: SweepReport, pipeline: Pipeline
) -> None:
    assert without_times(report.current) == without_times(evaluate_quality(pipeline, TEXTS))
    for point in report.points[::4]:
        alone = evaluate_quality(pipeline.at_threshold(point.threshold), TEXTS)
        assert without_times(point.quality) == without_times(alone)


def test_points_spread_from_everything_kept_to_little(report: SweepReport) -> None:
    thresholds = [point.threshold for point in report.points]
    assert thresholds[0] == 0.0 and thresholds == sorted(set(thresholds))
    first = report.points[0].quality
    assert first.kept_share == (1.0, 1.0) and first.agreement == 1.0
    steps = np.diff(np.log([point.quality.flops_speedup for point in report.points]))
    assert len(steps) == POINTS - 1
    assert steps.max() < 2 * steps.mean() and steps.min() > steps.mean() / 2


def test_a_policy_of_one_mind_has_few_points(make_checkpoint: CheckpointMaker) -> None:
    pipeline, _ = open_models(make_checkpoint())
    rounded = pipeline.reduction.cuts[0].rule
    everything = replace(rounded, round_to=64)  # rounding up keeps every token at any threshold
    pipeline.chain.reduction = pipeline.reduction.with_rules((everything, everything))
    thresholds = tuple(spread_thresholds(pipeline, TEXTS[:3]))
    assert thresholds[0] == 0.0 and thresholds == tuple(sorted(set(thresholds)))


def test_a_model_without_cuts_has_no_dial(make_checkpoint: CheckpointMaker) -> None:
    pipeline, _ = open_models(make_checkpoint(cuts=""))
    with pytest.raises(ConfigError, match="has no cuts: there is no threshold to sweep"):
        sweep_thresholds(pipeline, TEXTS)


def test_unusable_texts_are_named_before_any_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Pipeline, "run")
    for texts, message in (
        ([], "no texts"),
        ([Example("b", "ugly")], "label 'ugly'"),
    ):
        with pytest.raises(DataError, match=message):
            sweep_thresholds(pipeline, texts)


def test_the_plot_shows_all_points_and_names_its_axes(report: SweepReport) -> None:
    (axes,) = draw_sweep(report).axes
    dense, curve, current = axes.get_lines()
    assert set(dense.get_ydata()) == {report.current.dense.score}
    assert list(curve.get_xdata()) == [point.quality.flops_speedup for point in report.points]
    assert current.get_xydata().tolist() == [
        [report.current.flops_speedup, report.current.reduced.score]
    ]
    assert axes.get_xlabel() == "FLOPs speed-up over the dense model"
    assert axes.get_ylabel() == "accuracy on 40 texts"
    taught = SweepReport(replace(report.current, teacher="t"), report.points)
    assert draw_sweep(taught).axes[0].get_xlabel() == "FLOPs speed-up over the teacher"


def test_the_command_prints_and_draws(
    tiny_bundle: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ("evaluate", tiny_bundle, "--data", "data.jsonl", "--sweep", "--json", "s.json")
    assert run(monkeypatch, *command) == 0
    shown = capfd.readouterr().out
    assert "plot: sweep.png" in shown and "current" in shown and "…" not in shown
    points = json.loads((tmp_path / "s.json").read_text())["sweep"]
    assert all(f" {point['threshold']:g} " in shown for point in points)
    assert set(points[0]) >= {"kept_share", "flops_speedup", "measured_speedup", "interval"}
    with Image.open("sweep.png") as image:
        assert image.format == "PNG" and image.size == (1050, 630)
    assert run(monkeypatch, *command, "--plot", "out/curve.png") == 0
    assert (tmp_path / "out" / "curve.png").is_file()
    for wrong in (("--plot", "curve.pdf"), ("--plot", "curve.png")):
        assert run(monkeypatch, *command[:4], *wrong) == 2
    errors = capfd.readouterr().err
    assert "expected a name that ends in .png" in errors and "add --sweep" in errors

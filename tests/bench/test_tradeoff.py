"""Quality against latency: the chain over its point beside its baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CheckpointMaker, make_texts, tiny_spec
from evaluation.test_quality import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reports.test_html import shown
from students import by_attention

from trbert_deploy import load
from trbert_deploy.bench import tradeoff
from trbert_deploy.bench.baselines import (
    count_for,
    first_tokens,
    replay,
    select_by_chance,
    with_ratio,
)
from trbert_deploy.bench.bundles import BenchOptions, sweep_bundle
from trbert_deploy.bench.tradeoff import TradeoffReport, measure_tradeoff
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.evaluation.quality import evaluate_quality, tokenize
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.flops import dense_flops, speedup
from trbert_deploy.modeling.received_attention import select_by_attention
from trbert_deploy.modeling.torch_backend import load_model
from trbert_deploy.modeling.walk import first_segment, select_at_cuts
from trbert_deploy.reports.plots.sweeps import draw_tradeoff
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.tasks.examples import Example
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow

TEXTS = [Example(row["text"], row["label"], f"text {i}") for i, row in enumerate(make_texts(24))]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def rows(pipeline: Pipeline) -> list[TokenRow]:
    return tokenize(pipeline, TEXTS)


@pytest.fixture(scope="module")
def report(pipeline: Pipeline) -> TradeoffReport:
    return measure_tradeoff(pipeline, TEXTS)


def halved(pipeline: Pipeline) -> ReductionConfig:
    return pipeline.reduction.with_rules((SelectionRule("ratio", 0.5),) * 2)


def test_all_models_stand_at_the_computation_of_points_of_the_chain(
    report: TradeoffReport,
) -> None:
    assert report.models == ("reduced", "truncation", "random", "attention")
    chain = report.of("reduced")
    assert len(chain) == 9 and chain[0].kind == "threshold"
    reached = sorted(point.flops_speedup for point in chain)
    for model in report.models[1:]:
        points = report.of(model)
        assert 2 <= len(points) <= 4
        for point in points:
            near = min(abs(np.log(point.flops_speedup / other)) for other in reached)
            assert near < np.log(reached[-1] / reached[0]) / 8  # rows are short: steps are coarse
    for model in report.models:
        times = [point.latency_ms for point in report.of(model)]
        assert times == sorted(times, reverse=True) and times[-1] > 0.0


def test_the_chain_and_the_dense_model_are_those_of_an_evaluation(
    report: TradeoffReport, pipeline: Pipeline
) -> None:
    alone = evaluate_quality(pipeline, TEXTS)
    assert report.dense.score == alone.dense.score
    assert (report.dense.setting, report.dense.flops_speedup) == ("all tokens", 1.0)
    assert report.current.score == alone.reduced.score
    assert report.current.flops_speedup == pytest.approx(alone.flops_speedup)
    assert (report.current.score_change, report.current.interval) == (
        alone.score_change,
        alone.interval,
    )
    assert report.rows == 24 and report.backend == "onnxruntime fp32"


def test_what_was_decided_is_what_survives(pipeline: Pipeline, rows: list[TokenRow]) -> None:
    generator = np.random.default_rng(1)
    decided = [select_by_chance(row, halved(pipeline), generator) for row in rows]
    replayed = replay(pipeline, rows, decided)
    for row, kept in zip(reversed(rows), reversed(decided), strict=True):  # in any order
        (result,) = replayed.run([row])
        first = np.flatnonzero(kept[0])
        assert result.kept[0].tolist() == first.tolist()
        assert result.kept[1].tolist() == first[kept[1]].tolist()
    everything = [[np.ones(len(row), bool)] * 2 for row in rows]
    (whole,) = replay(pipeline, rows, everything).run(rows[:1])
    (dense,) = pipeline.run(rows[:1], dense=True)
    np.testing.assert_allclose(whole.outputs["logits"], dense.outputs["logits"], atol=1e-5)


def test_received_attention_chooses_as_the_trained_baseline_does(
    tiny_bundle: Path, pipeline: Pipeline, rows: list[TokenRow]
) -> None:
    model = load_model(Bundle.open(tiny_bundle))
    model.set_reduction(halved(pipeline))
    labelled = [TrainingRow(row, 0) for row in rows[:6]]
    choose = by_attention(model)
    (batch,) = load_batches(labelled, [list(range(6))], torch.device("cpu"))
    with torch.no_grad():
        left = list(select_at_cuts(model, first_segment(model, batch), choose(batch, False)))
    for place, number in enumerate(batch.rows.tolist()):
        first, second = select_by_attention(model, rows[number], halved(pipeline))
        for survivors, kept in zip(left, (first.sum(), second.sum()), strict=True):
            assert survivors.layout.lengths[place] == kept
        packed = left[1].token[left[1].layout.row_of_token == place]
        begin = int(batch.layout.starts[place])
        assert (packed - begin).tolist() == np.flatnonzero(first)[second].tolist()


@given(
    lengths=st.lists(st.integers(200, 512), min_size=20, max_size=60),
    wanted=st.floats(1.1, 2.5),
)
def test_rounded_baselines_meet_the_wanted_computation(lengths: list[int], wanted: float) -> None:
    spec, rows = tiny_spec(num_layers=6), np.array(lengths)
    count = count_for(spec, rows, wanted, round_to=16)
    assert count % 16 == 0
    cut = dense_flops(spec, np.minimum(rows, count)).sum()
    assert dense_flops(spec, rows).sum() / cut == pytest.approx(wanted, rel=0.2)
    places = ReductionConfig.parse("0.5,3", SelectionRule(round_to=16))
    reduction = with_ratio(spec, places, rows, wanted)
    columns = [rows]
    for each in reduction.cuts:
        assert each.rule.round_to == 16
        kept = np.ceil(np.ceil(each.rule.value * columns[-1] - 1e-9) / 16) * 16
        columns.append(np.minimum(columns[-1], kept.astype(int)))
    assert speedup(spec, reduction, np.stack(columns, 1).tolist()) == pytest.approx(wanted, rel=0.2)


def test_first_tokens_end_as_the_row_does() -> None:
    row = TokenRow(np.arange(20), np.arange(20) // 10)
    assert first_tokens(6)(row).input_ids.tolist() == [0, 1, 2, 3, 4, 19]
    assert first_tokens(20)(row) is row


def test_baselines_that_cannot_run_are_told(
    pipeline: Pipeline,
    make_checkpoint: CheckpointMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export_bundle(make_checkpoint(cuts="0,2"), tmp_path / "early")
    early = measure_tradeoff(load(tmp_path / "early", threads=1), TEXTS[:8])
    assert "attention" not in early.models and "an attention before every cut" in early.notes[0]

    def missing(pipeline: Pipeline) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(tradeoff, "_by_attention", missing)
    without = measure_tradeoff(pipeline, TEXTS[:8])
    assert without.models == ("reduced", "truncation", "random")
    assert without.notes == ("attention is left out: it needs PyTorch, trbert-deploy[train]",)


def test_unusable_data_is_refused(
    tiny_bundle: Path, make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a sweep needs texts to judge by"):
        sweep_bundle(tiny_bundle, BenchOptions())
    with pytest.raises(DataError, match="does not know the label 'ugly'"):
        sweep_bundle(tiny_bundle, BenchOptions(data=[Example("the film", "ugly")]))
    export_bundle(make_checkpoint(cuts=""), tmp_path / "uncut")
    with pytest.raises(ConfigError, match="has no cuts"):
        measure_tradeoff(load(tmp_path / "uncut"), TEXTS)


def test_the_plot_shows_every_model(report: TradeoffReport) -> None:
    (axes,) = draw_tradeoff(report).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert len(lines) == 6
    chain = lines["reduced, by threshold"]
    assert list(chain.get_xdata()) == [point.latency_ms for point in report.of("reduced")]
    assert list(chain.get_ydata()) == [point.score for point in report.of("reduced")]
    assert any(label.startswith("dense: ") for label in lines)
    alone = replace(report, points=tuple(report.of("reduced")))
    assert len(draw_tradeoff(alone).axes[0].get_lines()) == 3


def test_the_command_prints_draws_and_writes(
    tiny_bundle: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ("bench", tiny_bundle, "--lengths", "16", "--rounds", "1", "--data", "data.jsonl")
    assert run(monkeypatch, *command, "--sweep", "--json", "s.json", "--html", "p.html") == 0
    printed = capfd.readouterr().out
    assert "plot: tradeoff.png" in printed and "current rules" in printed and "…" not in printed
    sweep = json.loads((tmp_path / "s.json").read_text())["sweep"]
    page = shown((tmp_path / "p.html").read_text())
    assert "Quality against latency" in page
    for point in (sweep["dense"], *sweep["points"]):
        assert f" {point['latency_ms']:.2f} " in printed
        assert f" {point['latency_ms']:.2f} " in page
    with Image.open("tradeoff.png") as image:
        assert image.format == "PNG" and image.size == (1050, 690)
    assert run(monkeypatch, *command, "--plot", "curve.png") == 2
    assert "add --sweep" in capfd.readouterr().err

"""Structure and arithmetic of a benchmark; never its times."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts
from rich.console import Console

from trbert_deploy.bench.bundles import BenchOptions, bench_bundle, read_data
from trbert_deploy.bench.timing import (
    BackendBench,
    BenchPoint,
    BenchReport,
    ModelTiming,
    Rounds,
    measure_point,
    run_bench,
)
from trbert_deploy.cli import main
from trbert_deploy.errors import ConfigError, DataError, LengthError
from trbert_deploy.flops import speedup
from trbert_deploy.reports.console.bench import dense_wins, print_report
from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.reading.examples import no_note
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.tasks.columns import ColumnNames

SAMPLES = [row["text"] for row in make_texts(6, seed=1)]
DENSE = ModelTiming(10.0, 12.0, 10.5, 100.0, 6400.0, 0.01)
REDUCED = ModelTiming(4.0, 5.0, 3.5, 250.0, 16000.0, 0.05)
POINT = BenchPoint(64, 1, 8, 6, DENSE, REDUCED, (20.0, 6.5), 2.0)
QUICK = BenchOptions(rounds=Rounds.exactly(2), threads=1)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


def test_speedups_are_ratios() -> None:
    assert POINT.measured_speedup == 2.5
    assert POINT.efficiency == 1.25
    described = json.loads(json.dumps(POINT.to_json()))
    assert (described["measured_speedup"], described["efficiency"]) == (2.5, 1.25)
    assert described["kept"] == [20.0, 6.5]
    assert described["dense"]["p50_ms"] == 10.0


def test_means_speak_where_rows_leave_early() -> None:
    """Of some that leave and some that stay a median tells one kind alone."""
    leaving = replace(POINT, left=(0.5, 0.1))
    assert leaving.measured_speedup == 3.0  # 10.5 ms to 3.5
    assert leaving.to_json()["left"] == (0.5, 0.1)
    out = io.StringIO()
    report = BenchReport(
        {"processor": "p", "cores": 1},
        {"path": "b", "family": "bert", "num_layers": 4, "hidden_size": 8, "cuts": []},
        (BackendBench({"backend": "onnxruntime", "version": "1"}, (leaving,)),),
    )
    print_report(report, Console(file=out, width=80))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["mean", "ms", "3.50"] in lines and ["left", "early", "50%,", "10%"] in lines
    slower = replace(leaving, reduced=replace(REDUCED, mean_ms=11.0))
    (told,) = dense_wins(BackendBench({}, (slower,)))
    assert told.endswith("10.50 ms against 11.00 ms.")


def test_rounds_stop_by_time_within_their_limits() -> None:
    rounds = Rounds(least=8, most=64, seconds=5.0)
    assert rounds.share_done(4, 100.0) == 0.5  # slow: the least decides
    assert rounds.share_done(8, 5.0) >= 1.0
    assert rounds.share_done(32, 0.1) == 0.5  # fast: the most decides
    assert rounds.share_done(64, 0.1) >= 1.0
    assert rounds.share_done(20, 2.5) == 0.5
    assert Rounds.exactly(3).share_done(3, 0.0) >= 1.0
    assert Rounds.exactly(3).share_done(2, 99.0) < 1.0
    for least, most in ((0, 1), (3, 2)):
        with pytest.raises(ConfigError, match="rounds are"):
            Rounds(least, most)


class RecordingPipeline:
    """A pipeline with known times, that remembers what it was asked."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.encoder, self.reduction = pipeline.encoder, pipeline.reduction
        self.calls: list[tuple[bool, list[int]]] = []

    def run(
        self, rows: list[TokenRow], *, dense: bool = False, timing: Timing | None = None
    ) -> list[RowResult]:
        self.calls.append((dense, [int(row.input_ids[1]) for row in rows]))
        if timing is not None:
            timing.total_seconds = 0.010 if dense else 0.004
            timing.graph_seconds = {"graph": 0.009 if dense else 0.003}
        kept = () if dense else (np.arange(8), np.arange(2 + len(self.calls) % 2))
        return [RowResult(np.zeros(2, np.float32), kept)] * len(rows)


def test_models_take_turns_on_the_same_changing_rows(pipeline: Pipeline) -> None:
    recorder = RecordingPipeline(pipeline)
    rows = [TokenRow(np.full(16, place), np.zeros(16, np.int64)) for place in range(3)]
    shares: list[float] = []
    point = measure_point(recorder, rows, 2, Rounds.exactly(4), shares.append)  # type: ignore[arg-type]
    assert len(recorder.calls) == 2 * (2 + 4)  # with two rounds of warm-up
    pairs = list(zip(recorder.calls[::2], recorder.calls[1::2], strict=True))
    assert all({one[0], other[0]} == {True, False} for one, other in pairs)
    assert {one[0] for one, _ in pairs[2:]} == {True, False}  # each goes first at times
    assert all(one[1] == other[1] for one, other in pairs)
    assert [one[1] for one, _ in pairs[:3]] == [[0, 1], [2, 0], [1, 2]]
    assert shares[0] == 0.0 and shares[-1] == 1.0 and shares == sorted(shares)
    assert (point.length, point.batch, point.rounds, point.different_rows) == (16, 2, 4, 3)
    assert point.dense.p50_ms == point.dense.p95_ms == pytest.approx(10.0)
    assert point.reduced.p50_ms == pytest.approx(4.0)
    assert point.dense.texts_per_s == pytest.approx(200.0)
    assert point.reduced.tokens_per_s == pytest.approx(2 * 16 / 0.004)
    assert point.dense.outside_share == pytest.approx(0.1)
    assert point.reduced.outside_share == pytest.approx(0.25)
    assert point.measured_speedup == pytest.approx(2.5)
    kept_in = [len(result) for result in (np.arange(2), np.arange(3))]
    assert point.kept[0] == 8.0 and min(kept_in) <= point.kept[1] <= max(kept_in)


def test_flops_use_the_tokens_that_were_kept(pipeline: Pipeline) -> None:
    rows = pipeline.tokenizer.rows_of_length(SAMPLES, 48, 2)
    point = measure_point(pipeline, rows, 2, Rounds.exactly(1))
    counts = [(48, *map(len, result.kept)) for result in pipeline.run(rows)]
    assert point.flops_speedup == speedup(pipeline.encoder, pipeline.reduction, counts)
    assert point.kept == pytest.approx(np.mean(counts, axis=0)[1:])


def test_a_report_holds_every_point_and_its_surroundings(pipeline: Pipeline) -> None:
    steps: list[tuple[str, int, int]] = []
    report = run_bench(
        pipeline,
        (16, 48),
        (1, 3),
        SAMPLES,
        rounds=Rounds.exactly(2),
        progress=lambda *step: steps.append(step),
    )
    (backend,) = report.backends
    assert [(point.length, point.batch) for point in backend.points] == [
        (16, 1), (16, 3), (48, 1), (48, 3),
    ]  # fmt: skip
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert steps[-1] == ("onnxruntime, 48 tokens, batch 3", 400, 400)
    described = json.loads(json.dumps(report.to_json()))
    assert {"processor", "cores", "python", "numpy", "trbert-deploy"} <= set(described["machine"])
    assert described["backends"][0]["backend"] == "onnxruntime"
    assert described["backends"][0]["threads"] == "1"
    assert [cut["position"] for cut in described["bundle"]["cuts"]] == [1.0, 2.0]
    for point in described["backends"][0]["points"]:
        assert point["rounds"] == 2
        for model in ("dense", "reduced"):
            spent = point[model].pop("graph_ms")
            assert all(value > 0 for value in (*point[model].values(), *spent.values()))
            names = ["dense"] if model == "dense" else [f"segment_{index}" for index in range(3)]
            assert list(spent) == names
            assert point[model]["p50_ms"] <= point[model]["p95_ms"]
        assert point["measured_speedup"] == pytest.approx(
            point["dense"]["p50_ms"] / point["reduced"]["p50_ms"]
        )


def report_of(*points: BenchPoint, notes: tuple[str, ...] = ()) -> BenchReport:
    description = {"backend": "onnxruntime", "version": "1", "provider": "CPU", "threads": "1"}
    bundle = {"path": "b", "family": "bert", "num_layers": 4, "hidden_size": 32, "cuts": []}
    machine: dict[str, str | int] = {"processor": "P", "cores": 2}
    return BenchReport(machine, bundle, (BackendBench(description, points),), notes)


def printed(report: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_figure_in_80_columns() -> None:
    points = [replace(POINT, length=64 * place) for place in range(1, 6)]
    shown = printed(report_of(*points, notes=("a note",)))
    for figure in ("10.00", "12.00", "4.00", "2.50", "1.25", "20, 6", "5.0%", "a note"):
        assert figure in shown
    for point in points:
        assert f"{point.length} tokens" in shown
    assert "…" not in shown
    assert "faster" not in shown


def test_the_table_says_where_the_dense_model_wins() -> None:
    slow = replace(POINT, length=16, reduced=replace(REDUCED, p50_ms=11.0))
    report = report_of(POINT, slow)
    line = "The dense model is faster at 16 tokens, batch 1: 10.00 ms against 11.00 ms."
    assert list(dense_wins(report.backends[0])) == [line]
    assert line in printed(report)


def test_default_lengths_are_cut_to_the_bundle(tiny_bundle: Path) -> None:
    (backend,) = bench_bundle(tiny_bundle, QUICK).backends
    assert [point.length for point in backend.points] == [64]


def test_a_length_above_the_bundle_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(
        LengthError, match=r"length 65 is more than the bundle takes: expected at most 64"
    ):
        bench_bundle(tiny_bundle, replace(QUICK, lengths=(16, 65)))


def test_texts_of_ones_own(tiny_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "a wonderful film"}\n{"text": "a house", "text_pair": "sold"}\n')
    texts = read_data(tiny_bundle, data, ColumnNames(), no_note, labelled=False)
    options = replace(QUICK, lengths=(16,), data=texts)
    assert bench_bundle(tiny_bundle, options).backends[0].points[0].different_rows == 2
    data.write_text("{}")
    with pytest.raises(DataError, match=r"texts\.jsonl, line 1"):
        read_data(tiny_bundle, data, ColumnNames(), no_note, labelled=False)


def test_a_bundle_without_samples_asks_for_data(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trbert_deploy.bundle.bundle.Bundle.samples", lambda bundle: [])
    with pytest.raises(DataError, match="has no sample texts: give --data FILE"):
        bench_bundle(tiny_bundle, QUICK)


def test_engines_that_cannot_run_are_named(own_bundle: Path) -> None:
    """An engine set without a working engine: whatever the reason here, it is told."""
    engines = own_bundle / "engines" / "rtx-fp16-sm86"
    engines.mkdir(parents=True)
    (engines / "manifest.json").write_text("{}")
    report = bench_bundle(own_bundle, replace(QUICK, lengths=(16,)))
    assert len(report.backends) == 1
    (note,) = report.notes
    assert note.startswith("TensorRT engines present (rtx-fp16-sm86), not timed: ")
    explicit = bench_bundle(own_bundle, replace(QUICK, lengths=(16,), backend="onnxruntime"))
    assert explicit.notes == ()
    ignored = bench_bundle(own_bundle, replace(QUICK, lengths=(16,), engines=False))
    assert ignored.notes == ()


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trbert-deploy", "bench", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_prints_a_table_and_writes_json(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "bench.json"
    arguments = ["--lengths", "16,32", "--batch", "1,2", "--rounds", "2", "--backend", "torch"]
    assert run_cli(monkeypatch, str(tiny_bundle), *arguments, "--json", str(target)) == 0
    output = capfd.readouterr()
    assert "measured / FLOPs" in output.out
    assert output.err == ""  # no step lasted
    report = json.loads(target.read_text())
    assert report["backends"][0]["backend"] == "torch"
    assert len(report["backends"][0]["points"]) == 4


@pytest.mark.parametrize("wrong", [("--lengths", "0"), ("--lengths", "a"), ("--batch", "1,")])
def test_wrong_numbers_end_with_2(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wrong: tuple[str, str],
) -> None:
    assert run_cli(monkeypatch, str(tiny_bundle), *wrong) == 2
    assert "expected whole numbers from 1" in capfd.readouterr().err


def test_a_length_above_the_bundle_is_one_line(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, str(tiny_bundle), "--lengths", "65") == 1
    assert capfd.readouterr().err.strip().startswith("error: length 65 is more than the bundle")

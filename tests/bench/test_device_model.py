"""The reckoning for GPUs that are not here: its operations, its times, and how it is told."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands_in_tests import run
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trbert_deploy.bench.bundles import BenchOptions, bench_bundle, reckon_bundle
from trbert_deploy.bench.device_model import (
    DEVICES,
    FITTED,
    kernels,
    reckon_point,
    seconds,
)
from trbert_deploy.bench.timing import Rounds
from trbert_deploy.cli import cli
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.reports.console.bench import print_reckoning

CUTS = ReductionConfig.parse("0.5,3")
#: Of docs/performance-gpu.md: layers, width, rows, tokens -> ms dense and reduced of a recording
#: on an H100 in fp16, whose cuts leave 50 % and 15 %.
MEASURED = {
    (6, 384, 1, 512): (0.39, 0.42),
    (6, 384, 32, 512): (2.59, 1.29),
    (6, 384, 32, 2048): (14.21, 5.29),
    (12, 768, 1, 512): (0.87, 0.83),
    (12, 768, 32, 512): (10.52, 4.40),
    (12, 768, 32, 2048): (53.28, 17.81),
}


def spec_of(layers: int, width: int) -> EncoderSpec:
    return tiny_spec(
        num_layers=layers, hidden_size=width, num_heads=12, ffn_size=4 * width, max_positions=2048
    )


@given(st.lists(st.integers(3, 500), min_size=1, max_size=5))
def test_its_operations_are_those_that_are_counted(lengths: list[int]) -> None:
    spec = spec_of(6, 48)
    rows = [(length, length // 2 + 1, length // 3 + 1) for length in lengths]
    dense = sum(kernel.flops for kernel in kernels(spec, None, rows))
    assert dense == pytest.approx(sum(dense_flops(spec, length) for length in lengths))
    reduced = sum(kernel.flops for kernel in kernels(spec, CUTS, rows))
    counted = sum(reduced_flops(spec, CUTS, row) for row in rows)
    assert reduced == pytest.approx(counted, rel=0.02)  # a policy's last 32 numbers are left out


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_it_comes_near_to_what_an_h100_took(case: tuple[int, int, int, int]) -> None:
    layers, width, batch, length = case
    spec = spec_of(layers, width)
    cuts = ReductionConfig.parse(f"0.5,{layers // 2}")
    rows = [(length, length // 2, int(0.15 * length))]
    point = reckon_point(DEVICES["h100"], spec, cuts, rows, batch)
    assert (point.dense_ms, point.reduced_ms) == pytest.approx(MEASURED[case], rel=0.15)


def test_a_slower_device_takes_longer_and_a_launch_is_never_free() -> None:
    work = list(kernels(spec_of(6, 384), CUTS, [(512, 200, 80)] * 8))
    times = {name: seconds(device, work) for name, device in DEVICES.items()}
    assert times["h100"] < times["a10"] < min(times["l4"], times["t4"])
    for device in DEVICES.values():
        assert seconds(device, work, cuts=2) > seconds(device, work)
        free = replace(FITTED, begin_s=0.0)
        assert seconds(device, work, shares=free) < seconds(device, work)


def test_the_command_times_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    told = run(
        "bench", tiny_bundle, "--device-model", "t4", "--lengths", "16,64", "--batch", "1,4",
        "--json", figures,
    )  # fmt: skip
    assert "reckoned for NVIDIA T4" in told and "not measured" in told
    assert "Timed:" not in told and "error │" not in told
    found = json.loads(figures.read_text())
    assert set(found) == {"reckoned"}
    points = found["reckoned"]["points"]
    assert [(point["length"], point["batch"]) for point in points] == [
        (16, 1), (16, 4), (64, 1), (64, 4),
    ]  # fmt: skip
    assert all(point["speedup"] > 0 and len(point["kept"]) == 2 for point in points)


def test_a_dense_bundle_is_reckoned_without_cuts(tiny_bundle: Path) -> None:
    options = BenchOptions(lengths=(64,), batches=(2,))
    kept_all = replace(options, point=replace(options.point, threshold=0.0))
    (point,) = reckon_bundle(tiny_bundle, "a10", kept_all).points
    assert point.kept == (64.0, 64.0) and point.reduced_ms > point.dense_ms


def test_what_the_gpu_here_took_is_set_beside_it(tiny_bundle: Path) -> None:
    options = BenchOptions(lengths=(64,), backend="onnxruntime", rounds=Rounds.exactly(1))
    report = bench_bundle(tiny_bundle, options)
    reckoned = reckon_bundle(tiny_bundle, "h100", options)
    (backend,) = report.backends
    (point,) = backend.points
    (ours,) = reckoned.points
    took = replace(
        point,
        dense=replace(point.dense, p50_ms=2 * ours.dense_ms),
        reduced=replace(point.reduced, p50_ms=ours.reduced_ms / 2),
    )
    on_gpu = replace(
        backend, description={**backend.description, "backend": "cuda"}, points=(took,)
    )
    for backends, told in (((backend,), ""), ((on_gpu,), "-50%, +100%")):
        console = Console(file=io.StringIO(), width=100)
        print_reckoning(reckoned, replace(report, backends=backends), console)
        assert ("-50%" in console.file.getvalue()) == bool(told)  # type: ignore[attr-defined]
        assert told in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_timed_needs_a_backend(tiny_bundle: Path) -> None:
    for option in (("--sweep",), ("--html", "page.html")):
        result = CliRunner().invoke(
            cli, ["bench", str(tiny_bundle), "--device-model", "l4", *option]
        )
        assert result.exit_code == 2 and "reckons and times nothing" in result.output

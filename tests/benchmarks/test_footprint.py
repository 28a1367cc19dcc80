"""Start and memory, measured in processes of their own."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import footprint
import pytest
from click.testing import CliRunner

import trbert_deploy


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(footprint.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_model_that_does_not_run_here_is_left_out(
    tiny_bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = footprint.candidates()[:2]  # one that is missing
    monkeypatch.setattr(footprint, "candidates", lambda: two)
    figures = labelled.with_name("footprint.json")
    code, output = run(
        tiny_bundle, "--data", labelled, "--texts", 2, "--rounds", 1, "--json", figures
    )
    assert code == 0, output
    assert "left out: onnxruntime int8: " in output and "Traceback" not in output
    written = json.loads(figures.read_text())
    assert set(written) == {"machine", "threads", "onnxruntime fp32"}
    assert set(written["onnxruntime fp32"]) == {"dense", "reduced"}


def test_medians_of_the_rounds_behind_the_first_are_written_down(
    tiny_bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, int]] = []

    def measured(load: dict[str, Any], dense: bool, texts: list[str]) -> tuple[float, float]:
        seen.append((load["backend"], dense, len(texts)))
        number = sum(each == seen[-1] for each in seen)  # the first is far from the others
        seconds = {1: 900.0, 2: 3.0, 3: 1.0, 4: 2.0}[number]
        return seconds + 10 * dense, 100 * seconds + dense

    monkeypatch.setattr(footprint, "start_once", measured)
    monkeypatch.setattr(footprint, "candidates", lambda found=footprint.candidates()[:1]: found)
    figures = labelled.with_name("footprint.json")
    code, output = run(
        tiny_bundle, "--data", labelled, "--texts", 5, "--rounds", 3, "--json", figures
    )
    assert code == 0, output
    assert seen == [("onnxruntime", True, 5), ("onnxruntime", False, 5)] * 4
    assert json.loads(figures.read_text())["onnxruntime fp32"] == {
        "dense": {"first_answer_seconds": 12.0, "peak_mib": 201.0},
        "reduced": {"first_answer_seconds": 2.0, "peak_mib": 200.0},
    }


@pytest.fixture
def begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts lines of Python at the start of every new interpreter."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    return lambda lines: (directory / "sitecustomize.py").write_text(lines) and None


def test_memory_is_the_most_that_the_process_itself_held(
    tiny_bundle: Path, begin_with: Callable[[str], None]
) -> None:
    load = {"bundle": str(tiny_bundle), "threads": 1}
    _, alone = footprint.start_once(load, False, ["a film"])
    begin_with("b'x' * (300 << 20)")  # and given back at once
    held_here = b"x" * (700 << 20)  # in this process, which is not measured
    _, more = footprint.start_once(load, False, ["a film"])
    assert len(held_here) and 200 < more - alone < 400
    assert 30 < alone < 700


def test_time_runs_from_the_start_of_the_process(
    tiny_bundle: Path, begin_with: Callable[[str], None]
) -> None:
    begin_with("import time; time.sleep(0.7)")
    seconds, _ = footprint.start_once({"bundle": str(tiny_bundle)}, True, ["a film"])
    assert seconds > 0.7


@pytest.mark.parametrize("dense", [True, False])
def test_the_process_answers_what_it_is_told(
    dense: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def load(**options: object) -> Callable[..., None]:
        asked.append(options)
        return lambda texts, dense: asked.append((texts, dense))

    monkeypatch.setattr(trbert_deploy, "load", load)
    job = {"load": {"bundle": "here", "threads": 2}, "dense": dense, "texts": ["one", "two"]}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    exec(footprint.PROGRAM, {})
    assert asked == [job["load"], (["one"], dense), (["two"], dense)]
    *answered, memory = capsys.readouterr().out.splitlines()
    assert answered == ["answered"] * 2 and int(memory) > 0


def test_what_cannot_be_measured_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for bundle, data, message in (
        (tmp_path / "missing", empty, "missing"),
        (tiny_bundle, tmp_path / "none.jsonl", "cannot be read"),
        (tiny_bundle, empty, "is empty"),
    ):
        code, output = run(bundle, "--data", data)
        assert code == 1 and "error: " in output and message in output

"""Start and memory, measured in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import footprint
import pytest
from click.testing import CliRunner


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(footprint.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_first_answers_and_memory_are_written_down(
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
    for model in ("dense", "reduced"):
        assert written["onnxruntime fp32"][model]["first_answer_seconds"] > 0
        assert written["onnxruntime fp32"][model]["peak_mib"] > 30


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

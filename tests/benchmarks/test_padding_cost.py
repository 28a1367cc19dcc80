"""The benchmark of padding: every limit answers the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import padding_cost
import pytest
from click.testing import CliRunner


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(padding_cost.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_limits_are_timed_and_written_down(tiny_bundle: Path, labelled: Path) -> None:
    figures = labelled.with_name("padding.json")
    arguments = ["--batch", 5, "--batches", 2, "--rounds", 1, "--paddings", "0,0.5"]
    code, output = run(tiny_bundle, "--data", labelled, *arguments, "--json", figures)
    assert code == 0, output
    assert "50%" in output
    written = json.loads(figures.read_text())["batch"]
    assert [each["max_padding"] for each in written] == [0.0, 0.5]
    assert all(each["dense_ms"] > 0 and each["reduced_ms"] > 0 for each in written)


@pytest.mark.parametrize("wrong", ["2", "-0.1", "little", "0,"])
def test_limits_are_shares(tiny_bundle: Path, labelled: Path, wrong: str) -> None:
    code, output = run(tiny_bundle, "--data", labelled, "--paddings", wrong)
    assert code == 2 and "expected shares from 0 to 1, such as 0,0.03" in output


def test_a_missing_bundle_is_one_line(labelled: Path) -> None:
    code, output = run("missing", "--data", labelled)
    assert code == 1 and output.startswith("error: ") and len(output.splitlines()) == 1

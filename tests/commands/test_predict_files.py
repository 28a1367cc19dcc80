"""``trbert-deploy predict --engine ray``: options that make no sense there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trbert_deploy.cli import cli

FILES = ("--input", "texts", "--output", "answers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "a"), "reads files: give --input"),
        (("--input", "-", "--output", "answers"), "reads files: give --input"),
        (("--input", "texts"), "writes files: give --output"),
        ((*FILES, "--backend", "auto"), "runs no backend auto: expected onnxruntime or openvino"),
        ((*FILES, "--latency-budget", "5"), "measures nothing"),
        ((*FILES, "--dense-below", "auto"), "measures nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, ["predict", "bundle", "--engine", "ray", *arguments])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_workers_are_rays() -> None:
    result = CliRunner().invoke(cli, ["predict", "bundle", "--text", "a", "--workers", "2"])
    assert result.exit_code == 2
    assert "--workers is for --engine ray" in result.output


@pytest.mark.parametrize("missing", ["pyarrow", "ray"])
def test_without_its_packages_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    for module in ("on_ray", "many_files", "file_pieces"):
        monkeypatch.delitem(sys.modules, f"trbert_deploy.runtime.{module}", raising=False)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a"}\n')
    result = CliRunner().invoke(
        cli,
        ["predict", "bundle", "--engine", "ray", "--input", str(texts), "--output", "answers"],
    )
    assert result.exit_code == 1
    assert f"--engine ray needs the package {missing}" in str(result.exception)
    assert "pip install 'trbert-deploy[ray]'" in str(result.exception)

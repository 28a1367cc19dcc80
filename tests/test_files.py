from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trbert_deploy.errors import BundleError, FileFormatError, StorageError
from trbert_deploy.files import (
    read_json,
    read_json_lines,
    require_directory,
    sha256,
    staged_directory,
    staged_file,
    staged_files,
    write_json,
    write_json_lines,
)
from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors


class Stop(Exception):
    """What goes wrong in the middle."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with staged_file(target) as staging:
        staging.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, problem: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(problem), staged_file(target) as staging:
        staging.write_text("half")
        raise problem
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_directory_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "d"
    target.mkdir()
    (target / "old").touch()
    with staged_directory(target) as staging:
        (staging / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt])
def test_a_failure_leaves_the_old_directory(tmp_path: Path, problem: type[BaseException]) -> None:
    target = tmp_path / "d"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(problem), staged_directory(target) as staging:
        (staging / "old").write_text("half")
        raise problem
    assert (target / "old").read_text() == "old"
    assert names(tmp_path) == ["d"]


def test_staged_files_join_what_is_there(tmp_path: Path) -> None:
    target = tmp_path / "d"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "b").write_text("old")
    with staged_files(target) as staging:
        (staging / "a").write_text("new")
    assert [(target / name).read_text() for name in names(target)] == ["new", "old"]
    with pytest.raises(Stop), staged_files(target) as staging:
        (staging / "b").write_text("half")
        raise Stop
    assert [(target / name).read_text() for name in names(target)] == ["new", "old"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": "é"}
    assert names(tmp_path) == ["a.json"]


def test_json_lines_keep_odd_line_ends(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85c\nd"}, {"text": ""}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert read_json_lines(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[1]", "holds a JSON list: expected an object"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_bad_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_json(path, BundleError)


def test_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(BundleError, match="is missing"):
        read_json_lines(tmp_path / "a.jsonl", BundleError)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf")


def test_directories_are_required(tmp_path: Path) -> None:
    require_directory(tmp_path, "bundle", "export")
    with pytest.raises(StorageError, match=r"bundle .* does not exist: make one with export"):
        require_directory(tmp_path / "no", "bundle", "export")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file: expected a directory"):
        require_directory(tmp_path / "file", "bundle", "export")


LIMITED = """
import resource, sys
from trbert_deploy.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
main()
"""


def test_a_full_disk_is_one_line_and_leaves_the_old(tiny_bundle: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    texts, answers = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl"
    texts.write_text('{"text": "a wonderful film"}\n' * 200)
    answers.write_text("old")
    arguments = ["predict", str(tiny_bundle), "--input", str(texts), "--output", str(answers)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert answers.read_text() == "old"
    assert names(tmp_path) == ["answers.jsonl", "texts.jsonl"]


def test_weights_that_cannot_be_written_are_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="weights cannot be written"):
        write_safetensors(tmp_path / "missing" / "weights", {"a": torch.zeros(3)})


def test_json_text_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n") and json.loads(text) == {"b": [1]}

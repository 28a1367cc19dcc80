from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trbert_deploy.errors import BundleError, FileFormatError, StorageError
from trbert_deploy.files import (
    _names_open_files,
    read_json,
    read_json_lines,
    require_directory,
    sha256,
    staged_directory,
    staged_file,
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


def test_here_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    replace(Path())
    assert names(tmp_path / "d") == ["new"] and names(tmp_path) == ["d"]


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


def write_through(path: Path) -> None:
    with staged_file(path) as staging:
        staging.write_text("new")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    write_through(pipe)
    assert reader.communicate(timeout=60)[0] == "new"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_socket_is_refused_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its path may have some 100 characters
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        with pytest.raises(OSError, match="No such device"):
            write_through(Path("socket"))
    assert stat.S_ISSOCK(Path("socket").lstat().st_mode)


def test_a_name_of_an_open_file_is_written_to(tmp_path: Path) -> None:
    """As /dev/stdout is: what was written to it before stays."""
    with (tmp_path / "log").open("a") as file:
        file.write("before ")
        file.flush()
        inode = (tmp_path / "log").stat().st_ino
        (tmp_path / "link").symlink_to(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        write_through(tmp_path / "link")
    assert (tmp_path / "log").read_text() == "before new"
    assert (tmp_path / "log").stat().st_ino == inode


def test_a_directory_is_no_file_and_a_file_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a directory: expected a file"):
        write_through(tmp_path)
    (tmp_path / "a").write_text("old")
    with pytest.raises(StorageError, match="is a file: expected a directory"):
        replace(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def chain_of_links(tmp_path: Path) -> Path:
    """first -> elsewhere/second -> ../real/v1, which is not there yet."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "first").symlink_to(Path("elsewhere", "second"))
    (tmp_path / "elsewhere" / "second").symlink_to(Path("..", "real", "v1"))
    return tmp_path / "first"


@pytest.mark.parametrize("there", [False, True])
def test_links_to_files_are_followed(tmp_path: Path, there: bool) -> None:
    link, real = chain_of_links(tmp_path), tmp_path / "real" / "v1"
    if there:
        write_through(real)
        real.write_text("old")
    write_through(link)
    assert link.is_symlink() and (tmp_path / "elsewhere" / "second").is_symlink()
    assert not real.is_symlink() and real.read_text() == "new"
    assert names(tmp_path / "real") == ["v1"]


def replace(target: Path) -> None:
    with staged_directory(target) as staging:
        (staging / "new").touch()


@pytest.mark.parametrize("there", [False, True])
def test_links_to_directories_are_followed(tmp_path: Path, there: bool) -> None:
    link, real = chain_of_links(tmp_path), tmp_path / "real" / "v1"
    if there:
        real.mkdir(parents=True)
        (real / "old").touch()
    replace(link)
    assert link.is_symlink() and not real.is_symlink()
    assert names(real) == ["new"] and names(tmp_path / "real") == ["v1"]


@pytest.mark.parametrize("write", [write_through, replace])
def test_links_in_a_circle_are_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StorageError, match="a is a link that leads back to itself: remove it"):
        write(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


def write_weights(path: Path) -> None:
    write_safetensors(path, {"a": torch.zeros(3)})


@pytest.mark.parametrize("write", [write_through, write_weights])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o200])
def test_a_file_keeps_its_permissions(
    tmp_path: Path, write: Callable[[Path], None], mode: int
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_directory_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o2750)
    replace(tmp_path / "d")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o2750


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    write_through(tmp_path / "a")
    replace(tmp_path / "d")
    for name, write in (("a", write_through), ("d", replace)):
        os.chown(tmp_path / name, 1234, 2345)
        write(tmp_path / name)
        state = (tmp_path / name).stat()
        assert (state.st_uid, state.st_gid) == (1234, 2345)


def test_the_umask_decides_what_is_new_and_is_never_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            write_through(tmp_path / "a")
            write_weights(tmp_path / "w")
            replace(tmp_path / "d")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "w", "d", "d/new")]
    assert modes == [0o640, 0o640, 0o750, 0o640]


def test_what_is_not_ready_is_for_nobody_else(tmp_path: Path) -> None:
    """A file that others may not read is not readable for them while it is made."""
    with staged_file(tmp_path / "a") as staging:
        assert stat.S_IMODE(staging.parent.stat().st_mode) == 0o700
    (tmp_path / "d").mkdir(0o700)
    with staged_directory(tmp_path / "d") as staging:
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700


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


def test_json_text_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n") and json.loads(text) == {"b": [1]}


def test_what_is_written_is_known_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_json(path, {"ä": [1, "\u2028"]})
    assert path.read_bytes() == '{\n  "ä": [\n    1,\n    "\u2028"\n  ]\n}\n'.encode()
    write_json_lines(path, [{"ä": 1}, {}])
    assert path.read_bytes() == '{"ä": 1}\n{}\n'.encode()


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n3\n")
    with pytest.raises(BundleError, match=r"a\.jsonl, line 2: expected a JSON object$"):
        read_json_lines(path, BundleError)
    path.write_text('{}\n{"')
    with pytest.raises(BundleError, match=r"a\.jsonl cannot be read as JSON lines: Unterminated"):
        read_json_lines(path, BundleError)


@pytest.mark.parametrize("name", ["/dev", "/dev/fd", "/proc/self/fd", "/proc/1/fd"])
def test_directories_of_open_files_are_known_by_name(name: str) -> None:
    assert _names_open_files(Path(name))


@pytest.mark.parametrize("name", ["/", "/dev/shm", "/devices", "/procs", "/tmp"])
def test_other_directories_are_not_among_them(name: str) -> None:
    assert not _names_open_files(Path(name))


def test_a_directory_has_to_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(
        StorageError, match=f"^bundle {tmp_path} cannot be read: permission denied$"
    ):
        require_directory(tmp_path, "bundle", "nothing")
    assert asked == [(tmp_path, os.R_OK | os.X_OK)]


EVERY_FILE = """
import sys
from pathlib import Path
from trbert_deploy import files

path = Path(sys.argv[1])
files.write_json(path, {})
files.read_json(path)
files.write_json_lines(path, [{}])
files.read_json_lines(path)
"""


def test_text_is_utf_8_wherever_it_is_written(tmp_path: Path) -> None:
    """Not what the system's language has it be."""
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:trbert_deploy.files"]
    subprocess.run([sys.executable, *strict, "-c", EVERY_FILE, str(tmp_path / "a")], check=True)

"""Predictions over many files on a local Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from commands_in_tests import run, write
from conftest import make_texts
from pyarrow import fs, parquet
from ray_in_tests import local_cluster, process_of

from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.tasks.columns import ColumnNames

pytest.importorskip("ray", reason="Ray is not installed")

from trbert_deploy.progress import no_progress
from trbert_deploy.runtime import on_ray
from trbert_deploy.runtime.file_pieces import Piece
from trbert_deploy.runtime.many_files import MARKER, Place
from trbert_deploy.runtime.on_ray import Job, Outcome, Worker, predict_files

pytestmark = [
    pytest.mark.slow,
    # Ray leaves pipes and log files to the interpreter's end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]
FILES = 6
ROWS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Six files of texts, of JSONL and Parquet in turn, one of them in a folder below."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for place in range(FILES):
        rows = [{"text": row["text"]} for row in make_texts(ROWS, seed=place)]
        name = folder / ("more" if place == 5 else "") / f"part-{place}"
        if place % 2:
            parquet.write_table(pyarrow.Table.from_pylist(rows), f"{name}.parquet")
        else:
            write(Path(f"{name}.jsonl"), rows)
    return folder


def job_of(bundle: Path, texts: Path, answers: Path, **changes: object) -> Job:
    values: dict[str, object] = {
        "bundle": bundle,
        "source": Place.named(str(texts)),
        "target": Place.named(str(answers)),
        "columns": ColumnNames(),
        "options": {"backend": "onnxruntime"},
        "kept": False,
        "dense": False,
        "threads": 1,
        "batch_size": 4,
        "max_batch_tokens": 256,
    }
    return Job(**{**values, **changes})  # type: ignore[arg-type]


def require_equal_to_local(bundle: Path, texts: Path, answers: Path, scratch: Path) -> None:
    """Every file has an answer to each row, as the command gives it in one process."""
    names = [path.relative_to(texts) for path in sorted(texts.rglob("part-*"))]
    found = {path.relative_to(answers) for path in answers.rglob("*") if path.is_file()}
    assert found == {Path(MARKER), *(Path(f"{name}.jsonl") for name in names)}
    for name in names:
        local = scratch / "local.jsonl"
        run("predict", bundle, "--input", texts / name, "--output", local)
        expected = [json.loads(line) for line in local.read_text().splitlines()]
        lines = (answers / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == ROWS
        for line, wanted in zip(lines, expected, strict=True):
            got = json.loads(line)
            assert (got["label"], got["num_tokens"]) == (wanted["label"], wanted["num_tokens"])
            assert got["scores"] == pytest.approx(wanted["scores"], abs=1e-4)


def test_a_killed_worker_loses_and_doubles_no_row(
    cluster: None, tiny_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(step: str, done: int, total: int | None) -> None:
        if done and not killed:
            pid = process_of("ray::Worker")
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    answers = tmp_path / "answers"
    outcome = predict_files(job_of(tiny_bundle, texts, answers), 2, kill)
    assert killed and outcome.problem is None
    require_equal_to_local(tiny_bundle, texts, answers, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in answers.rglob("part-*")}
    (answers / "part-0.jsonl.jsonl").unlink()
    assert predict_files(job_of(tiny_bundle, texts, answers), 2, no_progress).encoded == ROWS
    kept = {path for path, when in times.items() if path.stat().st_mtime_ns == when}
    assert kept == times.keys() - {answers / "part-0.jsonl.jsonl"}
    require_equal_to_local(tiny_bundle, texts, answers, tmp_path)


def test_a_large_file_is_answered_in_pieces(
    cluster: None, tiny_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    job = job_of(tiny_bundle, texts, answers, piece_bytes=1000)
    predict_files(job, 2, no_progress)
    whole = tmp_path / "whole"
    for name in {path.relative_to(texts) for path in texts.rglob("part-*")}:
        pieces = sorted(answers.glob(f"{name}.*jsonl"))
        assert (len(pieces) > 1) == (name.suffix == ".jsonl")  # the others have one row group
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        joined = "".join(piece.read_text() for piece in pieces)
        (whole / f"{name}.jsonl").write_text(joined)
    (whole / MARKER).touch()
    require_equal_to_local(tiny_bundle, texts, whole, tmp_path)
    (answers / "part-0.jsonl.00001.jsonl").unlink()
    assert 0 < predict_files(job, 2, no_progress).encoded < ROWS
    with pytest.raises(DataError, match="answers of a run with other options"):
        predict_files(job_of(tiny_bundle, texts, answers), 2, no_progress)


def test_a_piece_that_ends_its_workers_ends_the_run(
    cluster: None,
    tiny_bundle: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaths = tmp_path / "deaths"

    class Mortal(Worker):
        def predict(self, piece: Piece) -> Outcome:
            if piece.name == "part-2.jsonl":
                with deaths.open("a") as file:
                    file.write("x")
                os._exit(1)
            return super().predict(piece)

    monkeypatch.setattr(on_ray, "Worker", Mortal)
    answers = tmp_path / "answers"
    with pytest.raises(TrbertError, match="a worker ended 4 times with one piece of a file: see"):
        predict_files(job_of(tiny_bundle, texts, answers), 1, no_progress)
    assert deaths.read_text() == "xxxx"
    monkeypatch.undo()
    predict_files(job_of(tiny_bundle, texts, answers), 2, no_progress)  # whatever it was is mended
    require_equal_to_local(tiny_bundle, texts, answers, tmp_path)


def predict_command(*arguments: object) -> list[str]:
    code = "from trbert_deploy.cli import main; main()"
    return [sys.executable, "-c", code, "predict", *map(str, arguments)]


def test_a_killed_command_goes_on(tiny_bundle: Path, texts: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    command = predict_command(
        tiny_bundle, "--engine", "ray", "--workers", 1, "--input", texts, "--output", answers
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while not list(answers.rglob("part-*.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    times = {path: path.stat().st_mtime_ns for path in answers.rglob("part-*.jsonl")}
    assert len(times) < FILES
    subprocess.run(command, env=environment, check=True)
    require_equal_to_local(tiny_bundle, texts, answers, tmp_path)
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())


@pytest.fixture
def bucket() -> Iterator[Callable[[str], str]]:
    """A bucket of a server that speaks S3: name of a folder -> its URL."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    where = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    system, path = fs.FileSystem.from_uri(f"s3://key:secret@texts?{where}&allow_bucket_creation=1")
    system.create_dir(path)
    yield lambda folder: f"s3://key:secret@texts/{folder}?{where}"
    server.stop()


def test_an_object_store_is_a_folder_too(
    cluster: None,
    tiny_bundle: Path,
    texts: Path,
    tmp_path: Path,
    bucket: Callable[[str], str],
) -> None:
    source, target = Place.named(bucket("texts")), Place.named(bucket("answers"))
    for path in texts.rglob("part-*"):
        source.put(str(path.relative_to(texts)), path)
    job = job_of(tiny_bundle, texts, texts, source=source, target=target)
    killed: list[int] = []

    def kill(step: str, done: int, total: int | None) -> None:
        if done and not killed:
            killed.append(process_of("ray::Worker"))
            os.kill(killed[0], signal.SIGKILL)

    assert predict_files(job, 2, kill).problem is None and killed
    answers = tmp_path / "answers"
    for name, info in target.files().items():
        (answers / name).parent.mkdir(parents=True, exist_ok=True)
        target.fetch(info.path, answers / name)
    require_equal_to_local(tiny_bundle, texts, answers, tmp_path)
    assert predict_files(job, 2, no_progress).encoded == 0  # all is there


def test_a_bad_row_ends_the_run_and_names_it(
    cluster: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    write(texts / "bad.jsonl", [{"text": "a film"}, {"text": 3}])
    with pytest.raises(TrbertError, match=r"^bad\.jsonl, line 2"):
        predict_files(job_of(tiny_bundle, texts, tmp_path / "answers"), 1, no_progress)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == [MARKER]

"""What the commands read: any format, from files, pipes and standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from conftest import LABELS, Command, make_texts

from trbert_deploy.runtime.loading import load

ROWS = make_texts(12)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
    """Runs a command in this process, in a directory of its own; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return command


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """The texts with the numbers of their labels, in columns of other names."""
    path = tmp_path / "reviews.tsv"
    lines = [f"{row['text']}\t{LABELS.index(row['label'])}" for row in ROWS]
    path.write_text("\n".join(["sentence\tgold_label", *lines]) + "\n")
    return path


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[bytes], Path]:
    """A FIFO that a content can be read from once: ``pipe(content)`` is its path."""
    numbers = count()

    def write(content: bytes) -> Path:
        path = tmp_path / f"pipe{next(numbers)}"
        os.mkfifo(path)
        # A writer that nobody reads from waits for ever: it must not keep the tests.
        threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
        return path

    return write


def test_predict_reads_a_table_and_says_which_column(
    run: Command, tiny_bundle: Path, numbered: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", tiny_bundle, "--input", numbered) == 0
    output = capfd.readouterr()
    labels = [json.loads(line)["label"] for line in output.out.splitlines()]
    assert labels == [each.label for each in load(tiny_bundle)([row["text"] for row in ROWS])]
    assert output.err == 'reviews.tsv: text from "sentence"\n'


def test_predict_takes_the_columns_that_are_named(
    run: Command, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("text,remark,answer\na film,the sailor,the house\n")
    command = ("predict", tiny_bundle, "--input", "a.csv")
    tokens = []
    for options in ((), ("--text-column", "remark"), ("--pair-column", "ANSWER")):
        assert run(*command, *options) == 0
        tokens.append(json.loads(capfd.readouterr().out)["num_tokens"])
    assert tokens[0] == tokens[1] < tokens[2]
    assert run(*command, "--text-column", "body") == 1
    error = 'error: a.csv, line 2 has no column "body": it has "text", "remark", "answer"\n'
    assert capfd.readouterr().err == error
    assert run(*command, "--label-column", "label") == 2


def test_brackets_in_names_are_told_as_they_are(
    run: Command, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a[b].csv").write_text("[/red]\na film\n")
    assert run("predict", tiny_bundle, "--input", "a[b].csv", "--text-column", "[/red]") == 0
    assert 'a[b].csv: text from "[/red]"\n' in capfd.readouterr().err


def test_predict_answers_before_its_input_ends(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "trbert_deploy.cli", "predict", str(tiny_bundle)]
    with subprocess.Popen(
        [*command, "--input", "-", "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        watchdog = threading.Timer(300, process.kill)  # instead of waiting for ever
        watchdog.start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"text,mark\na wonderful film,1\n")
        process.stdin.flush()
        assert b"label" in process.stdout.readline()
        process.stdin.write(b"a house,2\n")
        process.stdin.close()
        assert len(process.stdout.read().splitlines()) == 1
        watchdog.cancel()
    assert process.returncode == 0


def test_an_output_file_is_written_from_a_pipe(
    run: Command, tiny_bundle: Path, pipe: Callable[[bytes], Path], tmp_path: Path
) -> None:
    source = pipe(b"a film\n\na house\n")
    assert run("predict", tiny_bundle, "--input", source, "--output", "answers.jsonl") == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("always")
def test_evaluate_takes_numbers_from_a_pipe(
    run: Command, tiny_bundle: Path, numbered: Path, pipe: Callable[[bytes], Path], tmp_path: Path
) -> None:
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    figures = []
    for source in ("named.jsonl", pipe(numbered.read_bytes())):
        assert run("evaluate", tiny_bundle, "--data", source, "--json", "figures.json") == 0
        figures.append(json.loads(Path("figures.json").read_text()))
    assert figures[0]["dense"]["accuracy"] == figures[1]["dense"]["accuracy"]
    assert figures[0]["rows"] == figures[1]["rows"] == 12


def test_evaluate_tells_of_real_values(
    run: Command, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ["text,mark", *(f"a film,{place}.5" for place in range(50))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert run("evaluate", tiny_bundle, "--data", "a.csv", "--label-column", "mark") == 1
    assert (
        capfd.readouterr()
        .err.splitlines()[-1]
        .startswith("error: a.csv, line 2: the labels are 0.5, 1.5, 10.5 and 47 more: real values")
    )


def test_bench_reads_a_pipe_once(
    run: Command,
    tiny_bundle: Path,
    numbered: Path,
    pipe: Callable[[bytes], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    quick = ("bench", tiny_bundle, "--lengths", "16", "--rounds", "1", "--html", "page.html")
    assert run(*quick, "--sweep", "--data", pipe(numbered.read_bytes())) == 0
    assert 'pipe0: text from "sentence", label from "gold_label"' in capfd.readouterr().err
    page = Path("page.html").read_text()
    assert run(*quick, "--data", pipe(b"a film\na house\n")) == 0
    assert "Quality against latency" in page

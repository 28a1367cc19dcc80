"""``trbert-deploy predict``."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import Command, make_texts

from trbert_deploy import plain_progress
from trbert_deploy.runtime.loading import load

TEXTS = [row["text"] for row in make_texts(7, seed=3)]


@pytest.fixture
def predict(tiny_bundle: Path, command: Command) -> Command:
    """Runs the command in this process; returns its exit code."""
    return partial(command, "predict", tiny_bundle)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def parsed(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def test_texts_become_json_lines(predict: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict("--text", TEXTS[0], "--text", TEXTS[1]) == 0
    output = capfd.readouterr()
    rows = parsed(output.out)
    assert [sorted(row) for row in rows] == [["label", "num_tokens", "score", "scores"]] * 2
    assert output.err == ""


def test_a_file_gives_what_the_library_gives(
    predict: Command, reviews: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict("--input", reviews, "--batch-size", "2", "--kept") == 0
    rows = parsed(capfd.readouterr().out)
    for row, expected in zip(rows, load(tiny_bundle)(TEXTS, return_kept=True), strict=True):
        assert row["label"] == expected.label
        assert row["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert expected.kept is not None
        assert [(kept["cut"], kept["positions"], kept["tokens"]) for kept in row["kept"]] == [
            (kept.cut, list(kept.positions), list(kept.tokens)) for kept in expected.kept
        ]


def test_short_texts_keep_all_of_their_tokens(
    predict: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict("--text", "the", "--text", "the " * 40, "--kept", "--dense-below", "20") == 0
    short, long = map(json.loads, capfd.readouterr().out.splitlines())
    assert [len(cut["positions"]) for cut in short["kept"]] == [short["num_tokens"]] * 2
    assert len(long["kept"][0]["positions"]) < long["num_tokens"]


def test_gzip_output_file_and_pairs(
    predict: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a film", "text_pair": "a house"}, {"text": "a film", "text_pair": None}]
    source, target = tmp_path / "pairs.jsonl.gz", tmp_path / "out" / "answers.jsonl"
    source.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert predict("--input", source, "--output", target) == 0
    answers = parsed(target.read_text())
    assert answers[0]["num_tokens"] > answers[1]["num_tokens"]
    output = capfd.readouterr()
    assert output.out == output.err == ""  # no step lasted


def test_standard_input(
    predict: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'{"text": "a film"}\n\n{"text": "a house"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert predict("--input", "-", "--dense", "--threshold", "0.9") == 0
    assert len(parsed(capfd.readouterr().out)) == 2


def test_progress_is_told_of_files_and_not_of_a_filter_that_waits(
    predict: Command,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plain_progress, "FIRST_AFTER", 0.0)
    for output in ([], ["--output", tmp_path / "out.jsonl"]):
        assert predict("--input", reviews, *output) == 0
        shown = capfd.readouterr()
        assert len(parsed(shown.out)) == (0 if output else 7)
        assert "predict  100 %  (7 of 7)  in " in shown.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(reviews.read_bytes())))
    assert predict("--input", "-") == 0
    shown = capfd.readouterr()
    assert len(parsed(shown.out)) == 7 and "predict" not in shown.err


@pytest.mark.filterwarnings("always")
def test_truncation_is_told_at_the_first_and_counted_at_the_end(
    predict: Command, reviews: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict("--input", reviews, "--max-length", "8") == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "warning: texts longer than 8 tokens are cut to that length",
        "7 of 7 texts were cut to 8 tokens",
    ]


def test_a_long_text_is_named_by_its_line(
    predict: Command, reviews: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with reviews.open("a") as file:
        file.write(json.dumps({"text": "the film " * 90}) + "\n")
    assert predict("--input", reviews, "--no-truncate", "--batch-size", "3") == 1
    error = capfd.readouterr().err
    assert error.startswith("error: reviews.jsonl, line 8 has 182 tokens: the model takes at most")


BAD_LINES = [
    ('{"text": "a"', "line 8: not JSON (Expecting ',' delimiter at column 13)"),
    ("[" * 100_000, "line 8: not JSON ("),
    ('{"label": "a"}', 'line 8 has the columns "label": none is known to hold text'),
    ('"text"', 'line 8: expected a JSON object with a field "text"'),
    ('{"text": ["a"]}', 'line 8: the field "text" is of type list, expected a string'),
    ('{"text": "a", "text_pair": 1}', 'line 8: the field "text_pair" is of type int'),
    ('{"text": " "}', 'line 8: the field "text" is empty'),
    ('{"text": "a", "text_pair": ""}', 'line 8: the field "text_pair" is empty'),
    ('{"text": "\\ud800"}', "line 8 is no valid Unicode"),
    (b'{"text": "\xff"}', "line 8: not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_and_nothing_is_written(
    predict: Command,
    reviews: Path,
    capfd: pytest.CaptureFixture[str],
    line: str | bytes,
    message: str,
) -> None:
    target = reviews.with_name("answers.jsonl")
    with reviews.open("ab") as file:
        file.write(line.encode() if isinstance(line, str) else line)
    assert predict("--input", reviews, "--output", target) == 1
    errors = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: reviews.jsonl, {message}")
    assert [path.name for path in reviews.parent.iterdir()] == ["reviews.jsonl"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--text", "a", "--input", "b"),
        ("--batch-size", "0"),
        ("--text", "a", "--dense-below", "few"),
        ("--text", "a", "--dense-below", "-1"),
    ],
)
def test_wrong_use_ends_with_2(
    predict: Command, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert predict(*arguments) == 2
    assert "Usage: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", ""), "error: text 1 is empty"),
        (("--text", "a", "--threshold", "2"), "error: threshold is 2.0"),
        (("--text", "a", "--ratio", "0"), "error: ratio is 0.0: expected a share above 0"),
        (
            ("--text", "a", "--ratio", "0.5", "--max-tokens", "8"),
            "error: threshold, ratio and max_tokens exclude each other: give one of them",
        ),
        (("--text", "a", "--max-length", "65"), "error: maximum length is 65"),
        (("--input", "missing.jsonl"), "error: missing.jsonl cannot be read: No such file"),
    ],
)
def test_user_errors_are_one_line(
    predict: Command,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert predict(*arguments) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_reader_that_has_enough_ends_it_quietly(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": "a wonderful film"}\n' * 5000)
    command = [sys.executable, "-m", "trbert_deploy.cli", "predict", str(tiny_bundle), "--input"]
    with subprocess.Popen(
        [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"label" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0

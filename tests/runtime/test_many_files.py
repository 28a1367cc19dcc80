"""Folders of texts and of answers: what is refused, and what is known to be finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_in_tests import write

from trbert_deploy.errors import ConfigError, DataError, StorageError
from trbert_deploy.runtime.many_files import (
    MARKER,
    Place,
    finished,
    input_files,
    marker_of,
    require_apart,
)

ROWS = [{"text": "a film"}]
FILES = ("a.jsonl", "b.jsonl")


@pytest.fixture
def texts(tmp_path: Path) -> Place:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl", "_SUCCESS", ".hidden"):
        write(folder / name, ROWS)
    return Place.named(str(folder))


@pytest.fixture
def answers(tmp_path: Path) -> Place:
    return Place.named(str(tmp_path / "answers"))


def put(place: Place, name: str, text: str, scratch: Path) -> None:
    made = scratch / "made"
    made.write_text(text)
    place.put(name, made)


def test_hidden_files_and_marks_are_no_texts(texts: Place) -> None:
    assert list(input_files(texts)) == ["a.jsonl", "b.jsonl"]
    assert list(input_files(Place(f"{texts.url}/b.jsonl"))) == ["b.jsonl"]
    assert list(input_files(Place(f"file://{texts.url}"))) == ["a.jsonl", "b.jsonl"]


def test_what_is_no_text_is_refused(texts: Place, tmp_path: Path) -> None:
    (tmp_path / "texts" / "notes.pdf").touch()
    with pytest.raises(DataError, match=r"has notes\.pdf: expected names that end in \.jsonl"):
        input_files(texts)
    with pytest.raises(DataError, match="nothing has no files: expected one of texts"):
        input_files(Place(str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match="gopher://a/b cannot be opened: "):
        input_files(Place("gopher://a/b"))
    with pytest.raises(StorageError, match="cannot be read: "):
        texts.fetch(f"{texts.url}/none.jsonl", tmp_path / "copy")


def test_answers_are_not_written_among_the_texts(texts: Place, answers: Place) -> None:
    require_apart(texts, answers)
    for inside in (texts, Place(f"{texts.url}/answers"), Place(f"file://{texts.url}/answers")):
        with pytest.raises(ConfigError, match=r"lies in .*: expected a folder of its own"):
            require_apart(texts, inside)


def test_what_is_there_is_finished(texts: Place, answers: Place, tmp_path: Path) -> None:
    marker = marker_of("digest", {"dense": False}, input_files(texts))
    assert finished(answers, marker, FILES) == set()
    put(answers, MARKER, json.dumps(marker), tmp_path)
    assert finished(answers, marker, FILES) == set()
    put(answers, "b.jsonl.jsonl", "{}\n", tmp_path)
    assert finished(answers, marker, FILES) == {"b.jsonl"}


def test_another_folder_is_refused(texts: Place, answers: Place, tmp_path: Path) -> None:
    marker = marker_of("digest", {"dense": False}, input_files(texts))
    put(answers, "b.jsonl.jsonl", "{}\n", tmp_path)
    with pytest.raises(DataError, match=r"has b\.jsonl\.jsonl and no _predict\.json: expected an"):
        finished(answers, marker, FILES)
    put(answers, MARKER, json.dumps({**marker, "bundle": "x", "options": {}}), tmp_path)
    with pytest.raises(DataError, match="a run with other bundle and options: take another"):
        finished(answers, marker, FILES)
    for text, message in (("[]", "other bundle and options and inputs"), ("{", "is no JSON")):
        put(answers, MARKER, text, tmp_path)
        with pytest.raises(DataError, match=message):
            finished(answers, marker, FILES)
    put(answers, MARKER, json.dumps(marker), tmp_path)
    put(answers, "strange.txt", "", tmp_path)
    with pytest.raises(DataError, match=r"has strange\.txt, which no run wrote"):
        finished(answers, marker, FILES)


def test_changed_texts_are_other_inputs(texts: Place, answers: Place, tmp_path: Path) -> None:
    put(answers, MARKER, json.dumps(marker_of("d", {}, input_files(texts))), tmp_path)
    write(tmp_path / "texts" / "a.jsonl", ROWS * 2)
    with pytest.raises(DataError, match="a run with other inputs"):
        finished(answers, marker_of("d", {}, input_files(texts)), FILES)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written: "):
        put(Place(str(tmp_path / "file")), "a.jsonl", "", tmp_path)


def test_other_file_systems_are_read_and_written(texts: Place, tmp_path: Path) -> None:
    foreign = Place(f"fsspec+file://{texts.url}")
    files = input_files(foreign)
    assert list(files) == ["a.jsonl", "b.jsonl"]
    foreign.fetch(files["a.jsonl"].path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "texts" / "a.jsonl").read_bytes()
    put(foreign, "c.jsonl", "{}\n", tmp_path)
    assert list(input_files(texts)) == ["a.jsonl", "b.jsonl", "c.jsonl"]

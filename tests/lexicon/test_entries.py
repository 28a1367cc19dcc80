"""Lexicons in files: what is read comes back, and what is wrong is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trbert_deploy.errors import BundleError, ConfigError, DataError, StorageError, TrbertError
from trbert_deploy.lexicon.entries import (
    Entry,
    entry_of,
    read_entries,
    require_tags,
    write_entries,
)

WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
ENTRIES = st.lists(
    st.builds(Entry, st.lists(WORDS, min_size=1, max_size=3).map(" ".join), WORDS),
    min_size=1,
    max_size=20,
    unique=True,
)


@given(ENTRIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_comes_back(tmp_path: Path, entries: list[Entry]) -> None:
    write_entries(tmp_path / "lexicon.tsv", entries)
    assert read_entries(tmp_path / "lexicon.tsv") == entries
    lines = (json.dumps({"phrase": phrase, "tag": tag}) for phrase, tag in entries)
    (tmp_path / "lexicon.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_entries(tmp_path / "lexicon.jsonl") == entries


def test_white_space_and_repetitions_are_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "names.tsv"
    path.write_bytes("\ufeff New  York \tLOC\r\n\n  \nNew York\tLOC\r\nNew York\tORG".encode())
    assert read_entries(path) == [Entry("New York", "LOC"), Entry("New York", "ORG")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"New York\tLOC\nBonn\n", "line 2 has no tag"),
        ("a.tsv", b"Bonn\t \n", "line 1 has no tag"),
        ("a.tsv", b" \tLOC\n", "line 1: the phrase has no letter that can be seen"),
        ("a.tsv", "\x07\u200b\tLOC\n".encode(), "line 1: the phrase has no letter"),
        ("a.tsv", b"Bonn\tLOC\tRhine\n", "line 1 has several tabs"),
        ("a.tsv", b"x" * 1001 + b"\tLOC\n", "1,001 letters: expected at most 1,000"),
        ("a.tsv", b"", "is empty"),
        ("a.tsv", b"\n \n", "is empty"),
        ("a.tsv", b"Bonn\tLOC\nK\xf6ln\tLOC\n", r"is not UTF-8 \(byte 10\)"),
        ("a.jsonl", b'{"phrase": "Bonn"}\n', "line 1: the tag is missing"),
        ("a.jsonl", b'{"phrase": 3, "tag": "LOC"}\n', "line 1: the phrase is of type int"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"Bonn\tLOC\n", "line 1 is no JSON object"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as problem:
        read_entries(tmp_path / name)
    assert "\n" not in str(problem.value) and str(tmp_path / name) in str(problem.value)
    with pytest.raises(BundleError, match=message):
        read_entries(tmp_path / name, BundleError)


@given(st.binary(max_size=60), st.sampled_from(["x.tsv", "x.jsonl"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_is_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        found = read_entries(tmp_path / name)
    except TrbertError:
        return
    assert all(each.phrase and each.tag for each in found)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"names.tsv cannot be read: No such file"):
        read_entries(tmp_path / "names.tsv")


def test_entries_of_calls_are_checked() -> None:
    assert entry_of(("New\nYork", "LOC"), "entry 1") == Entry("New York", "LOC")
    for given_ in ("Bonn", ("Bonn",), ("Bonn", 3), 3):
        with pytest.raises(DataError, match="entry 1"):
            entry_of(given_, "entry 1")


def test_unknown_tags_are_named_with_the_known() -> None:
    require_tags([Entry("Bonn", "LOC")], ("LOC", "PER"), "it")
    with pytest.raises(ConfigError, match=r"it has tags .*: CITY \(it knows LOC, PER\)"):
        require_tags([Entry("Bonn", "CITY")], ("LOC", "PER"), "it")

"""The formats: what is read back is what was written, and what is damaged is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from trbert_deploy.errors import DataError, MissingDependencyError
from trbert_deploy.runtime.reading.formats import is_data_file, read_records
from trbert_deploy.runtime.reading.tables import LARGEST_CELL
from trbert_deploy.tasks.columns import ColumnNames

KNOWN = ColumnNames().known_texts
ROWS = [{"text": "good, old\nfilm", "label": "a"}, {"text": 'the "end"', "label": "b"}]

#: Any text that UTF-8 can hold.
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
#: Without line ends and tabs.
LINES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\t"))


def read(path: Path, note: Callable[[str], None] = pytest.fail) -> list[dict[str, Any]]:
    return [dict(record.values) for record in read_records(path, KNOWN, note)]


def names(path: Path) -> list[str]:
    return [record.name for record in read_records(path, KNOWN, pytest.fail)]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\r\n") -> bytes:
    file = io.StringIO()
    # Of the line ends, csv quotes its own alone.
    quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def tables(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    return st.lists(
        st.fixed_dictionaries({"text": texts.filter(bool), "label": texts.filter(bool)}), min_size=1
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@given(tables(TEXTS), st.booleans())
def test_json_is_read_back(scratch: Path, rows: list[dict[str, str]], ascii: bool) -> None:
    path = scratch / "a.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    path.write_bytes(content.encode())
    assert read(path) == rows
    path = scratch / "a.json"
    path.write_bytes(content.encode())
    assert read(path) == rows
    for indent in (None, 1):
        for value in (rows, {"version": 1, "data": rows}):
            path.write_bytes(json.dumps(value, ensure_ascii=ascii, indent=indent).encode())
            assert read(path) == rows


@given(tables(TEXTS), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv_is_read_back(
    scratch: Path, rows: list[dict[str, str]], delimiter: str, end: str, mark: bool
) -> None:
    path = scratch / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" * mark + as_csv(rows, delimiter, end))
    assert read(path) == rows


@given(tables(LINES.filter(lambda text: not text.startswith('"'))))
def test_tsv_is_read_back(scratch: Path, rows: list[dict[str, str]]) -> None:
    path = scratch / "a.tsv"
    lines = ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in rows)]
    path.write_bytes("\n".join(lines).encode())
    assert read(path) == rows
    quoted = [{name: f'"{row[name]}' for name in ("text", "label")} for row in rows]
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in quoted]
    path.write_bytes("\n".join(["text\tlabel", *map("\t".join, cells)]).encode())
    assert read(path) == quoted


@given(st.lists(LINES.filter(str.strip), min_size=1))
def test_plain_lines_are_read_back(scratch: Path, texts: list[str]) -> None:
    path = scratch / "a.txt"
    path.write_bytes("\n\n".join(texts).encode())
    assert read(path) == [{"text": text} for text in texts if text.encode().strip()]


@given(tables(TEXTS))
def test_parquet_is_read_back(scratch: Path, rows: list[dict[str, str]]) -> None:
    path = scratch / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path) == rows
    packed = scratch / "a.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == rows


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


CONTENTS = {
    "json": json.dumps(ROWS, indent=1).encode(),
    "json lines": "\n".join(map(json.dumps, ROWS)).encode(),
    "csv": as_csv(ROWS),
    "semicolons": as_csv(ROWS, ";"),
    "parquet": as_parquet(ROWS),
    "gzip": gzip.compress(b"\n" + as_csv(ROWS)),
    "mark": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
}


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes to a pipe: ``pipe(content)`` is its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "tmp.Xy12"
        os.mkfifo(path)
        # A writer that nobody reads from waits for ever: it must not keep the tests.
        threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
        return path

    return write


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_pipe_tells_its_format_by_its_first_bytes(
    pipe: Callable[[bytes], Path], content: bytes
) -> None:
    assert read(pipe(content)) == ROWS


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_so_does_a_file_without_ending(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "reviews").write_bytes(content)
    assert read(tmp_path / "reviews") == ROWS


def test_quotes_are_literal_in_a_pipe_of_tabs(pipe: Callable[[bytes], Path]) -> None:
    assert read(pipe(b'"Sentence "\tlabel\n"so it goes\t1\n')) == [
        {"Sentence ": '"so it goes', "label": "1"}
    ]


@pytest.mark.parametrize("content", ["[1] a film\n", "a film, a house\n", "x\ttext of y\n"])
def test_anything_else_is_plain_text_and_said_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "reviews").write_text("\n" + content + "text\n")
    notes: list[str] = []
    rows = read(tmp_path / "reviews", notes.append)
    assert rows == [{"text": content[:-1]}, {"text": "text"}]
    assert len(notes) == 1 and notes[0].startswith("reviews: read as plain text, one a line")


def test_quoted_cells_of_tsv_may_hold_tabs(tmp_path: Path) -> None:
    """But where quotes give as many cells as the header has without that, they are literal."""
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a\t""b"""\t1\n"a\tb"\nc\t"\t"\n\t1\n')
    assert [list(row.values()) for row in read(path)] == [
        ['a\t"b"', "1"], ['"a', 'b"'], ["c", "\t"], [None, "1"],
    ]  # fmt: skip


def test_a_file_of_no_text_is_no_plain_text(tmp_path: Path) -> None:
    (tmp_path / "reviews").write_bytes(b"PK\x03\x04\xff\n")
    with pytest.raises(DataError, match="reviews, line 1: not UTF-8"):
        read(tmp_path / "reviews")


def test_names_of_records(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ntext,label\n"two\nlines",1\n\nb,2\n')
    assert names(tmp_path / "a.csv") == ["a.csv, line 3", "a.csv, line 6"]
    (tmp_path / "a.tsv").write_text("text\n\na\n")
    assert names(tmp_path / "a.tsv") == ["a.tsv, line 3"]
    (tmp_path / "a.txt").write_text("a\n \nb")
    assert names(tmp_path / "a.txt") == ["a.txt, line 1", "a.txt, line 3"]
    (tmp_path / "a.JSON").write_text('\n{"text": 1}\n\n{}')
    assert names(tmp_path / "a.JSON") == ["a.JSON, line 2", "a.JSON, line 4"]
    (tmp_path / "a.parquet").write_bytes(as_parquet(ROWS))
    assert names(tmp_path / "a.parquet") == ["a.parquet, row 1", "a.parquet, row 2"]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b"}\r\n\n\ufeff{"text": "c"}'.encode())
    assert read(path) == [{"text": "a\u2028b"}, {"text": "c"}]


def test_one_object_is_one_record(tmp_path: Path) -> None:
    for name, row in {
        "a": {"text": "a", "label": 1},
        "b": {"text": "a", "spans": [{"from": 1}]},
        "c": {"body": "a", "spans": []},
    }.items():
        for indent in (None, 1):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(row, indent=indent))
            assert read(path) == [row]


def test_json_lines_with_lists_are_no_list_of_records(tmp_path: Path) -> None:
    rows = [{"body": "a", "spans": [{"from": 1}]}] * 2
    (tmp_path / "a.json").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read(tmp_path / "a.json") == rows
    (tmp_path / "a.json").write_text(json.dumps({"rows": ROWS}) + "\n\n")
    assert read(tmp_path / "a.json") == ROWS


def test_quoted_names_of_columns_tell_no_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a;b;c",text\n1,d\n')
    assert read(tmp_path / "a.csv") == [{"a;b;c": "1", "text": "d"}]


def test_a_cell_of_8_mb_is_read(tmp_path: Path) -> None:
    text = "a film, " * 2**20
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_text(f'text{delimiter}label\n"{text}"{delimiter}1\n')
        assert read(tmp_path / name) == [{"text": text, "label": "1"}]
    (tmp_path / "a").write_text(text)
    assert read(tmp_path / "a", [].append) == [{"text": text}]


def test_a_quote_that_is_never_closed_swallows_no_more_than_a_cell(tmp_path: Path) -> None:
    line = "a film of many words,1\n"
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a,1\n' + line * (LARGEST_CELL // len(line) + 1))
    with pytest.raises(DataError, match=r"a\.csv, line 2: not CSV \(field larger than field lim"):
        read(path)


def test_an_empty_cell_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,\na,,\n")
    assert read(tmp_path / "a.csv") == [{"text": "a", "label": None, "": None}]


BAD = {
    "a.csv": [
        ('text,label\na,1\n"b,2\nc,3\n', r"line 3: not CSV \(unexpected end of data\)"),
        ('text,label\n"b,2\n"c",3\n', r"line 2: not CSV \(',' expected after '\"'\)"),
        ('text,label\n"a" b,1\n', "line 2: not CSV"),
        ("text,label\na,1\nb\n", r"line 3: 1 cells, expected 2 as in the header \(text, label\)"),
        ("text;label\na;b;1\n", "line 2: 3 cells, expected 2 .* a semicolon in it needs quotes"),
        ("text,text,label\na,b,1\n", "line 1: several columns are named text"),
        (b"text\na\n\xff\n", "line 3: not UTF-8"),
        (b"\xff\xfet\0", "line 1: not UTF-8"),
        ("text,label\ra,1\r", r"line 1: not CSV \(new-line character seen in unquoted field\): a"),
    ],
    "a.tsv": [
        ("text\tlabel\na\n", "line 2: 1 cells, expected 2"),
        (b"text\n\xff", "line 2: not UTF-8"),
    ],
    "a.txt": [(b"a\n\xff", "line 2: not UTF-8")],
    "a.jsonl": [
        ('{"text": "a"}\n{', "line 2: not JSON"),
        ("[]", "line 1: expected a JSON object"),
        ('{"text": ' + "9" * 5000 + "}", r"line 1: not JSON \(Exceeds the limit"),
    ],
    "a.json": [
        ('[{"text": "a"}, 1]', "row 2: expected a JSON object"),
        ("\n[\n1,,]", "a.json: not JSON .* at line 3, column 3"),
        ('"text"', "row 1: expected a JSON object"),
        ('{"train": [{"a": 1}], "test": [{"a": 1}]}', r"several lists of objects \(train, test\)"),
        ('{"text": "a"}\n{', "line 2: not JSON"),
        (b'[{"text": "\xff"}]', "line 1: not UTF-8"),
        ("[" * 100_000, "not JSON"),
    ],
    "a.parquet": [
        ("not parquet", "a.parquet is no intact Parquet file: "),
        (as_parquet(ROWS)[:-9], "a.parquet is no intact Parquet file: "),
    ],
    "a.xlsx": [("a", r"a\.xlsx ends in \.xlsx: expected one of \.jsonl, .*, \.parquet, plain or")],
    "a.xlsx.gz": [("a", r"a\.xlsx\.gz ends in \.xlsx: expected one of")],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *case) for name in BAD for case in BAD[name]]
)
def test_what_is_damaged_is_named(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_nothing_is_no_record(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "a.parquet" and content:
        return
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == []


def test_class_labels_of_parquet_have_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    assert [row["label"] for row in read(tmp_path / "a.parquet")] == ["yes", "no", None]
    features = datasets.Features({"tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))})
    rows = {"tags": [[1, 0], [], None]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "c.parquet")
    found = [row["tags"] for row in read(tmp_path / "c.parquet")]
    assert found == [["B-PER", "O"], [], None]
    for described in (b"{", b"[]", b'{"info": {"features": {"label": 1}}}'):
        table = pyarrow.table({"label": [1]}).replace_schema_metadata({"huggingface": described})
        parquet.write_table(table, tmp_path / "b.parquet")
        assert read(tmp_path / "b.parquet") == [{"label": 1}]


def test_times_in_parquet_are_left_out(tmp_path: Path) -> None:
    table = pyarrow.table({"at": pyarrow.array([datetime(2026, 1, 1)], "timestamp[ns]")})
    parquet.write_table(table.append_column("text", [["a"]]), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"at": None, "text": "a"}]


def test_texts_in_parquet_are_utf_8(tmp_path: Path) -> None:
    """Half of a surrogate pair, too, is none."""
    column = pyarrow.array([b"a", b"\xed\xa0\x80"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet, row 1 or one behind it: not UTF-8$"):
        read(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(ROWS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingDependencyError, match=r"Parquet needs .* 'trbert-deploy\[parquet\]'"
    ):
        read(tmp_path / "a.parquet")


def test_data_files_by_name() -> None:
    named = ["a.csv", "a.CSV.GZ", "b/a.parquet", "a.json.zst", "imdb", "org/name-1.5", "a.gz"]
    assert [is_data_file(Path(name)) for name in named] == [True] * 4 + [False] * 3

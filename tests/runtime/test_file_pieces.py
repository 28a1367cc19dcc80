"""Pieces of files: together they are the file, and only what can be divided is."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pyarrow import parquet

from trbert_deploy.errors import DataError, StorageError
from trbert_deploy.runtime.file_pieces import Piece, fetch_piece, pieces_of
from trbert_deploy.runtime.many_files import Place
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking


def pieces_in(folder: Path, most: int) -> tuple[Place, list[Piece]]:
    source = Place.named(str(folder))
    return source, pieces_of(source, source.files(), most)


def fetched(source: Place, piece: Piece, folder: Path) -> bytes:
    return fetch_piece(source, piece, folder).read_bytes()


@given(
    lines=some.lists(some.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20),
    end=some.sampled_from([b"", b"\n"]),
    most=some.integers(1, 100),
)
def test_lines_are_in_the_piece_in_which_they_begin(
    lines: list[bytes], end: bytes, most: int
) -> None:
    text = b'{"text": "a"}\n' + b"\n".join(lines) + end
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        (Path(one) / "a.jsonl").write_bytes(text)
        source, pieces = pieces_in(Path(one), most)
        parts = [fetched(source, piece, Path(other)) for piece in pieces]
    assert b"".join(parts) == text
    filled = [part for part in parts if part]
    assert all(part.endswith(b"\n") for part in filled[:-1])
    begin = 0
    for number, part in enumerate(parts):
        assert not part or number * most <= begin < (number + 1) * most or len(parts) == 1
        begin += len(part)
    names = [piece.name for piece in pieces]
    assert names == ([f"a.jsonl.{each:05}" for each in range(len(parts))] if parts[1:] else names)
    assert names == sorted(names)


def test_row_groups_are_divided(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    labels = pyarrow.schema([("text", pyarrow.string())], metadata={"kept": "yes"})
    table = pyarrow.Table.from_pylist([{"text": f"text {row}"} for row in range(100)], labels)
    parquet.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=15)
    source, pieces = pieces_in(tmp_path / "in", 200)
    files = [fetch_piece(source, piece, tmp_path / "out") for piece in pieces]
    assert 1 < len(pieces) <= 7
    assert pyarrow.concat_tables([parquet.read_table(file) for file in files]) == table
    assert parquet.read_schema(files[-1]).metadata[b"kept"] == b"yes"
    assert files[1].name == f"a (row groups from {pieces[1].start}).parquet"
    assert [piece.is_later for piece in pieces] == [False] + [True] * (len(pieces) - 1)


def test_what_can_only_be_read_from_the_beginning_stays_whole(tmp_path: Path) -> None:
    text = b'{"text": "a film"}\n' * 50
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"a film\n" * 50)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text, 0))
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(text, 0))  # as its first bytes tell
    (tmp_path / "d.jsonl").write_bytes(text[:20])
    _, pieces = pieces_in(tmp_path, 100)
    assert [piece.name for piece in pieces] == ["a.csv", "b.jsonl.gz", "c.jsonl", "d.jsonl"]
    assert not any(piece.is_later or piece.stop for piece in pieces)


def test_errors_name_the_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"query": "a", "passage": "b"}\n' * 9 + "{")
    source, pieces = pieces_in(tmp_path / "in", 100)
    file = fetch_piece(source, pieces[-1], tmp_path / "out")
    with pytest.raises(DataError, match=r"^a \(bytes from 200\)\.jsonl, line 3: "):
        list(read_examples(file, TextRanking, goes_on=True))


def test_a_later_piece_may_have_nothing_or_lack_what_the_first_had(tmp_path: Path) -> None:
    file, names = tmp_path / "a.jsonl", ColumnNames(pair="pair")
    for text in ("", "\n", '{"text": "a"}\n'):
        file.write_text(text)
        with pytest.raises(DataError):
            list(read_examples(file, TextClassification, names))
        later = read_examples(file, TextClassification, names, goes_on=True)
        assert [example.text for example in later] == ["a"] * text.count("a")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(200))
    with pytest.raises(DataError, match=r"a\.parquet is no intact Parquet file: "):
        pieces_in(tmp_path, 100)
    source = Place.named(str(tmp_path))
    with pytest.raises(StorageError, match=r"none\.jsonl cannot be read: "):
        fetch_piece(source, Piece("none", f"{tmp_path}/none.jsonl", 0, 5), tmp_path)

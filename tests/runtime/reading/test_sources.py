"""Opening files, pipes and standard input, plain and compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.errors import DataError, MissingDependencyError, StorageError
from trbert_deploy.runtime.reading.compression import compression_of
from trbert_deploy.runtime.reading.peekable import Peekable
from trbert_deploy.runtime.reading.sources import STDIN, is_regular, name_of, open_source

CONTENT = b'{"text": "a wonderful film"}\n' * 99


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


def content_of(path: Path) -> bytes:
    with open_source(path) as source:
        return io.BufferedReader(source.stream).read()


@pytest.mark.parametrize("name", PACKERS)
def test_compression_is_told_by_the_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(PACKERS[name](CONTENT))
    assert content_of(path) == CONTENT
    path.write_bytes(PACKERS[name](b""))
    assert content_of(path) == b""


@pytest.mark.parametrize("name", PACKERS)
def test_damaged_compression_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(PACKERS[name](CONTENT)[:-12])
    with pytest.raises(DataError, match=rf"^texts\.jsonl is no intact {name} file: .+$"):
        content_of(path)


def test_a_name_alone_compresses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(CONTENT)
    assert content_of(path) == CONTENT


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.zst").write_bytes(zstd(CONTENT))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"zstd needs .* 'trbert-deploy\[parquet\]'"):
        content_of(tmp_path / "texts.zst")


@given(st.lists(st.binary(max_size=9)), st.integers(0, 12), st.integers(1, 7))
def test_what_was_looked_at_is_still_read(parts: list[bytes], looked: int, size: int) -> None:
    class Bits(io.BytesIO):
        """Gives what a pipe would: a part at a time."""

        def read1(self, wanted: int | None = -1, /) -> bytes:
            part = next((part for part in waiting if part), b"")
            assert wanted is not None
            if part:
                waiting[waiting.index(part)] = part[wanted:]
            return part[:wanted]

    waiting = list(parts)
    stream = Peekable(Bits(), "name")
    assert stream.peek(looked) == b"".join(parts)[:looked]
    read = b""
    while part := stream.read(size):
        read += part
    assert read == b"".join(parts)


def test_text_that_begins_as_a_format_does_is_text() -> None:
    for text in (b"BZh is what bzip2 begins with", b"", b"B"):
        assert compression_of(Peekable(io.BytesIO(text), "name")) is None


@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()])
def test_a_fifo_is_read_as_a_file_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(pack(CONTENT),), daemon=True).start()
    assert content_of(path) == CONTENT


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_no_more_is_waited_for_than_is_there(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Lines that are there are given before the pipe ends."""
    content = b"".join(os.urandom(9).hex().encode() + b"\n" for _ in range(20_000))
    packed = pack(content)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[bytes] = []
    begun = threading.Event()

    def read() -> None:
        with open_source(path) as source:
            for line in io.BufferedReader(source.stream):
                got.append(line)
                begun.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with path.open("wb", buffering=0) as pipe:
        pipe.write(packed[:-99])
        early = begun.wait(60)
        pipe.write(packed[-99:])
    reader.join(60)
    assert early and b"".join(got) == content


def test_files_can_be_gone_to_and_fro_in_unless_compressed(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    for content, is_file in ((CONTENT, True), (gzip.compress(CONTENT), False)):
        path.write_bytes(content)
        with open_source(path) as source:
            assert (source.file is not None) == is_file


def test_a_file_of_that_name_is_no_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(CONTENT)
    assert not is_regular(STDIN) and is_regular(Path("./-").absolute())


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(CONTENT))))
    assert content_of(STDIN) == CONTENT
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(StorageError, match="standard input is closed"):
        content_of(STDIN)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        content_of(tmp_path)
    with pytest.raises(StorageError, match="nothing cannot be read: No such file"):
        content_of(tmp_path / "nothing")


def test_a_disk_that_fails_is_no_damaged_file() -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match=r"name cannot be read: Input/output error"):
        Peekable(Failing(), "name", "gzip").peek(1)


def test_names() -> None:
    names = [name_of(Path(path)) for path in ("-", "/dev/fd/63", "/data/reviews.csv")]
    assert names == ["standard input", "/dev/fd/63", "reviews.csv"]

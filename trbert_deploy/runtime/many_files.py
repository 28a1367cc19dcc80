"""Many files of texts, and the folder of their answers: local, or in an object store.

Every piece of the input (``file_pieces``) has one output file, which is there whole or not at all.
So what is there tells what is left to do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import fs

from trbert_deploy.errors import ConfigError, DataError, StorageError, few, first_line
from trbert_deploy.files import staged_file
from trbert_deploy.runtime.reading.formats import FORMATS, is_data_file

MARKER = "_predict.json"
ENDING = ".jsonl"


@dataclass(frozen=True)
class Place:
    """A file or a folder by its path or URL, such as ``s3://bucket/reviews``.

    URLs are those of ``pyarrow.fs.FileSystem.from_uri``; what only fsspec knows is written
    ``fsspec+SCHEME://...``.
    """

    url: str

    @classmethod
    def named(cls, name: str) -> Place:
        """The place that a person here calls so; a path holds for workers, too."""
        return cls(name if "://" in name else str(Path(name).absolute()))

    def found(self) -> tuple[fs.FileSystem, str]:
        """Its file system, and its path there.

        Raises:
            ConfigError: no file system has such URLs.
        """
        if "://" not in self.url:
            return fs.LocalFileSystem(), self.url
        try:
            return fs.FileSystem.from_uri(self.url)
        except (pyarrow.ArrowException, ValueError, ImportError) as problem:
            raise ConfigError(f"{self.url} cannot be opened: {first_line(problem)}") from None

    def files(self) -> dict[str, fs.FileInfo]:
        """Files by their names below the folder, in order; of a file itself, of it alone.

        What is hidden (a part of its name begins with a dot) is left out.

        Raises:
            StorageError: it cannot be read.
        """
        system, path = self.found()
        try:
            info = system.get_file_info(path)
            if info.type == fs.FileType.File:
                return {info.base_name: info}
            inside = system.get_file_info(
                fs.FileSelector(path, allow_not_found=True, recursive=True)
            )
        except OSError as problem:
            raise StorageError(f"{self.url} cannot be read: {first_line(problem)}") from None
        named = {
            PurePosixPath(each.path).relative_to(path.rstrip("/")): each
            for each in inside
            if each.type == fs.FileType.File
        }
        return {
            str(name): named[name]
            for name in sorted(named)
            if not any(part.startswith(".") for part in name.parts)
        }

    def fetch(self, path: str, target: Path) -> None:
        """Copy the file at ``path`` of this place's file system to a local one.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            fs.copy_files(
                path, str(target), self.found()[0], fs.LocalFileSystem(), use_threads=False
            )
        except OSError as problem:
            raise StorageError(f"{path} cannot be read: {first_line(problem)}") from None

    def put(self, name: str, made: Path) -> None:
        """Copy a local file below the folder: whole or not at all.

        An object store shows what was put when all of it is there.

        Raises:
            StorageError: it cannot be written.
        """
        system, folder = self.found()
        path = f"{folder.rstrip('/')}/{name}"
        local = fs.LocalFileSystem()
        try:
            if isinstance(system, fs.LocalFileSystem):
                with staged_file(Path(path)) as staging:
                    fs.copy_files(str(made), str(staging), local, local)
            else:
                fs.copy_files(str(made), path, local, system, use_threads=False)
        except OSError as problem:
            raise StorageError(
                f"{self.url}: {name} cannot be written: {first_line(problem)}"
            ) from None

    def read_json(self, name: str) -> Any:
        """What a JSON file below the folder holds.

        Raises:
            StorageError: it cannot be read.
            DataError: it is no JSON.
        """
        system, folder = self.found()
        try:
            with system.open_input_stream(f"{folder.rstrip('/')}/{name}") as stream:
                return json.loads(stream.read())
        except ValueError:
            raise DataError(f"{self.url}: {name} is no JSON: take another folder") from None
        except OSError as problem:
            raise StorageError(
                f"{self.url}: {name} cannot be read: {first_line(problem)}"
            ) from None


def input_files(source: Place) -> dict[str, fs.FileInfo]:
    """The files of texts, by name.

    Raises:
        DataError: there is none, or one of another kind: its rows would be missed.
        StorageError, ConfigError: as ``Place``.
    """
    files = {name: info for name, info in source.files().items() if name[0] != "_"}
    if not files:
        raise DataError(f"{source.url} has no files: expected one of texts, or a folder of some")
    others = [name for name in files if not is_data_file(Path(name))]
    if others:
        raise DataError(
            f"{source.url} has {few(others)}: expected names that end in {', '.join(FORMATS)}"
        )
    return files


def require_apart(source: Place, target: Place) -> None:
    """Refuse to write among the texts: the answers would be read as such.

    Raises:
        ConfigError: the one is the other, or lies in it.
    """
    (one, texts), (other, answers) = source.found(), target.found()
    if one == other and PurePosixPath(answers).is_relative_to(PurePosixPath(texts)):
        raise ConfigError(f"{target.url} lies in {source.url}: expected a folder of its own")


def marker_of(digest: str, options: Mapping[str, Any], files: Mapping[str, fs.FileInfo]) -> Any:
    """What a folder of answers is of, as JSON has it.

    Args:
        digest: the bundle's.
        options: all that answers depend on.
    """
    inputs = {name: [info.size, info.mtime_ns] for name, info in files.items()}
    return {"bundle": digest, "options": dict(options), "inputs": inputs}


def finished(target: Place, marker: Any, names: Collection[str]) -> set[str]:
    """Names of those pieces whose answers are there already.

    Raises:
        DataError: the folder has answers of another run, or files that are none.
        StorageError, ConfigError: as ``Place``.
    """
    there = target.files()
    if there and MARKER not in there:
        raise DataError(
            f"{target.url} has {few(there)} and no {MARKER}: expected an empty folder, or one "
            "that the same command began"
        )
    if there:
        found = target.read_json(MARKER)
        found = found if isinstance(found, dict) else {}
        other = [key for key in marker if found.get(key) != marker[key]]
        if other:
            raise DataError(
                f"{target.url} has answers of a run with other {' and '.join(other)}: take another "
                "folder, or empty this one"
            )
    strange = there.keys() - {MARKER} - {name + ENDING for name in names}
    if strange:
        raise DataError(
            f"{target.url} has {few(sorted(strange))}, which no run wrote: move it elsewhere"
        )
    return {name.removesuffix(ENDING) for name in there.keys() - {MARKER}}

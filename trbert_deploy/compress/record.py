"""The record of a compression on disk: its options, and what its finished steps came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trbert_deploy.compress.options import CompressOptions
from trbert_deploy.errors import CheckpointError, ConfigError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.replacing import is_empty

FILE = "compress.json"
VERSION = 1


def require_room(work: Path) -> None:
    """Refuse a directory that holds something else than a compression.

    Raises:
        ConfigError: it does.
    """
    if work.exists() and not is_empty(work) and not (work / FILE).exists():
        raise ConfigError(f"{work} is not empty: choose another --work, or remove what is there")


@dataclass
class Record:
    """What finished steps came to, on disk."""

    path: Path
    data: dict[str, Any]

    @classmethod
    def open(cls, options: CompressOptions, work: Path) -> Record:
        """The record of the run in ``work``, or a new one.

        Raises:
            ConfigError: that run has other options.
            CheckpointError: its record is damaged.
        """
        path = work / FILE
        data = read_json(path, CheckpointError) if path.exists() else None
        if data is not None and (
            data.get("version") != VERSION or not isinstance(data.get("steps"), dict)
        ):
            raise CheckpointError(f"{path} is damaged or of another version: choose another --work")
        if data is None or not data["steps"]:  # what came to nothing binds nobody
            record = cls(
                path,
                {
                    "version": VERSION,
                    "options": options.to_json(),
                    "source": _stamp(options.texts),
                    "seconds": 0.0,
                    "steps": {},
                },
            )
            record.write()
            return record
        changed = options.changed(data["options"])
        if changed:
            raise ConfigError(
                f"{work} holds a run with other options ({', '.join(changed)}): give the same ones "
                "to go on, or choose another --work"
            )
        if data["source"] != _stamp(options.texts):
            raise ConfigError(
                f"{options.texts} has changed since the run in {work} began: choose another --work"
            )
        return cls(path, data)

    def write(self) -> None:
        write_json(self.path, self.data)

    def step(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step came to; it is run if it is not finished."""
        if not self.is_done(name):
            found = run()
            self.data["steps"][name] = found
            self.write()
        return dict(self.data["steps"][name])

    def is_done(self, name: str) -> bool:
        """Whether a step is finished."""
        return name in self.data["steps"]

    def forget(self, name: str) -> None:
        """Let a finished step be run again."""
        del self.data["steps"][name]
        self.write()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time of a block, however it ends, to that of the run."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.data["seconds"] += time.monotonic() - start
            self.write()


def _stamp(source: str) -> list[int] | None:
    """Size and time of a file, by which a changed one is told; None for what is read once."""
    path = Path(source)
    if not path.is_file():
        return None
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]

"""Where the files of a checkpoint come from: a directory here, or a name on the hub."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from trbert_deploy.errors import CheckpointError, first_line
from trbert_deploy.files import require_directory

#: What describes a model of transformers.
CONFIG_FILE = "config.json"

#: What a broken download raises: of the HTTP library that this version of the hub's client uses.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


class Source(Protocol):
    """The files of one checkpoint.

    Attributes:
        where: the checkpoint as the user named it.
    """

    where: str

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint on this machine, or None if the checkpoint has none."""

    def names(self) -> list[str]:
        """The files that it has, sorted, for error messages; empty if they cannot be listed."""


def files_of(source: str) -> Source:
    """The directory or hub name ``source``; a directory here has precedence.

    Raises:
        StorageError: the path is a file, or unreadable.
    """
    path = Path(source)
    if not path.exists():
        return HubSource(source)
    require_directory(path, "model", "trbert-deploy train")
    return DirectorySource(path)


class DirectorySource:
    """A directory on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def file(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def names(self) -> list[str]:
        # Two levels: exports lie in directories of their own (onnx/model.onnx).
        found = [*self.path.glob("*"), *self.path.glob("*/*")]
        return sorted(path.relative_to(self.path).as_posix() for path in found if path.is_file())


class HubSource:
    """A model on the Hugging Face hub, or what the hub's cache has of it."""

    def __init__(self, name: str) -> None:
        self.where = name
        self._problem: Exception | None = None
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our errors say it all

    def file(self, name: str) -> Path | None:
        """A file in the hub's cache, fetched first if need be.

        Raises:
            CheckpointError: the hub is out of reach and the cache has nothing of the model, or the
                hub refuses.
        """
        try:
            path = hf_hub_download(self.where, name, local_files_only=self._problem is not None)
        except LocalEntryNotFoundError as problem:
            if self._problem is None:
                self._problem = problem  # an unreachable hub costs its retries once
            return None
        except EntryNotFoundError:
            return None
        except (OSError, ValueError, TRANSPORT_ERROR) as problem:
            raise self._error(problem) from None
        return Path(path)

    def names(self) -> list[str]:
        """The files on the hub.

        Raises:
            CheckpointError: the hub was out of reach, so that nobody knows.
        """
        if self._problem is not None:
            raise self._error(self._problem)
        try:
            return sorted(HfApi().list_repo_files(self.where))
        except (OSError, ValueError, TRANSPORT_ERROR):
            return []

    def _error(self, problem: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.where} is no directory here, and from the hub it cannot be loaded: "
            f"{first_line(problem)}"
        )


def require_inside(name: object, where: str) -> str:
    """A relative path that stays inside its directory, out of a file that was not written here.

    Args:
        where: the file that names it, for the error.

    Raises:
        CheckpointError: no text, absolute, or with ``..``.
    """
    if isinstance(name, str):
        readings = (PurePosixPath(name), PureWindowsPath(name))
        if not any(path.anchor or ".." in path.parts for path in readings):
            return name
    raise CheckpointError(f"{where} names the path {name!r}: expected one inside its own directory")

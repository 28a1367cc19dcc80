"""What was measured on this machine, kept in the user's cache directory.

    ~/.cache/trbert-deploy/
      backend-5f0c....json     one finding; the name is a digest of what it depends on
      break-even-91be....json

A finding belongs to the conditions that it was made under. Whoever needs one that is not there
measures it while others wait: two that measured at a time would slow each other down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from trbert_deploy.errors import FileFormatError, StorageError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.locks import hold

#: Of what a finding holds; another one is another finding.
_FORMAT = 2
#: Findings that are kept, the newest ones; each takes some kilobytes.
MOST_FINDINGS = 256


def remembered(
    name: str, key: dict[str, Any], measure: Callable[[], Any], note: Callable[[str], None]
) -> Any:
    """What was found as ``name`` under the conditions ``key``: from the last time, or now.

    Args:
        key: JSON values.
        measure: finds it, as JSON values other than null.
        note: told that another process, or thread, has its turn.
    """
    path = _directory() / f"{name}-{_digest(key)}.json"
    found = _read(path, key)
    if found is None:
        with _turn(note):
            found = _read(path, key)  # whoever had the turn may have found it
            if found is None:
                found = measure()
                _write(path, key, found)
    return found


def _read(path: Path, key: dict[str, Any]) -> Any:
    """The finding in a file, or None where it is missing or damaged."""
    try:
        data = read_json(path, FileFormatError)
    except FileFormatError:
        return None
    found = data.get("found")
    return found if data.get("digest") == _digest([key, found]) else None


def _write(path: Path, key: dict[str, Any], found: Any) -> None:
    with suppress(OSError, StorageError):  # a server may have no place to remember in
        write_json(path, {"key": key, "found": found, "digest": _digest([key, found])})
        files = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST_FINDINGS]:
            file.unlink(missing_ok=True)


@contextmanager
def _turn(note: Callable[[str], None]) -> Iterator[None]:
    """Let one measure at a time, of all processes and threads of the user's on this machine."""
    with ExitStack() as held:
        with suppress(OSError):  # without a place to remember in nobody waits for a finding
            _directory().mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(hold(_directory()))
            except BlockingIOError:
                note("another process is measuring on this machine: waiting for it")
                held.enter_context(hold(_directory(), wait=True))
        yield


def _directory() -> Path:
    return user_cache_path("trbert-deploy")


def _digest(value: Any) -> str:
    text = json.dumps([_FORMAT, value], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

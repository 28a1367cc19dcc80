"""What was measured on this machine, kept in the user's cache directory.

A measurement belongs to the conditions it was made under: under any others it is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import FileFormatError, StorageError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.machine import cores, processor
from trbert_deploy.runtime.chain import Chain

_VERSION = 1
#: Packages that run graphs.
_RUNTIMES = ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx")


def conditions(
    bundle: Bundle, reduction: ReductionConfig, threads: int, packages: Sequence[str]
) -> dict[str, Any]:
    """What the time that a bundle takes depends on, as JSON values.

    Args:
        reduction: the cuts with the rules that it runs with.
        threads: threads of one graph.
        packages: that run it; their versions count, and whether they are installed.
    """
    return {
        "version": _VERSION,
        "bundle": bundle.digest,
        "reduction": reduction.to_json(),
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "packages": {package: _version(package) for package in packages},
    }


def chain_conditions(bundle: Bundle, chain: Chain) -> dict[str, Any]:
    """What the time that a chain of a bundle takes depends on, as JSON values."""
    description = dict(chain.backend.description)  # with its threads
    return {**conditions(bundle, chain.reduction, 0, _RUNTIMES), "backend": description}


def recall(name: str, key: dict[str, Any]) -> Any:
    """What was remembered as ``name`` under the conditions ``key``, or None."""
    try:
        data = read_json(_path(name, key), FileFormatError)
        return data["found"] if data["key"] == key else None
    except (FileFormatError, StorageError, KeyError, TypeError):
        return None


def remember(name: str, key: dict[str, Any], found: Any) -> None:
    """Keep a finding (JSON values), in place of the one of the same name and bundle."""
    with suppress(OSError, StorageError):  # a server may have no place to remember in
        write_json(_path(name, key), {"key": key, "found": found})


def _path(name: str, key: dict[str, Any]) -> Path:
    return user_cache_path("trbert-deploy") / f"{name}-{key['bundle'][:16]}.json"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Which ONNX Runtime is installed, and whether it can use CUDA.

Several distributions install the one package ``onnxruntime``, each over the files of the others:
of two the last wins, and taking one away breaks the other. And ONNX Runtime answers on the CPU,
without an error, wherever CUDA cannot be used.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from trbert_deploy.errors import ConfigError, MissingDependencyError, first_line

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
#: What installs the package: for CPUs, for NVIDIA GPUs, and for devices that nobody tried here.
DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)
#: Extras of this distribution, each of which brings one.
EXTRAS = ("cpu", "gpu")
#: Levels of ONNX Runtime's log: none of it, and what it has by default.
_FATAL, _WARNING = 4, 2
#: The first calls may come from several threads.
_finding_out = threading.Lock()


class DeviceWarning(UserWarning):
    """A device that is wanted cannot be used."""


def require_package() -> None:
    """Refuse an ONNX Runtime that is not there, or not whole.

    Raises:
        MissingDependencyError: nothing installed it.
        ConfigError: several distributions did, or one was taken away and its files were another's.
    """
    installed = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if len(installed) > 1:
        raise ConfigError(
            f"{' and '.join(installed)} are installed together, and overwrite each other's files: "
            + _repair(installed)
        )
    spec = find_spec("onnxruntime")
    if spec is None and not installed:
        raise MissingDependencyError("backend onnxruntime", "onnxruntime", *EXTRAS)
    if spec is None or spec.origin is None:  # a directory that is left, with no package in it
        raise ConfigError(
            "the package onnxruntime lacks files, which another one with the same files took along "
            "when it was uninstalled: " + _repair(installed or DISTRIBUTIONS[:2])
        )


def _repair(installed: Sequence[str]) -> str:
    extra = "gpu" if "onnxruntime-gpu" in installed else "cpu"
    names = " ".join(installed)
    return f"run pip uninstall -y {names} && pip install 'trbert-deploy[{extra}]'"


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def providers() -> list[str]:
    """The execution providers that sessions shall have, best first."""
    import onnxruntime

    built_for = onnxruntime.get_available_providers()
    return [CUDA, CPU] if CUDA in built_for and why_no_cuda() is None else [CPU]


def uses_cuda() -> bool:
    """Whether sessions run on CUDA here; False where no whole ONNX Runtime is installed."""
    try:
        require_package()
    except (ConfigError, MissingDependencyError):
        return False
    return CUDA in providers()


def why_no_cuda() -> str | None:
    """Why sessions cannot run on CUDA though ONNX Runtime was built for it.

    Returns:
        None where they can, and where it was not built for it. It is found out once.

    Warns:
        DeviceWarning: they cannot.
    """
    with _finding_out:
        return _why_no_cuda()


@cache
def _why_no_cuda() -> str | None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return None
    reason = _try_cuda()
    if reason is not None:
        warnings.warn(
            f"ONNX Runtime is installed for NVIDIA GPUs and runs on the CPU: {reason}; it needs "
            "NVIDIA's driver, and CUDA's libraries, which trbert-deploy[gpu] brings",
            DeviceWarning,
            stacklevel=5,  # who opened the backend
        )
    return reason


def _try_cuda() -> str | None:
    """Put a number onto the first GPU; the reason where that fails."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

    with _printing_nothing():
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip installed them
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except (RuntimeError, RuntimeException, Fail, EPFail) as problem:
        return _missing_library() or first_line(problem)
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    return None


@contextmanager
def _printing_nothing() -> Iterator[None]:
    """Keep onnxruntime's own prints off stdout, which is for answers; other threads may write."""
    import onnxruntime

    names = vars(onnxruntime)
    names["print"] = lambda *_, **__: None
    try:
        yield
    finally:
        del names["print"]


def _missing_library() -> str | None:
    """What the CUDA provider's library cannot be loaded for, such as a library that it needs."""
    import onnxruntime

    if sys.platform != "linux":
        return None
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):  # the second needs the first
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as problem:
        return str(problem)
    return None

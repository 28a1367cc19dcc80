"""Which TensorRT is installed, and which GPU is there: TensorRT 10, 11 and TensorRT for RTX.

All three have nearly one Python API; what differs is asked of ``TensorRT.flavour``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from trbert_deploy.errors import ConfigError, DeviceError, MissingDependencyError

#: Flavour -> its Python module. Standard TensorRT comes first where both are installed: it
#: serves every NVIDIA GPU, data-centre ones included, that RTX leaves out.
FLAVOURS = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Attributes:
        flavour: a key of ``FLAVOURS``.
        module: its Python module.
        version: such as 10.12.0.36.
    """

    flavour: str
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.flavour == "rtx"


def load_tensorrt(flavour: str | None = None) -> TensorRT:
    """Import TensorRT.

    Args:
        flavour: ``tensorrt`` or ``rtx``; by default whichever is installed.

    Raises:
        ConfigError: no such flavour.
        MissingDependencyError: it is not installed, or its libraries are not.
    """
    if flavour is not None and flavour not in FLAVOURS:
        raise ConfigError(f"unknown TensorRT {flavour!r}: expected one of {', '.join(FLAVOURS)}")
    for candidate in (flavour,) if flavour else FLAVOURS:
        module = _import(FLAVOURS[candidate])
        if module is not None:
            return TensorRT(candidate, module, module.__version__)
    raise MissingTensorRTError(flavour)


class MissingTensorRTError(MissingDependencyError):
    """No TensorRT is installed; says which one suits which GPU."""

    def __init__(self, flavour: str | None) -> None:
        wanted = FLAVOURS[flavour] if flavour else "TensorRT"
        ImportError.__init__(
            self,
            f"{wanted} is not installed: run pip install 'trbert-deploy[tensorrt-rtx]' for RTX "
            "GPUs, or pip install 'trbert-deploy[tensorrt]' for data-centre GPUs",
        )


def _import(name: str) -> ModuleType | None:
    """The module, or None; the package can be there without its libraries."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a shared library is missing
        return None
    return module if hasattr(module, "Builder") else None


@cache
def library_log(library: TensorRT) -> Any:
    """The log of a TensorRT library, which accepts one for the whole process.

    Its ``lines`` are (severity, text) pairs; ``errors()`` are the texts of errors among them.
    """
    interface: Any = library.module.ILogger
    severity = interface.Severity

    class Log(interface):  # type: ignore[misc]  # known only at run time
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[Any, str]] = []

        def log(self, level: Any, message: str) -> None:
            if level != severity.VERBOSE:
                self.lines.append((level, message))

        def errors(self) -> list[str]:
            return [
                text
                for level, text in self.lines
                if level in (severity.ERROR, severity.INTERNAL_ERROR)
            ]

    return Log()


def failure(library: TensorRT, what: str, reasons: Sequence[str]) -> str:
    """What TensorRT could not do, with all its reasons, as one line."""
    details = " | ".join(dict.fromkeys(" ".join(reason.split()) for reason in reasons))
    return f"TensorRT {library.version} ({library.flavour}) {what}: {details or 'no reason given'}"


def register_plugin(library: TensorRT) -> None:
    """Let TensorRT know ``CompactTokens``, before it meets an engine or a graph that has it.

    Raises:
        MissingDependencyError: PyTorch or Triton, on which it runs, is not installed.
        EngineError: TensorRT knows another one.
    """
    try:
        plugin = importlib.import_module("trbert_deploy.plugins.tensorrt_plugin")
    except ModuleNotFoundError as problem:
        package = (problem.name or "").partition(".")[0]
        raise MissingDependencyError("an engine with a plugin", package, "train") from None
    plugin.register(library.module)


def import_cuda() -> Any:
    """The CUDA runtime's bindings.

    Raises:
        MissingDependencyError: they are not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise MissingDependencyError("TensorRT", "cuda-bindings", "tensorrt-rtx") from None


def unsigned(number: int) -> Any:
    """A whole number as CUDA's bindings take an attribute of 64 bits."""
    return importlib.import_module("cuda.bindings.driver").cuuint64_t(number)


def check_cuda(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned behind its status: nothing, a value, or several.

    Raises:
        DeviceError: the call failed.
    """
    status, *values = result
    if status.value:
        raise DeviceError(f"CUDA call failed ({status.name}): free GPU memory or check the driver")
    return values[0] if len(values) == 1 else tuple(values) or None


def gpu_compute_capability() -> str:
    """Compute capability of the first NVIDIA GPU, such as 8.6.

    Raises:
        DeviceError: none answers.
        MissingDependencyError: CUDA's bindings are not installed.
    """
    cuda = import_cuda()
    try:
        status, count = cuda.cudaGetDeviceCount()
        reason = status.name if status.value else "no device"
    except RuntimeError as problem:  # the bindings found no CUDA library at all
        count, reason = 0, str(problem)
    if not count:
        raise DeviceError(
            f"no NVIDIA GPU answers ({reason}): run with --backend onnxruntime, "
            "or on a machine with a GPU"
        )
    attributes = cuda.cudaDeviceAttr
    major, minor = (
        check_cuda(cuda.cudaDeviceGetAttribute(attribute, 0))
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"{major}.{minor}"

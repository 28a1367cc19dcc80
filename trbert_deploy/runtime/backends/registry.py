"""The backends: what each needs, can compute in, and allows.

A backend is named here and imported only when asked for, so that a server imports (and installs)
nothing but the one it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import ConfigError, MissingDependencyError
from trbert_deploy.runtime.backends.backend import Backend, BackendOptions, RowsBackend
from trbert_deploy.runtime.backends.onnxruntime_package import uses_cuda


@dataclass(frozen=True)
class BackendInfo:
    """What is known of a backend before it is imported.

    Attributes:
        module: has a function ``open_backend(bundle, options)``, which opens the backend.
        packages: top-level modules that it imports.
        extras: of this distribution; each of them brings these modules.
        precisions: what it can be asked to compute in; none where it decides for itself.
        on_request: those of them that nothing chooses by itself.
        auto: whether ``auto`` tries it.
        gpu_precisions: those of the precisions that ``auto`` tries only where it uses a GPU.
        uses_gpu: whether it does so here; asked where there are such precisions.
        concurrent: whether calls may come from several threads at once.
        states: whether it runs graphs of states.
        engines: whether it runs compiled code that lies in the bundle, instead of its graphs.
        distributions: on whose versions the time depends that it takes.
        device: what it runs on; ``any`` where that depends on what is installed.
    """

    module: str
    packages: tuple[str, ...]
    extras: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    on_request: tuple[str, ...] = ()
    auto: bool = False
    gpu_precisions: tuple[str, ...] = ()
    uses_gpu: Callable[[], bool] = lambda: True
    concurrent: bool = True
    states: bool = False
    engines: bool = False
    distributions: tuple[str, ...] = ()
    device: Literal["cpu", "gpu", "any"] = "any"


_HERE = "trbert_deploy.runtime.backends"
#: What multiplies matrices on NVIDIA GPUs, for CUDA 13 and for CUDA 12.
_CUDA = ("nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cudnn-cu12")

_ONNXRUNTIME = BackendInfo(
    f"{_HERE}.onnxruntime",
    ("onnxruntime",),
    ("cpu", "gpu"),
    ("fp32", "int8", "fp16"),
    auto=True,
    gpu_precisions=("fp16",),
    uses_gpu=uses_cuda,
    states=True,
    distributions=("onnxruntime", "onnxruntime-gpu", *_CUDA),
)
_TENSORRT = BackendInfo(
    f"{_HERE}.tensorrt.backend",
    ("tensorrt", "tensorrt_rtx", "cuda"),
    ("tensorrt-rtx", "tensorrt"),
    ("fp16", "bf16", "fp32", "int8", "fp8"),
    on_request=("int8", "fp8"),
    auto=True,
    concurrent=False,
    engines=True,
    distributions=("tensorrt", "tensorrt-rtx", "cuda-bindings"),
    device="gpu",
)

#: Name -> backend. One entry per backend.
BACKENDS: dict[str, BackendInfo] = {
    "onnxruntime": _ONNXRUNTIME,
    "one-graph": replace(
        _ONNXRUNTIME,
        module=f"{_HERE}.one_graph",
        precisions=("fp32", "fp16"),
        auto=False,
        states=False,
    ),
    "openvino": BackendInfo(
        f"{_HERE}.openvino",
        ("openvino",),
        ("openvino",),
        ("fp32", "bf16", "int8"),
        auto=True,
        states=True,
        distributions=("openvino",),
        device="cpu",
    ),
    "tensorrt": _TENSORRT,
    "one-engine": replace(_TENSORRT, module=f"{_HERE}.tensorrt.one_engine", auto=False),
    "cuda": BackendInfo(
        "trbert_deploy.modeling.cuda_backend",
        ("torch", "transformers", "safetensors"),
        ("export",),
        ("fp16", "bf16", "fp32"),
        auto=True,
        distributions=("torch", "triton", *_CUDA),
        device="gpu",
    ),
    "torch": BackendInfo(  # the reference of the others; servers have no PyTorch
        "trbert_deploy.modeling.torch_backend",
        ("torch", "transformers", "safetensors"),
        ("export",),
        ("fp32",),
        states=True,
        distributions=("torch",),
        device="cpu",
    ),
}
DEFAULT_BACKEND = "onnxruntime"
AUTO = "auto"  # the fastest of those that it tries and that answer alike (autotune)


def register_backend(name: str, info: BackendInfo) -> None:
    """Let bundles run on a backend."""
    BACKENDS[name] = info


def backends_of_states() -> list[str]:
    """Those that run graphs of states."""
    return [name for name, info in BACKENDS.items() if info.states]


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> Backend | RowsBackend:
    """Open the backend called ``name`` on a bundle.

    Raises:
        ConfigError: no such backend, or it cannot compute in the wanted precision.
        MissingDependencyError: its package is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    require_precision(name, options.precision)
    info = BACKENDS[name]
    try:
        module = importlib.import_module(info.module)
    except ModuleNotFoundError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing not in info.packages:
            raise
        raise MissingDependencyError(f"backend {name}", missing, *info.extras) from None
    backend: Backend | RowsBackend = module.open_backend(bundle, options)
    return backend


def require_precision(name: str, precision: str | None) -> None:
    """Refuse a precision that the backend called ``name`` cannot be asked for.

    Raises:
        ConfigError: it cannot.
    """
    offered = BACKENDS[name].precisions if name in BACKENDS else ()
    if precision is not None and precision not in offered:
        raise ConfigError(
            f"backend {name} cannot be asked for {precision}: expected "
            f"{' or '.join(offered) or 'none, it chooses'}"
        )


def require_no_engines(name: str) -> None:
    """Refuse the backend called ``name`` where engines are to be ignored.

    Raises:
        ConfigError: it runs nothing else.
    """
    if name in BACKENDS and BACKENDS[name].engines:
        raise ConfigError(
            f"backend {name} runs the bundle's engines, which are to be ignored (--no-engines): "
            "choose another backend"
        )

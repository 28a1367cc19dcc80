"""What runs the graphs: the interface of a backend, and the list of them.

A backend is named here and imported only when asked for, so that a server imports (and
installs) nothing but the one it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trbert_deploy.bundle.bundle import ATTENTION_MASK, Bundle
from trbert_deploy.errors import ConfigError

Tensors = Mapping[str, np.ndarray]


class Graph(Protocol):
    """One runnable graph: named arrays in, named arrays out.

    Without ``attention_mask`` among the inputs every place of the batch holds a token. A graph
    that ends in logits returns them alone: nobody reads the states behind the head.
    """

    def __call__(self, inputs: Tensors) -> Tensors: ...


class Backend(Protocol):
    """Runs the graphs of one bundle."""

    @property
    def description(self) -> Mapping[str, str]:
        """What it runs on (versions, device, threads), for reports."""
        ...

    @property
    def max_padding(self) -> float:
        """Highest share of a batch's slots that should be padding; 0 where none pays."""
        ...

    def graph(self, name: str) -> Graph:
        """The graph called ``name`` in the bundle, loaded on its first use."""
        ...


def with_mask(inputs: Tensors) -> Tensors:
    """The inputs of a graph, with a mask that is all True where they had none."""
    shape = next(iter(inputs.values())).shape[:2]
    return {ATTENTION_MASK: np.ones(shape, np.bool_), **inputs}


@dataclass(frozen=True)
class BackendOptions:
    """How a backend runs.

    Attributes:
        threads: threads of one graph; 0 lets the backend choose.
        precision: what it computes in, one of ``PRECISIONS``; None is the backend's own choice.
    """

    threads: int = 0
    precision: str | None = None


#: name -> module with a function ``open_backend(bundle, options) -> Backend``.
BACKENDS = {
    "onnxruntime": "trbert_deploy.runtime.backends.onnxruntime",
    "openvino": "trbert_deploy.runtime.backends.openvino",
    "tensorrt": "trbert_deploy.runtime.backends.tensorrt.backend",
    "torch": "trbert_deploy.modeling.torch_backend",
}
DEFAULT_BACKEND = "onnxruntime"
AUTO = "auto"  # the fastest that is installed and good enough (autotune)

#: Padding that a larger batch is worth where one row does not fill the device.
PADDING_ON_GPUS = 0.03

#: What a backend can be asked to compute in; the others decide for themselves.
PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "torch": ("fp32",),
}


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    """Open the backend called ``name`` on a bundle.

    Raises:
        ConfigError: no such backend, or it cannot compute in the wanted precision.
        MissingDependencyError: its package is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    require_precision(name, options.precision)
    module = importlib.import_module(BACKENDS[name])
    backend: Backend = module.open_backend(bundle, options)
    return backend


def require_precision(name: str, precision: str | None) -> None:
    """Refuse a precision that the backend called ``name`` cannot be asked for.

    Raises:
        ConfigError: it cannot.
    """
    offered = PRECISIONS.get(name, ())
    if precision is not None and precision not in offered:
        raise ConfigError(
            f"backend {name} cannot be asked for {precision}: expected "
            f"{' or '.join(offered) or 'none, it chooses'}"
        )

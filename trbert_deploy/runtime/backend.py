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

from trbert_deploy.bundle import Bundle
from trbert_deploy.errors import ConfigError

Tensors = Mapping[str, np.ndarray]


class Graph(Protocol):
    """One runnable graph: named arrays in, named arrays out."""

    def __call__(self, inputs: Tensors) -> Tensors: ...


class Backend(Protocol):
    """Runs the graphs of one bundle."""

    @property
    def description(self) -> Mapping[str, str]:
        """What it runs on (versions, device, threads), for reports."""
        ...

    def graph(self, name: str) -> Graph:
        """The graph called ``name`` in the bundle, loaded on its first use."""
        ...


@dataclass(frozen=True)
class BackendOptions:
    """How a backend runs.

    Attributes:
        threads: threads of one graph; 0 lets the backend choose.
    """

    threads: int = 0


#: name -> module with a function ``open_backend(bundle, options) -> Backend``.
BACKENDS = {
    "onnxruntime": "trbert_deploy.runtime.onnxruntime_backend",
    "tensorrt": "trbert_deploy.runtime.tensorrt_backend",
    "torch": "trbert_deploy.modeling.torch_backend",
}
DEFAULT_BACKEND = "onnxruntime"


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    """Open the backend called ``name`` on a bundle.

    Raises:
        ConfigError: no such backend.
        MissingDependencyError: its package is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    module = importlib.import_module(BACKENDS[name])
    backend: Backend = module.open_backend(bundle, options)
    return backend

"""Runs a bundle's graphs with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnxruntime

from trbert_deploy.bundle import Bundle
from trbert_deploy.errors import BundleError
from trbert_deploy.runtime.backend import BackendOptions, Graph, Tensors


class OnnxGraph:
    """One ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, inputs: Tensors) -> Tensors:
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, or on CUDA where onnxruntime-gpu finds a device."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._bundle = bundle
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = options.threads
        # A chain owns several sessions: threads that spin after one graph would take the
        # cores from the next.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        self._providers = [
            name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available
        ]
        self.graph = cache(self._open)
        self.description: Mapping[str, str] = {
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": self._providers[0],
            "threads": str(options.threads or "all"),
        }

    def _open(self, name: str) -> Graph:
        path = self._bundle.graph_path(name)
        try:
            session = onnxruntime.InferenceSession(
                str(path), self._options, providers=self._providers
            )
        except Exception as problem:  # ONNX Runtime raises classes of its own, derived from it
            raise BundleError(f"ONNX Runtime cannot load {path}: {problem}") from problem
        return OnnxGraph(session)


def open_backend(bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Open ``bundle`` with ONNX Runtime."""
    return OnnxRuntimeBackend(bundle, options)

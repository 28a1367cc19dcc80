"""Runs a bundle's graphs with OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache

import numpy as np
import openvino

from trbert_deploy.bundle import Bundle
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.runtime.backend import BackendOptions, Graph, Tensors

_DEVICE = "CPU"


class OpenVinoGraph:
    """One compiled graph; every thread that calls it has a request of its own."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._compiled = compiled
        self._own = threading.local()

    def __call__(self, inputs: Tensors) -> Tensors:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        # The inputs are read where they lie; the outputs are copied, since the request
        # overwrites its own at the next call.
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        values = self._own.request.infer(arrays, share_inputs=True)
        return {output.any_name: value for output, value in values.items()}


class OpenVinoBackend:
    """OpenVINO on the CPU: bfloat16 where the processor computes in it, float32 elsewhere."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._bundle = bundle
        self._core = openvino.Core()
        precision = options.precision or ("bf16" if self._has_bf16() else "f32")
        if precision == "bf16" and not self._has_bf16():
            raise ConfigError(
                "this processor does not compute in bfloat16: run with --precision f32"
            )
        # One request at a time gets all threads.
        self._settings: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": 1,
        }
        if options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads
        self.graph = cache(self._open)
        self.description: Mapping[str, str] = {
            "backend": "openvino",
            "version": openvino.__version__.partition("-")[0],
            "precision": precision,
            "threads": str(options.threads or "all"),
        }

    def _has_bf16(self) -> bool:
        return "BF16" in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")

    def _open(self, name: str) -> Graph:
        path = self._bundle.graph_path(name)
        try:
            model = self._core.read_model(path)
            return OpenVinoGraph(self._core.compile_model(model, _DEVICE, self._settings))
        except RuntimeError as problem:
            reason = str(problem).strip().splitlines()[-1]
            raise BundleError(f"OpenVINO cannot load {path}: {reason}") from problem


def open_backend(bundle: Bundle, options: BackendOptions) -> OpenVinoBackend:
    """Open ``bundle`` with OpenVINO."""
    return OpenVinoBackend(bundle, options)

"""Runs a bundle's whole chain as one TensorRT engine: no state leaves the device.

What survives is bounded by slots that follow from the length of a batch (``Capacity``).
"""

from __future__ import annotations

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.one_graph import OneGraphBackend
from trbert_deploy.runtime.backends.tensorrt.backend import TensorRTBackend


def open_backend(bundle: Bundle, options: BackendOptions) -> OneGraphBackend:
    """Open the engines of ``bundle`` that fit this GPU.

    Raises:
        ConfigError: the bundle has no graph of its whole chain.
        MissingDependencyError, DeviceError, EngineError: as ``TensorRTBackend``.
    """
    bundle.require_chain()
    graphs = TensorRTBackend(bundle, options.precision)
    return OneGraphBackend(bundle, graphs, "one-engine", batches=True)

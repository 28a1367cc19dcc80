"""Runs a bundle's graphs with ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, partial

import onnxruntime

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import ATTENTION_MASK, FUSED, INT8, MASKED, GraphDescription
from trbert_deploy.errors import BundleError, DeviceError
from trbert_deploy.runtime.backends.backend import PADDING_ON_GPUS, BackendOptions, Tensors
from trbert_deploy.runtime.backends.denormals import denormals_as_zero

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
#: float32 is float32: TF32 leaves products 10 bits of their mantissa.
_CUDA_OPTIONS = {"use_tf32": "0"}


class OnnxGraph:
    """A session for batches without padding, and one for those with it, opened when needed.

    Args:
        graph: what the manifest says of it.
        open_session: whether the batch has a mask -> the session.
    """

    def __init__(
        self,
        graph: GraphDescription,
        open_session: Callable[[bool], onnxruntime.InferenceSession],
    ) -> None:
        self.inputs = graph.token_inputs
        self._answers = graph.answers
        self._opened = cache(open_session)

    def __call__(self, inputs: Tensors) -> Tensors:
        session = self._opened(ATTENTION_MASK in inputs)
        with denormals_as_zero():
            values = session.run(self._answers, dict(inputs))
        return dict(zip(self._answers, values, strict=True))


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, or on CUDA where the package onnxruntime-gpu is installed.

    Args:
        without_mask: the variant of the graphs for batches without padding; by default the one for
            the wanted precision. Padded batches, which GPUs like, run in float32.

    Raises:
        ConfigError: the bundle has no graphs of the wanted precision.
        DeviceError: opening a graph, that CUDA cannot be used: it would be run on the CPU instead.
    """

    def __init__(
        self, bundle: Bundle, options: BackendOptions, without_mask: str | None = None
    ) -> None:
        self._bundle = bundle
        precision = options.precision or "fp32"
        self._without_mask = without_mask or (INT8 if precision == "int8" else FUSED)
        bundle.require_variant(self._without_mask)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = options.threads
        # A chain owns several sessions: threads that spin after one graph would take the
        # cores from the next.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # For the sessions' own threads; the caller's is told at every call.
        self._options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # What the package can do; whether a session does it is asked of the session.
        self._on_cuda = CUDA in onnxruntime.get_available_providers()
        self._providers = [(CUDA, _CUDA_OPTIONS), CPU] if self._on_cuda else [CPU]
        if self._on_cuda:
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
        # Its fused kernel takes eight times as long on CPUs as addition and normalization do.
        self._disabled = [] if self._on_cuda else ["SkipLayerNormFusion"]
        self.max_padding = PADDING_ON_GPUS if self._on_cuda else 0.0
        self.graph = cache(
            lambda name: OnnxGraph(bundle.manifest.graph(name), partial(self._open, name))
        )
        self.description: Mapping[str, str] = {
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": CUDA if self._on_cuda else CPU,
            "precision": precision,
            "threads": str(options.threads or "all"),
        }

    def _open(self, name: str, masked: bool) -> onnxruntime.InferenceSession:
        path = self._bundle.graph_path(name, MASKED if masked else self._without_mask)
        try:
            with denormals_as_zero():  # a process' first session would change the caller's thread
                session = onnxruntime.InferenceSession(
                    str(path),
                    self._options,
                    providers=self._providers,
                    disabled_optimizers=self._disabled,
                    enable_fallback=0,  # to the CPU, when CUDA fails, now or in a run
                )
        except Exception as problem:  # ONNX Runtime raises classes of its own, derived from it
            reason = re.search(r"CUDA failure \d+: [^;\n]*", str(problem))
            if reason:
                raise NoCudaError(reason[0].strip()) from problem
            raise BundleError(f"ONNX Runtime cannot load {path}: {problem}") from problem
        if self._on_cuda and CUDA not in session.get_providers():
            raise NoCudaError("its CUDA or cuDNN libraries are not found")
        return session


class NoCudaError(DeviceError):
    """CUDA's package is installed, and CUDA cannot be used."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"onnxruntime-gpu {onnxruntime.__version__} cannot use a GPU here ({reason}): mend "
            "that, or run pip uninstall onnxruntime-gpu && pip install onnxruntime for the CPU"
        )


def open_backend(bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Open ``bundle`` with ONNX Runtime."""
    return OnnxRuntimeBackend(bundle, options)

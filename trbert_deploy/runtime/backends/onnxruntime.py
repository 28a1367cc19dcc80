"""Runs a bundle's graphs with ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from trbert_deploy.batching import NO_PADDING
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    FUSED,
    HALF,
    HALF_MASKED,
    INT8,
    MASKED,
    GraphDescription,
)
from trbert_deploy.errors import BundleError, DeviceError, first_line
from trbert_deploy.machine import cores
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import (
    PADDING_ON_GPUS,
    BackendOptions,
    Tensors,
    require_signature,
)
from trbert_deploy.runtime.backends.denormals import denormals_as_zero
from trbert_deploy.runtime.backends.onnxruntime_package import (
    CPU,
    CUDA,
    providers,
    require_package,
    why_no_cuda,
)
from trbert_deploy.runtime.device_arrays import DeviceArrays
from trbert_deploy.runtime.once import OncePerKey

require_package()  # before it is imported: what is left of two distributions is no package
import onnxruntime  # noqa: E402

from trbert_deploy.runtime.backends.onnxruntime_memory import OnnxRuntimeMemory  # noqa: E402

#: Tokens of a call for each thread of a CPU. What larger calls compute leaves the caches, and lies
#: in memory that the system gives and takes back every time (docs/performance.md).
CALL_TOKENS = 1024
#: Precision -> the variants for batches without padding and with it.
_VARIANTS = {"fp32": (FUSED, MASKED), "int8": (INT8, MASKED), "fp16": (HALF, HALF_MASKED)}
#: float32 is float32: TF32 leaves products 10 bits of their mantissa.
_CUDA_OPTIONS = {"use_tf32": "0"}


class OnnxGraph:
    """A session for batches without padding, and one for those with it, opened when first needed.

    Args:
        graph: what the manifest says of it.
        open_session: whether the batch has a mask -> the session.
        memory: where its states lie; None for numpy's arrays.
    """

    def __init__(
        self,
        graph: GraphDescription,
        open_session: Callable[[bool], onnxruntime.InferenceSession],
        memory: OnnxRuntimeMemory | None = None,
    ) -> None:
        self._name = graph.name
        self._memory = memory
        self.inputs = graph.token_inputs
        self._answers = graph.answers
        self._session = OncePerKey(open_session)
        self._session(False)

    def __call__(self, inputs: Tensors) -> Tensors:
        session = self._session(ATTENTION_MASK in inputs)
        try:
            with denormals_as_zero():
                if self._memory is not None:
                    return self._memory.run(session, inputs, self._answers)
                values = session.run(self._answers, dict(inputs))
        except Exception as problem:  # as when a session is opened
            raise BundleError(
                f"ONNX Runtime cannot run {self._name}: {first_line(problem)}"
            ) from problem
        return dict(zip(self._answers, values, strict=True))


class OnnxRuntimeBackend:
    """ONNX Runtime on CUDA where it was built for it and can use it, and on the CPU elsewhere.

    On CUDA the states stay on the GPU from cut to cut.

    Args:
        without_mask: the variant of the graphs for batches without padding; by default the one for
            the wanted precision. Padded batches run in float32 where int8 is wanted.
        states_on: the device whose memory states stay in; by default CUDA's, and on the CPU none,
            but numpy's arrays.

    Raises:
        ConfigError: the bundle has no graphs of the wanted precision.
        DeviceError: opening a graph, that CUDA fails, which would run it on the CPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: BackendOptions,
        without_mask: str | None = None,
        states_on: str | None = None,
    ) -> None:
        self._bundle = bundle
        precision = options.precision or "fp32"
        usual, self._masked = _VARIANTS[precision]
        self._without_mask = without_mask or usual
        bundle.require_variant(self._without_mask)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = options.threads
        # A chain owns several sessions: threads that spin after one graph would take the
        # cores from the next.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # An arena would keep what the largest batch took, in every session, for good; the system's
        # allocator is as fast here.
        self._options.enable_cpu_mem_arena = False
        # For the sessions' own threads; the caller's is told at every call.
        self._options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._on_cuda = CUDA in providers()
        self._providers = [(CUDA, _CUDA_OPTIONS), CPU] if self._on_cuda else [CPU]
        # Its fused kernel takes eight times as long on CPUs as addition and normalization do.
        self._disabled = [] if self._on_cuda else ["SkipLayerNormFusion"]
        # Sessions on CPUs for batches with padding would keep all weights once more.
        self.padding = PADDING_ON_GPUS if self._on_cuda else NO_PADDING
        threads = options.threads or cores()
        self.call_tokens = MOST_TOKENS if self._on_cuda else threads * CALL_TOKENS
        device = states_on or ("cuda" if self._on_cuda else None)
        memory = None if device is None else OnnxRuntimeMemory(device, self._session)
        self.arrays: Arrays = HOST if memory is None else DeviceArrays(memory)
        self.graph: OncePerKey[str, OnnxGraph] = OncePerKey(
            lambda name: OnnxGraph(bundle.manifest.graph(name), partial(self._open, name), memory)
        )
        self.description: Mapping[str, str] = {
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": CUDA if self._on_cuda else CPU,
            **({"no CUDA": reason} if (reason := why_no_cuda()) else {}),
            "precision": precision,
            "threads": str(options.threads or "all"),
        }

    def _open(self, name: str, masked: bool) -> onnxruntime.InferenceSession:
        graph = self._bundle.manifest.graph(name)
        variant = self._masked if masked else self._without_mask
        with self._bundle.reading_graph(name, variant) as path:
            session = self._session(path)
        tensors = (session.get_inputs(), session.get_outputs())
        require_signature(path, graph, *([tensor.name for tensor in each] for each in tensors))
        return session

    def _session(self, graph: Path | bytes) -> onnxruntime.InferenceSession:
        """What runs a graph, which is a file beside its weights or a whole model."""
        # A process' first session would change how the caller's thread computes.
        with denormals_as_zero():
            try:
                session = onnxruntime.InferenceSession(
                    graph if isinstance(graph, bytes) else str(graph),
                    self._options,
                    providers=self._providers,
                    disabled_optimizers=self._disabled,
                    enable_fallback=0,  # to the CPU, when CUDA fails, now or in a run
                )
            except Exception as problem:  # ONNX Runtime raises classes of its own, derived from it
                if failure := re.search(r"CUDA failure \d+: [^;\n]*", str(problem)):
                    raise _cuda_error(failure[0].strip()) from problem
                what = "its own graph" if isinstance(graph, bytes) else graph
                reason = first_line(problem)
                raise BundleError(f"ONNX Runtime cannot load {what}: {reason}") from problem
        if self._on_cuda and CUDA not in session.get_providers():
            raise _cuda_error("the session runs on the CPU")
        return session


def _cuda_error(reason: str) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU that answered before "
        f"({reason}): free its memory or check its driver; for the CPU, run pip uninstall -y "
        "onnxruntime-gpu && pip install 'trbert-deploy[cpu]'"
    )


def open_backend(bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Open ``bundle`` with ONNX Runtime."""
    return OnnxRuntimeBackend(bundle, options)

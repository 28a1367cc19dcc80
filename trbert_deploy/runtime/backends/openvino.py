"""Runs a bundle's graphs with OpenVINO on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import numpy as np
import openvino

from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ATTENTION_MASK,
    CALIBRATED,
    DEQUANTIZED,
    MASKED,
    UNMASKED,
    WITH_RANGES,
    GraphDescription,
)
from trbert_deploy.errors import BundleError, ConfigError, printable
from trbert_deploy.machine import cores, has_vnni
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import (
    BackendOptions,
    Tensors,
    require_signature,
    with_mask,
)
from trbert_deploy.runtime.once import OncePerKey

_DEVICE = "CPU"
#: Precision -> the library's name of what is computed in it.
_COMPUTES_IN = {"fp32": "f32", "bf16": "bf16"}
#: Kernels that a graph keeps for shapes that it met, and that the matrix library below keeps for
#: all graphs of the process, which share them: without a bound every new length takes up to two
#: megabytes for good. A shape that was forgotten costs what a new one does. Of few lengths the
#: library keeps all; a graph keeps few in any case, which costs little as long as the library knows
#: them.
_KEPT_OF_FEW_LENGTHS = (20, 1024)
_KEPT_OF_ANY_LENGTH = (4, 16)
#: Read by the library at its first use.
_LIBRARY_KEEPS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
#: Between two of the few lengths, at the least.
_LEAST_STEP = 16
#: A call of a segment costs about as much as so many of its tokens, and more where its length is
#: new (docs/performance.md).
PADDING = Padding(slots=32)
#: Inputs that share the range of an 8-bit activation: fewer are slower, all of them less exact.
_RANGE_SIZE = 128


class OpenVinoGraph:
    """A graph compiled for batches without padding, and for those with it.

    Rows are padded to one of few lengths (``one_of_few_lengths``), and what they are padded with is
    left out of the outputs again. Every thread that calls it has requests of its own.

    Args:
        graph: what the manifest says of it.
        compile_variant: variant -> the graph, compiled.
        variants: those for batches without padding and with it.
        padded_length: length of rows -> the one that they are padded to; None pads none.
    """

    def __init__(
        self,
        graph: GraphDescription,
        compile_variant: Callable[[str], openvino.CompiledModel],
        variants: tuple[str, str],
        padded_length: Callable[[int], int] | None,
    ) -> None:
        self._name = graph.name
        self._token_outputs = graph.token_outputs
        self._padded_length = padded_length
        self.inputs = graph.token_inputs
        self._takes_mask = graph.takes_mask
        self._answers = graph.answers
        self._without_mask, self._masked = variants
        self._compiled = OncePerKey(compile_variant)
        self._compiled(self._without_mask)
        if padded_length is not None and graph.takes_mask:
            self._compiled(self._masked)
        self._own = threading.local()

    def __call__(self, inputs: Tensors) -> Tensors:
        length = next(iter(inputs.values())).shape[1]
        padded = self._padded_length(length) if self._padded_length else length
        if padded > length:
            inputs = _padded(with_mask(inputs) if self._takes_mask else inputs, padded)
        elif self._takes_mask and length == 1:
            # Attention without a mask that meets rows of one token first is wrong about rows of
            # eight and more ever after (OpenVINO 2026.4).
            inputs = with_mask(inputs)
        call = self._call(self._masked if ATTENTION_MASK in inputs else self._without_mask)
        try:
            for name, array in inputs.items():
                tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
                call.request.set_tensor(name, tensor)
            call.request.infer(share_outputs=True)
        except (RuntimeError, UnicodeDecodeError) as problem:
            raise BundleError(f"OpenVINO cannot run {self._name}: {_reason(problem)}") from problem
        # Inputs and outputs are used where they lie; but the request overwrites its outputs at
        # the next call, so what is returned is a copy.
        outputs = {
            name: call.request.get_output_tensor(place).data for name, place in call.outputs.items()
        }
        return {
            name: (each[:, :length] if name in self._token_outputs else each).copy()
            for name, each in outputs.items()
        }

    def _call(self, variant: str) -> _Call:
        calls = vars(self._own)
        if variant not in calls:
            calls[variant] = _Call.of(self._compiled(variant), self._answers)
        return calls[variant]


@dataclass(frozen=True)
class _Call:
    """A request with what it is asked for: output name -> its place among the outputs."""

    request: openvino.InferRequest
    outputs: Mapping[str, int]

    @classmethod
    def of(cls, model: openvino.CompiledModel, answers: Sequence[str]) -> _Call:
        # A tensor has several names where one is another's in a different shape.
        outputs = {
            name: place for place, output in enumerate(model.outputs) for name in output.names
        }
        return cls(model.create_infer_request(), {name: outputs[name] for name in answers})


class OpenVinoBackend:
    """OpenVINO on the CPU: bfloat16 where the processor computes in it, float32 elsewhere.

    In int8 products with weights are of 8 bits and the rest is as by default. Activations have the
    ranges that the export found, if it did and the processor adds up such products in one
    instruction (``has_vnni``). Otherwise they are rounded as they come, and the rest is float32;
    padded batches run in float32 then, so none is padded.

    Raises:
        ConfigError: the processor, or the bundle, lacks the wanted precision.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._bundle = bundle
        in_8_bits = options.precision == "int8"
        finds_ranges = in_8_bits and not (bundle.has_variant(CALIBRATED) and has_vnni())
        is_padded = not finds_ranges
        kept, kept_by_library = _KEPT_OF_FEW_LENGTHS if is_padded else _KEPT_OF_ANY_LENGTH
        os.environ.setdefault(_LIBRARY_KEEPS, str(kept_by_library))
        self._core = openvino.Core()
        usual = "bf16" if self._has_bf16() else "fp32"
        precision = options.precision or usual
        if precision == "bf16" and not self._has_bf16():
            raise ConfigError(
                "this processor does not compute in bfloat16: run with --precision fp32"
            )
        variants = WITH_RANGES if in_8_bits else (UNMASKED, MASKED)
        computes_in = usual if in_8_bits else precision
        if finds_ranges:
            variants, computes_in = (DEQUANTIZED, MASKED), "fp32"
        bundle.require_variant(variants[0])
        # A request gets all threads, or those asked for; as many requests as then fit on the
        # cores run at a time.
        streams = max(1, cores() // options.threads) if options.threads else 1
        self._settings: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": _COMPUTES_IN[computes_in],
            "NUM_STREAMS": streams,
            "CPU_RUNTIME_CACHE_CAPACITY": kept,
        }
        if finds_ranges:
            self._settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _RANGE_SIZE
        if options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads * streams
        self.padding = PADDING if is_padded else NO_PADDING
        self.call_tokens = MOST_TOKENS
        self.arrays: Arrays = HOST
        longest = bundle.manifest.max_length
        padded = (lambda n: min(one_of_few_lengths(n), longest)) if is_padded else None
        self.graph: OncePerKey[str, OpenVinoGraph] = OncePerKey(
            lambda name: OpenVinoGraph(
                bundle.manifest.graph(name), partial(self._open, name), variants, padded
            )
        )
        self.description: Mapping[str, str] = {
            "backend": "openvino",
            "version": openvino.__version__.partition("-")[0],
            "precision": precision,
            "threads": str(options.threads or "all"),
        }

    def _has_bf16(self) -> bool:
        return "BF16" in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")

    def _open(self, name: str, variant: str) -> openvino.CompiledModel:
        graph = self._bundle.manifest.graph(name)
        with self._bundle.reading_graph(name, variant) as path:
            try:
                model = self._core.read_model(path)
                compiled = self._core.compile_model(model, _DEVICE, self._settings)
                ports = [
                    [name for port in each for name in port.names]
                    for each in (compiled.inputs, compiled.outputs)
                ]
            except (RuntimeError, UnicodeDecodeError) as problem:  # a name in it may be no text
                raise BundleError(f"OpenVINO cannot load {path}: {_reason(problem)}") from problem
        require_signature(path, graph, *ports)
        return compiled


def one_of_few_lengths(length: int) -> int:
    """The length that rows are padded to, so that a graph meets few of them: eight a doubling.

    A graph prepares itself anew for a length that it does not remember, which takes longer than
    some more tokens do: for MiniLM about as long as 128 tokens in bfloat16.
    """
    step = max(_LEAST_STEP, 1 << max(0, (length - 1).bit_length() - 4))
    return ceil(length / step) * step


def _padded(inputs: Tensors, length: int) -> Tensors:
    """Rows [B, S, ...] with zeros up to a length."""
    return {
        name: np.pad(each, [(0, 0), (0, length - each.shape[1]), *[(0, 0)] * (each.ndim - 2)])
        for name, each in inputs.items()
    }


def _reason(problem: Exception) -> str:
    """The line of OpenVINO's message that says what was wrong, behind those that say where."""
    return printable((str(problem).strip() or type(problem).__name__).splitlines()[-1])


def open_backend(bundle: Bundle, options: BackendOptions) -> OpenVinoBackend:
    """Open ``bundle`` with OpenVINO."""
    return OpenVinoBackend(bundle, options)

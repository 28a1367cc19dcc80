"""Compares lower precisions with float32: a loss that is measured, reported and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnxruntime

from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.exporters.calibration import judging_rows
from trbert_deploy.exporters.checks.limits import ENGINE_LIMITS
from trbert_deploy.exporters.checks.parity import (
    ChainParity,
    GraphParity,
    compare_chains,
    compare_graphs,
)
from trbert_deploy.exporters.onnx.precision import rounded_graph
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import (
    PADDING_ON_GPUS,
    Backend,
    BackendOptions,
    Graph,
    Tensors,
    with_mask,
)
from trbert_deploy.runtime.backends.onnxruntime import OnnxGraph, OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import RowMaker, are_random, bundle_rows
from trbert_deploy.tasks.registry import task_of

#: Tokens of the rows that are compared: real texts where the bundle has samples.
_LENGTHS = (1, 16, 128, 512)
_ROWS_PER_GRAPH = 2
_ROWS_PER_LENGTH = 4
_ROWS_IN_EIGHT_BITS = 8

#: Precision -> what to do where it is too far from float32.
_ADVICE = {
    "fp16": "build with bf16 or fp32",
    "bf16": "build with fp32",
    "int8": "build with fp16, or with fp8 for GPUs that have it",
    "fp8": "build with fp16",
}


@dataclass(frozen=True)
class PrecisionParity:
    """How far a precision is from float32.

    Attributes:
        precision: fp16, bf16, int8 or fp8.
        graphs: every graph on its own, fed with float32 states.
        chain: all of them, and the dense model.
        random_rows: rows were of random tokens, for want of sample texts.
    """

    precision: str
    graphs: tuple[GraphParity, ...]
    chain: ChainParity
    random_rows: bool

    def to_json(self) -> dict[str, Any]:
        """What an engine set's manifest keeps, the chain's figures beside the others."""
        return {
            "precision": self.precision,
            "graphs": [graph.to_json() for graph in self.graphs],
            "random_rows": self.random_rows,
            **self.chain.to_json(),
        }


def compare_precision(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    precision: str,
    *,
    every_product: bool = False,
) -> PrecisionParity:
    """Run every graph and the whole chain in float32 and rounded to a lower precision.

    Both run on the CPU in ONNX Runtime, which has no kernels for bfloat16: half precision is
    computed as ``rounded_graph`` does. An engine differs from that by the order of its sums. What
    has ranges is compared on texts that these were not found on.

    Args:
        models: the bundle's graphs, with their weights loaded; for 8 bits, what
            ``eight_bit_models`` made of them.
        every_product: as ``half_graph`` takes it.

    Raises:
        ParityError: they differ by more than the precision's limits (``limits.py``).
    """
    return _compare(
        bundle,
        RoundedBackend(bundle, models, precision, every_product),
        precision,
        judging_rows(bundle, bundle.samples()) if precision in EIGHT_BITS else bundle_rows(bundle),
        are_random(bundle),
        _ADVICE[precision],
    )


def compare_halves(
    bundle: Bundle, rows_of: RowMaker, random_rows: bool
) -> dict[str, PrecisionParity]:
    """Compare a bundle's graphs in fp16 with its graphs in float32, in two ways.

    ``rounded``: as ``compare_precision`` does. ``written``: the variants as they are in the bundle,
    of which ONNX Runtime computes on the CPU in float32 what it has no other kernels for, with
    fewer roundings than a GPU.

    Args:
        rows_of: makes the rows that are compared.
        random_rows: whether they are of random tokens.

    Raises:
        ParityError: as ``compare_precision``.
    """
    graphs = bundle.manifest.graphs
    models = {graph.name: onnx.load(bundle.graph_path(graph.name)) for graph in graphs}
    given = ("fp16", rows_of, random_rows, "export without --fp16")
    rounded = _compare(bundle, RoundedBackend(bundle, models, "fp16"), *given)
    del models  # which may be large
    written = _compare(bundle, OnnxRuntimeBackend(bundle, BackendOptions(precision="fp16")), *given)
    return {"rounded": rounded, "written": written}


def _compare(
    bundle: Bundle,
    candidate: Backend,
    precision: str,
    rows_of: RowMaker,
    random_rows: bool,
    advice: str,
) -> PrecisionParity:
    """Hold a backend in a lower precision against float32, by the precision's limits."""
    manifest = bundle.manifest
    reference = OnnxRuntimeBackend(bundle, BackendOptions())
    limits = ENGINE_LIMITS[precision]
    rows_per_length = _ROWS_IN_EIGHT_BITS if precision in EIGHT_BITS else _ROWS_PER_LENGTH
    lengths = sorted({min(length, manifest.max_length) for length in _LENGTHS})
    graphs = tuple(
        compare_graphs(
            reference,
            candidate,
            manifest.encoder,
            manifest.reduction,
            rows_of,
            [(_ROWS_PER_GRAPH, length) for length in lengths],
            limits,
            reference_name="float32",
            advice=advice,
        )
    )
    task = task_of(manifest.encoder)
    ours, theirs = (
        Chain(
            backend,
            manifest.reduction,
            manifest.encoder.num_layers,
            task=task,
        )
        for backend in (reference, candidate)
    )
    chain = compare_chains(
        task,
        ours,
        theirs,
        [row for length in lengths for row in rows_of(length, rows_per_length)],
        limits,
        name=f"chain in {precision}",
        reference_name="float32",
        advice=advice,
    )
    return PrecisionParity(precision, graphs, chain, random_rows)


class RoundedBackend:
    """Runs a bundle's graphs as a lower precision would, in ONNX Runtime on the CPU.

    Args:
        models: as ``compare_precision`` takes them.
        precision: fp16, bf16, int8 or fp8.
        every_product: as ``half_graph`` takes it.
    """

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, onnx.ModelProto],
        precision: str,
        every_product: bool = False,
    ) -> None:
        self._bundle = bundle
        self._models = models
        self._precision = precision
        self._every_product = every_product
        self.graph = cache(self._open)
        self.padding = PADDING_ON_GPUS
        self.call_tokens = MOST_TOKENS
        self.arrays: Arrays = HOST
        self.description: Mapping[str, str] = {
            "backend": "onnxruntime",
            "precision": f"{precision}, emulated",
        }

    def _open(self, name: str) -> Graph:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Some CPUs' products of 8 bits overflow: they are computed in float32, as rounded.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        model = rounded_graph(
            self._models[name], self._precision, every_product=self._every_product
        )
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        graph = self._bundle.manifest.graph(name)
        return (MaskedGraph if graph.takes_mask else OnnxGraph)(graph, lambda masked: session)


class MaskedGraph(OnnxGraph):
    """A graph that is always given a mask."""

    def __call__(self, inputs: Tensors) -> Tensors:
        return super().__call__(with_mask(inputs))

"""Compares half precision with float32: a loss that is measured, reported and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.checks.parity import (
    GraphParity,
    compare_graphs,
    output_difference,
    row_maker,
)
from trbert_deploy.exporters.onnx.precision import rounded_graph
from trbert_deploy.runtime.backends.backend import (
    PADDING_ON_GPUS,
    BackendOptions,
    Graph,
    Tensors,
    with_mask,
)
from trbert_deploy.runtime.backends.onnxruntime import OnnxGraph, OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import survivor_agreement
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import mean_agreement

#: Largest relative difference allowed: about a hundred roundings. Beyond it something is
#: broken (an overflow, a layer that half precision cannot carry), not merely rounded.
HALF_TOLERANCES = {"fp16": 100 * 2.0**-11, "bf16": 100 * 2.0**-8}

#: Tokens of the rows that are compared: real texts where the bundle has samples.
_LENGTHS = (1, 16, 128, 512)
_ROWS_PER_LENGTH = 2


@dataclass(frozen=True)
class PrecisionParity:
    """How far half precision is from float32.

    Attributes:
        precision: fp16 or bf16.
        graphs: every graph on its own, fed with float32 states.
        rows: rows that ran through the whole chain, at several lengths.
        max_output_difference: of the chain, largest relative difference, rows whose survivors
            differ included.
        dense_output_difference: the same of the dense model, where no token can differ.
        survivor_agreement: share of tokens with the same fate at every cut of the chain.
        answer_agreement: how far the answers are the same, as the task says.
    """

    precision: str
    graphs: tuple[GraphParity, ...]
    rows: int
    max_output_difference: float
    dense_output_difference: float
    survivor_agreement: float
    answer_agreement: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_precision(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], precision: str
) -> PrecisionParity:
    """Run every graph and the whole chain in float32 and rounded to half precision.

    Both run on the CPU in ONNX Runtime, which has no kernels for bfloat16: half precision is
    computed as ``rounded_graph`` does. An engine differs from that by the order of its sums.

    Args:
        models: the bundle's graphs, with their weights loaded.

    Raises:
        ParityError: a difference is above ``HALF_TOLERANCES``, or a result is not finite.
    """
    manifest = bundle.manifest
    reference = OnnxRuntimeBackend(bundle, BackendOptions())
    candidate = RoundedBackend(bundle, models, precision)
    rows_of = row_maker(
        bundle.tokenizer_path, manifest.max_length, manifest.encoder.vocab_size, bundle.samples()
    )
    lengths = [length for length in _LENGTHS if length <= manifest.max_length]
    tolerance = HALF_TOLERANCES[precision]
    graphs = compare_graphs(
        reference,
        candidate,
        manifest.encoder,
        manifest.reduction,
        rows_of,
        [(_ROWS_PER_LENGTH, length) for length in lengths],
        tolerance,
        reference_name="float32",
    )
    rows = [row for length in lengths for row in rows_of(length, _ROWS_PER_LENGTH)]
    chains = [
        Chain(backend, manifest.reduction, manifest.encoder.num_layers)
        for backend in (reference, candidate)
    ]
    expected, received = (chain.run(rows) for chain in chains)
    dense_expected, dense_received = (chain.run_dense(rows) for chain in chains)
    pairs = list(zip(expected, received, strict=True))
    parity = PrecisionParity(
        precision=precision,
        graphs=tuple(graphs),
        rows=len(rows),
        max_output_difference=max(output_difference(a, b) for a, b in pairs),
        dense_output_difference=max(
            output_difference(a, b) for a, b in zip(dense_expected, dense_received, strict=True)
        ),
        survivor_agreement=survivor_agreement(rows, expected, received),
        answer_agreement=mean_agreement(
            task_of(manifest.encoder),
            [result.outputs for result in expected],
            [result.outputs for result in received],
        ),
    )
    if not np.isfinite(parity.max_output_difference):
        raise ParityError(f"chain in {precision}: outputs are not finite; build with bf16 or fp32")
    return parity


class RoundedBackend:
    """Runs a bundle's graphs as half precision would, in ONNX Runtime on the CPU.

    Args:
        models: the bundle's float32 graphs by name, with their weights loaded.
        precision: fp16 or bf16.
    """

    def __init__(
        self, bundle: Bundle, models: Mapping[str, onnx.ModelProto], precision: str
    ) -> None:
        self._bundle = bundle
        self._models = models
        self._precision = precision
        self.graph = cache(self._open)
        self.max_padding = PADDING_ON_GPUS
        self.description: Mapping[str, str] = {
            "backend": "onnxruntime",
            "precision": f"{precision}, emulated",
        }

    def _open(self, name: str) -> Graph:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = rounded_graph(self._models[name], self._precision)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return MaskedGraph(self._bundle.manifest.graph(name), lambda masked: session)


class MaskedGraph(OnnxGraph):
    """A graph that is always given a mask."""

    def __call__(self, inputs: Tensors) -> Tensors:
        return super().__call__(with_mask(inputs))

"""Graphs with 8-bit weights for ONNX Runtime on CPUs.

Dynamic quantization: weights of the encoder's linear layers are rounded to 8 bits, channel by
channel, when the bundle is made, and activations when they are computed, each tensor with its
own range. Attention, LayerNorm, policies and the head stay float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from trbert_deploy.bundle import HIDDEN_OUT
from trbert_deploy.exporters.forms import needed_for

#: What the library appends to the name of a Gemm (the head has two) when it makes it a MatMul.
_FROM_GEMM = "_MatMul"


def quantized(graph: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """A graph with 8-bit weights.

    Args:
        graph: the fused form, with its weights inside; not changed.
        path: a scratch file.
    """
    with _quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=list(_score_products(graph.graph)),
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    return onnx.load(path)


def _score_products(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the products that scores need and states do not: those of policies and head."""
    of_states = needed_for(graph, HIDDEN_OUT)
    for node in graph.node:
        if of_states.isdisjoint(node.output):
            yield from (node.name, node.name + _FROM_GEMM)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice to preprocess the graph, which was made for inference."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)

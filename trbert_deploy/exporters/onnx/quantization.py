"""Graphs with 8-bit weights for CPUs.

Dynamic quantization: weights of the encoder's linear layers are rounded to 8 bits, channel by
channel, when the bundle is made, and activations when they are computed. Attention, LayerNorm,
policies and the head stay float32.

int8         for ONNX Runtime, in its own operators; each activation tensor has one range
dequantized  for OpenVINO, in standard ONNX: the weights are turned back into float32 before the
             products, which it takes for what it is and computes in 8 bits, ranges as it likes
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from trbert_deploy.bundle.manifest import HIDDEN_OUT
from trbert_deploy.exporters.onnx.variants import needed_for, remove_unused

#: What the library appends to the name of a Gemm (the head has two) when it makes it a MatMul.
_FROM_GEMM = "_MatMul"
#: What it appends to the name of a weight for the parts that it makes of it.
_WEIGHT, _SCALE = "_quantized", "_scale"


def quantized(graph: onnx.ModelProto, path: str) -> onnx.ModelProto:
    """A graph with 8-bit weights.

    Args:
        graph: the fused variant, with its weights inside; not changed.
        path: a scratch file.
    """
    with _quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[*_score_products(graph.graph), *constant_products(graph.graph)],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    return onnx.load(path)


def dequantized(unmasked: onnx.ModelProto, rounded: onnx.ModelProto) -> onnx.ModelProto:
    """The unmasked variant with the 8-bit weights of ``quantized``.

    Args:
        unmasked: not changed.
        rounded: what ``quantized`` made of the same graph's fused variant.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(unmasked)
    stored = {initializer.name: initializer for initializer in rounded.graph.initializer}
    nodes: dict[str, onnx.NodeProto] = {}
    constant = set(constant_products(graph.graph))
    for node in graph.graph.node:
        if node.op_type != "MatMul" or node.input[1] + _WEIGHT not in stored:
            continue
        if node.name in constant:
            continue
        weight = node.input[1]
        node.input[1] = f"{weight}.dequantized"
        parts = [weight + _WEIGHT, weight + _SCALE]  # symmetric: the zero point is 0
        if weight not in nodes:
            nodes[weight] = helper.make_node(
                "DequantizeLinear", parts, [node.input[1]], axis=1, name=node.input[1]
            )
            graph.graph.initializer.extend(stored[part] for part in parts)
    behind = [*nodes.values(), *graph.graph.node]  # initializers alone come before them
    del graph.graph.node[:]
    graph.graph.node.extend(behind)
    remove_unused(graph.graph)
    return graph


def _score_products(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the products that scores need and states do not: those of policies and head."""
    of_states = needed_for(graph, HIDDEN_OUT)
    for node in graph.node:
        if of_states.isdisjoint(node.output):
            yield from (node.name, node.name + _FROM_GEMM)


def constant_products(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the products of weights alone: runtimes compute them once, when they load a graph.

    In 8 bits they would be no faster, and less exact.
    """
    constants = {initializer.name for initializer in graph.initializer}
    for node in graph.node:  # in topological order
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
            yield node.name


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

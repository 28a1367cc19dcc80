"""The variants of a graph: one arithmetic, written as each runtime runs it best.

masked    standard ONNX with a padding mask: runs anywhere, on batches of any rows
unmasked  standard ONNX for rows of one length, without a mask to read
fused     the same with ONNX Runtime's own attention operator, whose CPU kernel never writes
          the whole matrix of attention weights to memory (it takes no mask)

The exporter traces the masked variant; the others are rewritten from it and name the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trbert_deploy.bundle.manifest import ATTENTION_MASK, FUSED, MASKED, UNMASKED
from trbert_deploy.errors import ParityError

_ORT_DOMAIN = "com.microsoft"
#: The shape that joins heads: [B, S, N, D] -> [B, S, H].
_JOIN = "joined.shape"


def write_variants(
    masked: onnx.ModelProto, num_heads: int
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """All variants of a traced graph: (variant, graph) each.

    Args:
        masked: the graph as it was traced; not changed.
        num_heads: attention heads of the encoder.

    Raises:
        ParityError: the exporter wrote attention in another way than expected.
    """
    yield MASKED, masked
    yield UNMASKED, _rewritten(masked, _remove_mask)
    yield FUSED, fused_variant(masked, num_heads)


def fused_variant(masked: onnx.ModelProto, num_heads: int) -> onnx.ModelProto:
    """The fused variant alone, of a graph with its weights inside or without."""

    def fuse(graph: onnx.GraphProto) -> None:
        _remove_mask(graph)
        _fuse_attention(graph, num_heads)

    fused = _rewritten(masked, fuse)
    fused.opset_import.append(helper.make_opsetid(_ORT_DOMAIN, 1))
    return fused


def _rewritten(
    model: onnx.ModelProto, rewrite: Callable[[onnx.GraphProto], None]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewrite(copy.graph)
    remove_unused(copy.graph)
    return copy


def _remove_mask(graph: onnx.GraphProto) -> None:
    """Let attention see every token, and whatever else asks the mask see no padding."""
    masks = _made_of_mask(graph)
    instead: dict[str, str] = {}  # tensor -> what it is where nothing is padded
    for node in graph.node:
        if node.op_type == "Attention" and len(node.input) > 3 and node.input[3] in masks:
            del node.input[3:]
        elif node.op_type == "Where" and node.input[0] in masks:
            instead[node.output[0]] = node.input[1]
        elif node.op_type == "And" and masks.intersection(node.input):
            (instead[node.output[0]],) = set(node.input) - masks
        elif node.op_type == "Or" and instead.keys() & set(node.input):
            # A padded token sees itself, whoever is near it; here none is padded.
            (seen,) = instead.keys() & set(node.input)
            instead[node.output[0]] = instead[seen]
    for node in graph.node:
        for place, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[place] = name
    _fill_mask(graph)
    for value in [value for value in graph.input if value.name == ATTENTION_MASK]:
        graph.input.remove(value)


#: What changes the shape of a mask, and not what it says.
_SHAPING = {"Unsqueeze", "Expand", "Reshape", "Identity"}


def _made_of_mask(graph: onnx.GraphProto) -> set[str]:
    """The padding mask in all its shapes."""
    masks = {ATTENTION_MASK}
    for node in graph.node:
        if node.op_type in _SHAPING and node.input[0] in masks:
            masks.update(node.output)
    return masks


def _fill_mask(graph: onnx.GraphProto) -> None:
    """Put a mask that is all True in the place of the input, for what still reads it."""
    first = graph.input[0].name  # begins with [B, S] like the mask
    shape, true, name = "unmasked.shape", "unmasked.true", "unmasked.mask"
    readers = 0
    for node in graph.node:
        for place, tensor in enumerate(node.input):
            if tensor == ATTENTION_MASK:
                asks_shape = node.op_type == "Shape"
                node.input[place] = first if asks_shape else name
                readers += not asks_shape
    if readers:
        graph.initializer.append(numpy_helper.from_array(np.array(True), true))
        made = [
            helper.make_node("Shape", [first], [shape], start=0, end=2),
            helper.make_node("Expand", [true, shape], [name]),
        ]
        behind = [*made, *graph.node]
        del graph.node[:]
        graph.node.extend(behind)


def _fuse_attention(graph: onnx.GraphProto, num_heads: int) -> None:
    """Attention with its changes of layout before and behind it -> MultiHeadAttention.

    Attention with a bias stays: the fast kernel takes none.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = {name: node for node in graph.node for name in node.input}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
    }
    nodes: list[onnx.NodeProto] = []

    def before(name: str) -> str:
        """[B, S, H], which Reshape and Transpose bring to [B, N, S, D]."""
        split = _expect("Transpose", made_by.get(name)).input[0]
        maker = made_by.get(split)
        if maker is not None and maker.op_type == "Reshape" and ranks.get(maker.input[0]) == 3:
            return str(maker.input[0])
        joined = f"{split}.joined"
        if joined not in made_by:
            made_by[joined] = helper.make_node("Reshape", [split, _JOIN], [joined])
            nodes.append(made_by[joined])
        return joined

    for node in graph.node:
        if node.op_type != "Attention" or len(node.input) > 3:
            nodes.append(node)
            continue
        transpose = _expect("Transpose", used_by.get(node.output[0]))
        behind = _expect("Reshape", used_by.get(transpose.output[0]))
        fused = helper.make_node(
            "MultiHeadAttention",
            [before(name) for name in node.input],
            [behind.output[0]],
            domain=_ORT_DOMAIN,
            num_heads=num_heads,
        )
        behind.output[0] += ".unused"
        nodes.append(fused)
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), _JOIN))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _expect(operator: str, node: onnx.NodeProto | None) -> onnx.NodeProto:
    if node is None or node.op_type != operator:
        found = "nothing" if node is None else node.op_type
        raise ParityError(
            f"attention was exported with {found} beside it, expected {operator}: "
            "this release of torch or onnxscript is not supported"
        )
    return node


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output needs; inputs are what the manifest lists."""
    needed = set[str]().union(*(needed_for(graph, value.name) for value in graph.output))
    for entries in (graph.initializer, graph.value_info):
        for entry in [entry for entry in entries if entry.name not in needed]:
            entries.remove(entry)
    for node in [node for node in graph.node if not needed.intersection(node.output)]:
        graph.node.remove(node)


def needed_for(graph: onnx.GraphProto, output: str) -> set[str]:
    """Every tensor that an output is computed from, itself included."""
    needed = {output}
    for node in reversed(graph.node):  # in topological order
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed

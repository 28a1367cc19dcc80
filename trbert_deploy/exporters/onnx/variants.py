"""The variants of a graph: one arithmetic, written as each runtime runs it best.

masked    standard ONNX with a padding mask: runs anywhere, on batches of any rows
unmasked  standard ONNX for rows of one length, without a mask to read
fused     the same with ONNX Runtime's own attention operator, whose CPU kernel never writes
          the whole matrix of attention weights to memory (it takes no mask)

The exporter traces the masked variant; the others are rewritten from it and name the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import helper

from trbert_deploy.bundle.manifest import ATTENTION_MASK, FUSED, MASKED, UNMASKED
from trbert_deploy.errors import ParityError

_ORT_DOMAIN = "com.microsoft"


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
    """Let attention see every token, and nothing else ask the mask for its shape."""
    (other,) = (value.name for value in graph.input[:1])  # begins with [B, S] like the mask
    for node in graph.node:
        if node.op_type == "Attention":
            del node.input[3:]
        elif node.op_type == "Shape" and node.input[0] == ATTENTION_MASK:
            node.input[0] = other


def _fuse_attention(graph: onnx.GraphProto, num_heads: int) -> None:
    """Attention with its changes of layout before and behind it -> MultiHeadAttention."""
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = {name: node for node in graph.node for name in node.input}

    def before(name: str) -> str:
        """[B, S, H], which Reshape and Transpose bring to [B, N, S, D]."""
        transpose = _expect("Transpose", made_by.get(name))
        return str(_expect("Reshape", made_by.get(transpose.input[0])).input[0])

    for place, node in enumerate(graph.node):
        if node.op_type != "Attention":
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
        graph.node[place].CopyFrom(fused)


def _expect(operator: str, node: onnx.NodeProto | None) -> onnx.NodeProto:
    if node is None or node.op_type != operator:
        found = "nothing" if node is None else node.op_type
        raise ParityError(
            f"attention was exported with {found} beside it, expected {operator}: "
            "this release of torch or onnxscript is not supported"
        )
    return node


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, initializers and inputs that no output needs."""
    needed = set[str]().union(*(needed_for(graph, value.name) for value in graph.output))
    for entries in (graph.input, graph.initializer, graph.value_info):
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

"""Parts of a graph as graphs of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from trbert_deploy.errors import ParityError


def part_of(
    whole: onnx.ModelProto, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> onnx.ModelProto:
    """What a graph computes between some of its tensors.

    Batch and length, which it may ask of any input of its own, are asked of the first of
    ``inputs``.

    Args:
        whole: not changed.
        name: of the part.
        inputs: tensor -> what the part calls it, in the part's order: [B, S, ...].
        outputs: likewise.

    Raises:
        ParityError: the outputs cannot be computed from the inputs alone.
    """
    graph = whole.graph
    described = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    foreign = {value.name for value in graph.input} - inputs.keys()
    sized = _sizes_of(graph.node, foreign)
    needed = set(outputs)
    taken = list[onnx.NodeProto]()
    for node in reversed(graph.node):  # in topological order
        if (needed - inputs.keys()).intersection(node.output):
            taken.append(node)
            needed.update(() if node.output[0] in sized else node.input)
    if missing := sorted(needed & foreign):
        raise ParityError(
            f"graph {name} was traced to read {', '.join(missing)}: expected {', '.join(inputs)} "
            "alone; this release of torch or onnxscript is not supported"
        )
    part = onnx.ModelProto()
    for field, value in whole.ListFields():
        if field.name == "opset_import":
            part.opset_import.extend(value)
        elif field.name != "graph":
            setattr(part, field.name, value)
    part.graph.name = name
    renamed = {**inputs, **outputs}
    first = next(iter(inputs.values()))
    for node in reversed(taken):
        copy = part.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(each, each) for each in node.input]
        copy.output[:] = [renamed.get(each, each) for each in node.output]
        if node.output[0] in sized:
            copy.input[0] = first
    part.graph.initializer.extend(each for each in graph.initializer if each.name in needed)
    computed = needed - inputs.keys() - outputs.keys()
    part.graph.value_info.extend(each for each in described.values() if each.name in computed)
    for names, values in ((inputs, part.graph.input), (outputs, part.graph.output)):
        for tensor, called in names.items():
            value = values.add()
            value.CopyFrom(described[tensor])
            value.name = called
    return part


def _sizes_of(nodes: Iterable[onnx.NodeProto], tensors: set[str]) -> set[str]:
    """What nodes give that ask no more than batch or length of one of these tensors."""
    return {
        node.output[0]
        for node in nodes
        if node.op_type == "Shape"
        and node.input[0] in tensors
        and any(each.name == "end" and each.i <= 2 for each in node.attribute)
    }


def needed_for(nodes: Sequence[onnx.NodeProto], names: Iterable[str]) -> set[int]:
    """Indices of the nodes, in topological order, that the tensors ``names`` are computed by."""
    wanted, found = set(names), set[int]()
    for index in range(len(nodes) - 1, -1, -1):
        if wanted.intersection(nodes[index].output):
            found.add(index)
            wanted.update(nodes[index].input)
    return found

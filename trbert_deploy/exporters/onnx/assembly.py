"""Puts graphs together to a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

from trbert_deploy.exporters.onnx.parts import needed_for


class Assembly:
    """A graph that grows node by node, and by whole graphs.

    Args:
        parts: the graphs that it may take in, by name; their weights may lie outside.
    """

    def __init__(self, parts: Mapping[str, onnx.ModelProto]) -> None:
        self._parts = parts
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def node(self, operator: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Append a node with one output, and say what that is called.

        Args:
            name: of the output; by default one that nothing else has.
        """
        (output,) = self.nodes(operator, inputs, (name,), **attributes)
        return output

    def nodes(
        self, operator: str, inputs: Sequence[str], names: Sequence[str], **attributes: Any
    ) -> list[str]:
        """As ``node``, of one with several outputs."""
        number = len(self._nodes)
        outputs = [name or f"{operator}.{number}.{place}" for place, name in enumerate(names)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def constant(self, value: ArrayLike, dtype: Any = np.int64) -> str:
        """A constant, which stands in the graph once."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = f"constant.{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def inputs_of(self, part: str) -> list[str]:
        """Names of a part's inputs."""
        return [value.name for value in self._parts[part].graph.input]

    def part(self, name: str, tensors: Mapping[str, str]) -> dict[str, str]:
        """Append the graph called ``name``.

        Args:
            tensors: what its inputs are called here; it may have more than it takes.

        Returns:
            What its outputs are called here.
        """
        graph = self._parts[name].graph
        renamed = {value.name: tensors[value.name] for value in graph.input} | {"": ""}

        def here(tensor: str) -> str:
            return renamed.get(tensor, f"{name}.{tensor}")

        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{name}.{node.name}" if node.name else ""
            copy.input[:] = map(here, node.input)
            copy.output[:] = map(here, node.output)
            self._nodes.append(copy)
        for weight in graph.initializer:
            copied = onnx.TensorProto()
            copied.CopyFrom(weight)
            copied.name = here(weight.name)
            self._initializers.append(copied)
        return {value.name: here(value.name) for value in graph.output}

    def model(
        self,
        name: str,
        inputs: Iterable[onnx.ValueInfoProto],
        outputs: Iterable[onnx.ValueInfoProto],
        functions: Sequence[onnx.FunctionProto],
    ) -> onnx.ModelProto:
        """What its outputs need, with the functions that nodes call put in their places."""
        outputs = list(outputs)
        needed = needed_for(self._nodes, [value.name for value in outputs])
        nodes = [self._nodes[index] for index in sorted(needed)]
        read = {tensor for node in nodes for tensor in node.input}
        weights = [each for each in self._initializers if each.name in read]
        graph = helper.make_graph(nodes, name, list(inputs), outputs, weights)
        opsets = {
            opset.domain: opset.version
            for part in self._parts.values()
            for opset in part.opset_import
        } | {function.domain: 1 for function in functions}
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*each) for each in opsets.items()],
            functions=functions,
            ir_version=max(part.ir_version for part in self._parts.values()),
        )
        inlined = onnx.inliner.inline_local_functions(model)
        domains = {node.domain for node in inlined.graph.node}
        for opset in [each for each in inlined.opset_import if each.domain not in domains | {""}]:
            inlined.opset_import.remove(opset)
        return inlined

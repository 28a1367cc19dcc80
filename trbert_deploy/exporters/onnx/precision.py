"""Half precision in the graph itself, for runtimes that take every tensor's type at its word.

ONNX Runtime, TensorRT 11 and TensorRT for RTX know no "allow half precision" flag: they compute in
the types that the graph has. So the graph is rewritten: matrix products, attention and activations
in the half type; residual sums, LayerNorm, the policy and the head in float32; casts between. The
libraries that do this know float16 alone (onnxruntime.transformers.float16) or clamp silently
(onnxconverter-common); one pass serves float16 and bfloat16 alike.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trbert_deploy.bundle.manifest import HIDDEN, HIDDEN_OUT
from trbert_deploy.errors import EngineError
from trbert_deploy.exporters.onnx.parts import needed_for

#: Precision -> the element type of its half tensors; float32 has none. Where products are of 8 bits
#: (``static_quantization.py``), what lies between them is half.
HALF_TYPES = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT16,
    "fp8": TensorProto.FLOAT16,
}

#: Operators that stay in float32: a LayerNorm overflows or loses its small variances in
#: half precision, and the others carry a type in an attribute of their own.
_FLOAT32_OPERATORS = frozenset(
    {"LayerNormalization", "Softmax", "Cast", "Constant", "ConstantOfShape", "RandomNormal"}
)


#: What multiplies matrices.
_PRODUCTS = frozenset({"MatMul", "Gemm"})


def half_graph(
    model: onnx.ModelProto, precision: str, *, every_product: bool = False
) -> onnx.ModelProto:
    """Rewrite a bundle's float32 graph in half precision.

    Inputs and outputs keep their types: the hidden state crosses segments in float32, which
    is what LayerNorm makes of it anyway, and which numpy (without bfloat16) can compact.

    Args:
        model: a graph of a bundle, with its weights loaded; for 8 bits, what ``static_graph`` made
            of it.
        precision: ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        every_product: halve the matrix products of the policy and the head, too, for GPUs that
            multiply matrices in half precision alone.

    Returns:
        A new model; its weights are inside, in half the bytes.

    Raises:
        EngineError: a weight does not fit into the half type, or a tensor's type is unknown.
    """
    return _Rewriter(model.graph, HALF_TYPES[precision], every_product=every_product).run(model)


def rounded_graph(
    model: onnx.ModelProto, precision: str, *, every_product: bool = False
) -> onnx.ModelProto:
    """The graph of ``half_graph`` for a runtime without half-precision kernels.

    It computes in float32 and rounds every weight and every result that ``half_graph`` has in
    the half type: the numbers of a GPU that accumulates in float32 and stores in half.
    ONNX Runtime runs no bfloat16 on the CPU, and removes roundings of float16 between nodes.

    Args, Raises: as ``half_graph``.
    """
    rewriter = _Rewriter(
        model.graph, HALF_TYPES[precision], rounds=True, every_product=every_product
    )
    return rewriter.run(model)


def score_nodes(graph: onnx.GraphProto) -> set[int]:
    """Indices of the nodes behind ``hidden_out``: the policy, or the head.

    They are what the graph's other outputs (keep_logit or logits) need and ``hidden_out``
    does not.
    """
    others = [output.name for output in graph.output if output.name != HIDDEN_OUT]
    return needed_for(graph.node, others) - needed_for(graph.node, [HIDDEN_OUT])


def residual_sums(graph: onnx.GraphProto) -> set[int]:
    """Indices of the additions that a LayerNorm reads, or that leave the graph.

    They are the residual stream, where half precision overflows or loses most; in float32, as
    torch's autocast has them, the difference of a graph is two to four times smaller. Where layers
    normalize what comes in (pre-norm), the next addition reads them, too.
    """
    outputs = {output.name for output in graph.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {
        index
        for index, node in enumerate(graph.node)
        if node.op_type == "Add"
        and ("LayerNormalization" in readers.get(node.output[0], ()) or node.output[0] in outputs)
    }


def position_nodes(graph: onnx.GraphProto) -> set[int]:
    """Indices of the nodes that know of positions alone, not of weights or states.

    Angles and bucket numbers of positions in the hundreds have no digits left in half precision.
    """
    tables = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    states = {HIDDEN, *tables}
    found = set()
    for index, node in enumerate(graph.node):  # in topological order
        if states.intersection(node.input):
            states.update(node.output)
        else:
            found.add(index)
    return found


class _Rewriter:
    """One pass over a graph; every float tensor gets a copy in each type somebody needs.

    Args:
        graph: what to rewrite.
        half: the half type.
        rounds: keep tensors of the half type in float32, rounded.
        every_product: as ``half_graph`` takes it.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        half: int,
        rounds: bool = False,
        every_product: bool = False,
    ) -> None:
        self._graph = graph
        self._half = half
        self._rounds = rounds
        self._every_product = every_product
        self._types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._types |= {name: tensor.data_type for name, tensor in self._weights.items()}
        #: (tensor of the original graph, element type) -> its name in the new one.
        self._names: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._described = {value.name: value for value in graph.value_info}
        self._descriptions: list[onnx.ValueInfoProto] = []

    def run(self, model: onnx.ModelProto) -> onnx.ModelProto:
        float32 = (
            score_nodes(self._graph) | residual_sums(self._graph) | position_nodes(self._graph)
        )
        for value in self._graph.input:
            self._names[value.name, self._types[value.name]] = value.name
        for index, node in enumerate(self._graph.node):
            whole = index in float32 or node.op_type in _FLOAT32_OPERATORS
            if self._every_product and node.op_type in _PRODUCTS:
                whole = False
            self._rewrite(node, TensorProto.FLOAT if whole else self._half)
        for output in self._graph.output:
            self._as(output.name, self._types[output.name])
        graph = helper.make_graph(
            self._nodes,
            self._graph.name,
            list(self._graph.input),
            list(self._graph.output),
            self._initializers,
            value_info=self._descriptions,
        )
        rewritten = helper.make_model(
            graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
        )
        rewritten.producer_name = model.producer_name
        return rewritten

    def _rewrite(self, node: onnx.NodeProto, wanted: int) -> None:
        """Append a node that works in type ``wanted`` where the original works in float32."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(self._as(name, self._target(name, wanted)) for name in node.input)
        self._nodes.append(copy)
        for name in node.output:
            target = self._target(name, wanted)
            made = self._names[name, target] = self._name_in(name, target)
            if name in self._described:
                self._describe(name, made, target)
            if self._rounds and target == self._half:
                copy.output.append(f"{made}.exact")
                self._cast(f"{made}.exact", made, target)
            else:
                copy.output.append(made)

    def _describe(self, name: str, made: str, target: int) -> None:
        """Say of what a node makes that it has the shape of the original."""
        value = onnx.ValueInfoProto()
        value.CopyFrom(self._described[name])
        value.name = made
        keeps_float32 = self._rounds and target == self._half
        value.type.tensor_type.elem_type = TensorProto.FLOAT if keeps_float32 else target
        self._descriptions.append(value)

    def _target(self, name: str, wanted: int) -> int:
        """The type in which a node that works in ``wanted`` reads or writes a tensor."""
        if not name:  # an optional input or output that is not there
            return int(TensorProto.UNDEFINED)
        if name not in self._types:
            raise EngineError(
                f"graph {self._graph.name}: tensor {name} has no type; export the checkpoint again"
            )
        kind: int = self._types[name]
        return wanted if kind == TensorProto.FLOAT else kind

    def _name_in(self, name: str, target: int) -> str:
        """A tensor keeps its name in its original type, so that inputs and outputs keep theirs."""
        return name if not name or target == self._types[name] else f"{name}.half"

    def _as(self, name: str, target: int) -> str:
        """The name under which a tensor stands in type ``target``, made where it is not yet."""
        if not name:
            return name
        if (name, target) not in self._names:
            made = self._name_in(name, target)
            if name in self._weights:
                self._initializers.append(self._weight(name, made, target))
            else:
                (source,) = (other for known, other in self._names if known == name)
                self._cast(self._names[name, source], made, target)
            self._names[name, target] = made
        return self._names[name, target]

    def _cast(self, source: str, made: str, target: int) -> None:
        if self._rounds and target == self._half:
            self._nodes.append(helper.make_node("Cast", [source], [f"{made}.bits"], to=target))
            source, target = f"{made}.bits", TensorProto.FLOAT
        self._nodes.append(helper.make_node("Cast", [source], [made], to=target))

    def _weight(self, name: str, made: str, target: int) -> TensorProto:
        if target == self._types[name]:
            return self._weights[name]
        array = numpy_helper.to_array(self._weights[name])
        with np.errstate(over="ignore"):  # told below, with the name of the weight
            half = array.astype(helper.tensor_dtype_to_np_dtype(target))
        infinite = ~np.isfinite(half.astype(np.float32))
        if (infinite & np.isfinite(array)).any():  # what a mask leaves out is -inf in any type
            raise EngineError(
                f"weight {name} reaches {np.abs(array).max():.3g}, too large for "
                f"{half.dtype}; build with bf16 or fp32, or export without --fp16"
            )
        return numpy_helper.from_array(half.astype(np.float32) if self._rounds else half, made)

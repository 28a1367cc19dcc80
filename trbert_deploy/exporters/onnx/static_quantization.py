"""Eight bits in the graph itself: QuantizeLinear and DequantizeLinear at matrix products.

For runtimes that take every tensor's type at its word (TensorRT 11, TensorRT for RTX): both inputs
of a product are rounded to 8 bits and turned back, and a runtime that sees this multiplies in 8
bits. Weights have one range for each channel, activations one for each tensor, found on texts
before (``exporters/calibration.py``). Attention, residual sums, LayerNorm, policies and the head
are what ``precision.py`` makes of them.

A few channels of a state are ten times as large as the others, which would have some values of int8
left. So there channels are divided by numbers that their weights are multiplied with (SmoothQuant,
arXiv 2211.10438). The values of fp8 lie closer to one another the smaller they are: it needs none
of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trbert_deploy.exporters.onnx.precision import position_nodes, score_nodes
from trbert_deploy.exporters.onnx.quantization import constant_products
from trbert_deploy.exporters.onnx.variants import remove_unused


@dataclass(frozen=True)
class EightBits:
    """A type of 8 bits, and how it is used.

    Attributes:
        element: as ONNX calls it.
        largest: its largest value, of either sign.
        smoothing: how much of the differences between an activation's channels goes into the
            weights, 0 to 1; None to leave them where they are.
    """

    element: int
    largest: float
    smoothing: float | None

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """The nearest values of the type; what is beyond the largest one becomes that."""
        held = np.clip(values, -self.largest, self.largest)
        if self.element == TensorProto.INT8:
            held = np.rint(held)
        return held.astype(helper.tensor_dtype_to_np_dtype(self.element))


#: Precision -> its type. Of 0.3 to 1.0 this smoothing leaves MiniLM's embeddings least changed.
EIGHT_BITS = {
    "int8": EightBits(TensorProto.INT8, 127.0, 0.8),
    "fp8": EightBits(TensorProto.FLOAT8E4M3FN, 448.0, None),
}

#: Of a step between two values, which is stored in half precision: the last with all its digits.
_LEAST_SCALE = np.float32(np.finfo(np.float16).smallest_normal)
#: Of the largest channel: what one that was never larger on a few texts may be on others.
_LEAST_CHANNEL = np.float32(0.01)


def product_inputs(graph: onnx.GraphProto) -> list[str]:
    """Names of what is multiplied with weights in the encoder: each once, in order."""
    return list(_products(graph))


def product_weights(graph: onnx.GraphProto) -> set[str]:
    """Names of the weights that become 8 bits; they need not be loaded."""
    return {node.input[1] for products in _products(graph).values() for node in products}


def static_graph(
    model: onnx.ModelProto, precision: str, largest: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """A bundle's float32 graph whose products with weights take inputs of 8 bits.

    It is still float32 around them: ``half_graph`` and ``rounded_graph`` take it as they take the
    original.

    Args:
        model: a graph of a bundle, with its weights loaded; not changed.
        precision: ``int8`` or ``fp8``.
        largest: of every tensor in ``product_inputs`` the largest absolute value of each channel,
            [H]; what is larger is taken for as large.

    Returns:
        A new model; the products' weights are inside, in a quarter of the bytes.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made.graph, EIGHT_BITS[precision])
    before = {
        products[0].output[0]: writer.round(activation, products, largest[activation])
        for activation, products in _products(made.graph).items()
    }
    nodes = [each for node in made.graph.node for each in (*before.get(node.output[0], ()), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(copies)
    remove_unused(made.graph)
    return made


def _products(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """What is multiplied with weights -> these products; policies and head are left out."""
    weights = {tensor.name for tensor in graph.initializer}
    others = score_nodes(graph) | position_nodes(graph)
    constant = {*constant_products(graph)}
    found: dict[str, list[onnx.NodeProto]] = {}
    for index, node in enumerate(graph.node):
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        if index not in others and node.name not in constant:
            found.setdefault(node.input[0], []).append(node)
    return found


class _Writer:
    """Adds to a graph what rounds the inputs of its products."""

    def __init__(self, graph: onnx.GraphProto, bits: EightBits) -> None:
        self._graph = graph
        self._bits = bits
        self._weights = {tensor.name: tensor for tensor in graph.initializer}

    def round(
        self,
        activation: str,
        products: Sequence[onnx.NodeProto],
        largest: NDArray[np.float32],
    ) -> list[onnx.NodeProto]:
        """Let products read the rounded values of an activation and of their weights.

        Args:
            activation: its name.
            products: all that read it; changed.
            largest: of each channel of the activation, [H].

        Returns:
            What is to stand before the first of them.
        """
        weights = [numpy_helper.to_array(self._weights[node.input[1]]) for node in products]
        nodes = []
        source, divisors = activation, np.ones_like(largest)
        if self._bits.smoothing is not None:
            divisors = _divisors(largest, weights, self._bits.smoothing)
            source = f"{activation}.smooth"
            self._add(f"{activation}.factors", 1 / divisors)
            nodes.append(helper.make_node("Mul", [activation, f"{activation}.factors"], [source]))
            self._declare(source, TensorProto.FLOAT)
        name = f"{activation}.8"
        parts = self._scaled(name, self._scales((largest / divisors).max()))
        nodes.append(helper.make_node("QuantizeLinear", [source, *parts[1:]], [parts[0]]))
        nodes.append(self._restored(name, parts))
        for product, values in zip(products, weights, strict=True):
            # Named after the product, too: another activation may be smoothed otherwise.
            weight = f"{product.output[0]}.weight.8"
            smooth = values * divisors[:, None]
            scales = self._scales(np.abs(smooth).max(axis=0))
            parts = self._scaled(weight, scales)
            self._add(parts[0], self._bits.rounded(smooth / scales))
            nodes.append(self._restored(weight, parts, axis=1))
            product.input[:] = [name, weight]
        return nodes

    def _scales(self, largest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Steps between values, as half precision holds them, of tensors or channels so large."""
        scales = np.maximum(largest / np.float32(self._bits.largest), _LEAST_SCALE)
        return np.asarray(scales, np.float16).astype(np.float32)

    def _scaled(self, name: str, scales: NDArray[np.float32]) -> list[str]:
        """Add the scales of a tensor, and zeros to their sides.

        Returns:
            What its 8 bits, its scales and its zeros are called.
        """
        parts = [f"{name}.{part}" for part in ("bits", "scale", "zero")]
        self._add(parts[1], scales)
        self._add(parts[2], self._bits.rounded(np.zeros_like(scales)))
        self._declare(parts[0], self._bits.element)
        return parts

    def _restored(self, name: str, parts: Sequence[str], **attributes: int) -> onnx.NodeProto:
        self._declare(name, TensorProto.FLOAT)
        return helper.make_node("DequantizeLinear", parts, [name], **attributes)

    def _add(self, name: str, values: NDArray[np.generic]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(values, name))

    def _declare(self, name: str, element: int) -> None:
        self._graph.value_info.append(helper.make_tensor_value_info(name, element, None))


def _divisors(
    largest: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], smoothing: float
) -> NDArray[np.float32]:
    """What each channel of an activation is divided by, [H], so that channels differ less.

    Powers of two, which are divided by without a rounding.

    Args:
        largest: of each channel, [H].
        weights: of the products that read it, [H, ...] each.
    """
    of_weights = np.max([np.abs(each).max(axis=1) for each in weights], axis=0)
    exact = smoothing * np.log2(_sizes(largest)) - (1 - smoothing) * np.log2(_sizes(of_weights))
    return np.exp2(np.rint(exact)).astype(np.float32)


def _sizes(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sizes of channels, none of them nothing beside the others."""
    return np.maximum(largest, _LEAST_CHANNEL * largest.max() or np.float32(1))

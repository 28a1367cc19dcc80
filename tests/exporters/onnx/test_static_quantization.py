"""Eight bits in the graph itself: what is rounded, how, and that nothing else is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE, segment_name
from trbert_deploy.exporters.onnx.precision import half_graph, rounded_graph
from trbert_deploy.exporters.onnx.static_quantization import (
    EIGHT_BITS,
    product_inputs,
    product_weights,
    static_graph,
)

GRAPHS = (segment_name(0), segment_name(1), segment_name(2), DENSE)


@pytest.fixture(scope="module")
def models(tiny_bundle: Path) -> dict[str, onnx.ModelProto]:
    bundle = Bundle.open(tiny_bundle)
    return {name: onnx.load(bundle.graph_path(name)) for name in GRAPHS}


def some_sizes(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A range for every channel of every activation, whatever it would be on texts."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    widths = {
        node.input[0]: weights[node.input[1]].dims[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }
    rng = np.random.default_rng(0)
    return {
        name: rng.uniform(0.5, 4, widths[name]).astype(np.float32)
        for name in product_inputs(model.graph)
    }


def product(weights: list[np.ndarray]) -> onnx.ModelProto:
    """A model in which x [2, H] is multiplied with each of the weights."""
    names = [f"weight_{place}" for place in range(len(weights))]
    together = helper.make_node("Concat", [f"y_{name}" for name in names], ["hidden_out"], axis=1)
    graph = helper.make_graph(
        [
            *(
                helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=f"times_{name}")
                for name in names
            ),
            together,
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, len(weights[0])])],
        [helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weight.astype(np.float32), name)
            for name, weight in zip(names, weights, strict=True)
        ],
        value_info=[
            helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, None) for name in names
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", EIGHT_BITS)
@pytest.mark.parametrize("name", GRAPHS)
def test_graph_is_valid_and_halved_as_any_other(
    models: dict[str, onnx.ModelProto], name: str, precision: str
) -> None:
    model = models[name]
    before = model.SerializeToString()
    made = static_graph(model, precision, some_sizes(model))
    assert model.SerializeToString() == before
    for graph in (made, half_graph(made, precision), rounded_graph(made, precision)):
        onnx.checker.check_model(graph, full_check=True)
        assert [value.name for value in graph.graph.output] == [
            value.name for value in model.graph.output
        ]


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_products_of_the_encoder_alone_are_rounded(
    models: dict[str, onnx.ModelProto], precision: str
) -> None:
    model = models[segment_name(1)]
    half = half_graph(static_graph(model, precision, some_sizes(model)), precision).graph
    made_by = {output: node for node in half.node for output in node.output}
    rounded = 0
    for node in half.node:
        if node.op_type not in ("MatMul", "Attention", "LayerNormalization"):
            continue
        before = [made_by[name].op_type for name in node.input if name in made_by]
        if "DequantizeLinear" in before:
            assert (node.op_type, before) == ("MatMul", ["DequantizeLinear"] * 2)
            rounded += 1
    # One layer: six products, of four activations; the policy's two stay float32.
    assert rounded == 6
    assert Counter(node.op_type for node in half.node)["QuantizeLinear"] == 4
    types = {tensor.name: tensor.data_type for tensor in half.initializer}
    bits = [name for name, kind in types.items() if kind == EIGHT_BITS[precision].element]
    assert len([name for name in bits if name.endswith(".bits")]) == 6
    scales = [kind for name, kind in types.items() if ".scale" in name]
    assert set(scales) == {TensorProto.FLOAT16}


def test_weights_are_those_of_the_products(models: dict[str, onnx.ModelProto]) -> None:
    model = models[DENSE]
    names = product_weights(model.graph)
    assert len(names) == 4 * 6  # layers x products
    shapes = {tuple(t.dims) for t in model.graph.initializer if t.name in names}
    assert shapes == {(32, 32), (32, 64), (64, 32)}
    left = {
        tensor.name for tensor in static_graph(model, "fp8", some_sizes(model)).graph.initializer
    }
    assert not names & left


def test_int8_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 8)).astype(np.float32)
    weight = rng.standard_normal((8, 3)).astype(np.float32)
    largest = np.full(8, 1.0, np.float32)  # channels alike, and weights so: nothing is smoothed
    weight *= 1 / np.abs(weight).max(axis=1, keepdims=True)
    received = run(static_graph(product([weight]), "int8", {"x": largest}), x)
    step = np.float32(np.float16(1 / 127))
    steps = np.abs(weight).max(axis=0) / 127
    steps = steps.astype(np.float16).astype(np.float32)
    rounded = np.clip(np.rint(x / step), -127, 127) * step
    weights = np.clip(np.rint(weight / steps), -127, 127) * steps
    np.testing.assert_allclose(received, rounded @ weights, rtol=1e-5, atol=1e-6)
    assert np.abs(received - x @ weight).max() > 1e-3


def test_fp8_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 8)), rng.standard_normal((8, 3))
    largest = np.abs(x).max(axis=0).astype(np.float32)
    received = run(static_graph(product([weight]), "fp8", {"x": largest}), x.astype(np.float32))

    def rounded(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        steps = (sizes / 448).astype(np.float16).astype(np.float64)
        held = np.clip(values / steps, -448, 448).astype(np.float32)
        return held.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * steps

    expected = rounded(x, np.abs(x).max()) @ rounded(weight, np.abs(weight).max(axis=0))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(received - x @ weight).max() > 1e-3


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_what_is_beyond_the_range_is_taken_for_its_end(precision: str) -> None:
    weight = np.eye(2, dtype=np.float32)
    made = static_graph(product([weight]), precision, {"x": np.ones(2, np.float32)})
    received = run(made, np.array([[100.0, -100.0], [0.5, -0.5]], np.float32))
    np.testing.assert_allclose(received[0], [1, -1], rtol=0.01)
    np.testing.assert_allclose(received[1], [0.5, -0.5], rtol=0.05)


def test_a_large_channel_leaves_the_others_their_digits_in_int8() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 16)).astype(np.float32)
    x[:, 3] *= 60  # as in the states of trained encoders
    weights = [rng.standard_normal((16, 4)) for _ in range(2)]
    for weight in weights:
        weight[3] *= 0.1
    exact = np.concatenate([x @ weight for weight in weights], axis=1)
    sizes = np.abs(x).max(axis=0)

    def error(largest: np.ndarray) -> float:
        made = static_graph(product(weights), "int8", {"x": largest.astype(np.float32)})
        return float(np.abs(run(made, x) - exact).max())

    assert error(sizes) < 0.5 * error(np.full(16, sizes.max()))  # which knows of no channel


def test_channels_that_are_nothing_are_possible() -> None:
    weight = np.zeros((4, 2), np.float32)
    weight[0, 0] = 1
    for sizes in (np.zeros(4), np.array([1, 0, 0, 0])):
        for precision in EIGHT_BITS:
            made = static_graph(product([weight]), precision, {"x": sizes.astype(np.float32)})
            received = run(rounded_graph(made, precision), np.eye(2, 4, dtype=np.float32))
            assert np.isfinite(received).all()
            assert received[0, 1] == received[1, 0] == 0
    assert received[0, 0] == pytest.approx(1, rel=0.01)

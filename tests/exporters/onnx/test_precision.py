"""Half precision in the graph: what is rounded, what is not, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE, segment_name
from trbert_deploy.errors import EngineError, ParityError
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.onnx.precision import (
    HALF_TYPES,
    half_graph,
    residual_sums,
    rounded_graph,
    score_nodes,
)

HALVES = ("fp16", "bf16")
GRAPHS = (segment_name(0), segment_name(1), segment_name(2), DENSE)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(bundle.graph_path(name)) for name in GRAPHS}


def node_types(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Operator -> element type of the first output of each of its nodes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
    }
    found: dict[str, list[int]] = {}
    for node in inferred.node:
        found.setdefault(node.op_type, []).append(types[node.output[0]])
    return found


def tensors_of(values: object) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in values]  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", GRAPHS)
def test_half_graph_is_valid_and_keeps_its_interface(
    models: dict[str, onnx.ModelProto], name: str, precision: str
) -> None:
    model = half_graph(models[name], precision)
    onnx.checker.check_model(model, full_check=True)
    for part in ("input", "output"):
        assert tensors_of(getattr(model.graph, part)) == tensors_of(
            getattr(models[name].graph, part)
        )


@pytest.mark.parametrize("precision", HALVES)
def test_encoder_is_half_and_the_rest_is_float32(
    models: dict[str, onnx.ModelProto], precision: str
) -> None:
    half = HALF_TYPES[precision]
    types = node_types(half_graph(models[segment_name(1)], precision))
    assert set(types["LayerNormalization"]) == {TensorProto.FLOAT}
    assert set(types["Attention"]) == {half}
    # One layer: six products in half; the policy's two in float32.
    assert types["MatMul"] == [half] * 6 + [TensorProto.FLOAT] * 2
    assert types["Gelu"] == [half, TensorProto.FLOAT]
    head = node_types(half_graph(models[segment_name(2)], precision))
    assert set(head["Gemm"]) == {TensorProto.FLOAT}
    assert set(head["Tanh"]) == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", HALVES)
def test_weights_shrink_to_half(models: dict[str, onnx.ModelProto], precision: str) -> None:
    whole, half = models[DENSE], half_graph(models[DENSE], precision)
    # LayerNorm's and the head's weights stay: a larger share here than in any real model.
    assert half.ByteSize() < 0.65 * whole.ByteSize()


def test_scores_are_found_whatever_the_names(models: dict[str, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(models[segment_name(0)])
    expected = score_nodes(model.graph)
    interface = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and name not in interface:
                    names[place] = f"x{hash(name)}"
    assert score_nodes(model.graph) == expected
    operators = [model.graph.node[index].op_type for index in sorted(expected)]
    assert operators == ["MatMul", "Add", "Gelu", "MatMul", "Add", "Squeeze"]


def test_residual_sums_are_those_before_a_norm(models: dict[str, onnx.ModelProto]) -> None:
    graph = models[segment_name(1)].graph
    assert len(residual_sums(graph)) == 2  # one layer: behind attention, behind feed-forward
    assert {graph.node[index].op_type for index in residual_sums(graph)} == {"Add"}


def product(weight: np.ndarray) -> onnx.ModelProto:
    """A model of one product: x [2, 2] times ``weight``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["hidden_out"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_rounded_graph_rounds_inputs_weights_and_results(
    precision: str, dtype: type[np.generic]
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 2, 2)).astype(np.float32)
    (received,) = run(rounded_graph(product(weight), precision), x=x)
    exact = x.astype(dtype).astype(np.float32) @ weight.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(received, exact.astype(dtype).astype(np.float32))
    assert not np.array_equal(received, exact)


def test_weight_beyond_float16_is_refused_and_fits_bfloat16() -> None:
    large = product(np.full((2, 2), 1e5))
    with pytest.raises(EngineError, match=r"weight weight reaches 1e\+05, too large for float16"):
        half_graph(large, "fp16")
    half_graph(large, "bf16")


def test_tensor_without_a_type_is_refused(models: dict[str, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(models[DENSE])
    del model.graph.value_info[:]
    with pytest.raises(EngineError, match="has no type"):
        half_graph(model, "fp16")


@pytest.mark.parametrize("precision", HALVES)
def test_comparison_reports_every_graph_and_the_chain(
    bundle: Bundle, models: dict[str, onnx.ModelProto], precision: str
) -> None:
    parity = compare_precision(bundle, models, precision)
    assert tuple(graph.graph for graph in parity.graphs) == GRAPHS
    assert all(
        0 < difference < LIMITS[precision].tolerance
        for graph in parity.graphs
        for difference in graph.max_difference.values()
    )
    assert 0 < parity.chain.dense_output_difference < LIMITS[precision].tolerance
    assert parity.chain.survivor_agreement > 0.9
    assert parity.chain.rows == 12  # four each of 1, 16 and 64 tokens: the model takes 64
    assert not parity.random_rows


def test_bfloat16_loses_more_than_float16(
    bundle: Bundle, models: dict[str, onnx.ModelProto]
) -> None:
    fp16, bf16 = (compare_precision(bundle, models, name) for name in ("fp16", "bf16"))
    assert bf16.chain.dense_output_difference > fp16.chain.dense_output_difference


def test_without_samples_random_rows_are_compared(
    bundle: Bundle, models: dict[str, onnx.ModelProto]
) -> None:
    files = {
        name: digest for name, digest in bundle.manifest.files.items() if "samples" not in name
    }
    bare = replace(bundle, manifest=replace(bundle.manifest, files=files))
    parity = compare_precision(bare, models, "fp16")
    assert parity.random_rows
    assert parity.chain.survivor_agreement > 0.9


def test_overflow_in_float16_is_refused(bundle: Bundle, models: dict[str, onnx.ModelProto]) -> None:
    broken = dict(models)
    for name in (segment_name(0), DENSE):
        broken[name] = onnx.ModelProto()
        broken[name].CopyFrom(models[name])
        product_node = next(n for n in broken[name].graph.node if n.op_type == "MatMul")
        for tensor in broken[name].graph.initializer:
            if tensor.name == product_node.input[1]:
                array = numpy_helper.to_array(tensor)
                large = array / np.abs(array).max() * 6e4
                tensor.CopyFrom(numpy_helper.from_array(large.astype(np.float32), tensor.name))
    with pytest.raises(ParityError, match=r"graph segment_0, .* differs from float32"):
        compare_precision(bundle, broken, "fp16")

"""Parts of a traced graph compute what it computes between their tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trbert_deploy.bundle.manifest import DENSE
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.onnx.parts import part_of
from trbert_deploy.exporters.onnx.trace import export_graphs
from trbert_deploy.modeling.model import ReducedModel

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def value(name: str, *shape: str | int, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def whole(size_of: str = "ids", end: int | None = 2) -> onnx.ModelProto:
    """ids -> a.states = table[ids] + shift, b.states = a.states @ weights + length."""
    sizes = {} if end is None else {"start": 1, "end": end}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["embedded"], name="gather"),
            helper.make_node("Add", ["embedded", "shift"], ["a.states"], name="shifted"),
            helper.make_node("MatMul", ["a.states", "weights"], ["mixed"], name="mix"),
            helper.make_node("Shape", [size_of], ["size"], name="size", **sizes),
            helper.make_node("Cast", ["size"], ["length"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Add", ["mixed", "length"], ["b.states"], name="lengthened"),
        ],
        "whole",
        [value("ids", "B", "S", kind=TensorProto.INT64), value("others", "B", "S")],
        [value("a.states", "B", "S", 2), value("b.states", "B", "S", 3)],
        [
            numpy_helper.from_array(np.arange(10, dtype=np.float32).reshape(5, 2), "table"),
            numpy_helper.from_array(np.array([0.5, -1.0], np.float32), "shift"),
            numpy_helper.from_array(WEIGHTS, "weights"),
        ],
        value_info=[value("mixed", "B", "S", 3), value("embedded", "B", "S", 2)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def test_parts_in_a_row_compute_what_the_whole_does() -> None:
    model = whole()
    before = model.SerializeToString()
    first = part_of(model, "a", {"ids": "ids"}, {"a.states": "states"})
    second = part_of(model, "b", {"a.states": "hidden"}, {"b.states": "states"})
    assert model.SerializeToString() == before
    ids = np.array([[1, 4, 0], [2, 2, 3]])
    expected = ReferenceEvaluator(model).run(None, {"ids": ids, "others": ids.astype(np.float32)})
    (states,) = ReferenceEvaluator(first).run(None, {"ids": ids})
    np.testing.assert_array_equal(states, expected[0])
    (states,) = ReferenceEvaluator(second).run(None, {"hidden": states})
    np.testing.assert_array_equal(states, expected[1])
    for part in (first, second):
        onnx.checker.check_model(part)
    assert {each.name for each in first.graph.initializer} == {"table", "shift"}
    assert {each.name for each in second.graph.initializer} == {"weights"}
    assert {each.name for each in second.graph.value_info} == {"mixed"}


@pytest.mark.parametrize(
    ("size_of", "end"),
    [
        ("ids", None),  # as many sizes as the input has
        ("others", 3),  # one that other inputs lack
    ],
)
def test_a_part_that_reads_what_it_is_not_given_is_refused(size_of: str, end: int | None) -> None:
    with pytest.raises(ParityError, match=f"graph b was traced to read {size_of}: expected a.st"):
        part_of(whole(size_of, end), "b", {"a.states": "hidden"}, {"b.states": "states"})


def test_the_dense_model_is_the_same_with_and_without_cuts(tmp_path: Path) -> None:
    cut = tiny_model("1", num_layers=2)
    uncut = ReducedModel(cut.spec, ReductionConfig()).eval()
    operations = []
    for name, model in (("cut", cut), ("uncut", uncut)):
        (tmp_path / name).mkdir()
        graphs = {graph.name: graph for graph in export_graphs(model, tmp_path / name)}
        dense = graphs[DENSE]
        for variant in dense.variants:
            graph = onnx.load(tmp_path / name / dense.file_of(variant)).graph
            read = [each.name for each in graph.input]
            operations.append((variant, read, Counter(node.op_type for node in graph.node)))
    half = len(operations) // 2
    assert operations[:half] == operations[half:]

"""Denormal numbers are zero inside, in this thread alone, and all is as before outside."""

from __future__ import annotations

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from trbert_deploy.bundle.manifest import GraphDescription, TensorDescription
from trbert_deploy.runtime.backends import denormals
from trbert_deploy.runtime.backends.denormals import denormals_as_zero
from trbert_deploy.runtime.backends.onnxruntime import OnnxGraph
from trbert_deploy.runtime.loading import load

SMALL = np.full(8, 1e-20, np.float32)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="only Linux on x86-64 has the flag",
)


def square() -> float:
    """1e-40, a denormal number, as this thread computes it."""
    return float((SMALL * SMALL)[0])


def test_they_are_zero_inside_alone() -> None:
    assert square() > 0
    with denormals_as_zero():
        assert square() == 0
        with denormals_as_zero():
            assert square() == 0
        assert square() == 0  # the inner one gives back what it found
    assert square() > 0


def test_an_error_ends_it() -> None:
    with pytest.raises(KeyError), denormals_as_zero():
        raise KeyError
    assert square() > 0


def test_other_threads_are_left_alone() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(square).result() > 0  # begins here: a thread inherits the flag
        with denormals_as_zero():
            assert pool.submit(square).result() > 0


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "_library", None)
    with denormals_as_zero():
        assert square() > 0


def test_graphs_run_so(tmp_path: Path) -> None:
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in "xy"]
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "square", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "square.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "square.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"x": SMALL})[0].max() > 0
    described = GraphDescription("square", (), (TensorDescription("y", "float32", (8,)),))
    assert OnnxGraph(described, lambda masked: session)({"x": SMALL})["y"].max() == 0


def test_loading_and_answering_leave_the_callers_thread_as_it_was(tiny_bundle: Path) -> None:
    assert load(tiny_bundle, threads=1)(["a film"])[0].label
    assert square() > 0

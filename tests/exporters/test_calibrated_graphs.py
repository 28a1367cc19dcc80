"""Graphs of 8 bits whose activations have ranges: what is in them, who reads them, and when."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CheckpointMaker, make_texts, tiny_model
from rich.console import Console

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    CALIBRATED,
    CALIBRATED_MASKED,
    CALIBRATED_WEIGHTS,
    DENSE,
    DEQUANTIZED,
    HIDDEN,
    MASKED,
    WEIGHTS,
    WITH_RANGES,
    segment_name,
)
from trbert_deploy.errors import BundleError
from trbert_deploy.exporters import export
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.export import ExportReport, export_bundle
from trbert_deploy.exporters.onnx.static_quantization import product_inputs, product_weights
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.reports.console.export import print_export
from trbert_deploy.runtime.autotune.fastest_backend import least_agreement
from trbert_deploy.runtime.backends import openvino
from trbert_deploy.runtime.backends.backend import Tensors
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.loading import load
from trbert_deploy.selection.exits import ExitRule

#: A tiny random model decides by little: rounding turns more of its choices.
LOOSE = replace(LIMITS["int8"], survivor_agreement=0.5, answer_agreement=0.5)
GRAPHS = (DENSE, *map(segment_name, range(3)))
TEXTS = [row["text"] for row in make_texts(40, seed=7)]


@pytest.fixture(scope="module")
def report(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    path = tmp_path_factory.mktemp("calibrated") / "bundle"
    return export_bundle(tiny_checkpoint, path, int8=True, int8_limits=LOOSE)


@pytest.fixture(scope="module")
def bundle(report: ExportReport) -> Bundle:
    return Bundle.open(report.path)


def graph_of(bundle: Bundle, name: str, variant: str) -> onnx.GraphProto:
    return onnx.load(bundle.graph_path(name, variant), load_external_data=False).graph


def test_they_are_checked_and_listed(report: ExportReport, bundle: Bundle) -> None:
    assert CALIBRATED in report.int8 and report.not_calibrated is None
    assert CALIBRATED in bundle.manifest.parity["int8"]
    for variant in WITH_RANGES:
        assert bundle.has_variant(variant)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_product_with_weights_has_ranges(bundle: Bundle, name: str) -> None:
    exact = graph_of(bundle, name, MASKED)
    rounded = [graph_of(bundle, name, variant) for variant in WITH_RANGES]
    for graph in rounded:
        operators = [node.op_type for node in graph.node]
        assert operators.count("QuantizeLinear") == len(product_inputs(exact)) > 0
        assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
        files = {
            entry.value
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert files <= {WEIGHTS, CALIBRATED_WEIGHTS} and CALIBRATED_WEIGHTS in files
    eight = [
        {
            tuple((entry.key, entry.value) for entry in tensor.external_data)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and tensor.external_data
        }
        for graph in rounded
    ]
    assert eight[0] == eight[1]  # stored once
    assert len(eight[0]) == len(product_weights(exact))


@pytest.mark.parametrize("name", [DENSE, segment_name(1)])
def test_padded_rows_are_the_same(bundle: Bundle, name: str) -> None:
    plain, masked = (
        onnxruntime.InferenceSession(
            str(bundle.graph_path(name, variant)), providers=["CPUExecutionProvider"]
        )
        for variant in (CALIBRATED, CALIBRATED_MASKED)
    )
    generator = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {
        "input_ids": generator.integers(5, 200, (2, 9)),
        "token_type_ids": np.zeros((2, 9), np.int64),
    }
    if name != DENSE:
        inputs = {HIDDEN: generator.standard_normal((2, 9, 32), np.float32)}
    padded = {
        key: np.pad(each, [(0, 0), (0, 5), *[(0, 0)] * (each.ndim - 2)])
        for key, each in inputs.items()
    }
    mask = np.arange(14) < np.array([[9], [9]])
    for output, expected in zip(
        [each.name for each in plain.get_outputs()], plain.run(None, inputs), strict=True
    ):
        (received,) = masked.run([output], padded | {"attention_mask": mask})
        if received.shape[1:2] == (14,):
            received = received[:, :9]
        np.testing.assert_allclose(received, expected, atol=0.02)


@contextmanager
def opened_variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The variants of graphs that are read inside of it."""
    seen: set[str] = set()
    reading = Bundle.reading_graph

    def noted(self: Bundle, name: str, variant: str = MASKED) -> Any:
        seen.add(variant)
        return reading(self, name, variant)

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "reading_graph", noted)
        yield seen


@pytest.mark.parametrize("has_vnni", [True, False])
def test_openvino_runs_them_where_the_processor_does(
    bundle: Bundle, has_vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_vnni and not openvino.has_vnni():
        pytest.skip("this processor may overflow")
    monkeypatch.setattr(openvino, "has_vnni", lambda: has_vnni)
    exact = load(bundle.path, threads=1)
    rows = exact.tokenize(TEXTS)
    with opened_variants(monkeypatch) as seen:
        rounded = load(bundle.path, "openvino", threads=1, precision="int8")
        answers = [rounded.run(rows, dense=dense) for dense in (False, True)]
    assert seen == ({*WITH_RANGES} if has_vnni else {DEQUANTIZED})
    assert rounded.chain.backend.description["precision"] == "int8"
    for dense, received in zip((False, True), answers, strict=True):
        expected = exact.run(rows, dense=dense)
        assert least_agreement(exact.task, rows, expected, received) > 0.8
    apart = [
        np.abs(one.outputs["logits"] - other.outputs["logits"]).max()
        for one, other in zip(exact.run(rows, dense=True), answers[1], strict=True)
    ]
    assert 0.0 < max(apart) < 1.0


def test_too_far_ones_are_left_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay."""

    class Faulty(OnnxRuntimeBackend):
        def __init__(self, *arguments: Any, **rest: Any) -> None:
            super().__init__(*arguments, **rest)
            if self._without_mask == CALIBRATED:
                sound = self.graph
                self.graph = cache(lambda wanted: faulty(sound(wanted)))  # type: ignore[assignment]

    def faulty(graph: Any) -> Any:
        def run(inputs: Tensors) -> Tensors:
            return {name: 9 * value for name, value in graph(inputs).items()}

        run.inputs = graph.inputs  # type: ignore[attr-defined]
        return run

    monkeypatch.setattr(export, "OnnxRuntimeBackend", Faulty)
    report = export_bundle(tiny_checkpoint, tmp_path / "bundle", int8=True, int8_limits=LOOSE)
    assert report.not_calibrated is not None
    assert report.not_calibrated.startswith("chain with calibrated ranges: ")
    console = Console(width=1000, file=io.StringIO())
    print_export(report, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"takes longer than calibrated ones: {report.not_calibrated}" in shown
    bundle = Bundle.open(report.path)
    assert bundle.has_variant(DEQUANTIZED) and not bundle.has_variant(CALIBRATED)
    assert not [path.name for path in report.path.iterdir() if "calibrated" in path.name]


def test_ranges_need_sample_texts_and_no_place_for_them(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint("none")
    kept = export_bundle(checkpoint, tmp_path / "b", samples=False, int8=True, int8_limits=LOOSE)
    assert Bundle.open(kept.path).samples() == []
    assert Bundle.open(kept.path).has_variant(CALIBRATED)
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (bare / "samples.jsonl").write_text("")
    report = export_bundle(bare, tmp_path / "b", int8=True, int8_limits=LOOSE)
    assert report.not_calibrated == "there are no sample texts to find them on"
    assert not Bundle.open(report.path).has_variant(CALIBRATED)


def test_exits_starve_no_segment(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Every text leaves at the first exit, and yet the segments behind it have ranges."""
    model = tiny_model("1,2")
    model.set_reduction(model.reduction.with_exits(ExitRule(confidence=0.0)))
    samples = tuple(row["text"] for row in make_texts(6, seed=1))
    length = model.spec.max_positions
    save_checkpoint(Checkpoint(model, tokenizer_dir, length, samples=samples), tmp_path / "ckpt")
    report = export_bundle(tmp_path / "ckpt", tmp_path / "b", int8=True, int8_limits=LOOSE)
    bundle = Bundle.open(report.path)
    operators = [node.op_type for node in graph_of(bundle, segment_name(2), CALIBRATED).node]
    assert "QuantizeLinear" in operators


def test_their_weights_are_part_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy / CALIBRATED_WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"calibrated\.safetensors is missing"):
        Bundle.open(copy)
    manifest = bundle.manifest
    files = {name: each for name, each in manifest.files.items() if name != CALIBRATED_WEIGHTS}
    with pytest.raises(BundleError, match=r"lists no digest of calibrated\.safetensors$"):
        Bundle.of(bundle.path, replace(manifest, files=files))

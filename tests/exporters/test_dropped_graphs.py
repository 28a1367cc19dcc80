"""Graphs of what dropped tokens say: every precision and backend, and checks that see a fault."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_texts, tiny_model

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import MANIFEST, Manifest
from trbert_deploy.errors import BundleError, ParityError
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.export import ExportReport, export_bundle
from trbert_deploy.modeling.blocks.projection import Projection
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint

TASKS: dict[str, dict[str, Any]] = {
    "mean": {"task": "feature-extraction", "labels": (), "answers": {"pooling": "mean"}},
    "max": {"task": "feature-extraction", "labels": (), "answers": {"pooling": "max"}},
    "token": {"task": "token-classification", "labels": ("O", "B-X", "B-Y")},
}
TEXTS = [row["text"] for row in make_texts(8, seed=1)]


@pytest.fixture(scope="module", params=TASKS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> Path:
    place = tmp_path_factory.mktemp("dropped") / "ckpt"
    model = tiny_model("0.5,2", **TASKS[request.param])
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64, samples=tuple(TEXTS)), place)
    return place


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[Path, ExportReport]:
    """A bundle that tests only read."""
    place = checkpoint.with_name("bundle")
    return place, export_bundle(checkpoint, place, int8=True)


def test_they_run_in_every_precision_and_backend(exported: tuple[Path, ExportReport]) -> None:
    path, report = exported
    names = [graph.graph for graph in report.graphs]
    assert names == ["segment_0", "segment_1", "segment_2", "dense", "dropped_0", "dropped_1"]
    bundle = Bundle.open(path)
    models = {
        graph.name: onnx.load(bundle.graph_path(graph.name)) for graph in bundle.manifest.graphs
    }
    half = compare_precision(bundle, models, "fp16")
    assert {graph.graph for graph in half.graphs} >= {"dropped_0", "dropped_1"}
    found = {}
    for backend, precision in (
        ("torch", None), ("onnxruntime", "fp32"), ("openvino", "fp32"),
        ("onnxruntime", "int8"), ("openvino", "int8"),
    ):  # fmt: skip
        pipeline = load(path, backend, threads=1, precision=precision)
        results = pipeline.run(pipeline.tokenize([*TEXTS, "a"]))
        assert any(len(each.kept[0]) > len(each.kept[1]) for each in results)
        found[backend, precision] = [next(iter(each.outputs.values())) for each in results]
    for (_, precision), outputs in found.items():
        for ours, theirs in zip(outputs, found["torch", None], strict=True):
            scale = max(1.0, float(np.abs(theirs).max()))
            close = 0.3 if precision == "int8" else 1e-3
            assert float(np.abs(ours - theirs).max()) / scale < close


def test_a_fault_in_them_is_seen(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: Projection, hidden: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return found + 0.01 if torch.compiler.is_exporting() else found

    monkeypatch.setattr(Projection, "forward", faulty)
    with pytest.raises(ParityError, match=r"graph dropped_0, .* differs from PyTorch"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_manifest_whose_graphs_of_them_make_no_sense_is_refused(
    exported: tuple[Path, ExportReport],
) -> None:
    written = json.loads((exported[0] / MANIFEST).read_text())
    manifest = Manifest.from_json(written)
    assert manifest.graph("dropped_0").token_outputs == {*manifest.graph("dropped_0").answers}
    assert not manifest.graph("dropped_0").takes_mask and manifest.graph("dense").takes_mask

    first, *others = manifest.graphs[-2:]
    for wrong, message in (
        ((*manifest.graphs[:-2], first), "expected segment_0, segment_1, segment_2, dense"),
        (
            (*manifest.graphs[:-2], replace(first, inputs=()), *others),
            "dropped_0 takes  and gives",
        ),
    ):
        with pytest.raises(BundleError, match=message):
            Manifest.from_json(replace(manifest, graphs=wrong).to_json())

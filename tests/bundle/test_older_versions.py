"""A bundle and a checkpoint of an earlier release load, and answer what they answered then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.older_versions import upgraded
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.pipeline import Pipeline

OLD = Path(__file__).parents[1] / "data" / "version_2"


def assert_as_then(pipeline: Pipeline) -> None:
    """Labels, survivors and scores are those that were written down then."""
    then = json.loads((OLD / "predictions.json").read_text())
    now = pipeline([row["text"] for row in then], return_kept=True)
    for row, prediction in zip(then, now, strict=True):
        assert prediction.label == row["label"]
        assert [list(cut.positions) for cut in prediction.kept] == row["kept"]
        assert prediction.scores == pytest.approx(row["scores"], abs=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_bundle_of_version_2_answers_as_then(backend: str) -> None:
    assert_as_then(load(OLD / "bundle", backend, threads=1, precision="fp32"))


def test_its_manifest_is_read_as_one_of_today() -> None:
    written = json.loads((OLD / "bundle" / "manifest.json").read_text())
    manifest = Bundle.open(OLD / "bundle").manifest
    assert manifest.task == "text-classification"
    assert (manifest.files, manifest.max_length) == (written["files"], written["max_length"])
    for graph, old in zip(manifest.graphs, written["graphs"], strict=True):
        assert graph.variants == ("masked", "dequantized", "fused", "int8", "unmasked")
        assert graph.name == old["name"]
        assert [each.name for each in graph.inputs] == [each["name"] for each in old["inputs"]]


def test_its_variants_are_those_whose_files_it_lists() -> None:
    content = json.loads((OLD / "bundle" / "manifest.json").read_text())
    files = ["dense.onnx", "dense.fused.onnx", "dense.fused.txt", "segment_0.int8.onnx", "a.onnx"]
    content |= {"files": dict.fromkeys(files, ""), "graphs": [{"name": "dense", "inputs": []}]}
    content["encoder"] = {"task": "another"}
    today = upgraded(content)
    assert today["format_version"] == 4 and today["encoder"] == {"task": "another"}
    assert today["graphs"] == [{"name": "dense", "inputs": [], "variants": ["masked", "fused"]}]
    assert "variants" not in content["graphs"][0]  # what was given stays as it is
    assert upgraded(today) is today


def test_its_8_bit_graphs_run() -> None:
    assert load(OLD / "bundle", threads=1, precision="int8")(["a film"])[0].label


def test_a_checkpoint_of_then_is_evaluated_and_exported(tmp_path: Path) -> None:
    assert_as_then(open_models(OLD / "checkpoint")[0])
    export_bundle(OLD / "checkpoint", tmp_path / "bundle")
    assert_as_then(load(tmp_path / "bundle", threads=1))

"""8-bit weights: what is rounded, what is not, and what becomes of the answers."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CheckpointMaker, make_texts
from safetensors.numpy import load_file

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DEQUANTIZED, FUSED, INT8, UNMASKED, segment_name
from trbert_deploy.cli import main
from trbert_deploy.errors import BundleError, ConfigError, ParityError
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.autotune.fastest_backend import least_agreement
from trbert_deploy.runtime.loading import load

#: A tiny random model decides by little: rounding turns more of its choices.
LOOSE = replace(LIMITS["int8"], survivor_agreement=0.5, answer_agreement=0.5)
TEXTS = [row["text"] for row in make_texts(40, seed=7)]


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "bundle"
    report = export_bundle(tiny_checkpoint, path, int8=True, int8_limits=LOOSE)
    assert report.int8_agreement is not None and 0.5 <= report.int8_agreement <= 1.0
    return path


def test_linear_layers_are_rounded_and_scores_are_not(rounded: Path) -> None:
    bundle = Bundle.open(rounded)
    assert bundle.has_variant(INT8)
    for index in range(3):
        name = segment_name(index)
        counts = {
            variant: Counter(
                node.op_type
                for node in onnx.load(
                    bundle.graph_path(name, variant), load_external_data=False
                ).graph.node
            )
            for variant in (FUSED, INT8)
        }
        assert counts[INT8]["MatMul"] == 2  # of the policy, or of the head (there once Gemm)
        of_layers = counts[FUSED]["MatMul"] + counts[FUSED]["Gemm"] - 2
        assert counts[INT8]["MatMulInteger"] == of_layers > 0
        assert counts[INT8]["MultiHeadAttention"] == counts[FUSED]["MultiHeadAttention"]


def test_every_rounded_weight_is_stored_once(rounded: Path, tiny_bundle: Path) -> None:
    plain = load_file(tiny_bundle / "weights.safetensors")
    stored = load_file(rounded / "weights.safetensors")
    for name, tensor in plain.items():
        assert np.array_equal(stored.pop(name), tensor)
    eight = [tensor for tensor in stored.values() if tensor.dtype == np.int8]
    large = [t for name, t in plain.items() if ".layers." in name and t.ndim == 2]
    assert sorted(t.size for t in eight) == sorted(t.size for t in large if t.size >= 1024)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_answers_are_much_the_same(rounded: Path, backend: str) -> None:
    pipelines = [
        load(rounded, backend, threads=1, precision=precision) for precision in ("fp32", "int8")
    ]
    rows = pipelines[0].tokenize(TEXTS)
    results = [pipeline.run(rows) for pipeline in pipelines]
    assert least_agreement(pipelines[0].task, rows, *results) > 0.8
    dense = [pipeline.run(rows, dense=True) for pipeline in pipelines]
    assert least_agreement(pipelines[0].task, rows, *dense) > 0.8
    apart = [
        np.abs(one.outputs["logits"] - other.outputs["logits"]).max()
        for one, other in zip(*dense, strict=True)
    ]
    assert 0.0 < max(apart) < 1.0
    assert pipelines[1].chain.backend.description["precision"] == "int8"


def test_openvino_gets_the_same_weights_in_standard_onnx(rounded: Path) -> None:
    bundle = Bundle.open(rounded)
    for name in ("dense", *map(segment_name, range(3))):
        int8, standard, whole = (
            onnx.load(bundle.graph_path(name, variant), load_external_data=False).graph
            for variant in (INT8, DEQUANTIZED, UNMASKED)
        )
        operators = Counter(node.op_type for node in standard.node)
        assert (
            operators["DequantizeLinear"]
            == Counter(node.op_type for node in int8.node)["MatMulInteger"]
        )
        assert operators["MatMul"] == Counter(node.op_type for node in whole.node)["MatMul"]
        assert {node.domain for node in standard.node} <= {"", "ai.onnx"}
        places = [
            {
                tuple((entry.key, entry.value) for entry in initializer.external_data)
                for initializer in graph.initializer
                if initializer.data_type == onnx.TensorProto.INT8 and initializer.external_data
            }
            for graph in (int8, standard)
        ]
        assert places[0] == places[1] and places[0]


def test_the_torch_backend_reads_the_same_file(rounded: Path) -> None:
    ours, theirs = load(rounded, "torch")(TEXTS), load(rounded)(TEXTS)
    assert [one.label for one in ours] == [other.label for other in theirs]


def test_too_little_agreement_refuses_the_export(
    make_checkpoint: CheckpointMaker, own_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in own_bundle.iterdir()}
    never = replace(LOOSE, answer_agreement=2.0)
    with pytest.raises(ParityError, match=r"8-bit weights: only .* expected at least 200%; export"):
        export_bundle(make_checkpoint(), own_bundle, int8=True, int8_limits=never)
    assert {path.name: path.read_bytes() for path in own_bundle.iterdir()} == before


def test_the_command_can_be_forced(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["export", str(tiny_checkpoint), "--output", str(tmp_path / "b"), "--force-int8"]
    monkeypatch.setattr("sys.argv", ["trbert-deploy", *arguments])
    main()
    assert "8-bit weights: " in capfd.readouterr().out
    assert load(tmp_path / "b", precision="int8")(["a film"])[0].label


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_without_them_is_named(tiny_bundle: Path, backend: str) -> None:
    with pytest.raises(ConfigError, match="no graphs with 8-bit weights: export it with --int8"):
        load(tiny_bundle, backend, precision="int8")


def test_a_missing_graph_is_noticed(rounded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(rounded, tmp_path / "copy"))
    (copy / "dense.int8.onnx").unlink()
    with pytest.raises(BundleError, match=r"dense\.int8\.onnx is missing"):
        load(copy)

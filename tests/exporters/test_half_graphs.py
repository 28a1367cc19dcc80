"""Graphs in half precision for ONNX Runtime: every task, with padding and without, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands_in_tests import run
from conftest import CheckpointMaker, make_texts, tiny_model
from onnx import TensorProto
from safetensors.numpy import load_file

from trbert_deploy import load
from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    DENSE,
    FUSED,
    HALF,
    HALF_MASKED,
    HALVES,
    HEAD,
    MASKED,
    WEIGHTS,
    segment_name,
)
from trbert_deploy.errors import BundleError, ConfigError, EngineError, ParityError
from trbert_deploy.exporters.checks import half_precision
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.export import ExportReport, export_bundle
from trbert_deploy.exporters.onnx import trace
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import bundle_rows
from trbert_deploy.runtime.token_state import RowResult, TokenRow, survivor_agreement
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, TARGETS
from trbert_deploy.tasks.registry import TASKS, task_of

TEXTS = [row["text"] for row in make_texts(6, seed=1)]
PAIRS = [("who found the house?", text) for text in TEXTS]
ONE = ("LABEL_0",)
#: Task -> what the model is.
MODELS: dict[tuple[str, str], dict[str, Any]] = {
    ("text-classification", ""): {},
    ("text-classification", "multi_label_classification"): {
        "answers": {"problem": "multi_label_classification"}
    },
    ("text-classification", "regression"): {"labels": ONE, "answers": {"problem": "regression"}},
    ("text-ranking", ""): {"task": "text-ranking", "labels": ONE},
    ("feature-extraction", ""): {
        "task": "feature-extraction", "labels": (), "answers": {"pooling": "mean"},
    },
    ("token-classification", ""): {"task": "token-classification", "labels": ("O", "B-X", "B-Y")},
    ("question-answering", ""): {"task": "question-answering", "labels": ("start", "end")},
    ("fill-mask", ""): {
        "task": "fill-mask", "labels": (), "head": {"logits": 256},
        "answers": {MASK_ID: 4, TARGETS: [], TARGET_IDS: []},
    },
    ("multiple-choice", ""): {"task": "multiple-choice", "labels": ONE},
}  # fmt: skip
LENGTHS = (1, 3, 16, 17, 17, 40, 63, 64)


def rows_of(bundle: Bundle) -> list[TokenRow]:
    return [row for length in LENGTHS for row in bundle_rows(bundle)(length, 1)]


def chain_in(bundle: Bundle, precision: str, padding: Padding) -> Chain:
    manifest = bundle.manifest
    return Chain(
        open_backend("onnxruntime", bundle, BackendOptions(1, precision)),
        manifest.reduction,
        manifest.encoder.num_layers,
        padding=padding,
        task=task_of(manifest.encoder),
    )


def largest_difference(expected: list[RowResult], received: list[RowResult]) -> float:
    """Relative, over rows that keep the same tokens."""
    differences = [0.0]
    for one, other in zip(expected, received, strict=True):
        if all(map(np.array_equal, one.kept, other.kept)):
            for name, values in one.outputs.items():
                scale = max(1.0, float(np.abs(values).max()))
                differences.append(float(np.abs(values - other.outputs[name]).max()) / scale)
    return max(differences)


@pytest.fixture(scope="module")
def exported(
    make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportReport]:
    """A bundle that tests only read."""
    path = tmp_path_factory.mktemp("half") / "bundle"
    return path, export_bundle(make_checkpoint(), path, fp16=True)


def test_every_task_is_there() -> None:
    assert {*MODELS} == {*TASKS}


@pytest.mark.parametrize("kind", MODELS, ids=" ".join)
def test_every_task_answers_as_in_float32(
    kind: tuple[str, str], tokenizer_dir: Path, tmp_path: Path
) -> None:
    model = tiny_model("1", num_layers=2, **MODELS[kind])
    samples = PAIRS if kind[0] in ("question-answering", "multiple-choice") else TEXTS
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64, samples=tuple(samples)), tmp_path / "ckpt")
    report = export_bundle(tmp_path / "ckpt", tmp_path / "bundle", fp16=True)
    assert report.fp16_agreement is not None and report.fp16_agreement >= 0.9
    bundle = Bundle.open(tmp_path / "bundle")
    rows = rows_of(bundle)
    whole = chain_in(bundle, "fp32", NO_PADDING)
    expected = whole.run(rows)
    assert any(len(one.kept[0]) < len(row) for one, row in zip(expected, rows, strict=True))
    for padding in (NO_PADDING, Padding(share=0.5)):
        half = chain_in(bundle, "fp16", padding)
        received = half.run(rows)
        assert survivor_agreement(rows, expected, received) >= LIMITS["fp16"].survivor_agreement
        assert 0.0 < largest_difference(expected, received) < 0.01
        assert largest_difference(whole.run_dense(rows), half.run_dense(rows)) < 0.01


def graph_of(bundle: Bundle, name: str, variant: str) -> onnx.GraphProto:
    return onnx.load(bundle.graph_path(name, variant), load_external_data=False).graph


def test_products_and_attention_are_halved_and_scores_are_not(
    exported: tuple[Path, ExportReport],
) -> None:
    bundle = Bundle.open(exported[0])
    for name in (segment_name(0), segment_name(1), segment_name(2), DENSE):
        kinds = {}
        for variant in (MASKED, FUSED, *HALVES):
            graph = graph_of(bundle, name, variant)
            kinds[variant] = [node.op_type for node in graph.node if node.op_type != "Cast"]
            if variant in HALVES:
                types = {each.name: each.data_type for each in graph.initializer}
                halved = [
                    types.get(node.input[1]) == TensorProto.FLOAT16
                    for node in graph.node
                    if node.op_type in ("MatMul", "Gemm")
                ]
                assert halved.count(False) == 2  # of the policy, or of the head
                assert halved.count(True) >= 6
                assert {value.type.tensor_type.elem_type for value in graph.output} == {
                    TensorProto.FLOAT
                }
        # The same operators as in float32: nothing is lost to another layout of attention.
        assert sorted(kinds[HALF]) == sorted(kinds[FUSED])
        assert sorted(kinds[HALF_MASKED]) == sorted(kinds[MASKED])


def test_every_halved_weight_is_stored_once(
    exported: tuple[Path, ExportReport], tiny_bundle: Path
) -> None:
    plain, stored = load_file(tiny_bundle / WEIGHTS), load_file(exported[0] / WEIGHTS)
    for name, tensor in plain.items():
        assert np.array_equal(stored.pop(name), tensor)
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}
    large = [
        tensor
        for name, tensor in plain.items()
        if (".layers." in name or "embedding" in name) and tensor.size >= 1024
    ]
    assert sum(tensor.size for tensor in stored.values()) <= sum(each.size for each in large)
    bundle = Bundle.open(exported[0])
    for graph in bundle.manifest.graphs:
        for variant in graph.variants:
            for weight in graph_of(bundle, graph.name, variant).initializer:
                assert len(weight.raw_data) < 1024


def test_other_backends_read_the_same_bundle(exported: tuple[Path, ExportReport]) -> None:
    texts = [row["text"] for row in make_texts(8, seed=3)]
    expected = [one.label for one in load(exported[0], threads=1)(texts)]
    for backend, precision in (("torch", None), ("openvino", "fp32"), ("onnxruntime", "fp16")):
        pipeline = load(exported[0], backend, threads=1, precision=precision)
        assert [one.label for one in pipeline(texts)] == expected
        assert pipeline.chain.backend.description["precision"] == (precision or "fp32")


@pytest.mark.parametrize("padding", [NO_PADDING, Padding(share=0.5)], ids=HALVES)
def test_states_that_stay_on_a_device_are_the_same(
    exported: tuple[Path, ExportReport], padding: Padding
) -> None:
    """Float32 crosses from graph to graph, wherever it lies."""
    bundle = Bundle.open(exported[0])
    rows = rows_of(bundle)
    copied = chain_in(bundle, "fp16", padding)
    options = BackendOptions(1, "fp16")
    staying = Chain(
        OnnxRuntimeBackend(bundle, options, states_on="cpu"),
        bundle.manifest.reduction,
        bundle.manifest.encoder.num_layers,
        padding=padding,
        task=task_of(bundle.manifest.encoder),
    )
    expected, received = copied.run(rows), staying.run(rows)
    assert survivor_agreement(rows, expected, received) == 1.0
    assert largest_difference(expected, received) < 1e-5


def test_how_they_were_checked_is_kept(exported: tuple[Path, ExportReport]) -> None:
    path, report = exported
    kept = Bundle.open(path).manifest.parity["fp16"]
    assert kept == json.loads(json.dumps(report.parity_json()["fp16"]))
    assert [*kept] == ["rounded", "written"]
    for found in kept.values():
        assert [each["graph"] for each in found["graphs"]] == [
            *map(segment_name, range(3)), DENSE,
        ]  # fmt: skip
        assert 0 < found["dense_output_difference"] < found["tolerance"]
        assert not found["random_rows"]
    # ONNX Runtime leaves out roundings on the CPU: it alone would find too little.
    assert kept["rounded"]["keep_logit_difference"] > kept["written"]["keep_logit_difference"]


def test_a_head_of_few_tokens_stays_in_float32(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    changes = MODELS["fill-mask", ""]
    export_bundle(make_checkpoint("none", num_layers=1, **changes), tmp_path / "b", fp16=True)
    bundle = Bundle.open(tmp_path / "b")
    for variant in HALVES:
        kinds = {each.data_type for each in graph_of(bundle, HEAD, variant).initializer}
        assert TensorProto.FLOAT16 not in kinds


def without_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def with_another_activation(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type = "Relu"
            del node.attribute[:]


@pytest.mark.parametrize(
    ("maker", "spoil"),
    [("half_graph", without_mask), ("fused_variant", with_another_activation)],
    ids=[HALF_MASKED, HALF],
)
def test_a_fault_in_a_variant_is_seen(
    maker: str,
    spoil: Callable[[onnx.ModelProto], None],
    make_checkpoint: CheckpointMaker,
    own_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounding is right, and what was written is not: each of the two variants is run."""
    before = {path.name: path.read_bytes() for path in own_bundle.iterdir()}
    right = getattr(trace, maker)

    def faulty(*given: Any) -> onnx.ModelProto:
        model = right(*given)
        spoil(model)
        return model

    monkeypatch.setattr(trace, maker, faulty)
    with pytest.raises(ParityError, match=r"^graph segment_0, .* differs from float32 by"):
        export_bundle(make_checkpoint("1", num_layers=2), own_bundle, fp16=True)
    assert {path.name: path.read_bytes() for path in own_bundle.iterdir()} == before


def test_roundings_that_turn_too_much_refuse_the_export(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = replace(LIMITS["fp16"], answer_agreement=2.0)
    monkeypatch.setitem(half_precision.ENGINE_LIMITS, "fp16", never)
    with pytest.raises(ParityError, match=r"only .* expected at least 200%; export without --fp16"):
        export_bundle(make_checkpoint("none"), tmp_path / "bundle", fp16=True)
    assert not (tmp_path / "bundle").exists()


def test_a_weight_beyond_half_precision_is_named(tokenizer_dir: Path, tmp_path: Path) -> None:
    model = tiny_model("none", num_layers=1)
    layer = model.encoder.layers[0]
    layer.feed_forward.up.weight.data[0, 0] = 1e5
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), tmp_path / "ckpt")
    with pytest.raises(EngineError, match=r"reaches 1e\+05, too large for float16; .*--fp16$"):
        export_bundle(tmp_path / "ckpt", tmp_path / "bundle", fp16=True)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_without_them_says_how_to_get_them(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tiny_bundle, precision="fp16")
    assert str(caught.value) == f"{tiny_bundle} has no graphs in fp16: export it with --fp16"


def test_a_missing_graph_is_noticed(exported: tuple[Path, ExportReport], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
    (copy / "dense.fp16_masked.onnx").unlink()
    with pytest.raises(BundleError, match=r"dense\.fp16_masked\.onnx is missing"):
        load(copy)


def test_the_commands(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint, bundle = make_checkpoint("1", num_layers=2), tmp_path / "bundle"
    told = run("export", checkpoint, "--output", bundle, "--fp16", "--fused")
    assert "half precision: " in told and "one graph fp16_masked" in told
    lengths = ("--lengths", 16, "--rounds", 1, "--threads", 1)
    told = run("bench", bundle, "--precision", "fp16", *lengths)
    assert "not timed" not in told

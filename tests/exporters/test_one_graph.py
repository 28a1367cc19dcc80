"""The whole chain as one graph: it answers as the chain does, in every variant and task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from commands_in_tests import run
from conftest import CheckpointMaker, make_texts, tiny_model

from trbert_deploy import load
from trbert_deploy.batching import Padding
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import CHAIN, HALF, HALVES, MANIFEST, SCHEDULED, Manifest
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import BundleError, ConfigError, ParityError
from trbert_deploy.exporters import one_graph
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.checks.parity import output_difference
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.onnx import whole_chain
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.one_graph import OneGraphBackend, results_of_chain
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.token_state import TokenRow, TokenState, fates_apart, survivor_agreement
from trbert_deploy.selection import capacity
from trbert_deploy.selection.capacity import PARTS, Capacity
from trbert_deploy.tasks.outputs import Output
from trbert_deploy.tasks.registry import TASKS, task_of

TEXTS = [row["text"] for row in make_texts(12, seed=1)]
PAIRS = [("who found the house?", text) for text in TEXTS]
#: Name -> what the model does, its cuts, and its texts.
MODELS: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "labels": ({}, "1,2", TEXTS),
    "one cut": ({}, "2", TEXTS),
    "within a layer": ({}, "0.5,2.5,3", TEXTS),
    "tags": ({"task": "token-classification", "labels": ("O", "B-X", "B-Y")}, "0.5,2", TEXTS),
    "mean": (
        {"task": "feature-extraction", "labels": (), "answers": {"pooling": "mean"}}, "1,2", TEXTS,
    ),
    "max": (
        {"task": "feature-extraction", "labels": (), "answers": {"pooling": "max"}}, "1,2", TEXTS,
    ),
    "questions": ({"task": "question-answering", "labels": ("start", "end")}, "1,2", PAIRS),
    "positions": (
        {"family": "mpnet", "token_types": 0, "pad_token_id": 1, "options": {"buckets": 32}},
        "1,2", TEXTS,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> tuple[Path, list[Any]]:
    """A bundle with the graph of its whole chain, in half precision, too, and texts for it."""
    changes, cuts, texts = MODELS[request.param]
    place = tmp_path_factory.mktemp("one") / "ckpt"
    checkpoint = Checkpoint(
        tiny_model(cuts, **changes), tokenizer_dir, 64, samples=tuple(texts[:6])
    )
    save_checkpoint(checkpoint, place)
    export_bundle(place, place.with_name("bundle"), fp16=True, fused=True)
    return place.with_name("bundle"), texts


def outputs_in_batches(bundle: Bundle, variant: str, rows: list[TokenRow], batch: int) -> list[Any]:
    """What a variant says of rows that are padded to the longest of some."""
    manifest = bundle.manifest
    assert manifest.chain is not None
    path = str(bundle.graph_path(CHAIN, "masked" if variant == "openvino" else variant))
    names = [tensor.name for tensor in manifest.chain.outputs]
    run = _openvino(path) if variant == "openvino" else _onnxruntime(path, names)
    found = []
    for start in range(0, len(rows), batch):
        group = rows[start : start + batch]
        inputs = batch_inputs(manifest.chain.token_inputs, [TokenState.of(0, row) for row in group])
        shape = inputs["input_ids"].shape
        inputs.setdefault("attention_mask", np.ones(shape, np.bool_))
        values = dict(zip(names, run(inputs), strict=True))
        lengths = [len(row) for row in group]
        outputs = task_of(manifest.encoder).outputs
        found += results_of_chain(outputs, values, lengths, len(manifest.reduction.cuts))
    return found


def _onnxruntime(path: str, names: list[str]) -> Callable[[Any], Any]:
    session = onnxruntime.InferenceSession(path)
    return lambda inputs: session.run(names, inputs)


def _openvino(path: str) -> Callable[[Any], Any]:
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", hints)
    return lambda inputs: list(model(inputs).values())


@pytest.mark.parametrize("variant", ["masked", "fused", SCHEDULED, "openvino"])
def test_it_answers_as_the_chain(exported: tuple[Path, list[Any]], variant: str) -> None:
    path, texts = exported
    chain = load(path, threads=1)
    rows = chain.tokenize(texts)
    expected = chain.run(rows)
    assert any(len(result.kept[-1]) < len(row) for result, row in zip(expected, rows, strict=True))
    if variant == "fused":
        received = load(path, "one-graph", threads=1).run(rows)
    else:
        received = outputs_in_batches(Bundle.open(path), variant, rows, 4)
    for one, other in zip(expected, received, strict=True):
        assert [each.tolist() for each in one.kept] == [each.tolist() for each in other.kept]
        for name, values in one.outputs.items():
            assert other.outputs[name].shape == values.shape
            np.testing.assert_allclose(other.outputs[name], values, atol=1e-5)


@pytest.mark.parametrize("variant", HALVES)
def test_in_half_precision_it_answers_much_alike(
    exported: tuple[Path, list[Any]], variant: str
) -> None:
    path, texts = exported
    chain = load(path, threads=1)
    rows = chain.tokenize(texts)
    expected = chain.run(rows)
    if variant == HALF:
        received = load(path, "one-graph", threads=1, precision="fp16").run(rows)
    else:
        received = outputs_in_batches(Bundle.open(path), variant, rows, 4)
    limits = LIMITS["fp16"]
    assert survivor_agreement(rows, expected, received) >= limits.survivor_agreement
    for one, other in zip(expected, received, strict=True):
        if not fates_apart(one, other):
            assert 0 < output_difference(one, other) < limits.tolerance


def test_rows_share_calls_where_the_runtime_likes_it(
    exported: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: rows of one length, of which each keeps as many tokens as it likes."""
    path, texts = exported
    chain = load(path, threads=1)
    rows = chain.tokenize(texts)
    shortest = min(map(len, rows))
    rows = [*rows, *(row.part(range(shortest)) for row in rows)]
    expected = chain.run(rows)
    calls: list[int] = []
    graphs = OnnxRuntimeBackend(Bundle.open(path), BackendOptions(threads=1))
    graphs.padding = Padding(share=0.9)
    backend = OneGraphBackend(Bundle.open(path), graphs, "one-graph", batches=True)
    graph = graphs.graph(CHAIN)
    called = type(graph).__call__

    def counted(self: Any, inputs: Any) -> Any:
        calls.append(len(inputs["input_ids"]))
        return called(self, inputs)

    monkeypatch.setattr(type(graph), "__call__", counted)
    received = backend.run_rows(rows, chain.reduction, 16384)
    assert max(calls) > 1 and sum(calls) == len(rows)
    for one, other in zip(expected, received, strict=True):
        assert [each.tolist() for each in one.kept] == [each.tolist() for each in other.kept]
        for name, values in one.outputs.items():
            np.testing.assert_allclose(other.outputs[name], values, atol=1e-5)


def test_its_dense_answers_are_the_dense_models(exported: tuple[Path, list[Any]]) -> None:
    path, texts = exported
    chain, whole = load(path, threads=1), load(path, "one-graph", threads=1)
    rows = chain.tokenize(texts[:3])
    pairs = zip(chain.run(rows, dense=True), whole.run(rows, dense=True), strict=True)
    for one, other in pairs:
        for name, values in one.outputs.items():
            np.testing.assert_array_equal(other.outputs[name], values)


@pytest.mark.parametrize(
    "change",
    [{"ratio": 0.3}, {"max_tokens": 8}, {"round_to": 8}, {"max_tokens": 8, "round_to": 8}],
    ids=str,
)
def test_every_rule_can_be_in_it(tiny_bundle: Path, change: dict[str, Any], tmp_path: Path) -> None:
    chain = load(tiny_bundle, threads=1, **change)
    rows = chain.tokenize(TEXTS)
    bundle = Bundle.open(tiny_bundle)
    manifest = replace(bundle.manifest, reduction=chain.reduction)
    copied = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    made = one_graph.add_one_graph(Bundle.of(copied, manifest), chain.chain, rows)
    assert all(parity.rows_apart == 0 for parity in made.parity.values())


def test_rows_beyond_the_capacity_lose_their_least(
    exported: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    path, texts = exported
    chain = load(path, threads=1)
    rows = sorted(chain.tokenize(texts), key=len)[-2:]
    bundle = Bundle.open(path)
    little = [Capacity(100, room=3)] * len(bundle.manifest.reduction.cuts)
    model = one_graph.chain_model(bundle, SCHEDULED, little)
    manifest = bundle.manifest
    onnx.save(model, path / "little.onnx")
    try:
        session = onnxruntime.InferenceSession(str(path / "little.onnx"))
    finally:
        (path / "little.onnx").unlink()
    assert manifest.chain is not None
    inputs = batch_inputs(manifest.chain.token_inputs, [TokenState.of(0, rows[-1])])
    inputs["attention_mask"] = np.ones(inputs["input_ids"].shape, np.bool_)
    survivors = session.run(["survivors_0"], inputs)[0][0]
    length = len(rows[-1])
    assert len(survivors) == little[0].slots(length) < len(chain.run(rows)[-1].kept[0])
    kept = survivors[survivors >= 0]
    assert kept.tolist() == sorted(kept.tolist())
    always = rows[-1].protected.nonzero()[0][: len(survivors)]
    assert {*always.tolist()} <= {*kept.tolist()}


def test_no_more_survive_than_tensorrt_ranks(
    exported: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = exported
    bundle = Bundle.open(path)
    for module in (capacity, whole_chain):
        monkeypatch.setattr(module, "MOST_SLOTS", 9)
    plenty = [Capacity(PARTS)] * len(bundle.manifest.reduction.cuts)
    onnx.save(one_graph.chain_model(bundle, SCHEDULED, plenty), path / "few.onnx")
    try:
        session = onnxruntime.InferenceSession(str(path / "few.onnx"))
    finally:
        (path / "few.onnx").unlink()
    assert bundle.manifest.chain is not None
    row = max(load(path, threads=1).tokenize(texts), key=len)
    inputs = batch_inputs(bundle.manifest.chain.token_inputs, [TokenState.of(0, row)])
    inputs["attention_mask"] = np.ones(inputs["input_ids"].shape, np.bool_)
    survivors = session.run(["survivors_0"], inputs)[0]
    assert survivors.shape == (1, 9) == (1, plenty[0].slots(len(row)))


def test_its_weights_are_those_of_the_segments(exported: tuple[Path, list[Any]]) -> None:
    bundle = Bundle.open(exported[0])
    assert bundle.manifest.chain is not None
    for variant in bundle.manifest.chain.variants:
        model = onnx.load(bundle.graph_path(CHAIN, variant), load_external_data=False)
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {"weights.safetensors"}
        assert not model.functions  # runtimes that know none take it
        assert bundle.graph_path(CHAIN, variant).stat().st_size < 400_000


def test_tensorrt_builds_what_is_scheduled(exported: tuple[Path, list[Any]]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from trbert_deploy.exporters.tensorrt.builder import build_engine
    from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
    from trbert_deploy.runtime.backends.tensorrt.library import load_tensorrt

    path = Bundle.open(exported[0]).graph_path(CHAIN, SCHEDULED)
    built = build_engine(load_tensorrt("rtx"), path, [Profile(1, 64, 1, 4, 8)], "8.6")
    assert len(built.data) > 10_000


def test_another_operating_point_is_refused(exported: tuple[Path, list[Any]]) -> None:
    path, texts = exported
    with pytest.raises(ConfigError, match="the operating point of its export, and no other"):
        load(path, "one-graph", threads=1, threshold=0.9)(texts)


def test_a_bundle_without_it_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="no graph of its whole chain: export it with --fused"):
        load(tiny_bundle, "one-graph")


def test_a_model_without_cuts_is_refused(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no cuts, and dense\.onnx is one graph already"):
        export_bundle(make_checkpoint("none"), tmp_path / "bundle", fused=True)
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_sample_texts_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    save_checkpoint(Checkpoint(tiny_model(), tokenizer_dir, 64), tmp_path / "ckpt")
    with pytest.raises(ConfigError, match="no sample texts, from which --fused learns"):
        export_bundle(tmp_path / "ckpt", tmp_path / "bundle", fused=True)


def test_masked_words_are_refused() -> None:
    asked = (Output("logits", "asked", 4),)
    with pytest.raises(ConfigError, match="answers for some of a text's tokens alone"):
        one_graph.require_possible(ReductionConfig.parse("1"), asked, has_samples=True)


def test_a_fault_in_it_is_seen(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = one_graph.whole_chain

    def faulty(
        graphs: Any, reduction: ReductionConfig, outputs: Any, **options: Any
    ) -> onnx.ModelProto:
        rules = [replace(cut.rule, value=0.3) for cut in reduction.cuts]
        return right(graphs, reduction.with_rules(tuple(rules)), outputs, **options)

    monkeypatch.setattr(one_graph, "whole_chain", faulty)
    with pytest.raises(ParityError, match=r"one graph \(masked\)"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", fused=True)
    assert not (tmp_path / "bundle").exists()


def test_its_description_is_checked(exported: tuple[Path, list[Any]], tmp_path: Path) -> None:
    path, _ = exported
    data = json.loads((path / MANIFEST).read_text())
    assert json.loads(json.dumps(Manifest.from_json(data).to_json())) == data
    manifest = Manifest.from_json(data)
    assert manifest.chain is not None
    for changed in (
        replace(manifest.chain, name="other"),
        replace(manifest.chain, outputs=manifest.chain.outputs[1:]),
        replace(manifest.chain, inputs=manifest.chain.inputs[1:]),
        replace(manifest.chain, variants=("masked",)),
    ):
        with pytest.raises(BundleError, match="damaged"):
            Manifest.from_json(replace(manifest, chain=changed).to_json())
    with pytest.raises(BundleError, match="capacities for"):
        Manifest.from_json(replace(manifest, capacities=()).to_json())


def test_tasks_that_protect_say_so() -> None:
    for task in TASKS.values():
        overrides = "protected" in vars(task) or "protects" in vars(task)
        assert ("protects" in vars(task)) == overrides, task


def test_the_command_takes_the_operating_point(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint, bundle = make_checkpoint("1", num_layers=2), tmp_path / "bundle"
    told = run("export", checkpoint, "--output", bundle, "--fused", "--threshold", 0.3)
    assert "one graph scheduled" in told
    opened = load(bundle, "one-graph", threads=1)
    assert [cut.rule.value for cut in opened.reduction.cuts] == [0.3]
    usual = load(bundle, threads=1, threshold=0.5)
    rows = usual.tokenize(TEXTS)
    assert sum(len(result.kept[0]) for result in opened.run(rows)) > sum(
        len(result.kept[0]) for result in usual.run(rows)
    )

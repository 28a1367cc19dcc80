"""Each family through the whole product: a random folder is trained, exported, served, built."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import LABELS, make_texts
from hf_folders import SMALL_FAMILIES, family_folder
from transformers import AutoModelForSequenceClassification

from trbert_deploy import load
from trbert_deploy.bench.bundles import BenchOptions, bench_bundle
from trbert_deploy.bench.timing import Rounds
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    CHAIN,
    HIDDEN_OUT,
    SCHEDULED,
    segment_name,
    states_name,
)
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.exporters.calibration import eight_bit_models
from trbert_deploy.exporters.checks.limits import NO_LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.onnx.precision import half_graph
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS
from trbert_deploy.exporters.tensorrt.builder import (
    build_engine,
    multiplies_float32,
    rtx_compute_capabilities,
)
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.modeling.families.registry import FAMILIES
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
from trbert_deploy.runtime.backends.tensorrt.library import load_tensorrt
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.token_state import TokenState
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import HardRecipe, Recipe
from trbert_deploy.training.run import train

pytestmark = pytest.mark.slow


def test_every_family_is_tried() -> None:
    assert {FAMILIES[model_type].name for model_type in FAMILIES} == set(SMALL_FAMILIES)


@pytest.fixture(params=sorted(SMALL_FAMILIES))
def folder(request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A fine-tuned folder of transformers, with random weights."""
    return family_folder(tmp_path / "folder", tokenizer_dir, request.param, LABELS)


def test_a_folder_is_trained_exported_served_and_built(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_texts(60)))
    texts = [row["text"] for row in make_texts(12, seed=9)]
    # As it came: the dense model of transformers.
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    layers = (0, 1, reference.config.num_hidden_layers)
    export_bundle(folder, tmp_path / "dense", states_after=layers)
    served = load(tmp_path / "dense", threads=1)
    for row, result in zip(served.tokenize(texts), served.run(served.tokenize(texts)), strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0].numpy()
        assert np.allclose(result.outputs["logits"], expected, atol=1e-4)
    graphs = OnnxRuntimeBackend(Bundle.open(tmp_path / "dense"), BackendOptions(threads=1))
    row = TokenState.of(0, served.tokenize(texts)[0])
    with torch.no_grad():
        ids = torch.from_numpy(row.tokens.input_ids)[None]
        theirs = reference(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in layers:
        graph = graphs.graph(states_name(layer))
        found = graph(batch_inputs(graph.inputs, [row]))[HIDDEN_OUT]
        assert np.allclose(found, theirs[layer].numpy(), atol=1e-4), layer
    # Trained: policies drop tokens.
    options = TrainOptions(
        model=str(folder),
        train=str(data),
        target_speedup=1.5,
        max_length=64,
        recipe=Recipe(
            averaged_runs=1, batch_tokens=512, validations=1, hard=HardRecipe(epochs=0.5)
        ),
    )
    report = train(options, tmp_path / "ckpt")
    assert report.stages["hard"].flops_speedup > 1.2
    export_bundle(
        tmp_path / "ckpt", tmp_path / "bundle", int8=True, int8_limits=NO_LIMITS, fused=True
    )
    expected = open_models(tmp_path / "ckpt")[0](texts, return_kept=True)
    for backend in ("onnxruntime", "one-graph", "openvino", "torch"):
        predictions = load(tmp_path / "bundle", backend, threads=1, precision="fp32")(
            texts, return_kept=True
        )
        for one, other in zip(predictions, expected, strict=True):
            assert one.kept == other.kept
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert load(tmp_path / "bundle", threads=1, precision="int8")(texts)
    bench = bench_bundle(
        tmp_path / "bundle",
        BenchOptions(lengths=(16,), backend="onnxruntime", rounds=Rounds.exactly(1), threads=1),
    )
    assert bench.backends[0].points[0].flops_speedup > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engines = build_engines(
            tmp_path / "bundle", EngineOptions(lengths=(32,), batches=(1, 2, 4))
        )
    bundle = Bundle.open(tmp_path / "bundle")
    assert len(engines.engine_set.manifest.engines) == len(bundle.manifest.all_graphs)
    library, profiles = load_tensorrt("rtx"), [Profile(1, 32, 1, 2, 4)]
    assert build_engine(library, bundle.graph_path(CHAIN, SCHEDULED), profiles, "8.6").data
    model = onnx.load(bundle.graph_path(segment_name(1)))
    models = {
        graph.name: onnx.load(bundle.graph_path(graph.name)) for graph in bundle.manifest.graphs
    }
    for precision in EIGHT_BITS:
        for each in eight_bit_models(bundle, models, precision).values():
            half = half_graph(each, precision).SerializeToString()
            assert build_engine(library, half, profiles, "8.9").data
    for capability in rtx_compute_capabilities(library):
        half = half_graph(model, "fp16", every_product=not multiplies_float32(library, capability))
        assert build_engine(library, half.SerializeToString(), profiles, capability).data
    # And back: transformers loads what was trained as the dense model.
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ckpt").eval()
    row = served.tokenize(texts)[0]
    dense = open_models(tmp_path / "ckpt")[0].run([row], dense=True)[0].outputs["logits"]
    with torch.no_grad():
        logits = again(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0].numpy()
    assert np.allclose(logits, dense, atol=1e-4)

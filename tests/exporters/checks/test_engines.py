"""Verification of engines: the comparison itself, with ONNX Runtime in an engine's place.

An engine needs a GPU; here it is a graph that is rounded to half precision, or has a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import ATTENTION_MASK, CHAIN, DENSE, WEIGHTS
from trbert_deploy.errors import DeviceError, EngineError, ParityError
from trbert_deploy.exporters.checks.engines import (
    require_polygraphy,
    unequal_mask,
    verify_engines,
    why_not_verifiable,
)
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.one_graph import chain_of_parts
from trbert_deploy.exporters.onnx.precision import rounded_graph
from trbert_deploy.files import sha256
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    EngineFile,
    EngineKey,
    EngineManifest,
    EngineSet,
    Profile,
    engine_sources,
)

pytest.importorskip("polygraphy")

PROFILES = (Profile(1, 16, 1, 2, 4), Profile(17, 32, 1, 2, 4))


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


@pytest.fixture(scope="module")
def models(tiny_bundle: Path) -> dict[str, onnx.ModelProto]:
    """The bundle's graphs as half precision computes them."""
    bundle = Bundle.open(tiny_bundle)
    return {
        graph.name: rounded_graph(onnx.load(bundle.graph_path(graph.name)), "fp16")
        for graph in bundle.manifest.graphs
    }


@pytest.fixture
def runs_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """polygraphy runs graphs in the engines' place."""
    from polygraphy.backend import trt
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    def runner(engine: bytes, **options: Any) -> OnnxrtRunner:
        assert options["optimization_profile"] in (0, 1)
        return OnnxrtRunner(SessionFromOnnx(engine))

    monkeypatch.setattr(trt, "EngineFromBytes", lambda data: data)
    monkeypatch.setattr(trt, "TrtRunner", runner)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "")


def write_set(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    precision: str = "fp16",
    *,
    plugin: bool = False,
) -> EngineSet:
    """An engine set whose engines are these graphs."""
    digests = bundle.manifest.files
    graphs = {name: digests[file] for name, file in engine_sources(bundle.manifest, plugin).items()}
    profiles = dict.fromkeys(graphs, PROFILES)
    key = EngineKey("rtx", "1.0", "8.6", precision, profiles, digests[WEIGHTS], graphs, plugin)
    directory = bundle.engines_path / key.directory
    directory.mkdir(parents=True, exist_ok=True)
    engines = []
    for name in graphs:
        file = directory / f"{name}.engine"
        file.write_bytes(models[name].SerializeToString())
        engines.append(EngineFile(name, sha256(file), 1, None, 0.0))
    return EngineSet(directory, EngineManifest(key, tuple(engines), {}))


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The graph with other weights."""
    other = copied(model)
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(from_array(to_array(tensor) * np.float32(factor), tensor.name))
    return other


def unmasked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, but all places count, whatever the mask says."""
    other = copied(model)
    for node in other.graph.node:
        for place, name in enumerate(node.input):
            if name == ATTENTION_MASK:
                node.input[place] = "everything"
    made = [
        helper.make_node("Not", [ATTENTION_MASK], ["nothing"]),
        helper.make_node("Or", [ATTENTION_MASK, "nothing"], ["everything"]),
    ]
    for node in reversed(made):
        other.graph.node.insert(0, node)
    return other


@pytest.mark.usefixtures("runs_engines")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_profile_of_every_engine_is_compared(
    bundle: Bundle, models: dict[str, onnx.ModelProto], precision: str
) -> None:
    steps: list[tuple[str, int, int]] = []
    engine_set = write_set(bundle, models, precision)
    results = verify_engines(bundle, engine_set, lambda *step: steps.append(step))
    assert [(result.graph, result.profile) for result in results] == [
        (graph.name, profile) for graph in bundle.manifest.graphs for profile in (0, 1)
    ]
    # Something else was run than what was expected: the engines are rounded.
    assert all(difference > 1e-6 for r in results for difference in r.max_difference.values())
    assert set(results[0].max_difference) == {"hidden_out", "keep_logit"}
    assert set(results[-1].max_difference) == {"hidden_out", "logits"}
    assert steps[-2:] == [("verify dense", 7, 8), ("verify engines", 8, 8)]


@pytest.mark.usefixtures("runs_engines")
@pytest.mark.parametrize("name", ["segment_0", "segment_1", "segment_2", "dense"])
def test_engine_of_other_weights_is_refused(
    bundle: Bundle, models: dict[str, onnx.ModelProto], name: str
) -> None:
    faulty = {**models, name: scaled(models[name], 1.5)}
    with pytest.raises(ParityError, match=rf"engine {name}, profile 0: \w+ differs from ONNX"):
        verify_engines(bundle, write_set(bundle, faulty))


@pytest.mark.usefixtures("runs_engines")
@pytest.mark.parametrize("name", ["segment_0", "segment_1", "segment_2", "dense"])
def test_engine_that_pays_no_heed_to_the_mask_is_refused(
    bundle: Bundle, models: dict[str, onnx.ModelProto], name: str
) -> None:
    faulty = {**models, name: unmasked(models[name])}
    with pytest.raises(ParityError, match=f"engine {name}, profile 0, padded: "):
        verify_engines(bundle, write_set(bundle, faulty))


@pytest.fixture
def whole(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Bundle, dict[str, onnx.ModelProto]]:
    """A bundle with the graph of its whole chain, and its graphs in half precision."""
    export_bundle(tiny_checkpoint, tmp_path / "whole", fused=True)
    bundle = Bundle.open(tmp_path / "whole")
    halves = {
        graph.name: rounded_graph(onnx.load(bundle.graph_path(graph.name)), "fp16")
        for graph in bundle.manifest.graphs
    }
    parts = {name: half for name, half in halves.items() if name != DENSE}
    halves[CHAIN] = chain_of_parts(bundle.manifest, parts, bundle.manifest.capacities)
    return bundle, halves


@pytest.mark.usefixtures("runs_engines")
def test_the_engine_of_the_whole_chain_is_compared(
    whole: tuple[Bundle, dict[str, onnx.ModelProto]],
) -> None:
    bundle, models = whole
    results = verify_engines(bundle, write_set(bundle, models))
    found = [result for result in results if result.graph == CHAIN]
    assert [result.profile for result in found] == [0, 1]
    assert all(0 < result.max_difference["logits"] < 0.02 for result in found)


@pytest.mark.usefixtures("runs_engines")
def test_the_engine_with_a_plugin_is_compared_with_exact_survivors(
    whole: tuple[Bundle, dict[str, onnx.ModelProto]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, models = whole
    known: list[str] = []
    place = "trbert_deploy.exporters.checks.engines"
    monkeypatch.setattr(f"{place}.load_tensorrt", lambda flavour: flavour)
    monkeypatch.setattr(f"{place}.register_plugin", known.append)
    parts = {name: half for name, half in models.items() if name not in (DENSE, CHAIN)}
    exact = {**models, CHAIN: chain_of_parts(bundle.manifest, parts, None)}
    results = verify_engines(bundle, write_set(bundle, exact, plugin=True))
    assert all(
        0 < result.max_difference["logits"] < 0.02 for result in results if result.graph == CHAIN
    )
    assert known == ["rtx"]  # before its engine, which is one
    # One that loses tokens for want of slots is another.
    fewer = [replace(capacity, room=1, parts=1) for capacity in bundle.manifest.capacities]
    lossy = {**models, CHAIN: chain_of_parts(bundle.manifest, parts, fewer)}
    with pytest.raises(ParityError, match="engine chain, profile 0"):
        verify_engines(bundle, write_set(bundle, lossy, plugin=True))


@pytest.mark.usefixtures("runs_engines")
@pytest.mark.parametrize("fault", ["weights", "mask", "survivors"])
def test_a_faulty_engine_of_the_whole_chain_is_refused(
    whole: tuple[Bundle, dict[str, onnx.ModelProto]], fault: str
) -> None:
    bundle, models = whole
    broken = models[CHAIN]
    if fault == "weights":
        broken = scaled(broken, 1.5)
    elif fault == "mask":
        broken = unmasked(broken)
    else:
        rules = [replace(cut.rule, value=0.2) for cut in bundle.manifest.reduction.cuts]
        other = replace(
            bundle.manifest, reduction=bundle.manifest.reduction.with_rules(tuple(rules))
        )
        parts = {name: half for name, half in models.items() if name not in (DENSE, CHAIN)}
        broken = chain_of_parts(other, parts, bundle.manifest.capacities)
    with pytest.raises(ParityError, match="engine chain, profile 0"):
        verify_engines(bundle, write_set(bundle, {**models, CHAIN: broken}))


@pytest.mark.usefixtures("runs_engines")
def test_engine_that_cannot_be_run_is_one_line(
    bundle: Bundle, models: dict[str, onnx.ModelProto]
) -> None:
    """An engine of another graph takes other inputs."""
    swapped = {**models, "segment_1": models["dense"]}
    with pytest.raises(EngineError, match="engine segment_1, profile 0: cannot be run: ") as caught:
        verify_engines(bundle, write_set(bundle, swapped))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 16), (8, 4), (2, 1)])
def test_padded_rows_are_of_unequal_length(batch: int, length: int) -> None:
    lengths = unequal_mask(batch, length).sum(axis=1)
    assert lengths.min() >= 1
    assert lengths.max() < max(length, 2)
    assert (np.diff(lengths) <= 0).all()
    assert len(set(lengths)) == min(batch, max(1, length - 1))


def test_no_gpu_is_said(
    bundle: Bundle, models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise DeviceError("no NVIDIA GPU answers")

    place = "trbert_deploy.exporters.checks.engines.gpu_compute_capability"
    engine_set = write_set(bundle, models)
    monkeypatch.setattr(place, refuse)
    assert why_not_verifiable(engine_set) == "no NVIDIA GPU here"
    monkeypatch.setattr(place, lambda: "8.9")
    assert why_not_verifiable(engine_set) == "this GPU is 8.9, the engines are for 8.6"
    monkeypatch.setattr(place, lambda: "8.6")
    assert why_not_verifiable(engine_set) is None


def test_polygraphy_is_there() -> None:
    require_polygraphy()

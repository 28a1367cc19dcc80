"""Verification of engines: the comparison itself, with ONNX Runtime in an engine's place.

An engine needs a GPU; here it is a file that names an ONNX graph, and the runner runs that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from onnx.numpy_helper import from_array, to_array

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.errors import DeviceError, ParityError
from trbert_deploy.exporters.checks.engines import (
    require_polygraphy,
    verify_engines,
    why_not_verifiable,
)
from trbert_deploy.files import sha256
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    EngineFile,
    EngineKey,
    EngineManifest,
    EngineSet,
    Profile,
)

pytest.importorskip("polygraphy")

PROFILES = (Profile(1, 16, 1, 2, 4), Profile(17, 32, 1, 2, 4))


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


@pytest.fixture
def onnxruntime_runs_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    from polygraphy.backend import trt
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    def runner(engine: bytes, **options: Any) -> OnnxrtRunner:
        assert options["optimization_profile"] in (0, 1)
        return OnnxrtRunner(SessionFromOnnx(engine.decode()))

    monkeypatch.setattr(trt, "EngineFromBytes", lambda data: data)
    monkeypatch.setattr(trt, "TrtRunner", runner)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "")


def write_set(bundle: Bundle, paths: dict[str, Path]) -> EngineSet:
    digests = bundle.manifest.files
    graphs = {graph.name: digests[graph.file] for graph in bundle.manifest.graphs}
    key = EngineKey("rtx", "1.0", "8.6", "fp16", PROFILES, digests[WEIGHTS], graphs)
    directory = bundle.engines_path / key.directory
    directory.mkdir(parents=True)
    engines = []
    for name in graphs:
        file = directory / f"{name}.engine"
        file.write_text(str(paths.get(name, bundle.graph_path(name))))
        engines.append(EngineFile(name, sha256(file), 1, None, 0.0))
    return EngineSet(directory, EngineManifest(key, tuple(engines), {}))


@pytest.mark.usefixtures("onnxruntime_runs_engines")
def test_every_profile_of_every_engine_is_compared(bundle: Bundle) -> None:
    steps: list[tuple[str, int, int]] = []
    results = verify_engines(bundle, write_set(bundle, {}), lambda *step: steps.append(step))
    assert [(result.graph, result.profile) for result in results] == [
        (graph.name, profile) for graph in bundle.manifest.graphs for profile in (0, 1)
    ]
    assert all(difference < 1e-6 for r in results for difference in r.max_difference.values())
    assert set(results[0].max_difference) == {"hidden_out", "keep_logit"}
    assert steps[-1] == ("verify dense", 7, 8)


@pytest.mark.usefixtures("onnxruntime_runs_engines")
def test_engine_that_differs_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.graph_path("segment_1"))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(from_array(to_array(tensor) * 1.5, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    engine_set = write_set(bundle, {"segment_1": tmp_path / "other.onnx"})
    with pytest.raises(ParityError, match="engine segment_1, profile 0: hidden_out differs from"):
        verify_engines(bundle, engine_set)


def test_no_gpu_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise DeviceError("no NVIDIA GPU answers")

    place = "trbert_deploy.exporters.checks.engines.gpu_compute_capability"
    engine_set = write_set(bundle, {})
    monkeypatch.setattr(place, refuse)
    assert why_not_verifiable(engine_set) == "no NVIDIA GPU here"
    monkeypatch.setattr(place, lambda: "8.9")
    assert why_not_verifiable(engine_set) == "this GPU is 8.9, the engines are for 8.6"
    monkeypatch.setattr(place, lambda: "8.6")
    assert why_not_verifiable(engine_set) is None


def test_polygraphy_is_there() -> None:
    require_polygraphy()

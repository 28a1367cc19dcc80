"""ONNX Runtime on CUDA: what is asked of its sessions, what is refused, and a GPU's answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import BundleError, DeviceError
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.backends import onnxruntime_package
from trbert_deploy.runtime.backends.backend import PADDING_ON_GPUS, BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.onnxruntime_package import CPU, CUDA
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.device_arrays import DeviceStates
from trbert_deploy.runtime.token_state import TokenRow, fates_apart, survivor_agreement


class PlantedSession:
    """A session of onnxruntime-gpu, which comes up with the providers that the test wants."""

    comes_up_with = [CUDA, CPU]
    fails: Exception | None = None
    asked: dict[str, Any] = {}
    inputs = ("input_ids", "token_type_ids")
    outputs = ("logits",)
    bound: PlantedBinding

    def __init__(self, path: str, options: onnxruntime.SessionOptions, **asked: Any) -> None:
        type(self).asked = asked
        if self.fails:
            raise self.fails

    def get_providers(self) -> list[str]:
        return self.comes_up_with

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.outputs]

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((1, 2), np.float32) for _ in names]

    def io_binding(self) -> PlantedBinding:
        return PlantedBinding()

    def run_with_iobinding(self, bound: PlantedBinding) -> None:
        type(self).bound = bound


class PlantedBinding:
    """What such a session is given and asked for, by the device where it lies."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}
        self.wanted: dict[str, str] = {}

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.given[name] = "cpu"

    def bind_ortvalue_input(self, name: str, value: onnxruntime.OrtValue) -> None:
        self.given[name] = "cuda"

    def bind_output(self, name: str, device: str) -> None:
        self.wanted[name] = device

    def get_outputs(self) -> list[onnxruntime.OrtValue]:
        value = np.zeros((1, 5, 2), np.float32)
        return [onnxruntime.OrtValue.ortvalue_from_numpy(value) for _ in self.wanted]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[PlantedSession]:
    """The package onnxruntime-gpu, as far as the backend asks."""

    class Session(PlantedSession):
        pass

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime_package, "_why_no_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return Session


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def halved(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with graphs in half precision."""
    path = tmp_path_factory.mktemp("halved") / "bundle"
    export_bundle(tiny_checkpoint, path, fp16=True)
    return Bundle.open(path)


def run_one(bundle: Bundle) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(bundle, BackendOptions())
    ids = np.ones((1, 5), np.int64)
    backend.graph("dense")({"input_ids": ids, "token_type_ids": np.zeros_like(ids)})
    return backend


def test_cuda_computes_float32_and_does_not_fall_back(
    bundle: Bundle, planted: type[PlantedSession]
) -> None:
    backend = run_one(bundle)
    assert planted.asked["providers"] == [(CUDA, {"use_tf32": "0"}), CPU]
    assert planted.asked["enable_fallback"] == 0
    assert planted.asked["disabled_optimizers"] == []
    assert backend.description["provider"] == CUDA
    assert backend.padding == PADDING_ON_GPUS and backend.call_tokens == MOST_TOKENS


def test_states_stay_on_the_gpu(bundle: Bundle, planted: type[PlantedSession]) -> None:
    graph = run_one(bundle).graph("dense")
    assert planted.bound.given == {"input_ids": "cpu", "token_type_ids": "cpu"}
    assert planted.bound.wanted == {"logits": "cpu"}
    planted.inputs, planted.outputs = ("hidden",), ("hidden_out", "keep_logit")
    graph = OnnxRuntimeBackend(bundle, BackendOptions()).graph("segment_1")
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 5, 2), np.float32))
    states: Any = DeviceStates(value, value.data_ptr(), (1, 5, 2))
    outputs = graph({"hidden": states})
    assert planted.bound.given == {"hidden": "cuda"}
    assert planted.bound.wanted == {"hidden_out": "cuda", "keep_logit": "cpu"}
    assert isinstance(outputs["hidden_out"], DeviceStates)
    assert isinstance(outputs["keep_logit"], np.ndarray)


def test_a_session_without_cuda_is_refused(bundle: Bundle, planted: type[PlantedSession]) -> None:
    planted.comes_up_with = [CPU]
    with pytest.raises(
        DeviceError,
        match=r"^ONNX Runtime \S+ cannot use the GPU that answered before \(the session runs on "
        r"the CPU\): free its memory or check its driver; for the CPU, run pip uninstall -y ",
    ):
        run_one(bundle)


def test_a_missing_gpu_is_named(bundle: Bundle, planted: type[PlantedSession]) -> None:
    planted.fails = RuntimeError(
        "/onnxruntime_src/cuda_call.cc:154 CudaCall(...) \n"
        "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=here"
    )
    with pytest.raises(DeviceError) as caught:
        run_one(bundle)
    assert "(CUDA failure 100: no CUDA-capable device is detected)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_no_missing_gpu(bundle: Bundle, planted: type[PlantedSession]) -> None:
    planted.fails = RuntimeError("Protobuf parsing failed")
    with pytest.raises(BundleError, match=r"cannot load .*: Protobuf parsing failed"):
        run_one(bundle)


def test_the_package_for_cpus_asks_for_the_cpu(
    bundle: Bundle, planted: type[PlantedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureProvider", CPU])
    planted.comes_up_with = [CPU]
    backend = run_one(bundle)
    assert planted.asked["providers"] == [CPU]
    assert planted.asked["disabled_optimizers"] == ["SkipLayerNormFusion"]
    assert backend.description["provider"] == CPU and backend.padding == NO_PADDING


def needs_cuda() -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")


def rows_of(*lengths: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, length) for length in lengths]
    return [TokenRow(row, np.zeros_like(row)) for row in ids]


@pytest.mark.gpu
@pytest.mark.parametrize("padding", [NO_PADDING, Padding(share=0.5)], ids=["fused", "masked"])
def test_the_gpu_answers_as_pytorch_does(bundle: Bundle, padding: Padding) -> None:
    needs_cuda()
    manifest = bundle.manifest
    rows = rows_of(40, 3, 17, 16, 48, 1, 16, 16, 64, 64, 63, 62)
    expected, received = (
        Chain(
            open_backend(name, bundle, BackendOptions()),
            manifest.reduction,
            manifest.encoder.num_layers,
            padding=padding,
        )
        for name in ("torch", "onnxruntime")
    )
    for run in ("run", "run_dense"):
        ours, theirs = getattr(expected, run)(rows), getattr(received, run)(rows)
        assert survivor_agreement(rows, ours, theirs) == 1.0
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("padding", [NO_PADDING, Padding(share=0.5)], ids=["fused", "masked"])
def test_the_gpu_answers_in_half_precision_as_in_float32(halved: Bundle, padding: Padding) -> None:
    needs_cuda()
    manifest = halved.manifest
    rows = rows_of(40, 3, 17, 16, 48, 1, 16, 16, 64, 64, 63, 62)
    expected, received = (
        Chain(
            open_backend("onnxruntime", halved, BackendOptions(precision=precision)),
            manifest.reduction,
            manifest.encoder.num_layers,
            padding=padding,
        )
        for precision in ("fp32", "fp16")
    )
    limits = LIMITS["fp16"]
    for run in ("run", "run_dense"):
        ours, theirs = getattr(expected, run)(rows), getattr(received, run)(rows)
        assert survivor_agreement(rows, ours, theirs) >= limits.survivor_agreement
        for one, other in zip(ours, theirs, strict=True):
            if fates_apart(one, other):
                continue
            wanted, given = one.outputs["logits"], other.outputs["logits"]
            np.testing.assert_allclose(wanted, given, atol=limits.tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("masked", [False, True], ids=["fused", "masked"])
@pytest.mark.parametrize("name", ["segment_0", "segment_1", "segment_2", "dense"])
def test_the_gpu_computes_all_but_shapes(
    halved: Bundle,
    name: str,
    masked: bool,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_cuda()
    sessions = []

    class ProfiledSession(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: onnxruntime.SessionOptions, **asked: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(tmp_path / "profile")
            super().__init__(path, options, **asked)
            sessions.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", ProfiledSession)
    graph = OnnxRuntimeBackend(halved, BackendOptions(precision=precision)).graph(name)
    shape = (2, 9)
    inputs: dict[str, np.ndarray] = {
        tensor: np.ones(shape, np.int64) for tensor in graph.inputs if tensor != "hidden"
    }
    if "hidden" in graph.inputs:
        inputs["hidden"] = np.ones((*shape, 32), np.float32)
    if masked:
        inputs["attention_mask"] = np.ones(shape, np.bool_)
    graph(inputs)
    (session,) = sessions
    assert session.get_providers()[0] == CUDA
    assert session.get_provider_options()[CUDA]["use_tf32"] == "0"
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = Counter(
        (event["args"]["provider"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and "provider" in event["args"]
    )
    on_cpu = {operator for provider, operator in nodes if provider == CPU}
    assert on_cpu <= {"Concat", "Squeeze", "Gather", "Unsqueeze"}  # of shapes, which live there
    assert {operator for provider, operator in nodes if provider == CUDA} >= {"MatMul"}
    assert nodes[CUDA, "Attention" if masked else "MultiHeadAttention"] > 0

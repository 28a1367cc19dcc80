"""The TensorRT backend: what it refuses, and its handling of batches on a stand-in device.

Engines only run on an NVIDIA GPU. Everything around them (profiles, parts of batches, buffers,
copies) runs here as it is, on CUDA's bindings in host memory, where a context is ONNX Runtime
reading and writing the addresses that it was given.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from conftest import make_texts
from host_cuda import HostCuda, cudaMemcpyKind

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    CHAIN,
    INPUT_IDS,
    SCHEDULED,
    WEIGHTS,
    GraphDescription,
)
from trbert_deploy.errors import ConfigError, DeviceError, EngineError, LengthError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.arrays import HOST
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.backends.tensorrt import backend as backend_module
from trbert_deploy.runtime.backends.tensorrt import device, kernel_cache, memory, one_engine
from trbert_deploy.runtime.backends.tensorrt.backend import TensorRTBackend, row_ranges
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    EngineKey,
    EngineManifest,
    EngineSet,
    Profile,
    engine_sources,
)
from trbert_deploy.runtime.backends.tensorrt.library import (
    TensorRT,
    gpu_compute_capability,
    library_log,
    load_tensorrt,
)
from trbert_deploy.runtime.backends.tensorrt.memory import build_states_engine
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.device_arrays import (
    MEAN_GRAPH,
    TAKE_GRAPH,
    DeviceStates,
    device_graph,
)
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.capacity import Capacity
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of

PROFILES = (Profile(1, 16, 1, 2, 3), Profile(17, 48, 1, 2, 2))
#: Of the engine of the second segment, which takes other numbers of rows.
LATER = (Profile(1, 16, 1, 1, 2, 9), Profile(17, 48, 1, 1, 1, 20))


def profiles_of(name: str) -> tuple[Profile, ...]:
    return LATER if name == "segment_1" else PROFILES


class HostContext:
    """An execution context that runs the ONNX graph on host addresses, when its turn comes."""

    def __init__(
        self,
        graph: GraphDescription,
        session: onnxruntime.InferenceSession,
        cuda: HostCuda,
        capacities: Sequence[Capacity] = (),
    ) -> None:
        self.graph, self.session, self.cuda = graph, session, cuda
        self.capacities = capacities
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0
        self.fails = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = profiles_of(self.graph.name)[self.profile]
        self.shapes[name] = shape
        fits = profile.min_batch <= shape[0] <= profile.max_batch
        return fits and profile.min_length <= shape[1] <= profile.max_length

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, length = self.shapes[self.graph.inputs[0].name][:2]
        tensor = next(tensor for tensor in self.graph.outputs if tensor.name == name)
        sizes = {tensor.shape[0]: batch}
        if len(tensor.shape) > 1 and isinstance(tensor.shape[1], str):
            sizes[tensor.shape[1]] = length
        for cut, capacity in enumerate(self.capacities):
            length = sizes[f"K{cut}"] = min(length, capacity.slots(self.shapes[INPUT_IDS][1]))
        return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000 * (self.profile + 1)

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = size

    def execute_async_v3(self, stream: int) -> bool:
        # What is said of later calls does not change this one.
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        expected = {
            tensor.name: self.get_tensor_shape(tensor.name) for tensor in self.graph.outputs
        }

        def view(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return self.cuda.memory[addresses[name]][:size].view(dtype).reshape(shape)

        def run() -> None:
            feed = {t.name: view(t.name, shapes[t.name], t.dtype) for t in self.graph.inputs}
            for tensor, value in zip(self.graph.outputs, self.session.run(None, feed), strict=True):
                assert expected[tensor.name] == value.shape
                view(tensor.name, value.shape, tensor.dtype)[...] = value

        self.cuda.launch(stream, run)
        return not self.fails


class HostKernels:
    """TensorRT for RTX's cache of what it compiled: here the names of engines."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def deserialize(self, data: bytes) -> bool:
        fits = data.startswith(b"kernels:")
        if fits:
            self.made = set(data.decode().split()[1:])
        return fits

    def serialize(self) -> bytes:
        return " ".join(["kernels:", *sorted(self.made)]).encode()


class HostConfig:
    """How TensorRT for RTX makes a context."""

    strategy = ""
    kernels: HostKernels

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> HostKernels:
        return HostKernels()

    def set_runtime_cache(self, kernels: HostKernels) -> None:
        self.kernels = kernels


class HostEngine:
    """An engine whose contexts run on the host."""

    def __init__(
        self,
        graph: GraphDescription,
        path: Path,
        cuda: HostCuda,
        capacities: Sequence[Capacity] = (),
    ) -> None:
        self.graph, self.cuda, self.capacities = graph, cuda, capacities
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.contexts: list[HostContext] = []

    def create_runtime_config(self) -> HostConfig:
        return HostConfig()

    def create_execution_context(self, config: HostConfig) -> HostContext:
        assert config.strategy == "user managed"
        config.kernels.made.add(self.graph.name)
        self.contexts.append(HostContext(self.graph, self.session, self.cuda, self.capacities))
        return self.contexts[-1]


class StatesContext(HostContext):
    """A context of an engine that brings states together, of whatever shapes."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 2**20

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, count = self.shapes["places"]
        return (batch, 1 if "weights" in self.shapes else count, self.shapes["states"][1])


class StatesEngine:
    """An engine of one of the graphs in ``device_arrays``, which runs on the host."""

    def __init__(self, name: str, cuda: HostCuda) -> None:
        self.session = onnxruntime.InferenceSession(device_graph(name))
        self.cuda = cuda

    def create_runtime_config(self) -> HostConfig:
        return HostConfig()

    def create_execution_context(self, config: HostConfig) -> StatesContext:
        dtypes = {"tensor(float)": "float32", "tensor(int64)": "int64"}
        inputs, outputs = (
            [SimpleNamespace(name=each.name, dtype=dtypes[each.type]) for each in tensors]
            for tensors in (self.session.get_inputs(), self.session.get_outputs())
        )
        graph: Any = SimpleNamespace(inputs=inputs, outputs=outputs)
        return StatesContext(graph, self.session, self.cuda)


class HostModule:
    """As much of TensorRT's module as running engines needs."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, VERBOSE=4)

    def __init__(self, engines: Mapping[str, HostEngine]) -> None:
        self.engines = engines

    def Runtime(self, log: object) -> SimpleNamespace:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self.engines[data.decode()])


class HostEngineSet(EngineSet):
    """Engines that consist of their names."""

    def read(self, name: str) -> bytes:
        return name.encode()


class HostBackend(TensorRTBackend):
    """The backend as it is, with engines that run on the host."""

    def __init__(self, bundle: Bundle, cuda: HostCuda, plugin: bool = False) -> None:
        digests = bundle.manifest.files
        sources = engine_sources(bundle.manifest)
        graphs = {name: digests[file] for name, file in sources.items()}
        profiles = {name: profiles_of(name) for name in sources}
        key = EngineKey("rtx", "1.0", "8.6", "fp32", profiles, digests[WEIGHTS], graphs, plugin)
        engine_set = HostEngineSet(bundle.engines_path, EngineManifest(key, (), {}))
        self.engines = {
            graph.name: HostEngine(graph, bundle.graph_path(graph.name), cuda)
            for graph in bundle.manifest.graphs
        }
        if (chain := bundle.manifest.chain) is not None:
            path = bundle.graph_path(CHAIN, SCHEDULED)
            self.engines[CHAIN] = HostEngine(chain, path, cuda, bundle.manifest.capacities)
        states = {name: StatesEngine(name, cuda) for name in (TAKE_GRAPH, MEAN_GRAPH)}
        library = TensorRT("rtx", HostModule({**self.engines, **states}), "1.0")
        with mock.patch.multiple(
            backend_module,
            load_tensorrt=lambda: library,
            gpu_compute_capability=lambda: "8.6",
            find_engine_set=lambda *_: engine_set,
        ):
            super().__init__(bundle)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostCuda:
    """CUDA's bindings in host memory, which every device of the test uses."""
    host = HostCuda()
    monkeypatch.setattr(kernel_cache, "user_cache_path", lambda name: tmp_path / name)
    # An engine of the host is its name.
    monkeypatch.setattr(memory, "build_states_engine", lambda library, graph, width: graph.encode())
    monkeypatch.setattr(device, "import_cuda", lambda: host)
    return host


@pytest.fixture
def host(bundle: Bundle, cuda: HostCuda) -> HostBackend:
    return HostBackend(bundle, cuda)


def rows_of(*lengths: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, length) for length in lengths]
    return [TokenRow(row, np.zeros_like(row)) for row in ids]


def tokens(batch: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, 256, (batch, length))
    return {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "attention_mask": np.ones(ids.shape, np.bool_),
    }


def test_chain_runs_as_with_onnxruntime(bundle: Bundle, host: HostBackend) -> None:
    manifest = bundle.manifest
    rows = rows_of(40, 3, 17, 16, 48, 1, 16, 16, 16, 16)
    expected, received = (
        Chain(backend, manifest.reduction, manifest.encoder.num_layers)
        for backend in (OnnxRuntimeBackend(bundle, BackendOptions()), host)
    )
    for run in ("run", "run_dense"):
        for ours, theirs in zip(
            getattr(expected, run)(rows), getattr(received, run)(rows), strict=True
        ):
            np.testing.assert_allclose(ours.outputs["logits"], theirs.outputs["logits"], atol=1e-4)
            assert [list(kept) for kept in ours.kept] == [list(kept) for kept in theirs.kept]


def test_no_state_is_copied(bundle: Bundle, host: HostBackend, cuda: HostCuda) -> None:
    """The host sends ids, masks and places, and reads keep logits and answers."""
    manifest = bundle.manifest
    chain = Chain(host, manifest.reduction, manifest.encoder.num_layers)
    timing = Timing()
    chain.run(rows_of(40, 3, 17, 16, 48, 1, 16, 16, 16, 16), timing)
    copied, number = cuda.copied, 8  # bytes of a place
    assert copied[cudaMemcpyKind.cudaMemcpyDeviceToHost] <= 4 * timing.slots + 10 * 2 * 4
    assert copied[cudaMemcpyKind.cudaMemcpyHostToDevice] <= (2 * number + 1) * timing.slots
    # What there is now besides buffers of ids and answers: nothing.
    assert not [block for block in cuda.memory.values() if block.nbytes > 48 * 3 * 32 * 4]


@pytest.mark.parametrize("shape", [(3, 7), (300, 2), (2, 5000)], ids=str)
def test_states_come_together(host: HostBackend, shape: tuple[int, int]) -> None:
    """More rows, or longer ones, than an engine takes at a time."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(*shape, 4)).astype(np.float32)
    block = host._executor.device.allocate("states", states.nbytes)
    host._executor.device._copy(
        block.address, states.ctypes.data, states.nbytes, cudaMemcpyKind.cudaMemcpyHostToDevice
    )
    batch, length = shape
    given = DeviceStates(block, block.address, (batch, length, 4))
    places = [np.sort(rng.choice(length, rng.integers(1, length + 1), False)) for _ in range(batch)]
    rows = host.arrays.rows(given, places)
    expected = HOST.rows(states, places)
    together = host.arrays.to_host(host.arrays.batch(rows[::-1]))
    for row, values in zip(together, expected[::-1], strict=True):
        assert np.array_equal(row[: len(values)], values)
    means = host.arrays.to_host(host.arrays.means(rows))
    np.testing.assert_allclose(means, HOST.means(expected), atol=1e-5)


@pytest.mark.parametrize("graph", [TAKE_GRAPH, MEAN_GRAPH])
def test_tensorrt_builds_what_brings_states_together(graph: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    data = build_states_engine(load_tensorrt("rtx"), graph, 384, trt.ComputeCapability.SM86)
    assert len(data) > 1000


def test_states_beyond_the_engine_are_refused(host: HostBackend) -> None:
    states = DeviceStates(None, 0, (1, 2**21, 4))
    with pytest.raises(EngineError, match=r"refuses the shape \(2097152, 4\) of states"):
        host.arrays.batch(host.arrays.rows(states, [np.zeros(1, np.int64)]))


def test_one_context_per_profile_is_made_when_first_needed(host: HostBackend) -> None:
    engine, graph = host.engines["segment_0"], host.graph("segment_0")
    for length in (5, 20, 16, 48):
        graph(tokens(1, length))
    assert [context.profile for context in engine.contexts] == [0, 1]
    assert [context.scratch for context in engine.contexts] == [1000, 2000]


def test_what_was_compiled_is_kept(bundle: Bundle, cuda: HostCuda, tmp_path: Path) -> None:
    path = tmp_path / "trbert-deploy" / "rtx-1.0.kernels"

    def run(name: str) -> None:
        HostBackend(bundle, cuda).graph(name)(tokens(1, 16))

    run("dense")
    assert path.read_bytes() == b"kernels: dense"
    run("segment_0")
    assert path.read_bytes() == b"kernels: dense segment_0"
    before = path.stat()
    run("dense")  # and nothing else: it is there
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    path.write_bytes(b"of another GPU")
    run("dense")
    assert path.read_bytes() == b"kernels: dense"
    path.unlink()
    path.mkdir()  # there is no place for it
    run("dense")


def test_tensorrt_for_rtx_has_what_is_asked_of_its_cache() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for kind, stand_in in ((trt.IRuntimeConfig, HostConfig), (trt.IRuntimeCache, HostKernels)):
        asked = {name for name in vars(stand_in) if callable(getattr(stand_in, name))}
        assert {name for name in asked if not name.startswith("_")} <= {*dir(kind)}
    assert hasattr(trt.ICudaEngine, "create_runtime_config")


def test_graphs_share_their_scratch(host: HostBackend, cuda: HostCuda) -> None:
    for length in (5, 48):
        host.graph("dense")(tokens(1, length))
    used = cuda.used_bytes
    host.graph("segment_0")(tokens(1, 48))
    address = host._executor.device.reserve("scratch", 2000)
    assert cuda.memory[address].nbytes == 2000
    # The second graph brought its own outputs alone.
    hidden, keep_logit = 48 * 32 * 4, 48 * 4
    assert cuda.used_bytes - used <= hidden + keep_logit


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_given_back_with_the_backend(bundle: Bundle, cuda: HostCuda, fails: bool) -> None:
    backend = HostBackend(bundle, cuda)
    graph = backend.graph("dense")
    graph(tokens(1, 16))
    assert cuda.used_bytes and cuda.streams
    if fails:
        backend.engines["dense"].contexts[0].fails = True
        with pytest.raises(EngineError):
            graph(tokens(1, 16))
    gc.disable()  # reference counts alone must do
    try:
        del graph, backend
        assert not cuda.used_bytes and not cuda.streams
    finally:
        gc.enable()


def test_too_little_memory(bundle: Bundle, cuda: HostCuda) -> None:
    backend = HostBackend(bundle, cuda)
    cuda.total_bytes = 2500
    with pytest.raises(DeviceError, match="too little GPU memory for hidden_out: 1 MiB are needed"):
        backend.graph("dense")(tokens(1, 48))
    cuda.total_bytes = 2**20  # and goes on when there is some
    assert backend.graph("dense")(tokens(1, 48))["logits"].shape == (1, 2)


def test_large_batch_runs_in_parts(host: HostBackend, bundle: Bundle) -> None:
    inputs = tokens(7, 16)
    expected = OnnxRuntimeBackend(bundle, BackendOptions()).graph("dense")(inputs)
    received = host.graph("dense")(inputs)
    assert set(received) == {"logits"}  # the states stay on the device
    np.testing.assert_allclose(received["logits"], expected["logits"], atol=1e-4)
    expected = OnnxRuntimeBackend(bundle, BackendOptions()).graph("segment_0")(inputs)
    received = dict(host.graph("segment_0")(inputs))
    received["hidden_out"] = host.arrays.to_host(received["hidden_out"])
    for name, value in expected.items():
        np.testing.assert_allclose(received[name], value, atol=1e-4)


def test_row_longer_than_every_profile(host: HostBackend) -> None:
    with pytest.raises(LengthError, match="no engine profile takes rows of 49 tokens"):
        host.graph("dense")(tokens(1, 49))


def test_failed_run_is_refused(host: HostBackend) -> None:
    graph = host.graph("dense")
    graph(tokens(1, 4))
    host.engines["dense"].contexts[0].fails = True
    with pytest.raises(EngineError, match="cannot run the engine: no reason given"):
        graph(tokens(1, 4))


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with the graph of its whole chain."""
    path = tmp_path_factory.mktemp("whole") / "bundle"
    export_bundle(tiny_checkpoint, path, fused=True)
    return Bundle.open(path)


def test_the_whole_chain_is_one_engine(
    whole: Bundle, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, host = whole.manifest, HostBackend(whole, cuda)
    monkeypatch.setattr(one_engine, "TensorRTBackend", lambda bundle, precision: host)
    backend = one_engine.open_backend(whole, BackendOptions())
    assert backend.description["backend"] == "one-engine"
    # Real text, for which there are slots enough.
    texts = [row["text"] for row in make_texts(6, seed=1)]
    rows = [row for row in load(whole.path, threads=1).tokenize(texts * 2) if len(row) <= 48]
    expected, received = (
        Chain(each, manifest.reduction, manifest.encoder.num_layers, task=task_of(manifest.encoder))
        for each in (OnnxRuntimeBackend(whole, BackendOptions()), backend)
    )
    for run in ("run", "run_dense"):
        for ours, theirs in zip(
            getattr(expected, run)(rows), getattr(received, run)(rows), strict=True
        ):
            np.testing.assert_allclose(ours.outputs["logits"], theirs.outputs["logits"], atol=1e-4)
            assert [list(kept) for kept in ours.kept] == [list(kept) for kept in theirs.kept]
    # Rows of one length share a call, and nothing but ids, answers and survivors is copied.
    assert set(host._graphs) == {CHAIN, "dense"}
    assert {tensor.name for tensor in host.engines[CHAIN].graph.outputs} == {
        "logits", "survivors_0", "survivors_1",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="operating point of its export"):
        received.at(OperatingPoint(threshold=0.9)).run(rows)


def test_an_output_whose_size_is_not_known_before_is_refused(
    host: HostBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostContext, "get_tensor_shape", lambda context, name: (1, -1))
    with pytest.raises(EngineError, match=r"does not know how large hidden_out will be: no reason"):
        host.graph("dense")(tokens(1, 4))


@pytest.mark.parametrize("plugin", [True, False])
def test_a_plugin_is_known_before_its_engine_is_loaded(
    whole: Bundle, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, plugin: bool
) -> None:
    order: list[str] = []
    monkeypatch.setattr(
        backend_module, "register_plugin", lambda library: order.append(library.flavour)
    )
    host = HostBackend(whole, cuda, plugin)
    load_engine = host._executor._runtime.deserialize_cuda_engine
    host._executor._runtime.deserialize_cuda_engine = lambda data: (
        order.append("load") or load_engine(data)
    )
    host.graph("dense")
    assert order == ["load"]  # which has none
    host.graph(CHAIN)
    assert order[1:] == (["rtx", "load"] if plugin else ["load"])


def test_a_bundle_without_the_whole_chain_has_no_such_engine(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ConfigError, match="no graph of its whole chain"):
        open_backend("one-engine", bundle, BackendOptions())


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (1, [(0, 1)]),
        (8, [(0, 8)]),
        (9, [(0, 4), (4, 9)]),
        (20, [(0, 6), (6, 13), (13, 20)]),
    ],
)
def test_row_ranges(batch: int, expected: list[tuple[int, int]]) -> None:
    assert row_ranges(batch, Profile(1, 64, 1, 4, 8), 10) == expected


def test_batch_smaller_than_the_profile() -> None:
    with pytest.raises(LengthError, match=r"takes 2 rows of 10 tokens: it takes 4-8 x 1-64"):
        row_ranges(2, Profile(1, 64, 4, 4, 8), 10)


def test_no_gpu(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    try:
        gpu_compute_capability()
    except DeviceError:
        with pytest.raises(
            DeviceError, match=r"no NVIDIA GPU answers \(cuda.*--backend onnxruntime"
        ):
            open_backend("tensorrt", bundle, BackendOptions())
    else:
        pytest.skip("an NVIDIA GPU is present")


def test_gpu_without_engines(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(
        "trbert_deploy.runtime.backends.tensorrt.backend.gpu_compute_capability", lambda: "8.6"
    )
    with pytest.raises(EngineError, match="has no engines: run trbert-deploy build-engine"):
        open_backend("tensorrt", bundle, BackendOptions())


LIBRARY = "trbert_deploy.runtime.backends.tensorrt.library"


def run_without(modules: str, code: str) -> str:
    """Run Python with modules that cannot be imported; what it prints of its error."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r}))\n"
    script = (
        f"{block}from trbert_deploy.errors import TrbertError\n"
        f"try:\n    {code}\n"
        "except TrbertError as problem:\n    print(type(problem).__mro__[:2], problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_without_tensorrt() -> None:
    code = (
        "from trbert_deploy.runtime.backends.tensorrt.library import load_tensorrt; load_tensorrt()"
    )
    said = run_without("tensorrt tensorrt_rtx", code)
    assert "MissingDependencyError" in said
    assert "run pip install 'trbert-deploy[tensorrt-rtx]' for RTX GPUs" in said
    assert "pip install 'trbert-deploy[tensorrt]' for data-centre GPUs" in said


def test_without_cuda_bindings() -> None:
    code = f"from {LIBRARY} import gpu_compute_capability as f; f()"
    said = run_without("cuda.bindings.runtime", code)
    assert "cuda-bindings" in said
    assert "pip install 'trbert-deploy[tensorrt-rtx]'" in said


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_a_plugin_without_what_it_runs_on(package: str) -> None:
    code = f"from {LIBRARY} import *; register_plugin(TensorRT('tensorrt', None, '10'))"
    said = run_without(package, code)
    assert "MissingDependencyError" in said
    assert f"an engine with a plugin needs the package {package}" in said
    assert "\n" not in said.strip()


def test_the_log_keeps_errors_apart() -> None:
    library = TensorRT("rtx", HostModule({}), "1.0")
    log: Any = library_log(library)
    for level, text in ((1, "wrong"), (3, "note"), (0, "broken"), (4, "chatter")):
        log.log(level, text)
    assert log.errors() == ["wrong", "broken"]
    assert (4, "chatter") not in log.lines


@pytest.mark.gpu
def test_engines_run_on_the_gpu(bundle: Bundle, own_bundle: Path) -> None:
    pytest.importorskip("onnx")
    from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines

    try:
        gpu_compute_capability()
    except DeviceError:
        pytest.skip("no NVIDIA GPU")
    build_engines(own_bundle, EngineOptions(precision="fp32", lengths=(16, 64), batches=(1, 2)))
    manifest = bundle.manifest
    rows = rows_of(40, 3, 17, 16, 64)
    chains = [
        Chain(
            open_backend(name, Bundle.open(own_bundle), BackendOptions()),
            manifest.reduction,
            manifest.encoder.num_layers,
        )
        for name in ("onnxruntime", "tensorrt")
    ]
    for ours, theirs in zip(*(chain.run(rows) for chain in chains), strict=True):
        np.testing.assert_allclose(ours.outputs["logits"], theirs.outputs["logits"], atol=2e-2)

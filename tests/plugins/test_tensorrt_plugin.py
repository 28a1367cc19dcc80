"""CompactTokens as a plugin of TensorRT: over TensorRT for RTX's base classes, which are the same.

What can be done without a GPU is done for real: the registry takes its creator, the parser finds
and makes it. What TensorRT gives it at run time are stand-ins, memory of the host among them.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_texts

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE
from trbert_deploy.errors import DeviceError, EngineError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.one_graph import chain_of_parts
from trbert_deploy.plugins import DOMAIN, OPERATOR, PLUGIN_VERSION
from trbert_deploy.runtime.backends.tensorrt.library import gpu_compute_capability
from trbert_deploy.selection.select import keep_best

trt = pytest.importorskip("tensorrt_rtx")
tensorrt_plugin = pytest.importorskip("trbert_deploy.plugins.tensorrt_plugin")

KIND = trt.DataType
INPUTS = [KIND.FLOAT, KIND.FLOAT, KIND.BOOL, KIND.BOOL, KIND.INT64]
OUTPUTS = [KIND.FLOAT, KIND.BOOL, KIND.INT64, KIND.INT64]


def fields() -> Any:
    return trt.PluginFieldCollection([])


def make_plugin() -> Any:
    creator = tensorrt_plugin.register(trt)
    return creator.create_plugin("cut 0", fields(), trt.TensorRTPhase.RUNTIME)


def test_the_registry_knows_it() -> None:
    creator = tensorrt_plugin.register(trt)
    assert tensorrt_plugin.register(trt) is creator
    registry = trt.get_plugin_registry()
    assert registry.get_creator(OPERATOR, PLUGIN_VERSION, DOMAIN) is creator
    assert registry.get_creator(OPERATOR, PLUGIN_VERSION, "") is None
    assert len(creator.field_names) == 0


def test_another_plugin_of_the_name_is_refused() -> None:
    tensorrt_plugin.register(trt)
    with pytest.raises(EngineError, match=r"another plugin CompactTokens of trbert_deploy: load"):
        tensorrt_plugin.register.__wrapped__(trt)


@pytest.mark.parametrize("phase", [trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME])
def test_it_is_made_of_what_an_engine_has_of_it(phase: Any) -> None:
    creator = tensorrt_plugin.register(trt)
    plugin = creator.create_plugin("cut 0", fields(), phase)
    again = creator.create_plugin("cut 0", plugin.get_fields_to_serialize(), phase)
    for each in (plugin, again, plugin.clone(), plugin.attach_to_context(None)):
        assert (each.plugin_name, each.plugin_version) == (OPERATOR, PLUGIN_VERSION)
        assert (each.plugin_namespace, each.num_outputs) == (DOMAIN, len(OUTPUTS))
        for capability in trt.PluginCapabilityType.__members__.values():
            assert each.get_capability_interface(capability) is each
    assert plugin.clone() is not plugin


def test_states_keep_their_type() -> None:
    plugin = make_plugin()
    for states in (KIND.FLOAT, KIND.HALF, KIND.BF16):
        assert plugin.get_output_data_types([states, *INPUTS[1:]]) == [states, *OUTPUTS[1:]]


def descriptions(kinds: list[Any], form: Any = trt.TensorFormat.LINEAR) -> list[Any]:
    made = []
    for kind in kinds:
        each = trt.DynamicPluginTensorDesc()
        description = trt.PluginTensorDesc()
        description.type, description.format = kind, form
        each.desc = description
        made.append(each)
    return made


@pytest.mark.parametrize("states", [KIND.FLOAT, KIND.HALF, KIND.BF16])
def test_types_and_formats_that_it_takes(states: Any) -> None:
    plugin = make_plugin()
    kinds = [states, *INPUTS[1:], states, *OUTPUTS[1:]]
    for place, kind in enumerate(kinds):
        assert plugin.supports_format_combination(place, descriptions(kinds), len(INPUTS))
        others = descriptions(kinds, trt.TensorFormat.HWC8)
        assert not plugin.supports_format_combination(place, others, len(INPUTS))
        for other in (KIND.INT8, KIND.INT32, KIND.HALF, KIND.BOOL):
            if other not in (kind, KIND.HALF if place == 0 else kind):
                wrong = descriptions([*kinds[:place], other, *kinds[place + 1 :]])
                assert not plugin.supports_format_combination(place, wrong, len(INPUTS))


class Sizes:
    """Builds sizes as TensorRT does, of numbers; and notes the size that follows from data."""

    def __init__(self) -> None:
        self.declared: dict[int, tuple[int, int]] = {}

    def constant(self, number: int) -> int:
        return number

    def operation(self, operation: Any, first: int, second: int) -> int:
        assert operation == trt.DimensionOperation.CEIL_DIV
        return -(-first // second)

    def declare_size_tensor(self, output: int, usual: int, most: int) -> str:
        self.declared[output] = (usual, most)
        return "K"


def test_slots_follow_from_data() -> None:
    # TensorRT's own sizes cannot be made here: a list of them can.
    stand_in = SimpleNamespace(**{**vars(trt), "DimsExprs": lambda rank: [None] * rank})
    plugin = tensorrt_plugin.creator_of(stand_in).create_plugin("", fields(), None)
    sizes = Sizes()
    shapes = plugin.get_output_shapes([(4, 9, 32), (4, 9), (4, 9), (4, 9), (4, 1)], [], sizes)
    assert shapes == [[4, "K", 32], [4, "K"], [4, "K"], []]
    assert sizes.declared == {3: (5, 9)}  # the last output: half of the tokens, or up to all


def test_scratch_is_a_number_for_each_token() -> None:
    tokens = SimpleNamespace(max=(32, 2048))
    assert make_plugin().get_workspace_size([None, tokens, None, None, None], []) == 4 * 32 * 2048


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory of the host in the place of a GPU's; the streams that were launched on."""
    streams: list[int] = []

    @contextmanager
    def on_stream(stream: int) -> Iterator[None]:
        streams.append(stream)
        yield

    def tensor_at(address: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        memory = (ctypes.c_byte * size).from_address(address)
        return torch.from_numpy(np.frombuffer(memory, kind).reshape(shape))

    monkeypatch.setattr(tensorrt_plugin, "on_stream", on_stream)
    monkeypatch.setattr(tensorrt_plugin, "tensor_at", tensor_at)
    return streams


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels take no memory of the host")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_writes_survivors_to_the_addresses_that_it_is_given(host: list[int], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 17, 5)).astype(dtype)
    logits = rng.standard_normal((3, 17)).astype(np.float32)
    lengths, wanted = np.array([17, 9, 1]), np.array([[6], [9], [1]])
    present = np.arange(17) < lengths[:, None]
    protected = np.arange(17) == np.array([[0], [3], [0]])
    inputs = [hidden, logits, present, protected, wanted]
    outputs = [
        np.zeros_like(hidden),
        np.zeros((3, 17), np.bool_),
        np.zeros((3, 17), np.int64),
        np.zeros((), np.int64),
        np.zeros((3, 17), np.int32),
    ]
    kinds = [KIND.FLOAT if dtype == np.float32 else KIND.HALF, *INPUTS[1:]]
    given = [
        SimpleNamespace(dims=array.shape, type=kind)
        for array, kind in zip(inputs, kinds, strict=True)
    ]
    addresses = [array.ctypes.data for array in (*inputs, *outputs)]
    make_plugin().enqueue(given, [], addresses[:5], addresses[5:9], addresses[9], 42)
    assert host == [42]
    keep = keep_best(logits, lengths, wanted[:, 0], protected)
    assert outputs[3] == 9
    filled, places = (each.reshape(-1)[: 3 * 9].reshape(3, 9) for each in outputs[1:3])
    states = outputs[0].reshape(-1)[: 3 * 9 * 5].reshape(3, 9, 5)
    for row in range(3):
        assert places[row, filled[row]].tolist() == np.flatnonzero(keep[row]).tolist()
        np.testing.assert_array_equal(states[row], hidden[row, places[row]])


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the graph of its whole chain."""
    path = tmp_path_factory.mktemp("whole") / "bundle"
    export_bundle(tiny_checkpoint, path, fused=True)
    return path


PARSE = """
import sys
import tensorrt_rtx as trt
from trbert_deploy.plugins.tensorrt_plugin import register
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT, library_log

log = library_log(TensorRT("tensorrt", trt, trt.__version__))
log.log = lambda level, message: print(message, flush=True)
register(trt)
network = trt.Builder(log).create_network(0)
trt.OnnxParser(network, log).parse_from_file(sys.argv[1])
"""


def test_the_parser_finds_it_in_the_graph(bundle: Path, tmp_path: Path) -> None:
    """TensorRT for RTX takes no plugin in the end; up to there its parser is the same."""
    opened = Bundle.open(bundle)
    parts = {
        graph.name: onnx.load(opened.graph_path(graph.name))
        for graph in opened.manifest.graphs
        if graph.name != DENSE
    }
    graph = chain_of_parts(opened.manifest, parts, None, plugin=True)
    onnx.save(graph, tmp_path / "chain.onnx")
    command = [sys.executable, "-c", PARSE, str(tmp_path / "chain.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout
    found = f"Searching for plugin: {OPERATOR}, plugin_version: {PLUGIN_VERSION}, plugin_namespace"
    assert f"{found}: {DOMAIN}" in said, said + done.stderr
    assert f"Successfully created plugin: {OPERATOR}" in said


@pytest.mark.gpu
def test_the_whole_chain_runs_with_it(bundle: Path) -> None:
    pytest.importorskip("tensorrt")
    from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines

    try:
        gpu_compute_capability()
    except DeviceError:
        pytest.skip("no NVIDIA GPU")
    options = EngineOptions("fp32", lengths=(64,), batches=(1, 4), flavour="tensorrt", plugin=True)
    build_engines(bundle, options)
    texts = [row["text"] for row in make_texts(8, seed=3)]
    ours, theirs = (load(bundle, name) for name in ("onnxruntime", "one-engine"))
    rows = ours.tokenize(texts)
    for expected, received in zip(ours.run(rows), theirs.run(rows), strict=True):
        np.testing.assert_allclose(
            expected.outputs["logits"], received.outputs["logits"], atol=2e-2
        )
        assert [list(kept) for kept in expected.kept] == [list(kept) for kept in received.kept]

"""The adapter over TensorRT's builders: real engines, which need no GPU with RTX."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import CheckpointMaker

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import segment_name
from trbert_deploy.errors import ConfigError, DeviceError, EngineError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.onnx.precision import half_graph
from trbert_deploy.exporters.tensorrt import builder
from trbert_deploy.exporters.tensorrt.builder import (
    DEFAULT_COMPUTE_CAPABILITY,
    build_engine,
    choose_compute_capability,
    multiplies_float32,
    require_precision,
    rtx_compute_capabilities,
)
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
from trbert_deploy.runtime.backends.tensorrt.library import (
    TensorRT,
    gpu_compute_capability,
    load_tensorrt,
)

pytest.importorskip("tensorrt_rtx")

SHORT = Profile(1, 16, 1, 2, 4)
LONG = Profile(17, 64, 1, 2, 4)


def has_gpu() -> bool:
    try:
        gpu_compute_capability()
    except DeviceError:
        return False
    return True


no_gpu = pytest.mark.skipif(has_gpu(), reason="an NVIDIA GPU is present")


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_tensorrt("rtx")


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Path:
    return Bundle.open(tiny_bundle).graph_path(segment_name(1))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_builds_every_precision(library: TensorRT, graph: Path, precision: str) -> None:
    source: Path | bytes = graph
    if precision != "fp32":
        source = half_graph(onnx.load(graph), precision).SerializeToString()
    engine = build_engine(library, source, [SHORT, LONG], "8.6")
    assert engine.data
    assert engine.build_seconds > 0


def test_scratch_is_that_of_the_largest_profile(library: TensorRT, graph: Path) -> None:
    short, both = (
        build_engine(library, graph, profiles, "8.6").scratch_bytes
        for profiles in ([SHORT], [SHORT, LONG])
    )
    assert short is not None
    assert both is not None
    assert both > short > 0


def test_builds_for_every_gpu_that_it_knows(library: TensorRT, graph: Path) -> None:
    model = onnx.load(graph)
    for capability in rtx_compute_capabilities(library):
        every_product = not multiplies_float32(library, capability)
        assert every_product == (capability == "7.5")
        half = half_graph(model, "fp16", every_product=every_product)
        assert build_engine(library, half.SerializeToString(), [SHORT], capability).data


@pytest.mark.parametrize(
    ("precision", "capability", "refusal"),
    [
        ("int8", "7.5", None),
        ("int8", "7.0", r"int8: .* capability 7\.5 on, this one is 7\.0; build with --fp16$"),
        ("fp8", "8.9", None),
        ("fp8", "12.0", None),
        ("fp8", "8.6", r"fp8: .* capability 8\.9 on, this one is 8\.6; build with --fp16$"),
        ("fp8", "7.5", r"fp8: .* capability 8\.9 on"),
    ],
)
@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_eight_bits_need_a_gpu_that_has_them(
    library: TensorRT, precision: str, capability: str, refusal: str | None, flavour: str
) -> None:
    of_flavour = TensorRT(flavour, library.module, library.version)
    if refusal is None:
        require_precision(of_flavour, capability, precision)
        return
    with pytest.raises(ConfigError, match=refusal) as caught:
        require_precision(of_flavour, capability, precision)
    assert "\n" not in str(caught.value)


def test_turing_multiplies_in_fp16_alone(library: TensorRT, graph: Path) -> None:
    for precision in ("bf16", "fp32"):
        with pytest.raises(ConfigError, match=rf"{precision}: .* fp16 alone on .* 7\.5"):
            require_precision(library, "7.5", precision)
        require_precision(library, "8.0", precision)
    require_precision(library, "7.5", "fp16")
    # That it is so: the policy's product in float32 is refused.
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        half = half_graph(onnx.load(graph), "fp16").SerializeToString()
        build_engine(library, half, [SHORT], "7.5")


@pytest.fixture(scope="module")
def usual_heads(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose heads are 32 wide, as MiniLM's are: for narrower ones there is no kernel."""
    path = tmp_path_factory.mktemp("wide") / "bundle"
    checkpoint = make_checkpoint(cuts="1", num_layers=2, hidden_size=64, num_heads=2)
    export_bundle(checkpoint, path, fused=True)
    return path


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_is_one_kernel_in_half_precision(
    library: TensorRT, usual_heads: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorRT refuses attention that no single kernel computes, unless it is told not to.
    monkeypatch.setattr(builder, "_allow_decomposed_attention", lambda trt, network: None)
    bundle = Bundle.open(usual_heads)
    for graph in bundle.manifest.graphs:
        model = onnx.load(bundle.graph_path(graph.name))
        half = half_graph(model, precision).SerializeToString()
        assert build_engine(library, half, [SHORT, LONG], "8.6").data
        with pytest.raises(EngineError, match="not supported by a dedicated kernel"):
            build_engine(library, model.SerializeToString(), [SHORT, LONG], "8.6")


def test_graph_that_cannot_be_parsed(library: TensorRT, graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.node[3].op_type = "Nonsense"
    with pytest.raises(EngineError, match=r"cannot parse the graph: .*Nonsense") as caught:
        build_engine(library, model.SerializeToString(), [SHORT], "8.6")
    assert "\n" not in str(caught.value)


def test_graph_that_cannot_be_built(library: TensorRT) -> None:
    with pytest.raises(EngineError, match=r"cannot build the engine: .*at least one output"):
        build_engine(library, b"", [SHORT], "8.6")


def test_possible_compute_capabilities(library: TensorRT) -> None:
    possible = list(rtx_compute_capabilities(library))
    assert {"8.6", "8.9", "12.0"} <= set(possible)
    assert possible == sorted(possible, key=float)


def test_wanted_compute_capability_is_taken(library: TensorRT) -> None:
    assert choose_compute_capability(library, "8.9") == ("8.9", None)


@pytest.mark.parametrize("wanted", ["9.0", "86", "SM86", ""])
def test_unknown_compute_capability(library: TensorRT, wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"builds for 7\.5, .*8\.6.*data-centre GPUs need"):
        choose_compute_capability(library, wanted)


@no_gpu
def test_without_a_gpu_the_default_is_taken_and_said(library: TensorRT) -> None:
    chosen, note = choose_compute_capability(library, None)
    assert chosen == DEFAULT_COMPUTE_CAPABILITY
    assert note is not None
    assert "--compute-capability" in note


@no_gpu
def test_standard_tensorrt_needs_a_gpu(library: TensorRT) -> None:
    standard = TensorRT("tensorrt", library.module, "11.0")
    with pytest.raises(DeviceError, match="no NVIDIA GPU answers"):
        choose_compute_capability(standard, None)


def test_standard_tensorrt_builds_for_its_own_gpu_alone(
    library: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trbert_deploy.exporters.tensorrt.builder.gpu_compute_capability", lambda: "9.0"
    )
    standard = TensorRT("tensorrt", library.module, "11.0")
    assert choose_compute_capability(standard, None) == ("9.0", None)
    with pytest.raises(ConfigError, match=r"8\.6: TensorRT builds for the GPU it runs on, 9\.0"):
        choose_compute_capability(standard, "8.6")


def test_rtx_refuses_the_gpu_here_if_it_cannot_build_for_it(
    library: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trbert_deploy.exporters.tensorrt.builder.gpu_compute_capability", lambda: "9.0"
    )
    with pytest.raises(ConfigError, match=r"9\.0: TensorRT for RTX"):
        choose_compute_capability(library, None)

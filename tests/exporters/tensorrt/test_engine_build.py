"""Engine sets: what is built, when it is built again, and what is left after a failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from onnx import helper

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.errors import (
    BundleError,
    ConfigError,
    EngineError,
    LengthError,
    ParityError,
)
from trbert_deploy.exporters.checks.engines import Verification
from trbert_deploy.exporters.checks.limits import ENGINE_LIMITS, NO_LIMITS, Limits
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt import engine_build
from trbert_deploy.exporters.tensorrt.builder import BuiltEngine
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.plugins import DOMAIN, OPERATOR, PLUGIN_VERSION
from trbert_deploy.plugins.onnx_compaction import compact_tokens
from trbert_deploy.runtime.backends.tensorrt.engine_set import ENGINE_MANIFEST, EngineSet, Profile
from trbert_deploy.runtime.backends.tensorrt.library import TensorRT, load_tensorrt

pytest.importorskip("tensorrt_rtx")

OPTIONS = EngineOptions(lengths=(16, 64), batches=(1, 2), compute_capability="8.6", flavour="rtx")
BUILD = "trbert_deploy.exporters.tensorrt.engine_build"
NAMES = ["segment_0", "segment_1", "segment_2", "dense"]


@pytest.fixture(scope="module")
def built(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one graph, with its fp16 engine, for tests that only read it."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    export_bundle(make_checkpoint(cuts="", num_layers=1), path)
    build_engines(path, OPTIONS)
    return path


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def engines_of(bundle: Path, name: str = "rtx-fp16-sm86") -> Path:
    return bundle / "engines" / name


def test_builds_an_engine_for_every_graph(own_bundle: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    report = build_engines(own_bundle, OPTIONS, lambda *step: steps.append(step))
    assert not report.skipped
    assert report.engine_set.path == engines_of(own_bundle)
    manifest = report.engine_set.manifest
    assert [engine.name for engine in manifest.engines] == NAMES
    for engine in manifest.engines:
        file = report.engine_set.path / engine.file
        assert file.stat().st_size == engine.size_bytes
        assert engine.scratch_bytes
    whole = (Profile(1, 16, 1, 2, 2), Profile(17, 64, 1, 2, 2))
    assert manifest.key.profiles == dict.fromkeys(NAMES, whole)  # by a threshold nothing is known
    assert manifest.parity["precision"] == "fp16"
    assert steps[0][1:] == (0, None)  # reading, before it is known how much there is
    assert [done for _, done, _ in steps[1:]] == list(range(6))
    assert {total for _, _, total in steps[1:]} == {5}
    json.dumps(report.to_json())


def test_other_precisions_lie_beside_it(own: Path) -> None:
    for precision in ("bf16", "fp32"):
        report = build_engines(own, replace(OPTIONS, precision=precision))
        assert report.engine_set.manifest.key.precision == precision
        assert bool(report.engine_set.manifest.parity) == (precision == "bf16")
    assert sorted(path.name for path in (own / "engines").iterdir()) == [
        "rtx-bf16-sm86",
        "rtx-fp16-sm86",
        "rtx-fp32-sm86",
    ]


@pytest.mark.parametrize(("precision", "capability"), [("int8", "8.6"), ("fp8", "8.9")])
def test_engines_of_eight_bits(own_bundle: Path, precision: str, capability: str) -> None:
    steps: list[tuple[str, int, int | None]] = []
    options = replace(OPTIONS, precision=precision, compute_capability=capability)
    report = build_engines(own_bundle, options, lambda *step: steps.append(step))
    assert report.engine_set.path.name == f"rtx-{precision}-sm{capability.replace('.', '')}"
    manifest = report.engine_set.manifest
    assert [engine.name for engine in manifest.engines] == NAMES
    assert manifest.key.precision == manifest.parity["precision"] == precision
    assert manifest.parity["rows"] == 24  # eight each of 1, 16 and 64 tokens
    assert 0 < manifest.parity["dense_output_difference"] < ENGINE_LIMITS[precision].tolerance
    assert [step for step, *_ in steps[1:3]] == ["calibrate", "compare precisions"]
    assert [done for _, done, _ in steps[1:]] == list(range(7))
    assert {total for _, _, total in steps[1:]} == {6}
    assert build_engines(own_bundle, options).skipped


def test_eight_bits_on_turing(own: Path) -> None:
    turing = replace(OPTIONS, precision="int8", compute_capability="7.5")
    assert build_engines(own, turing).engine_set.path.name == "rtx-int8-sm75"


def test_fp8_is_refused_before_anything_is_done(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(f"{BUILD}.eight_bit_models")
    before = contents(own)
    with pytest.raises(ConfigError, match=r"fp8: .*from compute capability 8\.9 on"):
        build_engines(own, replace(OPTIONS, precision="fp8"))
    assert contents(own) == before


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (replace(NO_LIMITS, tolerance=1e-6), "^graph dense, .* differs from float32"),
        (replace(NO_LIMITS, answer_agreement=1.1), "^chain in int8: only .*of the answers"),
    ],
)
def test_eight_bits_that_lose_too_much_are_not_built(
    own: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits, message: str
) -> None:
    monkeypatch.setitem(ENGINE_LIMITS, "int8", limits)
    monkeypatch.delattr(f"{BUILD}.build_engine")
    with pytest.raises(
        ParityError, match=f"{message}.*; build with fp16, or with fp8 for GPUs that have it$"
    ) as caught:
        build_engines(own, replace(OPTIONS, precision="int8"))
    assert "\n" not in str(caught.value)
    assert not engines_of(own, "rtx-int8-sm86").exists()


@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8"])
def test_the_whole_chain_becomes_an_engine_too(
    make_checkpoint: Callable[..., Path], tmp_path: Path, precision: str
) -> None:
    path = tmp_path / "bundle"
    export_bundle(make_checkpoint(cuts="1", num_layers=2), path, fused=True)
    report = build_engines(path, replace(OPTIONS, precision=precision))
    names = [engine.name for engine in report.engine_set.manifest.engines]
    assert names == ["segment_0", "segment_1", "dense", "chain"]
    assert build_engines(path, replace(OPTIONS, precision=precision)).skipped
    # A bundle without it, or with another one, has other engines.
    export_bundle(make_checkpoint(cuts="1", num_layers=2), path)
    assert not build_engines(path, replace(OPTIONS, precision=precision)).skipped


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> list[Path | bytes]:
    """Standard TensorRT on a GPU, whose builder takes any graph.

    Returns:
        What it was given, engine by engine.
    """
    pytest.importorskip("trbert_deploy.plugins.tensorrt_plugin")
    given: list[Path | bytes] = []

    def build(library: TensorRT, source: Path | bytes, *_: object) -> BuiltEngine:
        assert library.flavour == "tensorrt"
        given.append(source)
        return BuiltEngine(b"engine", 0.1, None)

    rtx = load_tensorrt("rtx")
    monkeypatch.setattr(f"{BUILD}.load_tensorrt", lambda _: TensorRT("tensorrt", rtx.module, "10"))
    monkeypatch.setattr(
        "trbert_deploy.exporters.tensorrt.builder.gpu_compute_capability", lambda: "9.0"
    )
    monkeypatch.setattr(f"{BUILD}.build_engine", build)
    return given


@pytest.fixture(scope="module")
def fused(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the graph of its whole chain, to be copied."""
    path = tmp_path_factory.mktemp("fused") / "bundle"
    export_bundle(make_checkpoint(cuts="0.5,1", num_layers=2), path, fused=True)
    return path


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the ONNX function in the plugin's place."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        assert (node.op_type, len(node.input), len(node.output)) == (OPERATOR, 5, 4)
        count, axes = node.output[3], f"{node.output[3]}.axes"
        nodes += [
            helper.make_node("Constant", [], [axes], value_ints=[0]),
            helper.make_node("ReduceMax", [node.input[4], axes], [count], keepdims=0),
            helper.make_node(OPERATOR, [*node.input, count], node.output[:3], domain=DOMAIN),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.functions.append(compact_tokens())
    return onnx.inliner.inline_local_functions(model)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plugin_compacts_the_whole_chain(
    fused: Path, standard: list[Path | bytes], tmp_path: Path, precision: str
) -> None:
    path = Path(shutil.copytree(fused, tmp_path / "bundle"))
    options = EngineOptions(precision, lengths=(64,), batches=(1, 4), plugin=True)
    report = build_engines(path, options)
    assert [engine.name for engine in report.engine_set.manifest.engines][-1] == "chain"
    key = report.engine_set.manifest.key
    bundle = Bundle.open(path)
    assert key.plugin and key.graphs["chain"] == bundle.manifest.files["chain.onnx"]
    assert report.to_json()["key"]["plugin"] is True
    assert build_engines(path, options).skipped
    *others, whole = standard
    standard.clear()
    for source in others:  # no other graph has it
        model = onnx.load(source) if isinstance(source, Path) else onnx.load_from_string(source)
        assert {node.domain for node in model.graph.node} == {""}
    assert isinstance(whole, bytes)
    model = onnx.load_from_string(whole)
    plugins = [node for node in model.graph.node if node.domain]
    assert [node.op_type for node in plugins] == [OPERATOR, OPERATOR]
    for node in plugins:
        attributes = {each.name: each.s.decode() for each in node.attribute}
        assert attributes == {"plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION}
    if precision == "fp32":
        same_answers(with_function(model), path / "chain.onnx")
    # An engine without it is another one.
    assert not build_engines(path, replace(options, plugin=False)).skipped
    assert not build_engines(path, options).skipped


def same_answers(model: onnx.ModelProto, expected: Path) -> None:
    """The same survivors, in tensors as wide as the rows, and the same answers."""
    ours = onnxruntime.InferenceSession(model.SerializeToString())
    theirs = onnxruntime.InferenceSession(str(expected))
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 200, (4, 30))
    feed = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "attention_mask": np.arange(30) < np.array([[30], [17], [4], [1]]),
    }
    names = [output.name for output in theirs.get_outputs()]
    for name, received, wanted in zip(
        names, ours.run(names, feed), theirs.run(names, feed), strict=True
    ):
        if not name.startswith("survivors"):
            np.testing.assert_allclose(received, wanted, atol=1e-5)
            continue
        assert received.shape == ids.shape and wanted.shape[1] < ids.shape[1]
        np.testing.assert_array_equal(received[:, : wanted.shape[1]], wanted)
        assert (received[:, wanted.shape[1] :] == -1).all()


def test_a_plugin_needs_standard_tensorrt(fused: Path) -> None:
    options = replace(OPTIONS, plugin=True)
    with pytest.raises(ConfigError, match="TensorRT for RTX takes no plugins; build without it"):
        build_engines(fused, options)
    assert not (fused / "engines").exists()


def test_a_plugin_needs_the_whole_chain(built: Path) -> None:
    with pytest.raises(ConfigError, match="has no graph of its whole chain: export it with"):
        build_engines(built, replace(OPTIONS, plugin=True))


def test_turing_gets_the_products_that_it_has(own: Path) -> None:
    turing = replace(OPTIONS, compute_capability="7.5")
    parity = build_engines(own, turing).engine_set.manifest.parity
    usual = EngineSet.open(engines_of(own), Bundle.open(own)).manifest.parity
    assert parity["precision"] == "fp16" and parity != usual  # its own graphs were compared
    assert engines_of(own, "rtx-fp16-sm75").is_dir()
    with pytest.raises(ConfigError, match="build with --fp16"):
        build_engines(own, replace(turing, precision="bf16"))


def test_same_engines_are_not_built_again(own: Path) -> None:
    before = (engines_of(own) / ENGINE_MANIFEST).stat().st_mtime_ns
    assert build_engines(own, OPTIONS).skipped
    assert (engines_of(own) / ENGINE_MANIFEST).stat().st_mtime_ns == before
    assert not build_engines(own, replace(OPTIONS, force=True)).skipped


def test_other_profiles_are_built_anew(own: Path) -> None:
    report = build_engines(own, replace(OPTIONS, lengths=(64,), batches=(2,)))
    assert not report.skipped
    assert report.engine_set.manifest.key.profiles == {"dense": (Profile(1, 64, 2, 2, 2),)}


def test_damaged_engines_are_built_anew(own: Path) -> None:
    (engines_of(own) / "dense.engine").write_bytes(b"short")
    report = build_engines(own, OPTIONS)
    assert not report.skipped
    report.engine_set.verify()


def test_failure_leaves_the_old_engines(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("refused")

    monkeypatch.setattr("trbert_deploy.exporters.tensorrt.engine_build.build_engine", refuse)
    with pytest.raises(EngineError, match="refused"):
        build_engines(own, replace(OPTIONS, force=True))
    assert [path.name for path in (own / "engines").iterdir()] == ["rtx-fp16-sm86"]
    EngineSet.open(engines_of(own), Bundle.open(own)).verify()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that runs the engines, though what they answer is the test's to say.

    Returns:
        Names of the directories whose engines were verified.
    """
    pytest.importorskip("polygraphy")
    verified: list[str] = []

    def verify(bundle: Bundle, engine_set: EngineSet, *_: object) -> tuple[Verification, ...]:
        verified.append(engine_set.path.name)
        assert {engine.name for engine in engine_set.manifest.engines} == {"dense"}
        engine_set.verify()
        return (Verification("dense", 0, {"logits": 1e-3}),)

    monkeypatch.setattr(f"{BUILD}.why_not_verifiable", lambda engine_set: None)
    monkeypatch.setattr(f"{BUILD}.verify_engines", verify)
    return verified


@pytest.fixture
def faulty_gpu(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which the engines answer something else."""

    def verify(*_: object) -> None:
        raise ParityError("engine dense, profile 0: logits differs from ONNX Runtime by 3")

    monkeypatch.setattr(f"{BUILD}.verify_engines", verify)


@pytest.mark.usefixtures("faulty_gpu")
def test_engines_that_are_found_wrong_are_not_put_in_place(own: Path) -> None:
    before = contents(own)
    with pytest.raises(ParityError, match=r"logits differs from ONNX Runtime by 3$"):
        build_engines(own, replace(OPTIONS, lengths=(32,), verify=True))
    assert contents(own) == before
    assert [path.name for path in (own / "engines").iterdir()] == ["rtx-fp16-sm86"]
    with pytest.raises(ParityError):
        build_engines(own, replace(OPTIONS, precision="fp32", verify=True))
    assert [path.name for path in (own / "engines").iterdir()] == ["rtx-fp16-sm86"]
    assert contents(own) == before


@pytest.mark.usefixtures("faulty_gpu")
def test_engines_that_were_there_and_are_found_wrong_are_removed(own: Path) -> None:
    with pytest.raises(ParityError, match=r"by 3; .*rtx-fp16-sm86 was removed"):
        build_engines(own, replace(OPTIONS, verify=True))
    assert list((own / "engines").iterdir()) == []


def test_engines_are_verified_before_they_are_put_in_place(own: Path, gpu: list[str]) -> None:
    report = build_engines(own, replace(OPTIONS, force=True, verify=True))
    assert report.verification == (Verification("dense", 0, {"logits": 1e-3}),)
    assert report.not_verified is None
    (staging,) = gpu
    assert staging != "rtx-fp16-sm86"
    again = build_engines(own, replace(OPTIONS, verify=True))
    assert again.skipped and again.verification
    assert gpu == [staging, "rtx-fp16-sm86"]
    assert build_engines(own, OPTIONS).verification == ()
    assert len(gpu) == 2
    json.dumps(report.to_json())


def test_without_a_gpu_that_is_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy")
    monkeypatch.setattr(f"{BUILD}.why_not_verifiable", lambda engine_set: "no NVIDIA GPU here")
    report = build_engines(own, replace(OPTIONS, verify=True))
    assert report.not_verified == report.to_json()["not_verified"] == "no NVIDIA GPU here"
    assert report.verification == ()


def test_altered_graph_is_refused_before_anything_is_built(own: Path) -> None:
    with (own / "dense.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"dense\.onnx was altered"):
        build_engines(own, OPTIONS)


def test_lengths_above_the_maximum(built: Path) -> None:
    with pytest.raises(LengthError, match=r"length 128 is more than the bundle takes: .* 64"):
        build_engines(built, replace(OPTIONS, lengths=(16, 128)))


@pytest.mark.parametrize(
    ("max_length", "ends"),
    [(64, [64]), (128, [128]), (1000, [128, 512, 1000]), (4096, [128, 512, 2048, 4096])],
)
def test_default_lengths_end_with_the_maximum(max_length: int, ends: list[int]) -> None:
    profiles = EngineOptions().profiles(max_length)
    assert [profile.max_length for profile in profiles] == ends
    assert [profile.min_length for profile in profiles] == [1, *(end + 1 for end in ends[:-1])]


@pytest.mark.parametrize(
    ("batches", "expected"),
    [((4,), (4, 4, 4)), ((1, 8), (1, 8, 8)), ((32, 1, 8), (1, 8, 32))],
)
def test_batches(batches: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    (profile,) = EngineOptions(batches=batches).profiles(64)
    assert (profile.min_batch, profile.opt_batch, profile.max_batch) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4': expected one of fp16, .*, int8, fp8"),
        ({"lengths": ()}, "lengths are"),
        ({"lengths": (0,)}, "one of the lengths is 0: expected a whole number from 1 to"),
        ({"lengths": ()}, "expected at least one"),
        ({"lengths": (10**20,)}, "one of the lengths is 1.*: expected a whole number from 1 to"),
        ({"batches": (1, 65537)}, "one of the batches is 65537: expected a whole number from 1"),
        ({"batches": ()}, "batches are"),
        ({"batches": (1, 2, 3, 4)}, "expected at most three"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**changes)  # type: ignore[arg-type]


def test_unknown_compute_capability(built: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute capability is 5\.2"):
        build_engines(built, replace(OPTIONS, compute_capability="5.2"))


def test_unknown_flavour(built: Path) -> None:
    with pytest.raises(ConfigError, match="unknown TensorRT 'lite': expected one of tensorrt, rtx"):
        build_engines(built, replace(OPTIONS, flavour="lite"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_that_is_replaced_meanwhile_gets_no_engines(
    own: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engine_build.load_tensorrt

    def slow(flavour: str | None) -> TensorRT:
        with (own / WEIGHTS).open("ab") as file:
            file.write(b"other")
        return load(flavour)

    monkeypatch.setattr(engine_build, "load_tensorrt", slow)
    before = sorted(path.name for path in (own / "engines").iterdir())
    with pytest.raises(BundleError, match="was replaced since the bundle was opened"):
        build_engines(own, replace(OPTIONS, precision=precision, force=True))
    assert sorted(path.name for path in (own / "engines").iterdir()) == before

"""What engines would take: against what the builder said of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_in_tests import run
from conftest import CheckpointMaker, tiny_spec

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import LengthError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions
from trbert_deploy.exporters.tensorrt.plan import plan_engines, scratch_bytes

#: Precision, rows, tokens -> MiB of scratch that TensorRT for RTX 1.7 needs of MiniLM's dense
#: engine with that one profile.
BUILT = {
    ("fp16", 1, 2048): 30.8,
    ("fp16", 8, 512): 41.8,
    ("fp16", 32, 512): 136.1,
    ("fp16", 32, 2048): 785.0,
    ("fp32", 1, 2048): 418.0,
    ("fp32", 8, 512): 236.0,
    ("fp32", 32, 512): 927.8,
    ("fp32", 32, 2048): 13287.8,
}


@pytest.mark.parametrize("case", BUILT, ids=str)
def test_scratch_is_about_what_the_builder_says(case: tuple[str, int, int]) -> None:
    spec = tiny_spec(num_layers=6, hidden_size=384, num_heads=12, ffn_size=1536)
    reckoned = scratch_bytes(spec, *case) / 2**20
    assert reckoned == pytest.approx(BUILT[case], rel=0.3)


def test_weights_are_those_of_the_graphs(tiny_bundle: Path) -> None:
    half = plan_engines(tiny_bundle, EngineOptions(lengths=(16, 64), batches=(1, 4)))
    single = plan_engines(tiny_bundle, EngineOptions("fp32", lengths=(64,), batches=(8,)))
    names = [graph.name for graph in Bundle.open(tiny_bundle).manifest.graphs]
    assert list(half.weights_bytes) == names
    for name, size in half.weights_bytes.items():
        assert single.weights_bytes[name] == 2 * size
    layers = sum(half.weights_bytes[name] for name in names[:-1])
    assert 0 <= layers - half.weights_bytes["dense"] < 10_000  # policies, and shapes
    for name in names:
        assert [str(profile) for profile in half.profiles[name]] == ["1-4 x 1-16", "1-4 x 17-64"]
        assert half.state_bytes[name] == (2 * 4 * 16 * 32 * 4, 2 * 4 * 64 * 32 * 4)
        assert half.total_bytes == sum(half.weights_bytes.values()) + sum(
            (half.scratch_bytes[name][1], half.state_bytes[name][1])
        )


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_take_a_byte_a_weight(tiny_bundle: Path, precision: str) -> None:
    half, eight = (
        plan_engines(tiny_bundle, EngineOptions(each, lengths=(64,), batches=(8,)))
        for each in ("fp16", precision)
    )
    of_a_layer = 4 * 32 * 32 + 2 * 32 * 64  # what attention and feed-forward are multiplied with
    saved = {
        name: half.weights_bytes[name] - eight.weights_bytes[name] for name in half.weights_bytes
    }
    assert saved["dense"] == 4 * of_a_layer
    assert sum(saved.values()) == 2 * saved["dense"]  # the segments have the same layers
    assert eight.scratch_bytes == half.scratch_bytes


def test_the_whole_chain_has_the_weights_of_its_segments(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    export_bundle(make_checkpoint(cuts="1", num_layers=2), tmp_path / "bundle", fused=True)
    plan = plan_engines(tmp_path / "bundle", EngineOptions("int8", lengths=(64,), batches=(8,)))
    sizes = plan.weights_bytes
    segments = sizes["segment_0"] + sizes["segment_1"]
    assert sizes["chain"] == pytest.approx(segments, rel=0.01)  # and a few numbers for its cuts


def test_the_command_builds_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    before = sorted(tiny_bundle.rglob("*"))
    told = run("build-engine", tiny_bundle, "--plan", "--bf16", "--json", tmp_path / "plan.json")
    assert "engines in bf16, not built" in told and "GPU memory, reckoned" in told
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["precision"] == "bf16" and figures["total_bytes"] > 0
    assert sorted(tiny_bundle.rglob("*")) == before


def test_lengths_beyond_the_bundle_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(LengthError, match="length 65 is more than the bundle takes"):
        plan_engines(tiny_bundle, EngineOptions(lengths=(65,)))

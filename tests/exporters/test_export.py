"""Checkpoint to bundle: parity, one copy of the weights, and what a failure leaves."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import CheckpointMaker, tiny_model
from rich.console import Console

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DEQUANTIZED, INT8
from trbert_deploy.errors import BundleError, ParityError, StorageError
from trbert_deploy.exporters import export
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.checks.parity import (
    check_shapes,
    compare_chains,
    compare_graphs,
)
from trbert_deploy.exporters.export import ExportReport, export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.reports.console.export import print_export
from trbert_deploy.runtime.backends.backend import Graph, Tensors
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import are_random, row_maker
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of


@pytest.fixture(scope="module")
def dense_checkpoint(make_checkpoint: CheckpointMaker) -> Path:
    """A checkpoint without cuts, which exports in a third of the time."""
    return make_checkpoint("none")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_bundle_holds_every_weight_once(tiny_bundle: Path) -> None:
    weights = (tiny_bundle / "weights.safetensors").stat().st_size
    graphs = [path for path in tiny_bundle.iterdir() if path.suffix == ".onnx"]
    names = {"segment_0", "segment_1", "segment_2", "dense"}
    assert {path.stem for path in graphs} == {
        name + variant for name in names for variant in ("", ".unmasked", ".fused")
    }
    places: set[tuple[int, int]] = set()
    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {item.key: item.value for item in tensor.external_data}
                assert entry["location"] == "weights.safetensors"
                places.add((int(entry["offset"]), int(entry["length"])))
            else:
                assert len(tensor.raw_data) < 1024, tensor.name
    ordered = sorted(places)
    assert all(start + size <= following for (start, size), (following, _) in pairwise(ordered))
    parameters = sum(4 * tensor.numel() for tensor in tiny_model().state_dict().values())
    assert weights < parameters + 20_000  # and a header


def test_the_manifest_tells_how_the_graphs_were_checked(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    checked = {entry["graph"]: entry for entry in manifest.parity["graphs"]}
    assert set(checked) == {"segment_0", "segment_1", "segment_2", "dense"}
    for entry in checked.values():
        shapes = {tuple(shape) for shape in entry["shapes"]}
        lengths = (1, 2, 23, 24, 25, 64)
        assert shapes == {(batch, length) for batch in (1, 3) for length in lengths}
        assert max(entry["max_difference"].values()) <= entry["tolerance"]
    assert manifest.parity["chain"]["survivor_agreement"] == 1.0
    assert manifest.made_by["torch"] == torch.__version__
    for graph in manifest.graphs:
        assert all(tensor.shape[0] == "B" for tensor in (*graph.inputs, *graph.outputs))


@pytest.mark.parametrize("cuts", ["0.5,3", "0", "none"])
def test_cuts_at_any_place_export(
    make_checkpoint: CheckpointMaker, tmp_path: Path, cuts: str
) -> None:
    report = export_bundle(make_checkpoint(cuts), tmp_path / "bundle")
    cut_count = 0 if cuts == "none" else len(cuts.split(","))
    assert len(report.graphs) == (cut_count + 2 if cut_count else 1)
    assert report.chain.answer_agreement == 1.0


def test_survivors_can_be_rounded_up_for_good(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = export_bundle(tiny_checkpoint, tmp_path / "bundle", round_to=8)
    assert report.chain.survivor_agreement == 1.0
    plain = load_checkpoint(tiny_checkpoint).model.reduction
    rounded = Bundle.open(tmp_path / "bundle").manifest.reduction
    assert rounded == plain.at(OperatingPoint(round_to=8)) != plain


def test_samples_can_be_left_out(dense_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert Bundle.open(tiny_bundle).samples()
    export_bundle(dense_checkpoint, tmp_path / "bundle", samples=False)
    assert Bundle.open(tmp_path / "bundle").samples() == []
    assert not (tmp_path / "bundle" / "samples.jsonl").exists()


def test_rows_of_random_tokens_are_said(
    dense_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def exported(checkpoint: Path, samples: bool = True) -> tuple[ExportReport, str]:
        report = export_bundle(checkpoint, tmp_path / "bundle", samples=samples)
        assert report.random_rows == Bundle.open(report.path).manifest.parity["random_rows"]
        assert report.random_rows == report.to_json()["parity"]["random_rows"]
        console = Console(width=1000, file=io.StringIO())
        print_export(report, console)
        return report, console.file.getvalue()  # type: ignore[attr-defined]

    report, shown = exported(dense_checkpoint)
    assert not report.random_rows and not are_random(Bundle.open(report.path))
    assert "random tokens" not in shown
    report, shown = exported(tiny_checkpoint, samples=False)
    assert not report.random_rows  # the checkpoint's own texts
    assert are_random(Bundle.open(report.path))
    assert "no sample texts: what is measured or checked with it later" in shown
    bare = Path(shutil.copytree(dense_checkpoint, tmp_path / "bare"))
    (bare / "samples.jsonl").write_text("")
    report, shown = exported(bare)
    assert report.random_rows
    assert "checked on random tokens" in shown


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segment_0", "keep logits differ from float32 by"),
        ("dense", "outputs with no token removed differ from float32 by"),
    ],
)
def test_8_bit_graphs_that_are_wrong_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though labels, and the tokens' fates, stay what they are."""

    class Faulty(OnnxRuntimeBackend):
        def __init__(self, *arguments: Any, **rest: Any) -> None:
            super().__init__(*arguments, **rest)
            if self._without_mask in (INT8, DEQUANTIZED):
                sound = self.graph
                self.graph = cache(lambda wanted: faulty(sound(wanted), wanted))

    def faulty(graph: Graph, wanted: str) -> Graph:
        def run(inputs: Tensors) -> Tensors:
            return {
                output: value * (1 if output == "hidden_out" else 9)
                for output, value in graph(inputs).items()
            }

        run.inputs = graph.inputs  # type: ignore[attr-defined]
        return run if wanted == name else graph  # type: ignore[return-value]

    monkeypatch.setattr(export, "OnnxRuntimeBackend", Faulty)
    with pytest.raises(ParityError, match=f"chain with 8-bit weights: {message} .*--force-int8"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_is_replaced(make_checkpoint: CheckpointMaker, own_bundle: Path) -> None:
    before = contents(own_bundle)
    export_bundle(make_checkpoint("none", seed=5), own_bundle)
    assert contents(own_bundle)["weights.safetensors"] != before["weights.safetensors"]
    assert [path.name for path in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_a_failed_check_leaves_the_older_bundle(
    dense_checkpoint: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(own_bundle)
    exact = replace(LIMITS["fp32"], tolerance=0.0)
    monkeypatch.setattr(
        export, "compare_graphs", lambda *args, **rest: compare_graphs(*args, exact)
    )
    with pytest.raises(ParityError, match="more than the tolerance 0"):
        export_bundle(dense_checkpoint, own_bundle)
    assert contents(own_bundle) == before
    assert [path.name for path in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_an_interrupted_export_leaves_the_older_bundle(
    dense_checkpoint: Path, own_bundle: Path
) -> None:
    before = contents(own_bundle)

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith("check"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(dense_checkpoint, own_bundle, progress=interrupt)
    assert contents(own_bundle) == before
    assert [path.name for path in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_something_else_than_a_bundle_is_not_replaced(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        export_bundle(tiny_checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(StorageError, match="does not exist"):
        export_bundle(tmp_path / "nowhere", tmp_path / "bundle")


def test_parity_notices_another_model(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    model, other = checkpoint.model, tiny_model(seed=3)
    rows_of = row_maker(
        TextTokenizer(tiny_checkpoint / "tokenizer.json", 64), model.spec, checkpoint.samples
    )
    shapes = check_shapes(8, 64)
    sides = TorchBackend(model), TorchBackend(other)
    with pytest.raises(ParityError, match="segment_0, batch 1, length 1: hidden_out differs"):
        list(compare_graphs(*sides, model.spec, model.reduction, rows_of, shapes))
    chains = [Chain(side, model.reduction, 4) for side in sides]
    with pytest.raises(ParityError, match="chain"):
        compare_chains(task_of(tiny_model().spec), *chains, rows_of(20, 8))


def test_nan_fails_the_check(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    model = checkpoint.model
    broken = load_checkpoint(tiny_checkpoint).model
    with torch.no_grad():
        broken.encoder.layers[0].feed_forward.norm.bias[3] = np.nan
    rows_of = row_maker(
        TextTokenizer(tiny_checkpoint / "tokenizer.json", 64), model.spec, checkpoint.samples
    )
    sides = TorchBackend(model), TorchBackend(broken)
    with pytest.raises(ParityError, match="differs from PyTorch by nan"):
        list(compare_graphs(*sides, model.spec, model.reduction, rows_of, [(1, 5)]))


def test_a_bundle_is_complete_on_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    """No file of it points outside: a copy elsewhere works, with the original gone."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "elsewhere"))
    text = (copy / "manifest.json").read_text()
    assert str(tiny_bundle.parent) not in text
    assert set(json.loads(text)["files"]) == set(contents(copy)) - {"manifest.json"}

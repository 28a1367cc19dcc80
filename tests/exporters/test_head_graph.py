"""The graph of what some tokens say: in the bundle, on every backend, in every precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CheckpointMaker, make_texts

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import HEAD, HIDDEN, HIDDEN_OUT, KEEP_LOGIT
from trbert_deploy.errors import BundleError
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.samples import bundle_rows
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, TARGETS

TEXTS = [f"the [MASK] {row['text']}" for row in make_texts(6)]
NAMES = ("segment_0", "segment_1", "segment_2", "dense", "head")


@pytest.fixture(scope="module", params=[0, 3], ids=["every word", "some words"])
def bundle(
    request: pytest.FixtureRequest,
    make_checkpoint: CheckpointMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """With 8-bit weights, and sample texts that have no mask."""
    words = ["film", "city", "war"][: request.param]
    # Saved are the words; their tokens are found again when the checkpoint is read.
    answers = {MASK_ID: 4, TARGETS: words, TARGET_IDS: list(range(20, 20 + len(words)))}
    path = make_checkpoint(
        task="fill-mask", labels=(), answers=answers, head={"logits": len(words) or 256}
    )
    target = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(path, target, int8=True)
    return target


def test_the_segments_give_states_and_the_head_answers(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert tuple(graph.name for graph in manifest.graphs) == NAMES
    for name in NAMES[:2]:
        assert manifest.graph(name).answers == (HIDDEN_OUT, KEEP_LOGIT)
    for name in NAMES[2:4]:
        assert manifest.graph(name).answers == (HIDDEN_OUT,)
    head = manifest.graph(HEAD)
    assert head.token_inputs == (HIDDEN,) and head.answers == ("logits",) and not head.takes_mask
    words = len(manifest.encoder.answers[TARGET_IDS]) or 256
    assert head.outputs[0].shape[2] == words


def test_the_decoder_is_the_embeddings(bundle: Path) -> None:
    """All words are read from the table that the first segment reads; of some it has the rows."""
    places = []
    for name in ("segment_0", "head"):
        stored = onnx.load(bundle / f"{name}.onnx", load_external_data=False).graph.initializer
        assert sum(len(each.raw_data) for each in stored) < 4096
        places += [
            {entry.key: entry.value for entry in each.external_data}["offset"]
            for each in stored
            if list(each.dims) == [256, 32]
        ]
    whole = not Bundle.open(bundle).manifest.encoder.answers[TARGET_IDS]
    assert len(places) == 1 + whole and len({*places}) == 1


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_every_backend_answers_alike(bundle: Path, backend: str) -> None:
    expected = load(bundle, threads=1)(TEXTS, return_kept=True)
    precision = "fp32" if backend == "openvino" else None
    found = load(bundle, backend, threads=1, precision=precision)(TEXTS, return_kept=True)
    for one, other in zip(found, expected, strict=True):
        assert one.kept == other.kept
        for ours, theirs in zip(one.fills[0][:3], other.fills[0][:3], strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    eight = load(bundle, threads=1, precision="int8")(TEXTS)
    same = [
        one.fills[0][0].token == two.fills[0][0].token
        for one, two in zip(eight, expected, strict=True)
    ]
    assert np.mean(same) > 0.6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_checked_with_the_head(bundle: Path, precision: str) -> None:
    opened = Bundle.open(bundle)
    models = {name: onnx.load(opened.graph_path(name)) for name in NAMES}
    parity = compare_precision(opened, models, precision)
    assert [each.graph for each in parity.graphs] == list(NAMES)
    rows = bundle_rows(opened)(20, 3)
    assert all(4 in row.input_ids and row.protected[row.input_ids == 4].all() for row in rows)


def test_a_bundle_without_its_head_is_refused(bundle: Path, tmp_path: Path) -> None:
    for graphs in (lambda each: each[:-1], lambda each: [*each[:-2], each[-1]]):
        data = json.loads((bundle / "manifest.json").read_text())
        data["graphs"] = graphs(data["graphs"])
        from trbert_deploy.bundle.manifest import Manifest, _digest

        content = {key: value for key, value in data.items() if key != "sha256"}
        with pytest.raises(BundleError, match="manifest is damaged"):
            Manifest.from_json({**content, "sha256": _digest(content)})

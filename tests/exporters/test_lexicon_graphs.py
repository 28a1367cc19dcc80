"""A bundle that takes a lexicon: every precision and backend hears matches as PyTorch does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_texts, tiny_model
from numpy.typing import NDArray

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE, LEXICON, MATCHES
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import ExportReport, export_bundle
from trbert_deploy.exporters.one_graph import chain_of_parts
from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.modeling.device_chain import DeviceChain
from trbert_deploy.modeling.torch_backend import load_model
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import RowResult

TAGGER: dict[str, Any] = {
    "task": "token-classification",
    "labels": ("O", "B-X", "I-X", "B-Y"),
    "answers": {"takes_lexicon": True},
}
ENTRIES = (
    Entry("the film", "X"),
    Entry("film", "Y"),
    Entry("sailor who returns", "Y"),
    Entry("the", "X"),
)
TEXTS = [row["text"] for row in make_texts(8, seed=1)]


@pytest.fixture(scope="module", params=["0.5,2", "none"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> Path:
    place = tmp_path_factory.mktemp("lexicon") / "ckpt"
    model = tiny_model(request.param, **TAGGER)
    save_checkpoint(
        Checkpoint(model, tokenizer_dir, 64, samples=tuple(TEXTS), lexicon=ENTRIES), place
    )
    return place


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[Path, ExportReport]:
    """A bundle that tests only read."""
    place = checkpoint.with_name("bundle")
    cuts = bool(load_checkpoint_pipeline(checkpoint).reduction.cuts)
    return place, export_bundle(checkpoint, place, int8=cuts, fp16=cuts, states_after=[2])


def logits_of(pipeline: Pipeline, texts: Sequence[str] = TEXTS) -> list[NDArray[np.float32]]:
    return [result.outputs["logits"] for result in pipeline.run(pipeline.tokenize(texts))]


def furthest(ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def test_what_answers_takes_matches_and_nothing_else_does(
    exported: tuple[Path, ExportReport],
) -> None:
    manifest = Bundle.open(exported[0]).manifest
    taking = {graph.name for graph in manifest.all_graphs if MATCHES in graph.token_inputs}
    last = f"segment_{len(manifest.reduction.cuts)}"
    assert taking == ({last, "dense"} if manifest.reduction.cuts else {"dense"})
    assert LEXICON in manifest.files


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_backends_answer_alike(exported: tuple[Path, ExportReport], backend: str) -> None:
    path, _ = exported
    precision = {"precision": "fp32"} if backend != "torch" else {}
    expected = load_checkpoint_pipeline(path.with_name("ckpt"))
    ours = load(path, backend, threads=1, **precision)
    assert furthest(logits_of(expected), logits_of(ours)) < 1e-4
    bare = ours.without_lexicon()
    assert furthest(logits_of(bare), logits_of(expected.without_lexicon())) < 1e-4
    assert furthest(logits_of(bare), logits_of(ours)) > 0.01  # they are heard at all


def test_matched_tokens_survive_every_cut(exported: tuple[Path, ExportReport]) -> None:
    pipeline = load(exported[0], threads=1, max_tokens=1)
    rows = pipeline.tokenize(TEXTS)
    assert any(row.protected.sum() > 2 for row in rows)
    for row, result in zip(rows, pipeline.run(rows), strict=True):
        assert row.matches is not None
        known = {0, *row.matches[..., 0].any(-1).nonzero()[0].tolist()}
        assert all(set(kept.tolist()) == known for kept in result.kept)


def test_the_chain_on_a_device_hears_them(exported: tuple[Path, ExportReport]) -> None:
    pipeline = load(exported[0], threads=1)
    rows = [part for row in pipeline.tokenize(TEXTS) for part in row.parts]
    model = load_model(Bundle.open(exported[0]))
    expected: list[RowResult] = pipeline.chain.run(rows)
    found = DeviceChain(model).run(rows)
    apart = [one.outputs["logits"] for one in expected], [each.outputs["logits"] for each in found]
    assert furthest(*apart) < 1e-4


def test_a_long_text_is_answered_in_windows(exported: tuple[Path, ExportReport]) -> None:
    pipeline = load(exported[0], threads=1)
    text = " ".join(TEXTS)
    (row,) = pipeline.tokenize([text])
    assert len(row.windows) > 2
    (whole,) = pipeline([text])
    assert whole.num_tokens == len(row)
    assert all(part.matches is not None and part.matches.any() for part in row.parts)


def test_more_phrases_for_one_call(exported: tuple[Path, ExportReport]) -> None:
    pipeline = load(exported[0], threads=1)
    more = pipeline.with_lexicon([("village", "X")])
    text = ["a village"]
    assert furthest(logits_of(pipeline, text), logits_of(more, text)) > 0.01
    assert pipeline(text, lexicon=[("village", "X")]) == more(text)
    with pytest.raises(ConfigError, match=r"tags that the model does not know: Z .*X, Y"):
        pipeline(text, lexicon=[("village", "Z")])


def test_one_graph_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes a lexicon.*without --fused"):
        export_bundle(checkpoint, tmp_path / "bundle", fused=True)
    assert not (tmp_path / "bundle").exists()


def test_a_whole_chain_for_an_engine_is_refused_too(exported: tuple[Path, ExportReport]) -> None:
    bundle = Bundle.open(exported[0])
    parts = {
        graph.name: onnx.load(bundle.graph_path(graph.name), load_external_data=False)
        for graph in bundle.manifest.graphs
        if graph.name != DENSE
    }
    with pytest.raises(ConfigError, match=r"takes a lexicon|has no cuts"):
        chain_of_parts(bundle.manifest, parts, None, plugin=True)


def test_a_model_without_a_lexicon_takes_none(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="takes no lexicon"):
        load(tiny_bundle, threads=1)(["a film"], lexicon=[("film", "X")])


def test_weights_come_back_from_the_checkpoint(checkpoint: Path) -> None:
    cuts = "none" if not load_checkpoint_pipeline(checkpoint).reduction.cuts else "0.5,2"
    expected = tiny_model(cuts, **TAGGER).state_dict()
    found = load_checkpoint_pipeline(checkpoint).chain.backend._model.state_dict()  # type: ignore[union-attr]
    assert any(name.startswith("head.lexicon.") for name in expected)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())

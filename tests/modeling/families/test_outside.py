"""A family that is registered from outside the package: one class, and everything works with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, make_texts
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig

from trbert_deploy import load
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.evaluation.models import open_models
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.blocks.encoder import Encoder, EncoderLayer
from trbert_deploy.modeling.blocks.feed_forward import FeedForward
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.families.bert import Bert, bert_spec
from trbert_deploy.modeling.families.registry import FAMILIES, register_family
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias
from trbert_deploy.modeling.model import ReducedModel


class SlopedConfig(BertConfig):
    model_type = "sloped"


class SlopedAttention(Attention):
    """Attends less to what stands far away: a slope for all heads (after ALiBi)."""

    def score_bias(self, query: Tensor, key: Tensor, relative: nn.Module | None) -> ScoreBias:
        def distances(group: RowGroup) -> Tensor:
            places = group.positions
            return -0.5 * (places[:, None, :, None] - places[:, None, None, :]).abs().float()

        return ScoreBias(lambda group: group.once("distances", lambda: distances(group)))


class Sloped(Bert):
    """BERT without a position table."""

    model_types = ("sloped",)
    class_prefix = "Sloped"
    carried = ("positions",)
    embeddings = {"token": "words", "token_type": "types", "norm": "norm"}

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        return bert_spec(self.name, config, task, labels)

    def build(self, spec: EncoderSpec) -> Encoder:
        layers = (
            EncoderLayer(SlopedAttention(spec), FeedForward(spec)) for _ in range(spec.num_layers)
        )
        return Encoder(Embeddings(spec, positions=False), layers)


@pytest.fixture
def checkpoint(tokenizer_dir: Path, tmp_path: Path) -> Iterator[Path]:
    register_family(Sloped())
    AutoConfig.register("sloped", SlopedConfig, exist_ok=True)
    torch.manual_seed(0)
    config = SlopedConfig(
        vocab_size=220, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    spec = FAMILIES["sloped"].spec(config, "text-classification", LABELS)
    model = ReducedModel(spec, ReductionConfig.parse("0.5,2")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    path = tmp_path / "ckpt"
    samples = tuple(row["text"] for row in make_texts(6))
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64, samples=samples), path)
    yield path
    del FAMILIES["sloped"]


def test_it_is_saved_exported_and_served(checkpoint: Path, tmp_path: Path) -> None:
    entries = json.loads((checkpoint / "config.json").read_text())
    assert (entries["model_type"], entries["architectures"]) == (
        "sloped", ["SlopedForSequenceClassification"],
    )  # fmt: skip
    export_bundle(checkpoint, tmp_path / "bundle")
    texts = [row["text"] for row in make_texts(20, seed=5)]
    expected = open_models(checkpoint)[0](texts, return_kept=True)
    assert any(len(one.kept[1].positions) < one.num_tokens for one in expected)
    for backend in ("onnxruntime", "openvino", "torch"):
        served = load(tmp_path / "bundle", backend, threads=1, precision="fp32")
        for one, other in zip(served(texts, return_kept=True), expected, strict=True):
            assert one.kept == other.kept
            assert np.allclose(list(one.scores.values()), list(other.scores.values()), atol=1e-4)


def test_positions_travel(checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    inputs = {
        graph["name"]: [tensor["name"] for tensor in graph["inputs"]]
        for graph in manifest["graphs"]
    }
    assert inputs["segment_1"] == ["hidden", "positions", "attention_mask"]
    assert "positions" not in inputs["segment_0"] + inputs["dense"]

"""Loading from, and saving for, Hugging Face transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, CheckpointMaker, tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CanineConfig,
)

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError, DataError, StorageError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.segments import dense_module
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import NewHead
from trbert_deploy.tasks.text_classification import TextClassification

IDS = torch.randint(1, 256, (3, 17), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(17) < torch.tensor([[17], [9], [1]])


def hf_config(**changes: object) -> BertConfig:
    values: dict[str, object] = {
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    return BertConfig(**{**values, **changes})


def ours(model: torch.nn.Module, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK):
    with torch.no_grad():
        return dense_module(model)(ids, torch.zeros_like(ids), mask)[1]


def head_for(labels: Sequence[str]) -> NewHead:
    return TextClassification.new_head([Example("a text", label) for label in labels])


def theirs(model: BertForSequenceClassification) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK.long()).logits


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_fine_tuned_model_answers_as_in_transformers(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    reference = BertForSequenceClassification(hf_config(hidden_act=activation))
    reference.save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path), head_for(LABELS), None)
    assert loaded.fine_tuned
    assert loaded.model.reduction == ReductionConfig.parse("0.5,2")
    np.testing.assert_allclose(ours(loaded.model.eval()), theirs(reference), atol=1e-5)


def test_an_encoder_gets_a_new_head(tmp_path: Path) -> None:
    reference = BertModel(hf_config())
    reference.save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path), head_for(("a", "b", "c")), ReductionConfig.parse("0.5"))
    assert not loaded.fine_tuned
    assert loaded.model.spec.labels == ("a", "b", "c")
    weight = reference.embeddings.word_embeddings.weight
    assert torch.equal(loaded.model.encoder.embeddings.token.weight, weight)


def test_a_checkpoint_is_a_dense_model_to_transformers(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    reference = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint)
    assert reference.config.id2label == dict(enumerate(LABELS))
    np.testing.assert_allclose(ours(model), theirs(reference), atol=1e-4)


def test_other_labels_than_the_head_knows_are_named(tmp_path: Path) -> None:
    BertForSequenceClassification(hf_config()).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"does not know: ugly \(it knows bad, good\)"):
        load_pretrained(str(tmp_path), head_for(("good", "ugly")), None)


def test_numbers_of_labels_keep_the_head(tmp_path: Path) -> None:
    reference = BertForSequenceClassification(hf_config())
    reference.save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path), head_for(("0", "1")), None)
    assert loaded.fine_tuned and loaded.model.spec.labels == LABELS
    np.testing.assert_allclose(ours(loaded.model.eval()), theirs(reference), atol=1e-5)
    with pytest.raises(DataError, match=r"does not know: 2 \(it knows bad, good\)"):
        load_pretrained(str(tmp_path), head_for(("0", "1", "2")), None)


def test_real_values_are_no_labels(tmp_path: Path) -> None:
    BertForSequenceClassification(hf_config()).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"the labels are 0\.31, 2\.75: real values are"):
        load_pretrained(str(tmp_path), head_for(("0", "0.31", "2.75")), None)


def test_an_unsupported_family_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    CanineConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="family 'canine': supported are bert, camembert, "):
        load_pretrained(str(tmp_path), head_for(LABELS), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_variants_that_are_not_computed_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    BertModel(hf_config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(tmp_path), head_for(LABELS), None)


def damage(path: Path, what: str) -> None:
    reduction = path / "reduction.json"
    match what:
        case "no config":
            (path / "config.json").unlink()
        case "config is no JSON":
            (path / "config.json").write_text("{")
        case "newer":
            reduction.write_text(json.dumps({**json.loads(reduction.read_text()), "version": 9}))
        case "no cuts":
            reduction.write_text(json.dumps({"version": 1}))
        case "recipe is no text":
            (path / "recipe.toml").write_bytes(b"\xff")
        case "no weights":
            (path / "model.safetensors").unlink()
        case "truncated":
            weights = path / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        case "other shape":
            config = path / "config.json"
            config.write_text(config.read_text().replace('"vocab_size": 256', '"vocab_size": 300'))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "is not a checkpoint: it has no config.json"),
        ("config is no JSON", "cannot be"),
        ("newer", "has version 9: this release reads version 1"),
        ("no cuts", "is damaged"),
        ("recipe is no text", "recipe.toml cannot be read: 'utf-8' codec"),
        ("no weights", "has no weights that can be read: found none, expected model.safetens"),
        ("truncated", "is damaged or truncated"),
        ("other shape", r"has the shape \[256, 32\], expected \[300, 32\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_reason(
    tiny_checkpoint: Path, tmp_path: Path, what: str, message: str
) -> None:
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "ckpt"))
    damage(path, what)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_recipe_stays_with_its_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = load_checkpoint(tiny_checkpoint)
    assert plain.recipe is None
    save_checkpoint(replace(plain, recipe="seed = 1\n"), tmp_path)
    assert (
        (tmp_path / "recipe.toml").read_text() == load_checkpoint(tmp_path).recipe == "seed = 1\n"
    )
    save_checkpoint(plain, tmp_path)  # which was trained otherwise
    assert not (tmp_path / "recipe.toml").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")


def test_positions_are_extended_by_tiling(make_checkpoint: CheckpointMaker) -> None:
    model = tiny_model()
    before = model.encoder.embeddings.position.weight.detach().clone()
    model.extend_positions(150)
    after = model.encoder.embeddings.position.weight.detach()
    assert model.spec.max_positions == 150
    assert torch.equal(after, torch.cat([before, before, before])[:150])


def test_packed_rows_compute_what_padded_rows_do() -> None:
    model = tiny_model()
    lengths = np.array([17, 9, 1])
    packed_ids = IDS[MASK]
    layout = PackedLayout(lengths)
    with torch.no_grad():
        hidden = model.embed(packed_ids, torch.zeros_like(packed_ids), layout)
        hidden = model.encoder.run_steps(hidden, layout, 0, model.spec.num_steps)
        logits = model.head(hidden, layout)["logits"]
    np.testing.assert_allclose(logits, ours(model), atol=1e-5)

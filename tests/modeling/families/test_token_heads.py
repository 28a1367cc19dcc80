"""Heads that answer tokens, of every family against transformers: loaded, and saved again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import SMALL_FAMILIES
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained, task_for
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.tasks.question_answering import IMPOSSIBLE, LONGEST, QuestionAnswering
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import NewHead
from trbert_deploy.tasks.token_classification import AGGREGATION, TokenClassification

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
#: Task -> its class of transformers, and labels.
MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    TokenClassification.name: (AutoModelForTokenClassification, TAGS),
    QuestionAnswering.name: (AutoModelForQuestionAnswering, ("LABEL_0", "LABEL_1")),
}


def folder_of(
    path: Path,
    tokenizer_dir: Path,
    family: str,
    model: Any,
    changes: Mapping[str, Any] = {},
    **entries: Any,
) -> Path:
    """A folder of transformers with large random weights, so that every part of it shows.

    Args:
        changes: of the configuration.
        entries: of config.json, in the end.
    """
    torch.manual_seed(0)
    options = {key: entries.pop(key) for key in ("id2label",) if key in entries}
    values = {**SMALL_FAMILIES[family], **options, **changes}
    made = model.from_config(AutoConfig.for_model(family, **values)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
            if "norm" in name.lower() and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    made.save_pretrained(path)
    shutil.copytree(tokenizer_dir, path, dirs_exist_ok=True)
    if entries:
        config = path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | entries))
    return path


@torch.no_grad()
def logits_of(path: Path, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What transformers says of tokens: [B, S, C]."""
    outputs = model.from_pretrained(path).eval()(input_ids=ids, attention_mask=mask.long())
    if hasattr(outputs, "logits"):
        return outputs.logits
    return torch.stack([outputs.start_logits, outputs.end_logits], -1)


@torch.no_grad()
def ours_of(model: ReducedModel, ids: torch.Tensor, mask: torch.Tensor, packed: bool) -> Any:
    """What we say of the tokens that are no padding: [T, C]."""
    types = torch.zeros_like(ids)
    if packed:
        layout: Any = PackedLayout(mask.sum(1).numpy())
        hidden = model.embed(ids[mask], types[mask], layout)
    else:
        layout = PaddedLayout(mask)
        hidden = model.embed(ids, types, layout)
    hidden = model.encoder.run_steps(hidden, layout, 0, model.spec.num_steps)
    logits = model.head(hidden, layout)["logits"]
    assert logits.dtype == torch.float32
    return logits if packed else logits[mask]


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("family", SMALL_FAMILIES)
def test_tokens_are_answered_as_by_transformers(
    tmp_path: Path, tokenizer_dir: Path, family: str, task: str
) -> None:
    model, labels = MODELS[task]
    names = {"id2label": dict(enumerate(labels))}
    path = folder_of(tmp_path / "folder", tokenizer_dir, family, model, **names)
    loaded = load_checkpoint(path)
    assert (loaded.model.spec.task, loaded.model.spec.labels) == (task, labels)
    lengths = torch.tensor([11, 1, 7])
    mask = torch.arange(11) < lengths[:, None]
    ids = torch.randint(10, 200, mask.shape, generator=torch.Generator().manual_seed(1))
    ids = torch.where(mask, ids, loaded.model.spec.pad_token_id)
    expected = logits_of(path, model, ids, mask)[mask]
    assert float(expected.std()) > 0.1
    for packed in (False, True):
        found = ours_of(loaded.model, ids, mask, packed)
        assert torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))
    save_checkpoint(loaded, tmp_path / "saved")
    again = logits_of(tmp_path / "saved", model, ids, mask)[mask]
    assert torch.equal(again, expected)
    assert np.array_equal(
        ours_of(load_checkpoint(tmp_path / "saved").model, ids, mask, True), found
    )


@pytest.mark.parametrize("task", MODELS)
def test_how_outputs_are_answers_survives(tmp_path: Path, tokenizer_dir: Path, task: str) -> None:
    model, labels = MODELS[task]
    entries = {IMPOSSIBLE: False, LONGEST: 30, AGGREGATION: "first"}
    names = {"id2label": dict(enumerate(labels))}
    path = folder_of(tmp_path / "folder", tokenizer_dir, "bert", model, **names, **entries)
    for where in (path, tmp_path / "saved"):
        loaded = load_checkpoint(where)
        made = task_of(loaded.model.spec)
        if isinstance(made, QuestionAnswering):
            assert (made.impossible, made.max_answer_len) == (False, 30)
        else:
            assert isinstance(made, TokenClassification) and made.aggregation == "first"
        save_checkpoint(loaded, tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert entries.items() <= kept.items()  # those of another task stay as they came


@pytest.mark.parametrize("task", MODELS)
def test_an_encoder_gets_a_new_head_for_tokens(
    tmp_path: Path, tokenizer_dir: Path, task: str
) -> None:
    model, labels = MODELS[task]
    head = NewHead(task, labels, found=labels)
    bare = folder_of(tmp_path / "bare", tokenizer_dir, "modernbert", AutoModel)
    assert task_for(str(bare), task).name == task
    pretrained = load_pretrained(str(bare), head, None)
    assert not pretrained.fine_tuned
    assert (pretrained.model.spec.task, pretrained.model.spec.labels) == (task, labels)
    made = folder_of(
        tmp_path / "made", tokenizer_dir, "bert", model, id2label=dict(enumerate(labels))
    )
    assert task_for(str(made), None).name == task
    kept = load_pretrained(str(made), head, None)
    assert kept.fine_tuned and kept.model.spec.task == task
    other = folder_of(tmp_path / "other", tokenizer_dir, "bert", AutoModelForSequenceClassification)
    with pytest.raises(ConfigError, match="has a head for text-classification: expected that task"):
        task_for(str(other), task)


def test_answers_with_other_ends_are_refused(tmp_path: Path, tokenizer_dir: Path) -> None:
    path = folder_of(
        tmp_path / "folder", tokenizer_dir, "bert", AutoModelForQuestionAnswering,
        id2label=dict(enumerate("abc")),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has 3 logits for a token: expected"):
        load_checkpoint(path)

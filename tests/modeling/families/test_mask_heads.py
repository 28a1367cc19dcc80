"""The head for masked words, of every family against transformers: loaded, and saved again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_families_end_to_end import SMALL
from modeling.families.test_token_heads import folder_of
from transformers import AutoModel, AutoModelForMaskedLM

from trbert_deploy import load
from trbert_deploy.errors import CheckpointError, ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained, task_for
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import dense_outputs
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, TARGETS, FillMask
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow

MASK = 4
VARIANTS = {**{name: (name, {}) for name in SMALL}, "deberta's authors'": ("deberta-v2", {"legacy": False})}


def mask_folder(
    path: Path,
    tokenizer_dir: Path,
    family: str = "bert",
    changes: Mapping[str, Any] = {},
    model: Any = AutoModelForMaskedLM,
    **entries: Any,
) -> Path:
    """A folder whose tokenizer says which token is the mask, whatever class reads it."""
    folder_of(path, tokenizer_dir, family, model, changes, **entries)
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask_token": "[MASK]"}))
    return path


def rows_with_masks() -> list[TokenRow]:
    """Rows of one mask, of two, and of nothing else."""
    generator = np.random.default_rng(1)
    rows = [generator.integers(10, 200, length) for length in (11, 1, 7)]
    for row, places in zip(rows, ([3], [0], [2, 6]), strict=True):
        row[places] = MASK
    return [TokenRow(row, np.zeros_like(row)) for row in rows]


@torch.no_grad()
def theirs_of(path: Path, rows: list[TokenRow]) -> list[np.ndarray]:
    """What transformers says of masks: [A, V] each."""
    model = AutoModelForMaskedLM.from_pretrained(path).eval()
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)
        found.append(model(input_ids=ids[None]).logits[0][ids == MASK].numpy())
    return found


@torch.no_grad()
def ours_of(model: ReducedModel, rows: list[TokenRow]) -> list[np.ndarray]:
    """What we say of them, packed."""
    training = [TrainingRow(row, np.zeros(1, np.int64)) for row in rows]
    (batch,) = load_batches(training, [[0, 1, 2]], torch.device("cpu"))
    logits = dense_outputs(model, batch)["logits"]
    assert logits.dtype == torch.float32 and logits.shape[:2] == (3, 2)
    found = {}
    for place, row in enumerate(batch.rows.tolist()):
        masks = int((rows[row].input_ids == MASK).sum())
        assert not logits[place, masks:].any()
        found[row] = logits[place, :masks].numpy()
    return [found[row] for row in range(3)]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_answered_as_by_transformers(
    tmp_path: Path, tokenizer_dir: Path, variant: str
) -> None:
    family, changes = VARIANTS[variant]
    path = mask_folder(tmp_path / "folder", tokenizer_dir, family, changes)
    rows = rows_with_masks()
    theirs = theirs_of(path, rows)
    loaded = load_checkpoint(path)
    spec = loaded.model.spec
    assert (spec.task, spec.labels, spec.answers[MASK_ID]) == ("fill-mask", (), MASK)
    assert spec.num_logits == spec.vocab_size
    assert_close(ours_of(loaded.model, rows), theirs)
    save_checkpoint(loaded, tmp_path / "saved")
    assert_close(theirs_of(tmp_path / "saved", rows), theirs)
    assert load_checkpoint(tmp_path / "saved").model.spec == spec

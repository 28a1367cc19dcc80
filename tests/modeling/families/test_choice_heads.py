"""The head for multiple choice, of every family against transformers: loaded, and saved again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import SMALL_FAMILIES
from modeling.families.test_token_heads import folder_of
from transformers import AutoModelForMultipleChoice

from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.tasks.multiple_choice import MultipleChoice

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SMALL_FAMILIES},
    "mean": ("modernbert", {"classifier_pooling": "mean"}),
}


@torch.no_grad()
def logits_of(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What transformers says of the choices of one question: [C]."""
    model = AutoModelForMultipleChoice.from_pretrained(path).eval()
    return model(input_ids=ids[None], attention_mask=mask[None].long()).logits[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_choices_have_the_logits_of_transformers(
    tmp_path: Path, tokenizer_dir: Path, variant: str
) -> None:
    family, changes = VARIANTS[variant]
    path = folder_of(
        tmp_path / "folder", tokenizer_dir, family, AutoModelForMultipleChoice, changes
    )
    loaded = load_checkpoint(path)
    spec = loaded.model.spec
    assert (spec.task, spec.labels) == (MultipleChoice.name, ("LABEL_0",))
    mask = torch.arange(11) < torch.tensor([11, 3, 7])[:, None]
    ids = torch.randint(10, 200, mask.shape, generator=torch.Generator().manual_seed(1))
    ids = torch.where(mask, ids, spec.pad_token_id)
    expected = logits_of(path, ids, mask)
    assert float(expected.std()) > 0.02
    with torch.no_grad():
        layout = PaddedLayout(mask)
        hidden = loaded.model.embed(ids, torch.zeros_like(ids), layout)
        hidden = loaded.model.encoder.run_steps(hidden, layout, 0, spec.num_steps)
        found = loaded.model.head(hidden, layout)["logits"]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    save_checkpoint(loaded, tmp_path / "saved")
    assert torch.equal(logits_of(tmp_path / "saved", ids, mask), expected)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("summary_type", "mean"), ("summary_use_proj", False), ("summary_activation", "tanh")],
)
def test_summaries_that_are_not_computed_are_refused(
    tmp_path: Path, tokenizer_dir: Path, entry: str, value: Any
) -> None:
    path = folder_of(
        tmp_path / "folder", tokenizer_dir, "electra", AutoModelForMultipleChoice, {entry: value}
    )
    with pytest.raises(CheckpointError, match=f"{entry} is {value!r}: expected"):
        load_checkpoint(path)

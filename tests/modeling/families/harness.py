"""Small random models of transformers, and ours with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from trbert_deploy.config import ReductionConfig
from trbert_deploy.modeling.families.registry import family_of
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel

LABELS = ("no", "yes", "perhaps")


def random_pair(
    config: PretrainedConfig, seed: int = 0, scale: float = 3.0
) -> tuple[Any, ReducedModel]:
    """A seeded classifier of transformers with large random weights, and ours with the same.

    Weights are scaled up, so that attention is sharp and a wrong position shows.
    """
    torch.manual_seed(seed)
    config.num_labels = len(LABELS)
    theirs = AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.02 * scale))
            if "norm" in name.lower() and parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    family = family_of(config.model_type, "the test")
    spec = family.spec(config, "text-classification", LABELS)
    ours = ReducedModel(spec, ReductionConfig()).eval()
    loaded = family.load(theirs.state_dict(), spec)
    assert set(loaded) == set(ours.state_dict())
    ours.load_state_dict(loaded)
    return theirs, ours


def random_ids(spec: Any, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, token types and mask [B, S] of rows of these lengths, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    ids = torch.randint(10, spec.vocab_size, shape, generator=generator)
    ids = torch.where(mask, ids, spec.pad_token_id)
    types = torch.randint(0, max(spec.token_types, 1), shape, generator=generator)
    return ids, torch.where(mask, types, 0), mask


@torch.no_grad()
def theirs_and_ours(
    theirs: Any, ours: ReducedModel, lengths: list[int], seed: int = 0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(what, theirs, ours) for last states and logits: padded, packed, and without a mask."""
    spec = ours.spec
    ids, types, mask = random_ids(spec, lengths, seed)
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if spec.token_types > 1:
        inputs["token_type_ids"] = types
    expected = theirs.base_model(**inputs).last_hidden_state
    logits = theirs(**inputs).logits
    whole = len(set(lengths)) == 1
    compared = []
    for layout in [PaddedLayout(mask), *([PaddedLayout(None)] if whole else [])]:
        hidden = ours.encoder.run_steps(ours.embed(ids, types, layout), layout, 0, spec.num_steps)
        compared.append(("states", expected[mask], hidden[mask]))
        compared.append(("logits", logits, ours.head(hidden, layout)["logits"]))
    packed = PackedLayout(mask.sum(1).numpy())
    hidden = ours.embed(ids[mask], types[mask], packed)
    hidden = ours.encoder.run_steps(hidden, packed, 0, spec.num_steps)
    compared.append(("packed states", expected[mask], hidden))
    compared.append(("packed logits", logits, ours.head(hidden, packed)["logits"]))
    return compared


def assert_same(
    theirs: Any, ours: ReducedModel, lengths: list[int], tolerance: float = 1e-5
) -> None:
    """States and logits differ by no more than ``tolerance`` relative to the largest (above 1)."""
    for what, expected, received in theirs_and_ours(theirs, ours, lengths):
        difference = float(
            (expected - received).abs().max() / max(1.0, float(expected.abs().max()))
        )
        assert difference <= tolerance, (what, lengths, difference)

"""What is left of a row goes on as if the dropped tokens were there and nobody saw them.

Each family is compared with itself: the chain really drops tokens and carries the original
positions of the survivors; the reference keeps every token in its place and masks the dropped
ones. They agree only if no layer reads a position from where a survivor lies now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from modeling.families.harness import random_ids, random_pair
from torch import Tensor
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
)

from trbert_deploy.config import Cut, ReductionConfig
from trbert_deploy.modeling.layouts.gated import GatedLayout
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.segments import FirstSegment, LaterSegment, segment_module
from trbert_deploy.modeling.walk import TokenState

LENGTHS = [150, 3, 1, 77, 77]
TOLERANCE = 1e-5

SHAPE: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 152,
}  # fmt: skip
SPECIAL = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
#: One small configuration per family, more where variants differ in what they need of positions.
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=90, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=152
    ),
    "electra": ElectraConfig(**SHAPE, embedding_size=12),
    "mpnet": MPNetConfig(**SHAPE),
    "modernbert": ModernBertConfig(**SHAPE, local_attention=4, **SPECIAL),
    "deberta-v2": DebertaV2Config(
        **SHAPE,
        relative_attention=True,
        pos_att_type="c2p|p2c",
        position_buckets=16,
        position_biased_input=False,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    ),
}
#: Half layers before which tokens are dropped: between layers, and inside of one.
CUTS = [(1,), (2,), (5,), (1, 4), (2, 3)]


@dataclass
class Case:
    """Rows of tokens, and which of them survive each cut.

    Attributes:
        kept: [B, S] bool each, a subset of the one before.
    """

    model: ReducedModel
    cuts: tuple[int, ...]
    ids: Tensor
    types: Tensor
    mask: Tensor
    kept: list[Tensor]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Half layers from where to where each segment runs."""
        return list(zip((0, *self.cuts), (*self.cuts, self.model.spec.num_steps), strict=True))

    def reference(self) -> tuple[Tensor, Tensor]:
        """Last states [B, S, H] of every token in its place, and logits."""
        layout = PaddedLayout(self.mask)
        hidden = self.model.embed(self.ids, self.types, layout)
        for visible, (start, stop) in zip([self.mask, *self.kept], self.bounds, strict=True):
            layout = PaddedLayout(visible)
            hidden = self.model.encoder.run_steps(hidden, layout, start, stop)
        return hidden, self.model.head(hidden, layout)["logits"]

    def packed(self) -> TokenState:
        """The whole rows' embeddings, packed."""
        layout = PackedLayout(self.mask.sum(1).numpy())
        ids, types = self.ids[self.mask], self.types[self.mask]
        hidden = self.model.embed(ids, types, layout)
        protected = torch.zeros(len(ids)).bool()
        return TokenState(hidden, layout, torch.arange(len(ids)), protected, layout)


def make_case(family: str, cuts: tuple[int, ...], seed: int = 0) -> Case:
    _, model = random_pair(CONFIGS[family], seed)
    model.set_reduction(ReductionConfig(tuple(Cut(step / 2) for step in cuts)))
    ids, types, mask = random_ids(model.spec, LENGTHS, seed)
    kept, left = [], mask
    for _ in cuts:
        left = left & (torch.rand(mask.shape) < 0.6)
        left[:, 0] = True
        kept.append(left)
    return Case(model, cuts, ids, types, mask, kept)


def assert_close(received: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((received - expected).abs().max()) <= TOLERANCE * scale


def gather_rows(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """values [B, S, ...] of what is kept, to the front of each row, and the mask of these."""
    counts = keep.sum(1)
    mask = torch.arange(int(counts.max())) < counts[:, None]
    front = values.new_zeros(*mask.shape, *values.shape[2:])
    front[mask] = values[keep]
    return front, mask


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_packed_survivors(family: str, cuts: tuple[int, ...]) -> None:
    case = make_case(family, cuts)
    expected, logits = case.reference()
    tokens = case.packed()
    for index, (start, stop) in enumerate(case.bounds):
        tokens = tokens.run(case.model, start, stop)
        if index < len(cuts):
            tokens = tokens.compact(case.kept[index][case.mask][tokens.token][None])
    assert_close(tokens.hidden, expected[case.kept[-1]])
    assert_close(tokens.answer(case.model)["logits"], logits)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_padded_survivors_in_the_modules_that_are_exported(
    family: str, cuts: tuple[int, ...]
) -> None:
    case = make_case(family, cuts)
    expected, logits = case.reference()
    first, *later = (segment_module(case.model, segment) for segment in case.model.segments)
    assert isinstance(first, FirstSegment)
    hidden, *_ = first(case.ids, case.types, case.mask)
    positions = torch.arange(case.mask.shape[1]).expand(case.mask.shape)
    mask = case.mask
    last = logits.new_zeros(0)
    for module, kept in zip(later, case.kept, strict=True):
        assert isinstance(module, LaterSegment)
        keep = torch.zeros_like(mask)
        keep[mask] = kept.gather(1, positions)[mask]
        hidden, survivors = gather_rows(hidden, keep)
        positions, _ = gather_rows(positions, keep)
        mask = survivors
        carried = {"positions": positions} if "positions" in module.inputs else {}
        hidden, last = module(hidden, **carried, attention_mask=mask)
    assert_close(hidden[mask], expected[case.kept[-1]])
    assert_close(last, logits)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_survivors_behind_gates(family: str, cuts: tuple[int, ...]) -> None:
    case = make_case(family, cuts)
    expected, logits = case.reference()
    tokens = case.packed()
    layout: PackedLayout | GatedLayout = tokens.layout
    for index, (start, stop) in enumerate(case.bounds):
        tokens = tokens.run(case.model, start, stop, layout)
        if index < len(cuts):
            layout = GatedLayout(tokens.layout, case.kept[index][case.mask].float())
    assert_close(tokens.hidden[case.kept[-1][case.mask]], expected[case.kept[-1]])
    assert_close(tokens.answer(case.model, layout)["logits"], logits)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_gates_over_survivors(family: str) -> None:
    """Gates at the second cut, where the first has really dropped tokens."""
    case = make_case(family, (1, 4))
    expected, logits = case.reference()
    first, second = (kept[case.mask] for kept in case.kept)
    tokens = case.packed().run(case.model, 0, 1).compact(first[None]).run(case.model, 1, 4)
    layout = GatedLayout(tokens.layout, second[tokens.token].float())
    tokens = tokens.run(case.model, 4, case.model.spec.num_steps, layout)
    assert_close(tokens.hidden[second[tokens.token]], expected[case.kept[-1]])
    assert_close(tokens.answer(case.model, layout)["logits"], logits)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_several_choices_make_rows_of_their_own(family: str) -> None:
    one = make_case(family, (3,))
    other = make_case(family, (3,))
    other.kept[0] = other.mask & ~one.kept[0]
    other.kept[0][:, 0] = True
    tokens = one.packed().run(one.model, 0, 3)
    tokens = tokens.compact(torch.stack([case.kept[0][case.mask] for case in (one, other)]))
    tokens = tokens.run(one.model, 3, one.model.spec.num_steps)
    states, logits = zip(*(case.reference() for case in (one, other)), strict=True)
    kept = [case.kept[0] for case in (one, other)]
    assert_close(
        tokens.hidden, torch.cat([part[keep] for part, keep in zip(states, kept, strict=True)])
    )
    assert_close(tokens.answer(one.model)["logits"], torch.cat(logits))


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_positions_travel_where_they_matter(family: str) -> None:
    case = make_case(family, (1,))
    whole = case.packed().run(case.model, 0, 1)
    tokens = whole.compact(case.kept[0][case.mask][None])
    steps = 1, case.model.spec.num_steps
    right = tokens.run(case.model, *steps).hidden
    forgetful = PackedLayout(tokens.layout.lengths)
    wrong = tokens.run(case.model, *steps, forgetful).hidden
    carried = "positions" in case.model.inputs_of(case.model.segments[1])
    difference = float((right - wrong).abs().max())
    assert difference > 100 * TOLERANCE if carried else difference == 0


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_learns_in_half_precision_on_any_processor(family: str, gated: bool) -> None:
    """Attention with a backward pass is computed in float32 on short rows, layers are not."""
    _, model = random_pair(CONFIGS[family])
    ids, types, mask = random_ids(model.spec, LENGTHS)
    layout = PackedLayout(mask.sum(1).numpy())
    over = GatedLayout(layout, torch.ones(int(mask.sum()))) if gated else layout
    logits = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            hidden = model.embed(ids[mask], types[mask], over)
            hidden = model.encoder.run_steps(hidden, over, 0, model.spec.num_steps)
            logits.append(model.head(hidden, over)["logits"].float())
    torch.testing.assert_close(*logits, atol=0.1, rtol=0.1)
    model.zero_grad()
    logits[1].square().sum().backward()
    gradients = [each.grad for each in model.encoder.layers.parameters() if each.grad is not None]
    assert gradients and all(each.isfinite().all() for each in gradients)

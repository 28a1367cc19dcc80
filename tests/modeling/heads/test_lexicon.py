"""What matches say of labels: by hand, alike for all tokens of a match, and nothing elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trbert_deploy.lexicon.columns import VALUES, Place, columns
from trbert_deploy.modeling.heads.lexicon import LexiconVotes, denoising_losses
from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.modeling.heads.token_classification import DENOISING, TokenClassificationHead
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS

LABELS = ("O", "B-X", "I-X", "B-Y", "I-Y")
SPEC = tiny_spec(
    task="token-classification", labels=LABELS, answers={"takes_lexicon": True}, hidden_size=8
)


def head() -> TokenClassificationHead:
    torch.manual_seed(0)
    made = build_head(SPEC).eval()
    assert isinstance(made, TokenClassificationHead)
    made.take_matches(SPEC)
    return made


def votes() -> LexiconVotes:
    """With weights as if they were learned."""
    made = head().lexicon
    assert made is not None
    with torch.no_grad():
        for module in (made.key, made.trust):
            module.weight.normal_()
    return made


def told(*places: Place, length: int = 6, values: int = VALUES) -> Tensor:
    return torch.from_numpy(columns(places, length, values))


def test_a_match_votes_for_its_labels_from_the_start() -> None:
    made = head()
    matches = told(Place(1, 2, 1), Place(4, 4, 2))
    hidden = torch.randn(6, 8)
    added = made.each_matched(hidden, matches)[LOGITS] - made.each(hidden)[LOGITS]
    share = math.exp(-1 - math.log(2)) / (1 + math.exp(-1 - math.log(2)))  # beside none, 0
    expected = torch.zeros(6, 5)
    expected[1, 1] = expected[2, 2] = expected[4, 3] = 8 * share
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)


def test_schemes_without_beginnings_have_one_label_for_both() -> None:
    spec = tiny_spec(
        task="token-classification", labels=("O", "X", "B-Y"), answers={"takes_lexicon": True}
    )
    made = build_head(spec)
    assert isinstance(made, TokenClassificationHead)
    made.take_matches(spec)
    assert made.lexicon is not None
    wanted = [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert (made.lexicon.vote.weight.T / 8).tolist() == wanted


@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 1000))
def test_the_tokens_of_a_match_are_judged_alike(first: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    made, hidden = votes(), torch.randn(2, 7, 8)
    place, other = Place(first, first + size, 2), Place(2, 3, 1)
    matches = torch.stack([told(place, other, length=7), told(length=7)])
    added, trust = made(hidden, matches)
    assert (added[1] == 0).all()
    slot = int((matches[0, first, :, 0] == 2).nonzero()[0, 0])
    own = trust[0, first : first + size + 1, slot]
    assert torch.allclose(own, own[0].expand_as(own), atol=1e-5)
    scores = made.trust(hidden[0])
    mean = (scores[first, 2] + scores[first + 1 : first + size + 1, 3].sum()) / (size + 1)
    assert own[0].item() == pytest.approx(mean.item(), abs=1e-5)
    outside = [t for t in range(7) if not matches[0, t, :, 0].any()]
    assert (added[0, outside] == 0).all()


def test_packed_rows_are_as_padded_ones() -> None:
    made = votes()
    rows = [told(Place(0, 1, 1), length=3), told(Place(1, 3, 2), Place(2, 2, 1), length=4)]
    hidden = [torch.randn(len(row), 8) for row in rows]
    packed, _ = made(torch.cat(hidden), torch.cat(rows))
    alone = [made(*each)[0] for each in zip(hidden, rows, strict=True)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_trust_is_learned_from_what_is_right() -> None:
    matches = told(Place(0, 1, 1, True), Place(1, 1, 2, False), Place(4, 4, 1), values=VALUES + 1)
    trust = torch.zeros(6, matches.shape[1])
    losses = denoising_losses(trust, matches)[:, 0]
    assert losses.tolist() == pytest.approx([math.log(2), 2 * math.log(2), 0, 0, 0, 0])
    sure = torch.where(matches[..., 3] > 0, 30.0, -30.0)
    losses = denoising_losses(sure, matches)[:, 0]
    assert ((losses > 0) == torch.tensor([True, True, False, False, False, False])).all()
    assert losses.max() < 1e-6


def test_the_loss_has_both_parts() -> None:
    made = head()
    hidden, target = torch.randn(1, 3, 8), torch.tensor([[NO_TOKEN, 1, 2]])
    matches = told(Place(1, 2, 1, True), length=3, values=VALUES + 1)[None]
    values = made.each_matched(hidden, matches)
    without = {LOGITS: values[LOGITS]}
    found = made.loss(values, target) - made.loss(without, target)
    assert found.item() == pytest.approx(math.log(2), abs=1e-5)
    assert DENOISING not in made.each_matched(hidden, matches[..., :VALUES])


def test_the_head_gives_logits_alone_where_nobody_learns() -> None:
    hidden, matches = torch.randn(2, 3, 8), told(Place(1, 2, 1), length=3).expand(2, 3, 4, 3)
    assert [*head()(hidden, PaddedLayout(None), matches)] == [LOGITS]


def test_few_parameters_learn_at_their_own_rate() -> None:
    assert len(head().quick_parameters) == 5
    plain = build_head(tiny_spec(task="token-classification", labels=LABELS))
    assert plain.quick_parameters == []
    assert np.prod(head().lexicon.vote.weight.shape) == 20  # type: ignore[union-attr]

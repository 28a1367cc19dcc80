"""Straight-through gates, the constraint on computation, and what stages compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from training.estimators.test_rollouts import LENGTHS, batch

from trbert_deploy.modeling.heads.text_classification import LABEL_WEIGHT
from trbert_deploy.modeling.layouts.gated import GatedLayout
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.walk import (
    choose_by_logits,
    choose_by_rule,
    first_segment,
    later_segments,
)
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.training.constraint import FlopsConstraint
from trbert_deploy.training.estimators.gates import run_gated, straight_through
from trbert_deploy.training.stages.stage import rank_shares


@pytest.mark.parametrize("cuts", ["1,2", "0.5,3", "0", "0.5,1.5,2.5", "none"])
def test_gates_give_the_answers_and_the_cost_of_the_chain(cuts: str) -> None:
    model = tiny_model(cuts)
    packed = batch()
    with torch.no_grad():
        gated = run_gated(model, packed)
        outputs, kept = later_segments(model, first_segment(model, packed), choose_by_rule(model))
    torch.testing.assert_close(gated.outputs, outputs, atol=1e-5, rtol=1e-5)
    for found, expected in zip(gated.lengths[1:], kept, strict=True):
        assert found.tolist() == expected.tolist()
    assert 0 < gated.flops_share(model) <= 1.05  # policies cost a little


def test_every_gate_gets_a_gradient_closed_ones_too() -> None:
    model = tiny_model()
    packed = batch()
    hidden = torch.randn(sum(LENGTHS), 32)
    gate = torch.zeros(sum(LENGTHS))
    gate[packed.layout.starts] = 1.0
    gate.requires_grad_()
    layout = GatedLayout(packed.layout, gate)
    states = model.encoder.run_steps(hidden, layout, 0, 2)[packed.layout.starts]
    (states @ torch.randn(32)).sum().backward()
    assert gate.grad is not None
    assert (gate.grad[gate.detach() == 0] != 0).all()


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=20))
def test_a_gate_is_the_choice_with_the_gradient_of_the_probability(values: list[float]) -> None:
    logit = torch.tensor(values, requires_grad=True)
    gate = straight_through(logit)
    torch.testing.assert_close(gate.detach(), (logit.detach() >= 0).float())
    gate.sum().backward()
    soft = logit.detach().sigmoid()
    torch.testing.assert_close(logit.grad, soft * (1 - soft))


def test_open_gates_change_nothing_under_either_layout() -> None:
    query, key, value = torch.randn(3, 12, 32).unbind()
    packed = PackedLayout(np.array([5, 7]))
    padded = PaddedLayout(None)
    for layout, shape in ((packed, (12, 32)), (padded, (2, 6, 32))):
        parts = [states.view(shape) for states in (query, key, value)]
        gated = GatedLayout(layout, torch.ones(shape[:-1]))
        torch.testing.assert_close(gated.attend(*parts, 4), layout.attend(*parts, 4))


def test_the_penalty_rises_until_the_goal_is_met() -> None:
    constraint = FlopsConstraint(speedup=4.0, ramp=0.5)
    assert [constraint.goal(done) for done in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.625, 0.25, 0.25]
    opened = FlopsConstraint(speedup=4.0, ramp=0.5, opening=2.0)
    assert [opened.goal(done) for done in (0.0, 0.25, 0.5, 1.0)] == [0.5, 0.375, 0.25, 0.25]
    above = [constraint.penalty(0.5, 1.0) for _ in range(3)]
    assert above[0] < above[1] < above[2]
    below = [constraint.penalty(0.249, 1.0) for _ in range(3)]
    assert above[2] > below[0] > below[1] > below[2] > 0
    for _ in range(50):
        below.append(constraint.penalty(0.0, 1.0))
    assert below[-1] == 0.0
    constraint.stop_falling(0.4)
    assert constraint.goal(1.0) == pytest.approx(0.4)
    again = FlopsConstraint(speedup=4.0, ramp=0.5)
    again.load_state_dict(constraint.state_dict())
    assert again.goal(1.0) == pytest.approx(0.4)


def test_the_penalty_holds_policies_at_the_wanted_share() -> None:
    model = tiny_model("1,2")
    for parameter in (*model.encoder.parameters(), *model.head.parameters()):
        parameter.requires_grad_(False)
    with torch.no_grad():
        for index in range(2):
            model.policy(index).score.weight.div_(8.0)
    packed = batch()
    constraint = FlopsConstraint(speedup=2.0, ramp=0.3)
    optimizer = torch.optim.Adam(model.policies.parameters(), lr=0.002)
    shares = []
    for step in range(300):
        share = run_gated(model, packed).flops_share(model)
        # A task that would rather keep everything.
        loss = constraint.penalty(share.item(), step / 300) * share - 2.0 * share
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(share.item())
    assert np.mean(shares[-50:]) == pytest.approx(0.5, abs=0.1)


def test_distillation_is_least_at_the_teacher() -> None:
    head = tiny_model().head
    teacher = torch.tensor([[2.0, -1.0], [0.3, 0.1]])
    labels = torch.tensor([0, 1])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return head.loss({LOGITS: logits}, labels, {LOGITS: teacher})

    at_teacher = loss(teacher)
    torch.testing.assert_close(
        at_teacher,
        LABEL_WEIGHT * torch.nn.functional.cross_entropy(teacher, labels, reduction="none"),
    )
    assert loss(teacher + torch.tensor([1.0, -1.0])).sum() > at_teacher.sum()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 100))
def test_rank_shares_order_each_row_by_itself(lengths: list[int], seed: int) -> None:
    layout = PackedLayout(np.array(sorted(lengths)))
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed))
    shares = rank_shares(scores, layout)
    assert ((shares > 0) & (shares < 1)).all()
    for row in range(len(lengths)):
        own = layout.row_of_token == row
        assert scores[own].argsort().tolist() == shares[own].argsort().tolist()
        assert shares[own].mean().item() == pytest.approx(0.5)


def test_rows_may_have_thresholds_of_their_own() -> None:
    model = tiny_model()
    packed = batch()
    thresholds = torch.tensor([-1e9, 1e9] * 3)[: len(LENGTHS)]
    with torch.no_grad():
        _, kept = later_segments(model, first_segment(model, packed), choose_by_logits(thresholds))
    expected = [
        length if row % 2 == 0 else 1 for row, length in enumerate(packed.layout.lengths.tolist())
    ]
    assert kept[0].tolist() == kept[1].tolist() == expected

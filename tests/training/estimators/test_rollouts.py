"""Rollouts, the saliency guide, and the packed chain that training and validation run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_spec
from torch.nn.functional import cross_entropy

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.modeling.walk import (
    choose_by_rule,
    dense_outputs,
    first_segment,
    later_segments,
)
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.estimators.rollouts import choose_salient, run_rollouts
from trbert_deploy.training.stages.guide import batch_saliency, reference_step
from trbert_deploy.training.validation import Validator

LENGTHS = (19, 6, 31, 6, 1)


def rows() -> list[TrainingRow]:
    rng = np.random.default_rng(0)
    made = []
    for place, length in enumerate(LENGTHS):
        ids = rng.integers(4, 256, length)
        made.append(TrainingRow(TokenRow(ids, np.zeros_like(ids)), place % 2))
    return made


def batch() -> PackedBatch:
    return next(iter(load_batches(rows(), [list(range(len(LENGTHS)))], torch.device("cpu"))))


def undecided(model: ReducedModel) -> Callable[[Outputs], torch.Tensor]:
    """How far answers are from those of a teacher that gives both labels the same chance."""
    teacher = {LOGITS: torch.zeros(len(LENGTHS), 2)}
    return lambda outputs: model.head.path_loss(outputs, None, teacher)


@pytest.mark.parametrize("cuts", ["1,2", "0.5,3", "0", "none", "0.5,1.5,2.5"])
def test_the_packed_chain_is_the_runtime_chain(cuts: str) -> None:
    model = tiny_model(cuts)
    packed = batch()
    with torch.no_grad():
        outputs, kept = later_segments(model, first_segment(model, packed), choose_by_rule(model))
        dense = dense_outputs(model, packed)
    chain = Chain(TorchBackend(model), model.reduction, model.spec.num_layers)
    tokens = [rows()[index].tokens for index in packed.rows]
    for place, result in enumerate(chain.run(tokens)):
        np.testing.assert_allclose(outputs[LOGITS][place], result.outputs[LOGITS], atol=1e-4)
        assert [int(left[place]) for left in kept] == [len(cut) for cut in result.kept]
    for place, result in enumerate(chain.run_dense(tokens)):
        np.testing.assert_allclose(dense[LOGITS][place], result.outputs[LOGITS], atol=1e-4)


def test_rollouts_drop_tokens_and_teach_the_policies_alone() -> None:
    model = tiny_model()
    model.encoder.requires_grad_(False)
    model.head.requires_grad_(False)
    seen: list[int] = []
    run = model.encoder.run_steps

    def watch(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(hidden))
        return run(hidden, *rest)

    model.encoder.run_steps = watch  # type: ignore[method-assign]
    torch.manual_seed(0)
    packed = batch()
    start = first_segment(model, packed)
    result = run_rollouts(model, start, undecided(model), 6, lambda _: 0.5)
    # The first segment runs once for all paths; what follows runs on survivors alone.
    assert len(seen) == 3
    assert seen[0] == sum(LENGTHS)
    assert seen[2] < seen[1] < 6 * sum(LENGTHS)
    assert seen[1] == pytest.approx(result_tokens(result.kept[0], 6), rel=0.5)
    assert result.task_loss.shape == result.reward.shape == (6, len(LENGTHS))
    assert 0 < result.kept[1] <= result.kept[0] < 1
    result.policy_loss.backward()
    assert all(parameter.grad is not None for parameter in model.policies.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def result_tokens(share: float, paths: int) -> float:
    return share * paths * sum(LENGTHS)


def test_the_length_penalty_alone_makes_the_policies_keep_less() -> None:
    """With a head that answers all alike, the reward is the number of dropped tokens."""
    model = tiny_model()
    with torch.no_grad():
        model.head.classifier.weight.zero_()
        for policy in model.policies:
            policy.score.weight.mul_(0.01)
    optimizer = torch.optim.Adam(model.policies.parameters(), lr=0.02)
    packed = batch()
    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        start = first_segment(model, packed)
        result = run_rollouts(model, start, undecided(model), 8, lambda _: 1.0)
        optimizer.zero_grad()
        result.policy_loss.backward()
        optimizer.step()
        shares.append(result.kept[0])
    assert np.mean(shares[-5:]) < np.mean(shares[:5]) - 0.2


def test_the_imitating_path_keeps_the_most_salient_tokens() -> None:
    model = tiny_model()
    packed = batch()
    tokens = sum(LENGTHS)
    saliency = [torch.rand(tokens, generator=torch.Generator().manual_seed(cut)) for cut in (0, 1)]
    start = first_segment(model, packed)
    with torch.no_grad():
        probabilities = model.keep_logit(0, start.hidden).sigmoid()
    survivors: list[torch.Tensor] = []
    run = model.encoder.run_steps

    def watch(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        survivors.append(hidden)
        return run(hidden, *rest)

    model.encoder.run_steps = watch  # type: ignore[method-assign]
    torch.manual_seed(0)
    run_rollouts(
        model,
        start,
        undecided(model),
        2,
        lambda _: 1.0,
        choose_salient(saliency),
        imitate=True,
    )
    first_path = []  # hidden states that the first path should hand on
    for begin, length in zip(packed.layout.starts.tolist(), packed.layout.lengths, strict=True):
        row = slice(begin, begin + int(length))
        wanted = max(1, int(probabilities[row].sum().round()))
        scores = saliency[0][row].clone()
        scores[0] = 2.0  # the first token is protected
        first_path.append(start.hidden[row][scores.argsort(descending=True)[:wanted].sort()[0]])
    expected = torch.cat(first_path)
    torch.testing.assert_close(survivors[0][: len(expected)], expected)


def test_saliency_is_the_published_formula() -> None:
    model = tiny_model()
    packed = batch()
    scores, outputs = batch_saliency(model, packed)
    reference = reference_step(model)
    assert reference == 6  # behind layer 2L//3 = 2
    for place, index in enumerate(packed.rows):
        row = rows()[index]
        ids = torch.from_numpy(row.tokens.input_ids)[None]
        layout = PaddedLayout(None)
        steps = model.encoder.run_steps
        embedded = model.embed(ids, torch.zeros_like(ids), layout)
        at_cuts = [steps(embedded, layout, 0, cut.step) for cut in model.reduction.cuts]
        state = steps(embedded, layout, 0, reference).detach().requires_grad_()
        last = steps(state, layout, reference, model.spec.num_steps)
        answer = model.head(last, layout)[LOGITS]
        (gradient,) = torch.autograd.grad(cross_entropy(answer, torch.tensor([row.target])), state)
        begin = int(packed.layout.starts[place])
        for cut_scores, at_cut in zip(scores, at_cuts, strict=True):
            expected = (gradient * (state - at_cut)).sum(-1).abs()[0]
            found = cut_scores[begin : begin + len(expected)]
            # bf16 on processors that have it
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0.15)
        torch.testing.assert_close(outputs[LOGITS][place], answer[0], atol=0.1, rtol=0.05)


def validator() -> Validator:
    return Validator(rows(), task_of(tiny_spec()), True, 64, torch.device("cpu"))


@pytest.mark.parametrize("target", [1.2, 1.5, 1.8])
def test_calibration_reaches_the_wanted_saving(target: float) -> None:
    model = tiny_model()
    reached = validator().calibrate(model, target)
    assert len({cut.rule.value for cut in model.reduction.cuts}) == 1
    found = validator().chain(model)
    assert found.flops_speedup == pytest.approx(reached)
    # These few tokens allow no finer steps.
    assert found.flops_speedup == pytest.approx(target, rel=0.1)


def test_calibration_tells_how_far_it_came() -> None:
    model = tiny_model()
    reached = validator().calibrate(model, 50.0)
    assert 1.0 < reached < 50.0
    assert validator().chain(model).kept[0] == pytest.approx(len(LENGTHS) / sum(LENGTHS))


def test_operating_points_stop_where_no_more_can_be_saved() -> None:
    model = tiny_model()
    rules = model.reduction
    points = validator().operating_points(model, (1.2, 1.8, 50.0))
    assert model.reduction == rules
    assert [point.flops_speedup for point in points] == pytest.approx([1.2, 1.8], rel=0.15)
    assert points[0].kept > points[1].kept
    assert points[0].threshold < points[1].threshold

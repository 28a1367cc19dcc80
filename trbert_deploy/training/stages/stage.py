"""What each trained stage computes (the guide, one pass, is guide.py).

teacher   the dense model learns the labels
policy    the policies learn, encoder and head are frozen
joint     all learn, while the computation falls to the wanted share
hard      encoder and head learn on what the policies, now frozen, really leave
exits     exits at the cuts learn, and the encoder for them
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import (
    Chooser,
    begin,
    choose_by_logits,
    choose_by_rule,
    dense_outputs,
    first_segment,
    later_segments,
    walk_on,
)
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.constraint import FlopsConstraint
from trbert_deploy.training.estimators.gates import run_gated
from trbert_deploy.training.estimators.rollouts import Rollouts, choose_salient, run_rollouts
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import EXITS, JointRecipe, PolicyRecipe, Recipe
from trbert_deploy.training.stages.guide import Guide


@dataclass(frozen=True)
class Step:
    """What one batch came to, the whole of it where processes share it.

    Attributes:
        loss: scalar to go down; its gradient is that of the process's own rows.
        figures: what to write down of it.
        yielding: a second loss, whose gradient gives way to the first's (``gradients``).
    """

    loss: Tensor
    figures: dict[str, float]
    yielding: Tensor | None = None


#: (batch, share of the stage that is done) -> loss and figures.
Compute = Callable[[PackedBatch, float], Step]


@dataclass(frozen=True)
class Stage:
    """A trained stage.

    Attributes:
        compute: one step.
        groups: optimizer groups: ``params`` and ``lr``. What is in none of them is frozen.
        dropout: whether the encoder's dropout is on. It would drown the differences between
            paths, and a student is regularized by its teacher.
        constraint: what ``compute`` holds the stage to.
        refines: what it begins with does already what it is to do, and stays if that was best.
    """

    compute: Compute
    groups: list[dict[str, Any]]
    dropout: bool = False
    constraint: FlopsConstraint | None = None
    refines: bool = False


def make_stage(
    name: str,
    model: ReducedModel,
    options: TrainOptions,
    guide: Guide | None,
    opening: float = 1.0,
) -> Stage:
    """The stage of this name; all but the teacher's need the guide.

    Args:
        opening: FLOPs speed-up from which the wanted one is approached.
    """
    quick = model.head.quick_parameters
    slow = set(model.head.parameters()) - set(quick)
    body = [*model.encoder.parameters(), *(p for p in model.head.parameters() if p in slow)]
    reduced = [*body, *model.projections.parameters()]
    policies = [*model.policies.parameters()]
    recipe = options.recipe
    own = [{"params": quick, "lr": recipe.lexicon.learning_rate}] if quick else []
    if guide is None:
        groups = [{"params": body, "lr": recipe.teacher.learning_rate}, *own]
        return Stage(_teacher(model), groups, dropout=True)
    if name == "hard":
        groups = [{"params": reduced, "lr": recipe.hard.learning_rate}, *own]
        return Stage(_hard(model, guide, recipe.hard.mixed_share), groups, refines=True)
    if name == EXITS:
        groups = [
            {"params": reduced, "lr": recipe.exits.learning_rate},
            {"params": [*model.exits.parameters()], "lr": recipe.exits.exit_learning_rate},
        ]
        return Stage(_exits(model, guide, recipe), groups)
    gates = recipe.estimator == "gates"
    if name == "policy" and gates:
        groups = [{"params": policies, "lr": recipe.policy.learning_rate}]
        return Stage(_policy_by_ranks(model, guide), groups)
    constraint = None
    if options.final_speedup is not None:
        constraint = FlopsConstraint(options.final_speedup, recipe.penalty_ramp, opening)
    if name == "policy":
        groups = [{"params": policies, "lr": recipe.policy.learning_rate}]
        compute = _policy_by_rollouts(model, guide, recipe.policy, constraint)
        return Stage(compute, groups, constraint=constraint)
    groups = [
        {"params": reduced, "lr": recipe.joint.learning_rate},
        {"params": policies, "lr": recipe.joint.policy_learning_rate},
        *own,
    ]
    if gates:
        assert constraint is not None  # the recipe sees to it
        return Stage(_joint_by_gates(model, guide, constraint), groups, constraint=constraint)
    compute = _joint_by_rollouts(model, guide, recipe.joint, constraint)
    return Stage(compute, groups, constraint=constraint)


def _teacher(model: ReducedModel) -> Compute:
    def compute(batch: PackedBatch, _: float) -> Step:
        outputs = dense_outputs(model, batch)
        loss = batch.share.mean(model.head.loss(outputs, batch.targets))
        right = batch.share.mean(model.head.correct(outputs, batch.targets))
        return Step(loss, {"right": right.item()})

    return compute


def _policy_by_ranks(model: ReducedModel, guide: Guide) -> Compute:
    """Keep probability = share of the row's tokens that are less salient to the teacher."""

    def compute(batch: PackedBatch, _: float) -> Step:
        hidden = []
        with torch.no_grad():
            tokens = begin(model, batch)
            for segment in model.segments[:-1]:
                tokens = tokens.run(model, segment.start, segment.stop)
                hidden.append(tokens.hidden)
        losses = [
            binary_cross_entropy_with_logits(
                model.keep_logit(index, states),
                rank_shares(saliency, batch.layout),
                reduction="sum",
            )
            for index, (states, saliency) in enumerate(
                zip(hidden, guide.saliency_of(batch), strict=True)
            )
        ]
        return Step(batch.share.total(torch.stack(losses).mean()) / batch.share.tokens, {})

    return compute


def rank_shares(scores: Tensor, layout: PackedLayout) -> Tensor:
    """For each token the share of its row's tokens that it beats: [T], above 0 and below 1."""
    lengths = torch.from_numpy(layout.lengths).to(scores.device)[:, None]
    padded = layout.pad(scores)
    behind = torch.arange(padded.shape[1], device=scores.device) >= lengths
    order = padded.masked_fill(behind, math.inf).argsort(dim=1, stable=True)
    return layout.unpad((order.argsort(dim=1) + 0.5) / lengths)


def _policy_by_rollouts(
    model: ReducedModel,
    guide: Guide,
    recipe: PolicyRecipe,
    constraint: FlopsConstraint | None,
) -> Compute:
    """REINFORCE, with imitation of the guide in its first part."""

    def compute(batch: PackedBatch, done: float) -> Step:
        imitating = done < recipe.imitation_share
        rollouts = run_rollouts(
            model,
            first_segment(model, batch),
            lambda outputs: model.head.path_loss(outputs, None, guide.outputs_of(batch)),
            recipe.rollouts,
            _penalty(constraint, recipe.length_penalty, done),
            choose_salient(guide.saliency_of(batch)) if imitating else None,
            imitate=imitating,
            share=batch.share,
        )
        return Step(rollouts.policy_loss, _rollout_figures(rollouts, batch))

    return compute


def _joint_by_rollouts(
    model: ReducedModel,
    guide: Guide,
    recipe: JointRecipe,
    constraint: FlopsConstraint | None,
) -> Compute:
    """Task loss and distillation on every path, plus the policy loss.

    One path goes by the selection rule, as at inference; the others are sampled.
    """

    def compute(batch: PackedBatch, done: float) -> Step:
        rollouts = run_rollouts(
            model,
            first_segment(model, batch),
            lambda outputs: model.head.path_loss(outputs, batch.targets, guide.outputs_of(batch)),
            recipe.rollouts,
            _penalty(constraint, recipe.length_penalty, done),
            choose_by_rule(model),
            share=batch.share,
        )
        task = batch.share.mean(rollouts.task_loss).mean()
        return Step(task + rollouts.policy_loss, _rollout_figures(rollouts, batch))

    return compute


def _joint_by_gates(model: ReducedModel, guide: Guide, constraint: FlopsConstraint) -> Compute:
    """Distillation through straight-through gates, and the price of what they keep."""

    def compute(batch: PackedBatch, done: float) -> Step:
        gated = run_gated(model, batch)
        losses = model.head.loss(gated.outputs, batch.targets, guide.outputs_of(batch))
        task = batch.share.mean(losses)
        share = gated.flops_share(model)
        penalty = constraint.penalty(share.item(), done)
        figures = {
            "task_loss": task.item(),
            "agreement": _agreement(model, gated.outputs, guide, batch),
            "flops_share": share.item(),
            "goal": constraint.goal(done),
            "penalty": penalty,
        }
        return Step(task + penalty * share, figures)

    return compute


def _hard(model: ReducedModel, guide: Guide, mixed_share: float) -> Compute:
    """Distillation on survivors alone, by the calibrated threshold."""

    def compute(batch: PackedBatch, _: float) -> Step:
        share = batch.share
        outputs, kept = later_segments(
            model, first_segment(model, batch), _mixed_choice(model, batch, mixed_share)
        )
        losses = model.head.loss(outputs, batch.targets, guide.outputs_of(batch))
        left = share.total(torch.stack(kept).sum(1)) / share.tokens
        shares = {f"kept_{cut}": part for cut, part in enumerate(left.tolist())}
        agreement = _agreement(model, outputs, guide, batch)
        return Step(share.mean(losses), {"agreement": agreement, **shares})

    return compute


def _exits(model: ReducedModel, guide: Guide, recipe: Recipe) -> Compute:
    """Distillation of the teacher into exits and head, and of all of these into each other.

    Each learns from all others, those before it and those behind it (GAML-BERT, Zhu et al. 2021,
    section 3: mutual distillation).
    """
    weight = recipe.exits.mutual_weight

    def compute(batch: PackedBatch, _: float) -> Step:
        share, head = batch.share, model.head
        choice = _mixed_choice(model, batch, recipe.hard.mixed_share)
        early: list[Outputs] = []
        walked = walk_on(model, first_segment(model, batch), choice, early)
        answers = [*early, walked.answer(model)]
        teacher = guide.outputs_of(batch)
        losses = [share.mean(head.loss(each, batch.targets, teacher)) for each in answers]
        task = torch.stack(losses).mean()
        figures = {"task_loss": task.item()}
        for place, each in enumerate(answers):
            name = f"agreement_{place}" if place < len(early) else "agreement"
            figures[name] = _agreement(model, each, guide, batch)
        if not weight:
            return Step(task, figures)
        fixed = [{name: values.detach() for name, values in each.items()} for each in answers]
        between = [
            share.mean(head.loss(each, None, other))
            for place, each in enumerate(answers)
            for its_place, other in enumerate(fixed)
            if place != its_place
        ]
        mutual = weight * torch.stack(between).mean()
        figures["mutual"] = mutual.item()
        if recipe.exits.aligned:
            return Step(task, figures, mutual)
        return Step(task + mutual, figures)

    return compute


def _mixed_choice(model: ReducedModel, batch: PackedBatch, mixed_share: float) -> Chooser:
    """Choose by the calibrated threshold; some rows keep more tokens, half of those all.

    So one model serves every operating point (after the budgets sampled by Length-Adaptive
    Transformer, Kim & Cho 2021).
    """
    share = batch.share
    # Drawn for the whole batch, so that a row's threshold is the same in whichever process.
    drawn = processes.from_main(torch.rand(3, share.rows, device=batch.targets.device))
    factor, coin, mixing = drawn[:, share.places]
    wanted = torch.full_like(factor, model.reduction.cuts[0].rule.value)
    lower = torch.where(coin < 0.5, 0.0, factor * wanted)
    thresholds = torch.where(mixing < mixed_share, lower, wanted)
    return choose_by_logits(thresholds.logit())


def _penalty(
    constraint: FlopsConstraint | None, fixed: float, done: float
) -> Callable[[float], float]:
    """Share of FLOPs that a step takes -> length penalty."""
    if constraint is None:
        return lambda share: fixed
    return lambda share: constraint.penalty(share, done)


def _agreement(model: ReducedModel, outputs: Outputs, guide: Guide, batch: PackedBatch) -> float:
    """How right answers are where the teacher's are taken for right."""
    wanted = model.head.answers(guide.outputs_of(batch), batch.targets)
    return batch.share.mean(model.head.correct(outputs, wanted)).item()


def _rollout_figures(rollouts: Rollouts, batch: PackedBatch) -> dict[str, float]:
    figures = {
        "task_loss": batch.share.mean(rollouts.task_loss.detach()).mean().item(),
        "reward": batch.share.mean(rollouts.reward).mean().item(),
        "flops_share": rollouts.flops_share,
    }
    return figures | {f"kept_{cut}": share for cut, share in enumerate(rollouts.kept)}


def freeze_all_but(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Let gradients reach the groups' parameters alone."""
    model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)

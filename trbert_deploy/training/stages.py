"""The trained stages: teacher, policy, joint (the guide, one pass, is saliency.py)."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.functional import cross_entropy, one_hot

from trbert_deploy.modeling.model import ReducedClassifier
from trbert_deploy.progress import Progress
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.data import LabelledRow
from trbert_deploy.training.loop import StageSettings, Step, train_stage
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.reduced import choose_by_rule, dense_logits, first_segment
from trbert_deploy.training.rollouts import Rollouts, choose_salient, run_rollouts
from trbert_deploy.training.saliency import Guide


def train_teacher(
    model: ReducedClassifier,
    rows: Sequence[LabelledRow],
    options: TrainOptions,
    settings: StageSettings,
    progress: Progress,
) -> None:
    """Fine-tune the dense model on the labels; the policies take no part."""

    def compute(batch: PackedBatch, _: float) -> Step:
        logits = dense_logits(model, batch)
        accuracy = (logits.argmax(-1) == batch.labels).float().mean().item()
        return Step(cross_entropy(logits, batch.labels), {"accuracy": accuracy})

    model.train()
    weights = [*model.encoder.parameters(), *model.head.parameters()]
    groups = [{"params": weights, "lr": options.teacher_learning_rate}]
    train_stage(settings, model, groups, rows, compute, progress)


def train_policy(
    model: ReducedClassifier,
    rows: Sequence[LabelledRow],
    guide: Guide,
    options: TrainOptions,
    settings: StageSettings,
    progress: Progress,
) -> None:
    """Teach the policies alone by REINFORCE with imitation; encoder and head are frozen."""

    def compute(batch: PackedBatch, done: float) -> Step:
        imitating = done < options.imitation_share
        rollouts = run_rollouts(
            model,
            first_segment(model, batch),
            guide.logits_of(batch).softmax(-1),
            options.rollouts,
            options.length_penalty,
            choose_salient(guide.saliency_of(batch)) if imitating else None,
            imitate=imitating,
        )
        return Step(rollouts.policy_loss, _figures(rollouts))

    # Without dropout the paths of a text differ by their choices alone.
    model.eval()
    model.encoder.requires_grad_(False)
    model.head.requires_grad_(False)
    groups = [{"params": [*model.policies.parameters()], "lr": options.policy_learning_rate}]
    train_stage(settings, model, groups, rows, compute, progress)
    model.requires_grad_(True)


def train_joint(
    model: ReducedClassifier,
    rows: Sequence[LabelledRow],
    guide: Guide,
    options: TrainOptions,
    settings: StageSettings,
    progress: Progress,
) -> None:
    """Train all weights: task loss and distillation on every path, plus the policy loss.

    One path goes by the selection rule, as at inference; the others are sampled.
    """

    def compute(batch: PackedBatch, _: float) -> Step:
        labels = one_hot(batch.labels, len(model.spec.labels)).float()
        rollouts = run_rollouts(
            model,
            first_segment(model, batch),
            (labels + guide.logits_of(batch).softmax(-1)) / 2,
            options.joint_rollouts,
            options.joint_length_penalty,
            choose_by_rule(model),
        )
        return Step(rollouts.task_loss.mean() + rollouts.policy_loss, _figures(rollouts))

    model.eval()  # dropout would drown the differences between paths
    weights = [*model.encoder.parameters(), *model.head.parameters()]
    groups = [
        {"params": weights, "lr": options.joint_learning_rate},
        {"params": [*model.policies.parameters()], "lr": options.joint_policy_learning_rate},
    ]
    train_stage(settings, model, groups, rows, compute, progress)


def _figures(rollouts: Rollouts) -> dict[str, float]:
    figures = {
        "task_loss": rollouts.task_loss.mean().item(),
        "reward": rollouts.reward.mean().item(),
    }
    return figures | {f"kept_{cut}": share for cut, share in enumerate(rollouts.kept)}

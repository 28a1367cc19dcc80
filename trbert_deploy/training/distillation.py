"""What a student is asked to match: the teacher's probabilities, and a little the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

TEMPERATURE = 2.0
LABEL_WEIGHT = 0.1


def distillation_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """KL divergence from a softened teacher, and cross-entropy of the labels, of each row.

    Knowledge distillation (Hinton et al. 2015): both sides are softened by ``TEMPERATURE``, and
    the divergence is multiplied by its square to keep the size of the gradient.

    Args:
        logits, teacher_logits: [B, C] float32.
        labels: [B] int64.

    Returns:
        [B] float32.
    """
    teacher = softmax(teacher_logits / TEMPERATURE, -1)
    difference = teacher.clamp_min(1e-12).log() - log_softmax(logits / TEMPERATURE, -1)
    divergence = (teacher * difference).sum(-1) * TEMPERATURE**2
    return divergence + LABEL_WEIGHT * cross_entropy(logits, labels, reduction="none")

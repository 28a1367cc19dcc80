"""Rollouts of the policy and the loss that teaches it: REINFORCE (TR-BERT, section 3.3).

Each text is run along K sampled paths. A path's reward is

    r = -task loss - lambda * mean over cuts of (tokens kept at the cut / tokens of the text)

and the policy loss is the sum over the cuts of advantage * (-mean log probability of the path's
choices over the text's tokens). The advantage is the reward over the mean of the same text's
other paths, divided by the batch's standard deviation (the mean of all advantages is 0).

One path may be chosen instead of sampled: by the saliency guide, which the policy then imitates,
or by the selection rule, so that the encoder is trained on what it will see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import Chooser, TokenState, later_segments
from trbert_deploy.selection.select import keep_best
from trbert_deploy.training.constraint import flops_share
from trbert_deploy.training.processes import Share


@dataclass(frozen=True)
class Rollouts:
    """K paths of each text of a batch.

    Attributes:
        task_loss: [K, B], how far every path's answer is from what is wanted.
        reward: [K, B].
        policy_loss: scalar; its gradient reaches the policies (and what made their input).
        kept: for each cut the mean share of the text's tokens that the paths kept.
        flops_share: FLOPs of the paths over those of as many dense ones.

    Where processes share a batch, the first two are of the own texts, the others of all.
    """

    task_loss: Tensor
    reward: Tensor
    policy_loss: Tensor
    kept: tuple[float, ...]
    flops_share: float


def run_rollouts(
    model: ReducedModel,
    start: TokenState,
    path_loss: Callable[[Outputs], Tensor],
    count: int,
    length_penalty: Callable[[float], float],
    first_path: Chooser | None = None,
    imitate: bool = False,
    share: Share | None = None,
) -> Rollouts:
    """Run ``count`` paths of every text behind the first segment, which they share.

    Args:
        start: the first segment's output on the batch, B rows with T tokens in all.
        path_loss: outputs of K * B rows -> [K, B], how far they are from what is wanted.
        count: K.
        length_penalty: lambda, given the share of the dense FLOPs that the paths take.
        first_path: chooses for the first path instead of sampling.
        imitate: the first path is a demonstration to learn from, whatever its reward.
        share: what the texts are of a batch that processes share.
    """
    batch = len(start.layout.lengths)
    share = share or Share.of(start.layout.lengths)
    text_lengths = torch.from_numpy(start.layout.lengths).to(start.hidden.device)  # [B]
    log_probabilities: list[Tensor] = []

    def choose(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
        layout = tokens.layout
        # The paths part at the first cut; from then on they are rows of their own.
        logits = logit.expand(count if index == 0 else 1, -1)  # [P, T]
        keep = torch.bernoulli(logits.detach().sigmoid()).bool()
        if first_path is not None:
            chosen = first_path(index, logit.detach(), tokens)[0]
            keep[0] = torch.where(layout.row_of_token < batch, chosen, keep[0])
        keep = keep | tokens.protected
        choice = -binary_cross_entropy_with_logits(logits, keep.float(), reduction="none")
        choice = choice.masked_fill(tokens.protected, 0.0)  # they were no choice
        log_probabilities.append(layout.row_sums(choice).view(count, batch) / text_lengths)
        return keep

    outputs, kept = later_segments(model, start, choose)
    task_loss = path_loss(outputs)
    lengths = torch.stack([text_lengths.repeat(count), *(left.to(text_lengths) for left in kept)])
    shares = lengths[1:].view(-1, count, batch) / text_lengths
    flops = flops_share(model, lengths.double().unbind(), share).item()
    reward = -task_loss.detach() - length_penalty(flops) * shares.mean(0)
    advantage = reward - (reward.sum(0) - reward) / (count - 1)
    variance = share.total(advantage.square().sum()) / (count * share.rows - 1)
    advantage = advantage / (variance.sqrt() + 1e-6)
    log_probability = torch.stack(log_probabilities).sum(0)  # [K, B]
    policy_loss = -share.mean(advantage * log_probability).mean()
    if imitate:
        policy_loss = policy_loss - share.mean(log_probability[0])
    kept_shares = tuple(share.mean(shares.mean(1)).tolist())
    return Rollouts(task_loss, reward, policy_loss, kept_shares, flops)


def choose_salient(saliency: Sequence[Tensor]) -> Chooser:
    """Keep the most salient tokens, as many of each row as the policy expects to keep.

    Args:
        saliency: for each cut the guide's scores [T] of the batch's tokens.
    """

    def choose(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
        layout = tokens.layout
        expected = layout.row_sums(logit.sigmoid()).round().long()
        lengths = torch.from_numpy(layout.lengths).to(logit.device)
        scores = layout.pad(saliency[index][tokens.token])
        protected = layout.pad(tokens.protected)
        return layout.unpad(keep_best(scores, lengths, expected, protected))[None]

    return choose

"""The chain over packed rows: what training and validation run.

Tokens are really dropped here: behind every cut the packed tensor is shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.layouts import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.select import select
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.processes import Share


@dataclass(frozen=True)
class Survivors:
    """Packed tokens on their way through the segments.

    Attributes:
        hidden: [T, H] their states.
        layout: the rows that they form; rollouts of one text are rows of their own.
        token: [T] int64, which token of the batch each one is.
    """

    hidden: Tensor
    layout: PackedLayout
    token: Tensor

    def compact(self, keep: Tensor) -> Survivors:
        """The survivors of one or several choices, in order.

        Args:
            keep: [P, T] bool; each of the P choices makes rows of its own, P * B in all.
        """
        kept = torch.nonzero(keep.flatten()).squeeze(1) % len(self.hidden)
        counts = self.layout.row_sums(keep.float()).flatten().round().long()
        layout = PackedLayout(counts.cpu().numpy(), self.hidden.device)
        return Survivors(self.hidden.index_select(0, kept), layout, self.token[kept])


def first_segment(model: ReducedModel, batch: PackedBatch) -> Survivors:
    """Embeddings and the layers before the first cut, on every token of the batch."""
    hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
    hidden = model.run_segment(0, hidden, batch.layout)
    return Survivors(hidden, batch.layout, torch.arange(len(hidden), device=hidden.device))


def dense_logits(model: ReducedModel, batch: PackedBatch) -> Tensor:
    """Logits [B, C] of the dense model."""
    hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
    hidden = model.encoder.run_steps(hidden, batch.layout, 0, model.spec.num_steps)
    return head_logits(model, hidden, batch.layout)


def head_logits(model: ReducedModel, hidden: Tensor, layout: PackedLayout) -> Tensor:
    """Logits [B, C] float32 from last states [T, H]."""
    return model.head(hidden.index_select(0, layout.starts)).float()


def flops_share(model: ReducedModel, lengths: Sequence[Tensor], share: Share) -> Tensor:
    """FLOPs of the chain over those of the dense model, summed over the whole batch: scalar.

    Args:
        lengths: tokens of each of the process's rows in every segment, [B] floating each.
        share: what these rows are of the batch.
    """
    reduced = reduced_flops(model.spec, model.reduction, lengths)
    dense = dense_flops(model.spec, lengths[0])
    sums: Tensor = share.total(torch.stack([reduced.sum(), dense.sum()]))
    return sums[0] / sums[1]


#: (cut index, keep logits [T], survivors so far) -> keep [P, T] bool, one or several choices.
Chooser = Callable[[int, Tensor, Survivors], Tensor]


def select_at_cuts(
    model: ReducedModel, survivors: Survivors, choose: Chooser
) -> Iterator[Survivors]:
    """Select at every cut, and run the segment between two of them.

    Args:
        survivors: the first segment's output.
        choose: decides at every cut; it may note what it needs.

    Yields:
        Behind every cut what is left. The segment that follows runs when more is asked for, and
        the last one not at all.
    """
    for segment in model.segments[:-1]:
        if not segment.is_first:
            hidden = model.run_segment(segment.index, survivors.hidden, survivors.layout)
            survivors = Survivors(hidden, survivors.layout, survivors.token)
        # The policy learns from its own loss, the encoder from the task's: no gradient crosses.
        logit = model.keep_logit(segment.index, survivors.hidden.detach())
        survivors = survivors.compact(choose(segment.index, logit, survivors))
        yield survivors


def later_segments(
    model: ReducedModel, survivors: Survivors, choose: Chooser
) -> tuple[Tensor, list[Tensor]]:
    """Everything behind the first segment.

    Args:
        survivors, choose: as ``select_at_cuts`` takes them.

    Returns:
        Logits [B, C] (P * B rows where a choice makes P), and the tokens left in each row
        behind every cut, int64.
    """
    kept = []
    for left in select_at_cuts(model, survivors, choose):
        survivors = left
        kept.append(torch.from_numpy(survivors.layout.lengths))
    hidden = survivors.hidden
    if kept:
        hidden = model.run_segment(len(kept), hidden, survivors.layout)
    return head_logits(model, hidden, survivors.layout), kept


def choose_by_rule(model: ReducedModel) -> Chooser:
    """Select as the runtime does, by the rule of each cut."""

    def choose(index: int, logit: Tensor, survivors: Survivors) -> Tensor:
        layout = survivors.layout
        lengths = torch.from_numpy(layout.lengths).to(logit.device)
        rule = model.reduction.cuts[index].rule
        return layout.unpad(select(layout.pad(logit), lengths, rule))[None]

    return choose


def choose_by_logits(thresholds: Tensor) -> Chooser:
    """Keep what reaches its row's threshold, the same at every cut, and the first token.

    Args:
        thresholds: [B] float32 keep logits, one for each row.
    """

    def choose(index: int, logit: Tensor, survivors: Survivors) -> Tensor:
        keep = logit >= thresholds[survivors.layout.row_of_token]
        keep[survivors.layout.starts] = True
        return keep[None]

    return choose

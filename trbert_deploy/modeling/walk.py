"""The walk through the segments in PyTorch, over packed rows: training, validation, GPUs.

Tokens are really dropped here: behind every cut the packed tensor is shorter. What travels is one
value, ``TokenState``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from trbert_deploy.modeling.heads.head import Head, Outputs
from trbert_deploy.modeling.heads.tokens import Part, TokensHead
from trbert_deploy.modeling.layouts.layout import Layout, RowsLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.select import select


class TokenBatch(Protocol):
    """Whole rows of tokens, packed: what a walk begins with.

    Attributes:
        input_ids, token_type_ids: [T] int64.
        protected: [T] bool, tokens that must survive every cut.
        matches: [T, M, 3 or 4] int64, what a lexicon says of the tokens; None for nothing.
        layout: where the rows lie.
    """

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def token_type_ids(self) -> Tensor: ...
    @property
    def protected(self) -> Tensor: ...
    @property
    def matches(self) -> Tensor | None: ...
    @property
    def layout(self) -> RowsLayout: ...


@dataclass(frozen=True)
class TokenState:
    """Packed tokens on their way through the segments.

    Attributes:
        hidden: [T, H] their states.
        layout: the rows that they form, and where each token stood in its row; sampled paths of
            one text are rows of their own.
        token: [T] int64, which token of the batch each one is.
        protected: [T] bool, those that must survive every cut.
        whole: how the batch lay before a token was dropped.
        asked: which of the batch's tokens the model answers, bool; None where it does not answer
            some alone.
        matches: what a lexicon says of the batch's tokens, as ``TokenBatch``.
    """

    hidden: Tensor
    layout: RowsLayout
    token: Tensor
    protected: Tensor
    whole: RowsLayout
    asked: Tensor | None = None
    matches: Tensor | None = None

    def compact(self, keep: Tensor) -> TokenState:
        """The survivors of one or several choices, in order.

        Args:
            keep: [P, T] bool; each of the P choices makes rows of its own, P * B in all.
        """
        (hidden, token, protected), layout = self.layout.compact(
            keep, (self.hidden, self.token, self.protected)
        )
        return TokenState(hidden, layout, token, protected, self.whole, self.asked, self.matches)

    def run(
        self, model: ReducedModel, start: int, stop: int, layout: Layout | None = None
    ) -> TokenState:
        """The same tokens behind half layers ``start`` to ``stop``.

        Args:
            layout: attend under this one, such as behind gates, instead of the own.
        """
        hidden = model.encoder.run_steps(self.hidden, layout or self.layout, start, stop)
        return replace(self, hidden=hidden)

    def answer(
        self,
        model: ReducedModel,
        layout: Layout | None = None,
        dropped: Sequence[Dropped] = (),
        weight: Tensor | None = None,
        head: Head | None = None,
    ) -> Outputs:
        """The head's outputs where these are the last states.

        Args:
            layout: instead of the own one.
            dropped: the batch's other tokens.
            weight: [T] float32, how much of each of these is left; None for all of it.
            head: an exit, where rows leave with these states.
        """
        head = head or model.head
        if self.asked is not None:  # they are protected: all of them are left
            which = self.asked[self.token]
            (states,), asked = self.layout.compact(which[None], (self.hidden,))
            values = model.tokens_head().each(states)
            return {name: asked.pad(each) for name, each in values.items()}
        if not model.hears_dropped:
            found: Outputs = head(self.hidden, layout or self.layout)
            return found
        assert isinstance(head, TokensHead)
        # Tokens of a match are protected: all of them are left, one behind the other.
        matches = None if self.matches is None else self.matches[self.token]
        values = head.each_matched(self.hidden, matches)
        parts = [Part(values, self.layout.row_of_token, self.token, weight)]
        parts += [each.part(model) for each in dropped]
        choices = len(self.layout.counts) // len(self.whole.counts)
        return head.gathered(parts, self.whole, choices)


@dataclass(frozen=True)
class Dropped:
    """Tokens that a cut drops.

    Attributes:
        cut: its index.
        tokens: with their last states.
        weight: [T] float32, how much of each is dropped; None for all of it.
    """

    cut: int
    tokens: TokenState
    weight: Tensor | None = None

    def part(self, model: ReducedModel) -> Part:
        """What they say."""
        tokens = self.tokens
        values = model.each_dropped(self.cut, tokens.hidden)
        return Part(values, tokens.layout.row_of_token, tokens.token, self.weight)


def begin(model: ReducedModel, batch: TokenBatch) -> TokenState:
    """The embeddings of a batch."""
    hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.layout)
    token = torch.arange(len(hidden), device=hidden.device)
    asked = None if model.asked_token is None else batch.input_ids == model.asked_token
    matches = batch.matches if model.takes_matches else None
    return TokenState(hidden, batch.layout, token, batch.protected, batch.layout, asked, matches)


def first_segment(model: ReducedModel, batch: TokenBatch) -> TokenState:
    """Embeddings and the layers before the first cut, on every token of the batch."""
    return begin(model, batch).run(model, 0, model.segments[0].stop)


def dense_outputs(model: ReducedModel, batch: TokenBatch) -> Outputs:
    """The dense model's outputs."""
    return begin(model, batch).run(model, 0, model.spec.num_steps).answer(model)


#: (cut index, keep logits [T], tokens so far) -> keep [P, T] bool, one or several choices.
Chooser = Callable[[int, Tensor, TokenState], Tensor]


def select_at_cuts(
    model: ReducedModel,
    tokens: TokenState,
    choose: Chooser,
    dropped: list[Dropped] | None = None,
    exits: list[Outputs] | None = None,
) -> Iterator[TokenState]:
    """Select at every cut, and run the segment between two of them.

    Args:
        tokens: the first segment's output.
        choose: decides at every cut; it may note what it needs.
        dropped: gets what is not left, cut by cut.
        exits: gets what the exits say of all rows, cut by cut, where there are some; none leaves.

    Yields:
        Behind every cut what is left. The segment that follows runs when more is asked for, and
        the last one not at all.
    """
    for segment in model.segments[:-1]:
        if not segment.is_first:
            tokens = tokens.run(model, segment.start, segment.stop)
        if exits is not None and model.exits:
            exit = model.exit(segment.index)
            exits.append(tokens.answer(model, dropped=dropped or (), head=exit))
        # The policy learns from its own loss, the encoder from the task's: no gradient crosses.
        logit = model.keep_logit(segment.index, tokens.hidden.detach())
        keep = choose(segment.index, logit, tokens)
        if dropped is not None:
            dropped.append(Dropped(segment.index, tokens.compact(~keep)))
        tokens = tokens.compact(keep)
        yield tokens


@dataclass(frozen=True)
class Walked:
    """What became of the tokens of a batch.

    Attributes:
        tokens: those that are left, with their last states.
        layouts: where the survivors of every cut lay.
        dropped: the others, where they take part in the outputs.
    """

    tokens: TokenState
    layouts: list[RowsLayout]
    dropped: list[Dropped]

    def answer(self, model: ReducedModel) -> Outputs:
        """The head's outputs, of P * B rows where a choice makes P."""
        return self.tokens.answer(model, dropped=self.dropped)


def walk_on(
    model: ReducedModel,
    tokens: TokenState,
    choose: Chooser,
    exits: list[Outputs] | None = None,
) -> Walked:
    """Run everything behind the first segment, but for the head.

    Args:
        tokens, choose, exits: as ``select_at_cuts`` takes them.
    """
    walked = Walked(tokens, [], [])
    dropped = walked.dropped if model.hears_dropped else None
    for left in select_at_cuts(model, tokens, choose, dropped, exits):
        walked = replace(walked, tokens=left, layouts=[*walked.layouts, left.layout])
    if not walked.layouts:
        return walked
    last = model.segments[-1]
    return replace(walked, tokens=walked.tokens.run(model, last.start, last.stop))


def later_segments(
    model: ReducedModel, tokens: TokenState, choose: Chooser
) -> tuple[Outputs, list[Tensor]]:
    """Everything behind the first segment.

    Args:
        tokens, choose: as ``select_at_cuts`` takes them.

    Returns:
        The head's outputs (of P * B rows where a choice makes P), and the tokens left in each row
        behind every cut, int64.
    """
    walked = walk_on(model, tokens, choose)
    kept = [torch.from_numpy(layout.lengths) for layout in walked.layouts]
    return walked.answer(model), kept


def choose_by_rule(model: ReducedModel) -> Chooser:
    """Select as the runtime does, by the rule of each cut."""

    def choose(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
        layout = tokens.layout
        rule = model.reduction.cuts[index].rule
        if rule.kind == "threshold" and rule.round_to == 1:  # no row counts: all are as one
            return select(logit[None], None, rule, tokens.protected[None])
        protected = layout.pad(tokens.protected)
        return layout.unpad(select(layout.pad(logit), layout.counts, rule, protected))[None]

    return choose


def choose_by_logits(thresholds: Tensor) -> Chooser:
    """Keep what reaches its row's threshold, the same at every cut, and what is protected.

    Args:
        thresholds: [B] float32 keep logits, one for each row.
    """

    def choose(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
        keep = logit >= thresholds[tokens.layout.row_of_token]
        return (keep | tokens.protected)[None]

    return choose


def row_lengths(batch: TokenBatch, kept: Sequence[Tensor]) -> list[list[int]]:
    """For each row of a batch its tokens in every segment."""
    columns = [batch.layout.lengths.tolist(), *(left.tolist() for left in kept)]
    return [list(row) for row in zip(*columns, strict=True)]

"""Each segment as a module of its own, with the tensors of the exported graph."""

from __future__ import annotations

from torch import Tensor, nn

from trbert_deploy.bundle.manifest import HIDDEN, MATCHES
from trbert_deploy.config import Segment
from trbert_deploy.modeling.layouts.layout import Layout
from trbert_deploy.modeling.layouts.padded import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel


class SegmentModule(nn.Module):
    """A part of the model between two cuts, or the dense model.

    Attributes:
        inputs: names of its per-token inputs.
        answers: whether it ends with the head; where that answers some tokens alone, it is a graph
            of its own (``HeadModule``).
    """

    def __init__(self, model: ReducedModel, segment: Segment) -> None:
        super().__init__()
        self.model = model
        self.segment = segment
        self.inputs = model.inputs_of(segment)
        self.answers = segment.is_last and model.asked_token is None

    def finish(
        self, hidden: Tensor, layout: Layout, matches: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run the segment's layers, then the policy and the exit, if there is one, or the head.

        Args:
            matches: [B, S, M, 3] int64, what a lexicon says of the tokens, for a head that hears
                it.

        Returns:
            hidden [B, S, H], and keep_logit [B, S] float32 and what the exit says or, if it
            answers, the head's outputs.
        """
        segment = self.segment
        hidden = self.model.encoder.run_steps(hidden, layout, segment.start, segment.stop)
        if self.answers:
            told = {} if matches is None else {MATCHES: matches}
            return (hidden, *self.model.head(hidden, layout, **told).values())
        if segment.cut is None:
            return (hidden,)
        score = self.model.keep_logit(segment.index, hidden)
        if not self.model.exits:
            return hidden, score
        return hidden, score, *self.model.exit(segment.index)(hidden, layout).values()


class FirstSegment(SegmentModule):
    """Embeddings and the layers before the first cut; the dense model where there is no cut."""

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        matches: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Run the segment.

        Args:
            input_ids, token_type_ids: [B, S] int64; the latter where the model has several types.
            attention_mask: [B, S] bool, True where a token is; None when no row is padded.
            matches: as ``finish`` takes them.
        """
        layout = PaddedLayout(attention_mask)
        return self.finish(self.model.embed(input_ids, token_type_ids, layout), layout, matches)


class StatesModule(FirstSegment):
    """The embeddings and the first layers, with no cut and no head.

    Args:
        layers: how many; 0 for the embeddings alone. Behind all of them the states are what a head
            reads, with the final normalization where the encoder has one.
    """

    def __init__(self, model: ReducedModel, layers: int) -> None:
        super().__init__(model, Segment(0, 0, 2 * layers, None))
        self.inputs = tuple(name for name in self.inputs if name != MATCHES)
        self.answers = False


class LaterSegment(SegmentModule):
    """The layers from one cut to the next, or to the head."""

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        matches: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Run the segment.

        Args:
            hidden: [B, S, H] survivors of the cut before.
            positions: [B, S] int64, where they stood in their rows, for families that need it.
            attention_mask: [B, S] bool, True where a token is; None when no row is padded.
            matches: as ``finish`` takes them.
        """
        return self.finish(hidden, PaddedLayout(attention_mask, positions), matches)


class DroppedModule(nn.Module):
    """What the tokens say that a cut drops, from the states that it saw.

    Attributes:
        inputs: names of its per-token inputs.
    """

    def __init__(self, model: ReducedModel, cut: int) -> None:
        super().__init__()
        self.model = model
        self.cut = cut
        self.inputs = (HIDDEN,)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """hidden [B, S, H] -> each output's values of every token: [B, S, X]."""
        return tuple(self.model.each_dropped(self.cut, hidden).values())


class HeadModule(nn.Module):
    """What some tokens say, from their last states.

    Attributes:
        inputs: names of its per-token inputs.
    """

    def __init__(self, model: ReducedModel) -> None:
        super().__init__()
        self.model = model
        self.inputs = (HIDDEN,)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """hidden [B, S, H] -> each output's values of every token: [B, S, X]."""
        return tuple(self.model.tokens_head().each(hidden).values())


def segment_module(model: ReducedModel, segment: Segment) -> SegmentModule:
    """A segment of ``model``, sharing its weights."""
    return (FirstSegment if segment.is_first else LaterSegment)(model, segment)


def dense_module(model: ReducedModel) -> SegmentModule:
    """The whole of ``model`` with no token removed, sharing its weights."""
    return FirstSegment(model, Segment(0, 0, model.spec.num_steps, None))

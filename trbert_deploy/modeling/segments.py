"""Each segment as a module of its own, with the tensors of the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trbert_deploy.modeling.layouts import PaddedLayout
from trbert_deploy.modeling.model import ReducedModel


class FirstSegment(nn.Module):
    """Embeddings and the layers before the first cut; the dense model where there is no cut.

    Args:
        dense: run through to the head, whatever the cuts.
    """

    def __init__(self, model: ReducedModel, dense: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dense = dense or model.segments[0].is_last

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the segment.

        Args:
            input_ids, token_type_ids: [B, S] int64.
            attention_mask: [B, S] bool, True where a token is; None when no row is padded.

        Returns:
            hidden [B, S, H], and keep_logit [B, S] float32 or, at the end, logits [B, C] float32.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.model.embed(input_ids, token_type_ids, positions[None, :])
        layout = PaddedLayout(attention_mask)
        if self.dense:
            hidden = self.model.encoder.run_steps(hidden, layout, 0, self.model.spec.num_steps)
            return hidden, self.model.head(hidden[:, 0])
        hidden = self.model.run_segment(0, hidden, layout)
        return hidden, self.model.keep_logit(0, hidden)


class LaterSegment(nn.Module):
    """The layers from one cut to the next, or to the head."""

    def __init__(self, model: ReducedModel, index: int) -> None:
        super().__init__()
        self.model = model
        self.index = index

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the segment.

        Args:
            hidden: [B, S, H] survivors of the cut before.
            attention_mask: [B, S] bool, True where a token is; None when no row is padded.

        Returns:
            hidden [B, S, H], and keep_logit [B, S] float32 or, at the end, logits [B, C] float32.
        """
        hidden = self.model.run_segment(self.index, hidden, PaddedLayout(attention_mask))
        if self.model.segments[self.index].is_last:
            return hidden, self.model.head(hidden[:, 0])
        return hidden, self.model.keep_logit(self.index, hidden)


def segment_module(model: ReducedModel, index: int) -> nn.Module:
    """Segment ``index`` of ``model``, sharing its weights."""
    return FirstSegment(model) if index == 0 else LaterSegment(model, index)

"""The whole model: encoder, one policy per cut, head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec, ReductionConfig, Segment
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.blocks.encoder import ClassificationHead, Encoder, Policy
from trbert_deploy.modeling.layouts import Layout


class ReducedModel(nn.Module):
    """A sequence classifier that can drop tokens at its cuts.

    Attributes:
        spec: shape of the encoder.
        reduction: the cuts and their rules.
        segments: what runs between the cuts.
    """

    def __init__(self, spec: EncoderSpec, reduction: ReductionConfig) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.head = ClassificationHead(spec)
        self.policies = nn.ModuleList()
        self.set_reduction(reduction)
        self.apply(_initialize)

    def set_reduction(self, reduction: ReductionConfig) -> None:
        """Take other cuts; policies keep their weights where their number stays the same."""
        self.segments: tuple[Segment, ...] = reduction.segments(self.spec.num_layers)
        self.reduction = reduction
        if len(self.policies) != len(reduction.cuts):
            self.policies = nn.ModuleList(Policy(self.spec.hidden_size) for _ in reduction.cuts)
            self.policies.apply(_initialize)

    def take_over(self, other: ReducedModel) -> None:
        """Take the cuts, rules and weights of another model of the same spec."""
        self.set_reduction(other.reduction)
        self.load_state_dict(other.state_dict())

    def embed(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        """Embeddings of tokens: int64 [...] each -> hidden [..., H]."""
        return self.encoder.embeddings(input_ids, token_type_ids, positions)

    def run_segment(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        """The layers of segment ``index``: hidden [..., H] -> hidden [..., H]."""
        segment = self.segments[index]
        return self.encoder.run_steps(hidden, layout, segment.start, segment.stop)

    def keep_logit(self, index: int, hidden: Tensor) -> Tensor:
        """The policy's score at cut ``index``: hidden [..., H] -> keep logit [...] float32."""
        return self.policy(index)(hidden)

    def policy(self, index: int) -> Policy:
        """The policy of cut ``index``."""
        policy = self.policies[index]
        assert isinstance(policy, Policy)
        return policy

    def extend_positions(self, max_positions: int) -> None:
        """Lengthen the learned position table by tiling it (Beltagy et al. 2020, Longformer, 5).

        Raises:
            ConfigError: fewer positions than there are.
        """
        table = self.encoder.embeddings.position.weight
        if max_positions < len(table):
            raise ConfigError(
                f"{max_positions} positions asked for: there are {len(table)} already"
            )
        tiled = table.detach()[torch.arange(max_positions) % len(table)].clone()
        self.encoder.embeddings.position = nn.Embedding.from_pretrained(tiled, freeze=False)
        self.spec = self.spec.with_positions(max_positions)


def _initialize(module: nn.Module) -> None:
    """BERT's initialization: normal weights (0.02), zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)

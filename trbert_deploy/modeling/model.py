"""The whole model: encoder, one policy per cut, head, and exits where it has some."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trbert_deploy.bundle.manifest import HIDDEN, INPUT_IDS, MATCHES, TOKEN_TYPE_IDS
from trbert_deploy.config import EncoderSpec, ReductionConfig, Segment
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.blocks.policy import Policy
from trbert_deploy.modeling.blocks.projection import Projection
from trbert_deploy.modeling.families.registry import FAMILIES
from trbert_deploy.modeling.heads.head import Head
from trbert_deploy.modeling.heads.registry import build_exit, build_head
from trbert_deploy.modeling.heads.tokens import TokensHead
from trbert_deploy.modeling.layouts.layout import Layout


class ReducedModel(nn.Module):
    """An encoder with a head that can drop tokens at its cuts.

    Attributes:
        spec: shape of the encoder.
        reduction: the cuts and their rules.
        segments: what runs between the cuts.
        policies: for each cut what scores its tokens.
        projections: for each cut what makes last states of those of the tokens that it drops, where
            the head hears of these.
        exits: for each cut what answers rows that leave there, where the cuts have exits.
        family: what is known of the encoder's kind.
    """

    def __init__(self, spec: EncoderSpec, reduction: ReductionConfig) -> None:
        super().__init__()
        self.spec = spec
        self.family = FAMILIES[spec.family]
        self.encoder = self.family.build(spec)
        self.head = build_head(spec)
        self.head.share(self.encoder.embeddings)
        self.policies = nn.ModuleList()
        self.projections = nn.ModuleList()
        self.exits = nn.ModuleList()
        self.set_reduction(reduction)
        self.apply(_initialize)

    def set_reduction(self, reduction: ReductionConfig) -> None:
        """Take other cuts; policies and exits keep their weights where their number stays.

        Raises:
            ConfigError: exits, and answers that do not tell how sure they are.
        """
        self.segments: tuple[Segment, ...] = reduction.segments(self.spec.num_layers)
        self.reduction = reduction
        if len(self.policies) != len(reduction.cuts):
            self.policies = nn.ModuleList(Policy(self.spec.hidden_size) for _ in reduction.cuts)
            self.policies.apply(_initialize)
            if self.hears_dropped:
                self.projections = nn.ModuleList(
                    Projection(self.spec.hidden_size) for _ in reduction.cuts
                )
        exits = 0 if reduction.exits is None else len(reduction.cuts)
        if len(self.exits) != exits:
            self.exits = nn.ModuleList(build_exit(self.spec) for _ in range(exits))
            self.exits.apply(_initialize)
            self.exits.to(next(self.encoder.parameters()).device)

    def take_over(self, other: ReducedModel) -> None:
        """Take the cuts, rules and weights of another model of the same spec."""
        self.set_reduction(other.reduction)
        self.load_state_dict(other.state_dict())

    def inputs_of(self, segment: Segment | None) -> tuple[str, ...]:
        """Names of the per-token inputs of a segment's graph; None for the dense model."""
        matches = (MATCHES,) if self.takes_matches and (segment is None or segment.is_last) else ()
        if segment is not None and not segment.is_first:
            return (HIDDEN, *self.family.carried, *matches)
        types = (TOKEN_TYPE_IDS,) if self.spec.token_types > 1 else ()
        return (INPUT_IDS, *types, *matches)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None, layout: Layout) -> Tensor:
        """Embeddings of whole rows: int64 [...] each -> hidden [..., H]."""
        return self.encoder.embed(input_ids, token_type_ids, layout)

    def keep_logit(self, index: int, hidden: Tensor) -> Tensor:
        """The policy's score at cut ``index``: hidden [..., H] -> keep logit [...] float32."""
        return self.policy(index)(hidden)

    def projection(self, index: int) -> Projection:
        """What makes last states of those of tokens that cut ``index`` drops."""
        projection = self.projections[index]
        assert isinstance(projection, Projection)
        return projection

    def policy(self, index: int) -> Policy:
        """The policy of cut ``index``."""
        policy = self.policies[index]
        assert isinstance(policy, Policy)
        return policy

    def exit(self, index: int) -> Head:
        """What answers rows that leave at cut ``index``."""
        head = self.exits[index]
        assert isinstance(head, Head)
        return head

    def tokens_head(self) -> TokensHead:
        """The head, if its outputs are of tokens."""
        assert isinstance(self.head, TokensHead)
        return self.head

    def each_dropped(self, index: int, hidden: Tensor) -> dict[str, Tensor]:
        """What tokens say that are dropped at cut ``index``: [..., H] -> [..., X] by output."""
        return self.tokens_head().each(self.projection(index)(hidden))

    @property
    def hears_dropped(self) -> bool:
        """Whether dropped tokens take part in the outputs."""
        return isinstance(self.head, TokensHead) and self.head.hears_dropped

    @property
    def takes_matches(self) -> bool:
        """Whether the head hears what a lexicon says of tokens."""
        return isinstance(self.head, TokensHead) and self.head.takes_matches

    @property
    def asked_token(self) -> int | None:
        """The token that all outputs are of, where they are of one alone."""
        return self.head.asked_token if isinstance(self.head, TokensHead) else None

    def extend_positions(self, max_positions: int) -> None:
        """Lengthen a learned position table by tiling it (Beltagy et al. 2020, Longformer, 5).

        Positions that are computed, or relative, go on by themselves.

        Raises:
            ConfigError: fewer positions than there are.
        """
        if max_positions < self.spec.max_positions:
            raise ConfigError(
                f"{max_positions} positions asked for: there are {self.spec.max_positions} already"
            )
        embeddings = self.encoder.embeddings
        if embeddings.position is not None:
            table = embeddings.position.weight
            tiled = table.detach()[torch.arange(max_positions) % len(table)].clone()
            embeddings.extend_positions(tiled)
        self.spec = self.spec.with_positions(max_positions)


def _initialize(module: nn.Module) -> None:
    """BERT's initialization: normal weights (0.02), zero biases."""
    if isinstance(module, Projection):
        module.reset()
        return
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)

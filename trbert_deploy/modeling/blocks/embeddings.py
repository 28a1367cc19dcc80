"""Embeddings: what a row of ids becomes before the first layer."""

from __future__ import annotations

from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec


class Embeddings(nn.Module):
    """The sum of token, position and token-type embeddings, normalized.

    Args:
        spec: a table of token types is there where it has any.
        positions: whether there is a table of positions.
        projection: where the tables are narrower than the encoder: ``before`` the normalization,
            or ``after`` it.
        norm: normalizes; a LayerNorm of the right width by default.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        positions: bool = True,
        projection: str = "after",
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width, narrow = spec.hidden_size, spec.embedding_size
        self.token = nn.Embedding(spec.vocab_size, narrow)
        self.position = nn.Embedding(spec.max_positions, narrow) if positions else None
        self.token_type = nn.Embedding(spec.token_types, narrow) if spec.token_types else None
        self.norm = norm or nn.LayerNorm(
            width if projection == "before" else narrow, eps=spec.layer_norm_eps
        )
        self.projection = nn.Linear(narrow, width) if narrow != width else None
        self._project_first = projection == "before"
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, positions: Tensor
    ) -> Tensor:
        """Embed tokens.

        Args:
            input_ids: [...] int64.
            token_type_ids: [...] int64; None where the model has fewer than two types.
            positions: int64, broadcastable to [...].

        Returns:
            hidden: [..., H].
        """
        hidden = self.token(input_ids)
        if self.token_type is not None:
            several = len(self.token_type.weight) > 1 and token_type_ids is not None
            hidden = hidden + (
                self.token_type(token_type_ids) if several else self.token_type.weight[0]
            )
        if self.position is not None:
            hidden = hidden + self.position(positions)
        if self.projection is None:
            return self.dropout(self.norm(hidden))
        if self._project_first:
            return self.dropout(self.norm(self.projection(hidden)))
        return self.projection(self.dropout(self.norm(hidden)))

    def extend_positions(self, table: Tensor) -> None:
        """Take another table of positions [P, E]."""
        self.position = nn.Embedding.from_pretrained(table, freeze=False)

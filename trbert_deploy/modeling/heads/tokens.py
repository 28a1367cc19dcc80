"""What all heads have whose outputs are of tokens of a text, dropped ones included.

A token answers where it leaves the encoder: behind the last layer, or at the cut that drops it.
Early states lie in another space than last ones, so those of a dropped token go through a linear
map first, one for each cut (``ReducedModel.projections``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.heads.head import Head
from trbert_deploy.modeling.layouts.layout import Layout, RowsLayout, largest_of_rows
from trbert_deploy.tasks.outputs import Output, asked_token, hear_dropped


@dataclass(frozen=True)
class Part:
    """Tokens that left the encoder in one place.

    Attributes:
        values: what each says, [T, X] by output.
        row: [T] int64, the row that each is of.
        token: [T] int64, which token of the batch each is.
        weight: [T] float32, how much of it left here; None for all of it.
    """

    values: Mapping[str, Tensor]
    row: Tensor
    token: Tensor
    weight: Tensor | None = None

    def weighted(self, name: str) -> Tensor:
        """Values of an output, by weight: [T, X] float32."""
        values = self.values[name].float()
        return values if self.weight is None else values * self.weight[:, None]


class TokensHead(Head):
    """A head whose outputs are of all tokens, or gathered from them (``Output.of_all_tokens``), or
    are of those alone that are asked for.

    Args:
        outputs: as the task has them.
    """

    def __init__(self, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.outputs = tuple(outputs)

    @property
    def hears_dropped(self) -> bool:
        """Whether dropped tokens take part."""
        return hear_dropped(self.outputs)

    @property
    def asked_token(self) -> int | None:
        """The token that all outputs are of, where they are of one alone."""
        return asked_token(self.outputs)

    @property
    def takes_matches(self) -> bool:
        """Whether it hears what a lexicon says of tokens."""
        return False

    def take_matches(self, spec: EncoderSpec) -> None:
        """Begin to hear what a lexicon says.

        Args:
            spec: of a model whose task takes a lexicon.
        """
        raise NotImplementedError  # only where the task can

    @abstractmethod
    def each(self, hidden: Tensor) -> dict[str, Tensor]:
        """What each token says, for itself: states [..., H] -> values [..., X] by output."""

    def each_matched(self, hidden: Tensor, matches: Tensor | None) -> dict[str, Tensor]:
        """The same of tokens [..., S, H] of whole rows, with what a lexicon says of them.

        Args:
            matches: [..., S, M, 3] int64 (``lexicon.columns``); None for nothing.
        """
        return self.each(hidden)

    def forward(
        self, hidden: Tensor, layout: Layout, matches: Tensor | None = None
    ) -> dict[str, Tensor]:
        gather = {
            "row": layout.first,
            "token": lambda values: values,
            "mean": layout.mean,
            "max": layout.max,
        }
        assert self.asked_token is None  # whose states alone are given to ``each``
        values = self.each_matched(hidden, matches)
        return {each.name: gather[each.per](values[each.name]) for each in self.outputs}

    def gathered(self, parts: Sequence[Part], whole: RowsLayout, choices: int) -> dict[str, Tensor]:
        """Outputs of rows whose tokens left the encoder in several places.

        Args:
            parts: all tokens of the rows, each in one part, or in several by weights whose sum
                is 1.
            whole: how the B rows lay before a token was dropped.
            choices: P; there are P * B rows, one choice of their tokens behind the other.

        Returns:
            [P * B, X], or of tokens [P * B, S, X], zero behind a row's.
        """
        return {
            each.name: _GATHER[each.per](each.name, parts, whole, choices) for each in self.outputs
        }


def in_place(name: str, parts: Sequence[Part], whole: RowsLayout, choices: int) -> Tensor:
    """Every token's values at its place: [P * B, S, X]."""
    batch, tokens = len(whole.counts), len(whole.positions)
    places = torch.cat([part.row // batch * tokens + part.token for part in parts])
    found = torch.cat([part.weighted(name) for part in parts])
    values = found.new_zeros(choices * tokens, found.shape[1]).index_add(0, places, found)
    values = values.unflatten(0, (choices, tokens)).transpose(0, 1)  # [T, P, X]
    return whole.pad(values).movedim(2, 0).flatten(0, 1)


def _mean(name: str, parts: Sequence[Part], whole: RowsLayout, choices: int) -> Tensor:
    """The mean of each row's values: [P * B, X]."""
    counts = whole.counts.repeat(choices)
    rows = torch.cat([part.row for part in parts])
    found = torch.cat([part.weighted(name) for part in parts])
    sums = found.new_zeros(len(counts), found.shape[1]).index_add(0, rows, found)
    return sums / counts[:, None]


def _largest(name: str, parts: Sequence[Part], whole: RowsLayout, choices: int) -> Tensor:
    """The largest of each row's values, each where most of its token left: [P * B, X]."""
    rows = torch.cat([part.row for part in parts])
    found = torch.cat(
        [
            part.weighted(name)
            if part.weight is None
            else part.weighted(name).masked_fill((part.weight < 0.5)[:, None], -torch.inf)
            for part in parts
        ]
    )
    return largest_of_rows(found, rows, choices * len(whole.counts))


_GATHER: Mapping[str, Callable[[str, Sequence[Part], RowsLayout, int], Tensor]] = {
    "token": in_place,
    "mean": _mean,
    "max": _largest,
}

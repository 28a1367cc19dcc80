"""Rows of tokens: as they are given, on their way through the segments, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bundle.manifest import (
    INPUT_IDS,
    MATCHES,
    POSITIONS,
    PROTECTED,
    TOKEN_TYPE_IDS,
)
from trbert_deploy.lexicon.columns import SLOTS, VALUES, Columns, part_of
from trbert_deploy.runtime.arrays import States
from trbert_deploy.runtime.exits import PassedExits
from trbert_deploy.runtime.gathering import Said
from trbert_deploy.runtime.windows import merged
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.select import first_token


@dataclass(frozen=True)
class TokenRow:
    """One tokenized text.

    Attributes:
        input_ids, token_type_ids: [S] int64, special tokens included, no padding.
        protected: [S] bool, tokens that must survive every cut; the first one by default.
        windows: places of the tokens that are read together, [W] int64 each, where the row is too
            long for the model.
        matches: what a lexicon says of the tokens (``lexicon.columns``); None for nothing.
        exit_rule: when it leaves at an exit; as the chain says where None.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    protected: NDArray[np.bool_] = None  # type: ignore[assignment]
    windows: tuple[NDArray[np.int64], ...] = ()
    matches: Columns | None = None
    exit_rule: ExitRule | None = None

    def __post_init__(self) -> None:
        if self.protected is None:
            object.__setattr__(self, "protected", first_token(len(self)))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def parts(self) -> list[TokenRow]:
        """The rows that the model reads: its windows, or the row itself."""
        return [self.part(window) for window in self.windows] or [self]

    def part(self, places: Sequence[int] | NDArray[np.int64]) -> TokenRow:
        """The tokens at ``places``."""
        own = self.input_ids[places], self.token_type_ids[places], self.protected[places]
        matches = None if self.matches is None else part_of(self.matches, np.asarray(places))
        return TokenRow(*own, matches=matches, exit_rule=self.exit_rule)


def packed_matches(rows: Sequence[TokenRow]) -> Columns | None:
    """What a lexicon says of the tokens of rows, one behind the other: [T, SLOTS, VALUES or more].

    None where no row was searched.
    """
    values = {row.matches.shape[-1] for row in rows if row.matches is not None}
    if not values:
        return None
    width = max(values)
    return np.concatenate(
        [
            np.zeros((len(row), SLOTS, width), np.int64) if row.matches is None else row.matches
            for row in rows
        ]
    )


@dataclass
class TokenState:
    """A row on its way through the segments.

    Attributes:
        index: which of the given rows it is.
        tokens: the row as it was given.
        positions: [K] int64, where its survivors stood in it.
        hidden: [K, H], their states behind the last cut, in the backend's arrays; None before the
            first.
        kept: for each cut so far, the survivors' positions.
        exits: what the exits have said of it so far.
        said: what its tokens said that left so far, where that takes part in the outputs.
        left: whether it left with the answer of an exit.
    """

    index: int
    tokens: TokenRow
    positions: NDArray[np.int64]
    hidden: States | None = None
    kept: tuple[NDArray[np.int64], ...] = ()
    exits: PassedExits = field(default_factory=PassedExits)
    said: list[Said] = field(default_factory=list)
    left: bool = False

    @classmethod
    def of(cls, index: int, tokens: TokenRow) -> TokenState:
        """A row before the first segment."""
        return cls(index, tokens, np.arange(len(tokens)))

    def __len__(self) -> int:
        return len(self.positions)

    def column(self, name: str) -> Any:
        """What a graph's input ``name`` says of every token: [K, ...]."""
        if name == POSITIONS:
            return self.positions
        if name == INPUT_IDS:
            return self._surviving(self.tokens.input_ids)
        if name == TOKEN_TYPE_IDS:
            return self._surviving(self.tokens.token_type_ids)
        if name == PROTECTED:
            return self.protected
        if name == MATCHES:
            found = self.tokens.matches
            nothing = np.zeros((len(self.tokens), SLOTS, VALUES), np.int64)
            return self._surviving(nothing if found is None else found)
        assert self.hidden is not None  # behind the first segment
        return self.hidden

    @property
    def protected(self) -> NDArray[np.bool_]:
        """Which of the tokens must survive the next cut: [K]."""
        return self._surviving(self.tokens.protected)

    def compact(self, survivors: NDArray[np.int64], hidden: States) -> None:
        """Leave the tokens at the places ``survivors`` [K], with their states ``hidden`` [K, H]."""
        self.hidden = hidden
        self.positions = self.positions.take(survivors)
        self.kept = (*self.kept, self.positions)

    def _surviving(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.take(self.positions, axis=0) if self.kept else values


@dataclass(frozen=True)
class RowResult:
    """What the chain says of one row.

    Attributes:
        outputs: the head's outputs by name, float32 each.
        kept: for each cut, the positions [K] int64 in the row's tokens that survived it, none from
            the one on at which it left; of a row that was read in windows those that did in any of
            them.
        windows: what it says of these.
        exit: the cut at which it left, with the answer of the exit there; None where it reached the
            end, and of a row with windows.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    kept: tuple[NDArray[np.int64], ...]
    windows: tuple[RowResult, ...] = ()
    exit: int | None = None

    @property
    def parts(self) -> tuple[RowResult, ...]:
        """What it says of the rows that the model read, as ``TokenRow.parts``."""
        return self.windows or (self,)

    @classmethod
    def of_windows(cls, row: TokenRow, results: Sequence[RowResult]) -> RowResult:
        """What it says of a row, given what it says of each of its windows."""
        if not row.windows:
            return results[0]
        outputs = merged(row.windows, [result.outputs for result in results])
        cuts = range(len(results[0].kept))
        pairs = list(zip(row.windows, results, strict=True))
        kept = (
            np.unique(np.concatenate([window[result.kept[cut]] for window, result in pairs]))
            for cut in cuts
        )
        return cls(outputs, tuple(kept), tuple(results))


def results_of_parts(rows: Sequence[TokenRow], results: Iterable[RowResult]) -> list[RowResult]:
    """What a model says of rows, given what it says of the parts of each in turn."""
    remaining = iter(results)
    return [
        RowResult.of_windows(row, list(islice(remaining, max(1, len(row.windows))))) for row in rows
    ]


def fates_apart(one: RowResult, other: RowResult) -> int:
    """Tokens of a row that one side keeps and the other drops, summed over the cuts."""
    return sum(
        len(np.setxor1d(ours, theirs, assume_unique=True))
        for ours, theirs in zip(one.kept, other.kept, strict=True)
    )


def survivor_agreement(
    rows: Sequence[TokenRow], expected: Sequence[RowResult], received: Sequence[RowResult]
) -> float:
    """Share of the rows' tokens, cut by cut, that meet one fate on both sides; 1 without cuts."""
    pairs = zip(expected, received, strict=True)
    differing = sum(fates_apart(one, other) for one, other in pairs)
    total = sum(len(row) * len(one.kept) for row, one in zip(rows, expected, strict=True))
    return 1.0 - differing / max(total, 1)

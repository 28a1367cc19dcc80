"""What a task answers for one text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """The survivors of one cut.

    Attributes:
        cut: position of the cut in encoder layers.
        positions: their places in the row of tokens, ascending.
        tokens: the tokens themselves.
    """

    cut: float
    positions: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one text; every task adds what it answers.

    Attributes:
        num_tokens: tokens of the text, special tokens included.
        kept: survivors of every cut, or None unless asked for; those of each row, where the text
            is read in several ones.
    """

    num_tokens: int
    kept: tuple[KeptTokens, ...] | tuple[tuple[KeptTokens, ...], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer first; survivors only where they were asked for."""
        values = asdict(self)
        num_tokens, kept = values.pop("num_tokens"), values.pop("kept")
        values["num_tokens"] = num_tokens
        return values if kept is None else {**values, "kept": kept}

"""The selection rules: how many tokens a row keeps at a cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trbert_deploy.bounds import MOST_TOKENS, expected
from trbert_deploy.errors import ConfigError

RULE_KINDS = ("threshold", "ratio", "budget")


@dataclass(frozen=True)
class SelectionRule:
    """How many tokens a row keeps at a cut, and so which ones.

    A row keeps its best tokens by keep logit; the rule says how many:

    - ``threshold``: those whose keep probability is at least ``value`` (TR-BERT, 0.5);
    - ``ratio``: ``ceil(value * length)``;
    - ``budget``: at most ``value`` tokens.

    Protected tokens come first and always survive. ``round_to`` rounds the number of
    survivors up to a multiple, filled with the row's own next-best tokens (never more
    than the row has).

    Raises:
        ConfigError: unknown kind, or a value outside the kind's range.
    """

    kind: str = "threshold"
    value: float = 0.5
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.kind not in RULE_KINDS:
            raise ConfigError(
                f"unknown selection rule {self.kind!r}: expected one of {', '.join(RULE_KINDS)}"
            )
        if self.kind == "threshold" and not 0.0 <= self.value <= 1.0:
            raise ConfigError(f"threshold is {self.value}: expected a probability from 0 to 1")
        if self.kind == "ratio" and not 0.0 < self.value <= 1.0:
            raise ConfigError(f"ratio is {self.value}: expected a share above 0, at most 1")
        if self.kind == "budget" and (not 1 <= self.value <= MOST_TOKENS or self.value % 1):
            raise ConfigError(f"budget is {self.value}: expected {expected(1, MOST_TOKENS)}")
        if not 1 <= self.round_to <= MOST_TOKENS or self.round_to % 1 != 0:
            raise ConfigError(f"round_to is {self.round_to}: expected {expected(1, MOST_TOKENS)}")
        if self.kind == "budget" and self.value % self.round_to:
            raise ConfigError(
                f"budget is {self.value}: expected a multiple of round_to, {self.round_to}, "
                "since rounding up would exceed it"
            )

    def with_value(self, value: float) -> SelectionRule:
        """The same rule at another operating point."""
        return replace(self, value=value)

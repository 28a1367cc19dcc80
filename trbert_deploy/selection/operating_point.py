"""An operating point: how much a user wants to be dropped, instead of what a model's rules say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from trbert_deploy.bounds import MOST_TOKENS, expected, require_whole
from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.rules import SelectionRule


@dataclass(frozen=True)
class OperatingPoint:
    """Another operating point than a model's own; what is None stays as the model has it.

    Attributes:
        threshold: keep probability from which a token survives.
        ratio: instead, share of its tokens that a row keeps at each cut.
        max_tokens: instead, most tokens that a row keeps at each cut.
        round_to: multiple that the number of survivors is rounded up to.
        latency_budget_ms: instead, milliseconds that a row of the longest length may take; a
            pipeline finds the threshold (``runtime.budget``), rules alone cannot.
        dense_below: rows of fewer tokens keep all of them, in the dense graph; ``auto`` where a
            pipeline is to find from which length on the chain pays (``runtime.break_even``).
        exit_confidence: how sure an exit must be for a row to leave with its answer; 1 for never.
        exit_patience: how many exits in a row must agree for that.

    Raises:
        ConfigError: more than one of the first three is given, or one is out of range.
    """

    threshold: float | None = None
    ratio: float | None = None
    max_tokens: int | None = None
    round_to: int | None = None
    latency_budget_ms: float | None = None
    dense_below: int | Literal["auto"] | None = None
    exit_confidence: float | None = None
    exit_patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "round_to"):
            if (value := getattr(self, name)) is not None:
                require_whole(name, value, 1, MOST_TOKENS)
        below = self.dense_below
        if below not in (None, "auto") and not (
            isinstance(below, int) and 0 <= below <= MOST_TOKENS
        ):
            raise ConfigError(
                f"dense_below is {below}: expected {expected(0, MOST_TOKENS)}, or auto"
            )
        if self.latency_budget_ms is not None and self._rules():
            raise ConfigError(
                "a latency budget decides the threshold: give no threshold, ratio or max_tokens "
                "with it"
            )
        if len(self._rules()) > 1:
            raise ConfigError(
                "threshold, ratio and max_tokens exclude each other: give one of them"
            )
        self.turn(SelectionRule())
        self.turn_exits(ExitRule())

    def turn(self, rule: SelectionRule) -> SelectionRule:
        """A rule of the model at this operating point.

        Raises:
            ConfigError: ``max_tokens`` is no multiple of what the rule rounds to.
        """
        round_to = rule.round_to if self.round_to is None else self.round_to
        for kind, value in self._rules().items():
            return SelectionRule(kind, value, round_to)
        return replace(rule, round_to=round_to)

    @property
    def moves_exits(self) -> bool:
        """Whether it says when rows leave."""
        return self.exit_confidence is not None or self.exit_patience is not None

    def turn_exits(self, rule: ExitRule | None) -> ExitRule | None:
        """When rows leave a model at this operating point, that do so by ``rule`` otherwise.

        Raises:
            ConfigError: the model has no exits, and some are asked for.
        """
        if not self.moves_exits:
            return rule
        if rule is None:
            raise ConfigError(
                "the model has no exits, so no row can leave early: train it with --recipe exits, "
                "or leave exit_confidence and exit_patience out"
            )
        return ExitRule(self.exit_confidence, self.exit_patience)

    def _rules(self) -> dict[str, float]:
        asked = {"threshold": self.threshold, "ratio": self.ratio, "budget": self.max_tokens}
        return {kind: value for kind, value in asked.items() if value is not None}

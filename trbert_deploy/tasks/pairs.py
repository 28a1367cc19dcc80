"""The two texts of a pair: which is cut where they are too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trbert_deploy.errors import ConfigError

#: Which text of a pair is cut, as transformers calls it: tokens of the longer one first, or of one.
LONGEST_FIRST, ONLY_FIRST, ONLY_SECOND = TRUNCATIONS = (
    "longest_first",
    "only_first",
    "only_second",
)
#: Entries of config.json, and of ``EncoderSpec.answers``, of tasks that take pairs.
TRUNCATION, *_ = PAIR_ENTRIES = ("truncation",)


@dataclass(frozen=True)
class PairRules:
    """What is asked of the texts of pairs; of a text alone it asks nothing.

    Attributes:
        truncation: one of ``TRUNCATIONS``.

    Raises:
        ConfigError: another one.
    """

    truncation: str = LONGEST_FIRST

    def __post_init__(self) -> None:
        require_one_of(TRUNCATION, self.truncation, TRUNCATIONS)

    @classmethod
    def of(cls, answers: Mapping[str, Any]) -> Self:
        """What ``EncoderSpec.answers`` says."""
        return cls(**{name: answers[name] for name in PAIR_ENTRIES if name in answers})


def require_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse an unknown value.

    Raises:
        ConfigError: it is none of ``known``.
    """
    if value not in known:
        raise ConfigError(f"{name} is {value!r}: expected one of {', '.join(known)}")

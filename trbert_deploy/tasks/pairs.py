"""The two texts of a pair: which is cut where they are too long, and which loses no token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import ConfigError

#: Which text of a pair is cut, as transformers calls it: tokens of the longer one first, or of one.
LONGEST_FIRST, ONLY_FIRST, ONLY_SECOND = TRUNCATIONS = (
    "longest_first",
    "only_first",
    "only_second",
)
#: Which text survives every cut.
PROTECTED = ("first", "second")
#: Entries of config.json, and of ``EncoderSpec.answers``, of tasks that take pairs.
TRUNCATION, PROTECT = PAIR_ENTRIES = ("truncation", "protect")


@dataclass(frozen=True)
class PairRules:
    """What is asked of the texts of pairs; of a text alone it asks nothing.

    Attributes:
        truncation: one of ``TRUNCATIONS``.
        protect: one of ``PROTECTED``, or None.

    Raises:
        ConfigError: another one.
    """

    truncation: str = LONGEST_FIRST
    protect: str | None = None

    def __post_init__(self) -> None:
        require_one_of(TRUNCATION, self.truncation, TRUNCATIONS)
        if self.protect is not None:
            require_one_of(PROTECT, self.protect, PROTECTED)

    @classmethod
    def of(cls, answers: Mapping[str, Any]) -> Self:
        """What ``EncoderSpec.answers`` says."""
        return cls(**{name: answers[name] for name in PAIR_ENTRIES if name in answers})

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """Tokens that must survive every cut: [S]."""
        if self.protect is None or encoding.n_sequences < 2:
            return np.zeros(len(encoding.ids), np.bool_)
        part = PROTECTED.index(self.protect)
        return np.array([owner == part for owner in encoding.sequence_ids], np.bool_)


def require_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse an unknown value.

    Raises:
        ConfigError: it is none of ``known``.
    """
    if value not in known:
        raise ConfigError(f"{name} is {value!r}: expected one of {', '.join(known)}")

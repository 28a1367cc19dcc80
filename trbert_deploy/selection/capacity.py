"""How many slots a cut's survivors get where that must be known before they are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

#: Shares are whole numbers of these.
PARTS = 1024
#: Slots beside the share of a length: of short rows most survive.
_ROOM = 16
#: TensorRT ranks fewer than 3,840 tokens in one step.
MOST_SLOTS = 3839


@dataclass(frozen=True)
class Capacity:
    """A number of slots that grows with the length of rows.

    Attributes:
        parts: share of a length, in ``PARTS``.
        room: slots besides.
    """

    parts: int
    room: int = _ROOM

    @classmethod
    def of(cls, kept: Iterable[tuple[int, int]]) -> Self:
        """The least that has room for what was kept, up to ``MOST_SLOTS``.

        Args:
            kept: (length, survivors) of rows.
        """
        beyond = ((length, survivors - _ROOM) for length, survivors in kept)
        shares = (PARTS * (more - 1) // length + 1 for length, more in beyond if more > 0)
        return cls(max(shares, default=0))

    def slots(self, length: int) -> int:
        """Slots of every row in a batch of ``length``."""
        return min(length, -(-length * self.parts // PARTS) + self.room, MOST_SLOTS)

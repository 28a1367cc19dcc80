"""What all layers of a pass share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Memo:
    """Remembers what depends on positions and weights alone."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The same for every layer, computed for the first that asks."""
        key = (key, torch.is_grad_enabled())
        if key not in self._known:
            self._known[key] = compute()
        known: T = self._known[key]
        return known

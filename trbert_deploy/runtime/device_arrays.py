"""Hidden states in a device's memory: they are computed there, and stay there from cut to cut.

Compaction, regrouping and what is asked of dropped tokens are all the same there: some states of
one batch or of several, brought together in another. The host says which; it reads none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.runtime.arrays import stack

#: Files of the graphs that bring states together (plugins/onnx_states.py).
TAKE_GRAPH, MEAN_GRAPH = "take_states.onnx", "mean_states.onnx"


@cache
def device_graph(name: str) -> bytes:
    """One of them, as ONNX has it."""
    return files("trbert_deploy.plugins").joinpath(name).read_bytes()


@dataclass(frozen=True, eq=False)
class DeviceStates:
    """States of a batch, [B, S, H] float32 and contiguous.

    Attributes:
        memory: what the device calls it; holds it as long as somebody refers to it.
        address: where it begins.
        shape: B, S, H.
    """

    memory: Any
    address: int
    shape: tuple[int, int, int]

    def address_of(self, row: int) -> int:
        """Where the states of a row begin."""
        _, length, width = self.shape
        return self.address + row * length * width * np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class RowStates:
    """Some of a row's states.

    Attributes:
        batch: those of the batch that it was in.
        places: [K] int64, which of its B x S states they are.
    """

    batch: DeviceStates
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)


class DeviceMemory(Protocol):
    """What a runtime does with its device's memory."""

    def empty(self, shape: tuple[int, int, int]) -> DeviceStates:
        """Room for a batch's states.

        Raises:
            DeviceError: there is none.
        """
        ...

    def take(
        self, source: DeviceStates, places: NDArray[np.int64], target: DeviceStates, row: int
    ) -> None:
        """Write states of one batch into rows of another.

        Args:
            places: [B, K] int64, which of the source's.
            target: [.., K, H]; its rows from ``row`` on are written.
        """
        ...

    def mean(
        self,
        source: DeviceStates,
        places: NDArray[np.int64],
        weights: NDArray[np.float32],
        target: DeviceStates,
        row: int,
    ) -> None:
        """Write weighted means of states into rows of another batch.

        Args:
            places: [B, K] int64, which of the source's.
            weights: [B, 1, K] float32, of each of them.
            target: [.., 1, H]; its rows from ``row`` on are written.
        """
        ...

    def to_host(self, states: DeviceStates) -> NDArray[np.float32]:
        """A copy of states [B, S, H] that numpy reads."""
        ...


class DeviceArrays:
    """States in a device's memory, as ``Arrays`` has them."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory

    def rows(self, hidden: DeviceStates, places: Sequence[NDArray[np.int64]]) -> list[RowStates]:
        length = hidden.shape[1]
        begins = range(0, hidden.shape[0] * length, length)
        return [RowStates(hidden, begin + each) for begin, each in zip(begins, places, strict=True)]

    def batch(self, rows: Sequence[RowStates]) -> DeviceStates:
        target = self._memory.empty((len(rows), max(map(len, rows)), _width(rows)))
        for source, start, places in _by_source(rows, target.shape[1]):
            self._memory.take(source, places, target, start)
        return target

    def means(self, rows: Sequence[RowStates]) -> DeviceStates:
        target = self._memory.empty((len(rows), 1, _width(rows)))
        longest = max(map(len, rows))
        for source, start, places in _by_source(rows, longest):
            counts = np.array([[[len(row)]] for row in rows[start : start + len(places)]])
            weights = (np.arange(longest) < counts) / counts.astype(np.float32)
            self._memory.mean(source, places, weights.astype(np.float32), target, start)
        return target

    def to_host(self, hidden: DeviceStates) -> NDArray[np.float32]:
        return self._memory.to_host(hidden)


def _width(rows: Sequence[RowStates]) -> int:
    return rows[0].batch.shape[2]


def _by_source(
    rows: Sequence[RowStates], length: int
) -> Iterator[tuple[DeviceStates, int, NDArray[np.int64]]]:
    """Neighbours that were in one batch: it, where they begin, their places [B, length].

    Places behind a row's end are those of the batch's first state: what is there is no token.
    """
    start = 0
    for _, group in groupby(rows, key=lambda row: id(row.batch)):
        together = list(group)
        places = stack([row.places for row in together])
        padding = length - places.shape[1]
        yield together[0].batch, start, np.pad(places, [(0, 0), (0, padding)])
        start += len(together)

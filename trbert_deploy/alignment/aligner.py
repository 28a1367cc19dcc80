"""Aligns the words, or the characters, of pairs of texts by a bundle's graph of states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.alignment.methods import METHODS, Links
from trbert_deploy.alignment.places import LEVELS, Place
from trbert_deploy.alignment.similarity import cosine_similarity, pooled
from trbert_deploy.batching import group_by_length
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import HIDDEN_OUT, TOKENIZER
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.files import read_directory
from trbert_deploy.runtime.backends.backend import BackendOptions, RowsBackend
from trbert_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    backends_of_states,
    open_backend,
)
from trbert_deploy.runtime.batch_inputs import batch_inputs
from trbert_deploy.runtime.token_state import TokenRow, TokenState
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.outputs import require_numbers

#: The places of a text, and their states [M, H].
_Side = tuple[list[Place], NDArray[np.float32]]


@dataclass(frozen=True)
class Alignment:
    """What belongs together in two texts.

    Attributes:
        source, target: the places of each text that have tokens: M and N.
        similarity: [M, N] float32, cosines of their states.
        links: [M, N] bool, which of them belong together.
    """

    source: tuple[Place, ...]
    target: tuple[Place, ...]
    similarity: NDArray[np.float32]
    links: Links

    def to_json(self) -> dict[str, Any]:
        """The linked places, in the order of the first text, with their similarities."""
        return {
            "links": [
                {
                    "source": self.source[row].to_json(),
                    "target": self.target[column].to_json(),
                    "similarity": float(self.similarity[row, column]),
                }
                for row, column in np.argwhere(self.links)
            ]
        }


class Aligner:
    """A bundle's states behind one layer, and a method.

    Every text is a row of its own, which loses no token: neither policies nor the head run.

    Args:
        bundle: its directory; exported with ``states_after``.
        layer: behind which states are compared; the last one that the bundle has by default.
        level: ``words`` or ``characters``.
        method: one of ``METHODS``.
        backend: one that runs graphs of states (``backends_of_states``).
        threads: threads of the graph; 0 lets the backend choose.
        truncate: cut texts over the maximum length, or else refuse them.
        verify: compare the files' SHA-256 with the manifest.

    Attributes:
        layer: behind which states are compared.
        tokenizer: with counts of what it has cut.

    Raises:
        StorageError, BundleError: the directory is missing, no bundle, or damaged.
        ConfigError: an unknown level, method or backend; no such layer; or a bundle without the
            graph of its states.
        MissingDependencyError: the backend's package is not installed.
    """

    def __init__(
        self,
        bundle: str | Path = "bundle",
        *,
        layer: int | None = None,
        level: str = "words",
        method: str = "mutual",
        backend: str = DEFAULT_BACKEND,
        threads: int = 0,
        truncate: bool = True,
        verify: bool = True,
    ) -> None:
        for what, name, known in (
            ("level", level, LEVELS),
            ("method", method, METHODS),
            ("backend of states", backend, backends_of_states()),
        ):
            if name not in known:
                raise ConfigError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
        self._places_of = LEVELS[level]
        self._method = METHODS[method]
        path = Path(bundle)

        def start() -> None:
            opened = Bundle.open(path, verify=verify)
            graph = opened.require_states(layer)
            names = [each.name for each in opened.manifest.states]
            self.layer = opened.manifest.states_after[names.index(graph.name)]
            with opened.reading(TOKENIZER) as file:
                self.tokenizer = TextTokenizer(file, opened.manifest.max_length, truncate)
            runner = open_backend(backend, opened, BackendOptions(threads))
            assert not isinstance(runner, RowsBackend)
            self._backend = runner
            self._graph = runner.graph(graph.name)

        # Replaced meanwhile, it is begun anew with what is there then.
        read_directory(path, start)

    def __call__(
        self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None
    ) -> list[Alignment]:
        """Align pairs of texts.

        Args:
            names: what errors call each pair; ``pair 1`` and so on by default.

        Raises:
            DataError: a text that is empty, or of which the tokenizer keeps nothing.
            LengthError: a text that is too long and must not be cut.
            OutputError: states that are no numbers.
        """
        names = names or [f"pair {place + 1}" for place in range(len(pairs))]
        texts = [text for pair in pairs for text in pair]
        called = [f"{name}, the {which} text" for name in names for which in ("first", "second")]
        encodings = self.tokenizer.encode(texts, called)
        places = [
            self._places_of(text, encoding) for text, encoding in zip(texts, encodings, strict=True)
        ]
        for name, found in zip(called, places, strict=True):
            if not found:
                raise DataError(f"{name} has no token with letters: nothing can be aligned")
        rows = [
            TokenRow(np.array(each.ids, np.int64), np.array(each.type_ids, np.int64))
            for each in encodings
        ]
        states = [
            pooled(hidden, [place.tokens for place in found])
            for hidden, found in zip(self._states_of(rows), places, strict=True)
        ]
        sides = list(zip(places, states, strict=True))
        return [
            self._aligned(source, target)
            for source, target in zip(sides[::2], sides[1::2], strict=True)
        ]

    def _aligned(self, source: _Side, target: _Side) -> Alignment:
        similarity = cosine_similarity(source[1], target[1])
        links = self._method(similarity)
        return Alignment(tuple(source[0]), tuple(target[0]), similarity, links)

    def _states_of(self, rows: Sequence[TokenRow]) -> list[NDArray[np.float32]]:
        """The states of each row's tokens: [S, H] each."""
        states: dict[int, NDArray[np.float32]] = {}
        lengths = [len(row) for row in rows]
        most, padding = self._backend.call_tokens, self._backend.padding
        for group in group_by_length(lengths, most, padding):
            batch = [TokenState.of(int(place), rows[place]) for place in group]
            outputs = self._graph(batch_inputs(self._graph.inputs, batch))
            found = self._backend.arrays.to_host(outputs[HIDDEN_OUT])
            for row, hidden in zip(batch, found, strict=True):
                states[row.index] = hidden[: len(row)]
                require_numbers({"states": states[row.index]})
        return [states[place] for place in range(len(rows))]

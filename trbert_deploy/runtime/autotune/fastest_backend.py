"""Chooses the backend that is fastest on this machine: measured once, and remembered.

The candidates that are installed here answer the bundle's sample texts in turns. One whose
answers or survivors are too often others than in float32 is out; of the rest the fastest wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, MissingDependencyError
from trbert_deploy.runtime.autotune.cache import conditions, recall, remember
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.registry import BACKENDS, open_backend
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.samples import sample_rows
from trbert_deploy.runtime.token_state import RowResult, TokenRow, survivor_agreement
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task, mean_agreement

#: How far the answers to the sample texts, and the tokens' fates, must be those of float32.
LEAST_AGREEMENT = 0.99
LENGTHS = (64, 256, 512)
ROUNDS = 5
_ROWS_PER_LENGTH = 2


@dataclass(frozen=True)
class Candidate:
    """A backend in a precision; ``package`` brings it."""

    backend: str
    precision: str
    package: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


def candidates() -> list[Candidate]:
    """What may be chosen; the first is the reference for quality."""
    return [
        Candidate(name, precision, info.packages[0])
        for name, info in BACKENDS.items()
        if info.auto
        for precision in info.precisions
    ]


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        backend, precision: the fastest.
        row_ms: candidate -> milliseconds for a row: medians, averaged over the lengths.
        refused: candidate -> why it is out, though it runs here.
    """

    backend: str
    precision: str
    row_ms: dict[str, float]
    refused: dict[str, str]

    def __str__(self) -> str:
        others = ", ".join(f"{name} {spent:.1f} ms" for name, spent in self.row_ms.items())
        return f"{self.backend} {self.precision} is fastest here ({others} a text)"


def choose_backend(bundle: Bundle, reduction: ReductionConfig, threads: int = 0) -> Choice:
    """The fastest backend for a bundle on this machine, from the last time or measured now.

    Args:
        reduction: the cuts with the rules that it will run with.
        threads: threads of one graph; 0 lets the backend choose.
    """
    packages = [candidate.package for candidate in candidates()]
    key = conditions(bundle, reduction, threads, packages)
    known = recall("backend", key)
    if known is not None:
        return Choice(**known)
    choice = measure(bundle, reduction, threads)
    remember("backend", key, asdict(choice))
    return choice


def measure(bundle: Bundle, reduction: ReductionConfig, threads: int) -> Choice:
    """Let the candidates that run here answer the same rows in turns."""
    rows = sample_rows(bundle, LENGTHS, _ROWS_PER_LENGTH)
    layers = bundle.manifest.encoder.num_layers
    task = task_of(bundle.manifest.encoder)
    chains: dict[Candidate, Chain] = {}
    for candidate in candidates():
        options = BackendOptions(threads, candidate.precision)
        try:
            backend = open_backend(candidate.backend, bundle, options)
        except (MissingDependencyError, ConfigError):
            continue  # not installed, or not for this processor
        chains[candidate] = Chain(backend, reduction, layers)
    expected = chains[next(iter(chains))].run(rows)
    refused = {}
    for candidate, chain in list(chains.items()):
        received = chain.run(rows)  # warms up, too
        agreement = least_agreement(task, rows, expected, received)
        if agreement < LEAST_AGREEMENT:
            refused[str(candidate)] = f"agrees with float32 in {agreement:.1%} only"
            del chains[candidate]
    spent = {candidate: np.empty((ROUNDS, len(rows))) for candidate in chains}
    for number in range(ROUNDS):
        for place, row in enumerate(rows):
            for candidate, chain in chains.items():
                timing = Timing()
                chain.run([row], timing)
                spent[candidate][number, place] = timing.total_seconds
    means = {
        candidate: float(np.median(seconds, axis=0).mean()) for candidate, seconds in spent.items()
    }
    best = min(means, key=lambda candidate: means[candidate])
    shown = {str(candidate): round(1e3 * mean, 3) for candidate, mean in means.items()}
    return Choice(best.backend, best.precision, shown, refused)


def least_agreement(
    task: Task,
    rows: Sequence[TokenRow],
    expected: Sequence[RowResult],
    received: Sequence[RowResult],
) -> float:
    """The smaller of two shares: how far the answers agree, and the tokens with one fate."""
    answers = ([result.outputs for result in side] for side in (expected, received))
    return min(mean_agreement(task, *answers), survivor_agreement(rows, expected, received))

"""Chooses the backend that is fastest on this machine: measured once, and remembered.

What ``auto`` tries answers the bundle's sample texts in turns. One whose answers or survivors are
too often others than in float32 is out; of the rest the fastest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import MissingDependencyError, TrbertError, first_line
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.cache import remembered
from trbert_deploy.runtime.autotune.conditions import conditions
from trbert_deploy.runtime.autotune.remarks import of_which_rows
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
    """A backend in a precision; None where it decides for itself."""

    backend: str
    precision: str | None

    def __str__(self) -> str:
        return self.backend if self.precision is None else f"{self.backend} {self.precision}"


def candidates(engines: bool = True) -> list[Candidate]:
    """What ``auto`` tries; the first in float32 that runs is the reference for the others.

    Args:
        engines: whether the bundle's engines may run.
    """
    return [
        Candidate(name, precision)
        for name, info in BACKENDS.items()
        if info.auto and (engines or not info.engines)
        for precision in info.precisions or (None,)
        if precision not in info.on_request
        and (precision not in info.gpu_precisions or info.uses_gpu())
    ]


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        backend, precision: the fastest.
        row_ms: candidate -> milliseconds for a row: medians, averaged over the lengths.
        refused: candidate -> why it is out, though it runs here.
        skipped: candidate -> why it does not run here.
    """

    backend: str
    precision: str | None
    row_ms: dict[str, float]
    refused: dict[str, str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {spent:.1f} ms" for name, spent in self.row_ms.items())
        best = Candidate(self.backend, self.precision)
        parts = [f"{best} is fastest here ({tried} a text)"]
        for verdict, reasons in (("refused", self.refused), ("not tried", self.skipped)):
            if reasons:
                parts.append(f"{verdict}: {_by_reason(reasons)}")
        return "; ".join(parts)


def _by_reason(reasons: dict[str, str]) -> str:
    """Candidates with the reason behind those that share it."""
    shared: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        shared.setdefault(reason, []).append(name)
    return ", ".join(f"{', '.join(names)} ({reason})" for reason, names in shared.items())


def choose_backend(
    bundle: Bundle,
    reduction: ReductionConfig,
    threads: int,
    note: Callable[[str], None],
    *,
    engines: bool = True,
    progress: Progress = no_progress,
) -> Choice:
    """The fastest backend for a bundle on this machine, from the last time or measured now.

    Args:
        reduction: the cuts with the rules that it will run with.
        threads: threads of one graph; 0 lets the backend choose.
        note: told what was tried, and what was found.
        engines: whether the bundle's engines may run.

    Raises:
        TrbertError: nothing runs here that computes in float32; says why the first does not.
    """
    key = conditions(bundle, reduction, threads, engines)
    found = remembered(
        "backend", key, lambda: asdict(measure(bundle, reduction, threads, engines, progress)), note
    )
    choice = Choice(**found)
    note(f"{choice}{of_which_rows(bundle)}")
    return choice


def measure(
    bundle: Bundle,
    reduction: ReductionConfig,
    threads: int,
    engines: bool = True,
    progress: Progress = no_progress,
) -> Choice:
    """Let the candidates that run here answer the same rows in turns.

    Raises:
        TrbertError: as ``choose_backend``.
    """
    rows = sample_rows(bundle, LENGTHS, _ROWS_PER_LENGTH)
    layers = bundle.manifest.encoder.num_layers
    task = task_of(bundle.manifest.encoder)
    chains: dict[Candidate, Chain] = {}
    answers: dict[Candidate, list[RowResult]] = {}
    problems: dict[Candidate, TrbertError] = {}
    tried = candidates(engines)
    for number, candidate in enumerate(tried):
        progress(f"try {candidate}", number, len(tried))
        options = BackendOptions(threads, candidate.precision)
        try:
            runner = open_backend(candidate.backend, bundle, options)
            chain = Chain(runner, reduction, layers, task=task)
            answers[candidate] = chain.run(rows)  # warms up, too
        except TrbertError as problem:
            problems[candidate] = problem
        else:
            chains[candidate] = chain
    expected = answers[_reference(chains, problems)]
    refused = {}
    for candidate in list(chains):
        agreement = least_agreement(task, rows, expected, answers[candidate])
        if agreement < LEAST_AGREEMENT:
            refused[str(candidate)] = f"agrees with float32 in {agreement:.1%} only"
            del chains[candidate]
    spent = {candidate: np.empty((ROUNDS, len(rows))) for candidate in chains}
    for number in range(ROUNDS):
        for place, row in enumerate(rows):
            progress("measure backends", number * len(rows) + place, ROUNDS * len(rows))
            for candidate, chain in chains.items():
                timing = Timing()
                chain.run([row], timing)
                spent[candidate][number, place] = timing.total_seconds
    progress("measure backends", ROUNDS * len(rows), ROUNDS * len(rows))
    means = {
        candidate: float(np.median(seconds, axis=0).mean()) for candidate, seconds in spent.items()
    }
    best = min(means, key=lambda candidate: means[candidate])
    shown = {str(candidate): round(1e3 * mean, 3) for candidate, mean in means.items()}
    skipped = {str(candidate): _in_short(problem) for candidate, problem in problems.items()}
    return Choice(best.backend, best.precision, shown, refused, skipped)


def _reference(chains: Iterable[Candidate], problems: dict[Candidate, TrbertError]) -> Candidate:
    """The first candidate in float32 that runs; where none does, the first one's problem."""
    for candidate in chains:
        if candidate.precision == "fp32":
            return candidate
    raise next(problem for each, problem in problems.items() if each.precision == "fp32")


def _in_short(problem: TrbertError) -> str:
    installed = not isinstance(problem, MissingDependencyError)
    return first_line(problem) if installed else "not installed"


def least_agreement(
    task: Task,
    rows: Sequence[TokenRow],
    expected: Sequence[RowResult],
    received: Sequence[RowResult],
) -> float:
    """The smaller of two shares: how far the answers agree, and the tokens with one fate."""
    answers = ([result.outputs for result in side] for side in (expected, received))
    return min(mean_agreement(task, *answers), survivor_agreement(rows, expected, received))

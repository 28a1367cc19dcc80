"""Times the chain against the dense model: same process, same backend, same rows, in turns.

Timed is the way from rows of tokens to logits, with batching, selection and compaction;
tokenizing is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np

from trbert_deploy.errors import ConfigError
from trbert_deploy.flops import speedup
from trbert_deploy.machine import describe_machine
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.samples import asking
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.exits import left_shares
from trbert_deploy.tasks.examples import Text

#: Different rows that the rounds of a point take turns with, at most.
MAX_ROWS = 64
_WARM_UP_ROUNDS = 2
_PROGRESS_PER_POINT = 100


@dataclass(frozen=True)
class Rounds:
    """How often a point is measured: until ``seconds`` are over, within ``least`` and ``most``.

    Raises:
        ConfigError: fewer than one round, or the least above the most.
    """

    least: int = 8
    most: int = 64
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"rounds are {self.least} to {self.most}: expected 1 or more, and the least first"
            )

    @classmethod
    def exactly(cls, count: int) -> Rounds:
        """Always ``count`` rounds."""
        return cls(count, count)

    def share_done(self, done: int, elapsed: float) -> float:
        """How far a point is, from 0 to 1."""
        return max(min(done / self.least, elapsed / self.seconds), done / self.most)


@dataclass(frozen=True)
class ModelTiming:
    """How fast one model (dense, or reduced) answered.

    Attributes:
        p50_ms, p95_ms, mean_ms: latency of a batch.
        texts_per_s, tokens_per_s: over all rounds; tokens are those that went in.
        outside_share: share of the time spent outside the graphs.
        graph_ms: mean time of a call inside each graph, by name.
    """

    p50_ms: float
    p95_ms: float
    mean_ms: float
    texts_per_s: float
    tokens_per_s: float
    outside_share: float
    graph_ms: dict[str, float] = field(default_factory=dict)

    @property
    def outside_ms(self) -> float:
        """Mean time of a call outside the graphs."""
        return sum(self.graph_ms.values()) * self.outside_share / (1.0 - self.outside_share)


@dataclass(frozen=True)
class BenchPoint:
    """Both models at one length and batch.

    Attributes:
        length: tokens per row.
        batch: rows per call.
        rounds: measured calls of each model.
        different_rows: different rows among them.
        kept: mean tokens per row behind each cut.
        flops_speedup: operations of the dense model over those of the chain, with the tokens
            that were in fact kept.
        left: of the rows, at each cut the share of those that left there; none where no row can.
    """

    length: int
    batch: int
    rounds: int
    different_rows: int
    dense: ModelTiming
    reduced: ModelTiming
    kept: tuple[float, ...]
    flops_speedup: float
    left: tuple[float, ...] = ()

    def typical_ms(self, timing: ModelTiming) -> float:
        """What a batch takes: the median, or the mean where rows leave early.

        Of some rows that take a third of what others do a median tells one kind alone.
        """
        return timing.mean_ms if self.left else timing.p50_ms

    @property
    def measured_speedup(self) -> float:
        """Ratio of the typical latencies."""
        return self.typical_ms(self.dense) / self.typical_ms(self.reduced)

    @property
    def efficiency(self) -> float:
        """Share of the FLOPs speed-up that is measured."""
        return self.measured_speedup / self.flops_speedup

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "measured_speedup": self.measured_speedup,
            "efficiency": self.efficiency,
        }


@dataclass(frozen=True)
class BackendBench:
    """All points on one backend; ``description`` says what that is (see Backend)."""

    description: dict[str, str]
    points: tuple[BenchPoint, ...]

    @property
    def name(self) -> str:
        """The backend with its version."""
        return f"{self.description['backend']} {self.description['version']}"

    @property
    def settings(self) -> str:
        """What it runs with besides."""
        return ", ".join(
            f"{name}: {value}"
            for name, value in self.description.items()
            if name not in ("backend", "version")
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.description, "points": [point.to_json() for point in self.points]}


@dataclass(frozen=True)
class BenchReport:
    """What a benchmark found.

    Attributes:
        machine: processor, cores, versions.
        bundle: what was measured: shape of the encoder, cuts with their rules.
        backends: one entry per backend.
        notes: what a reader should know besides.
    """

    machine: dict[str, str | int]
    bundle: dict[str, Any]
    backends: tuple[BackendBench, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "bundle": self.bundle,
            "backends": [backend.to_json() for backend in self.backends],
            "notes": list(self.notes),
        }


def run_bench(
    pipeline: Pipeline,
    lengths: Sequence[int],
    batches: Sequence[int],
    texts: Sequence[Text],
    *,
    rounds: Rounds = Rounds(),
    progress: Progress = no_progress,
) -> BenchReport:
    """Measure an opened bundle at every length and batch.

    Args:
        lengths: tokens per row; texts are joined or cut to exactly that many.
        batches: rows per call.
        texts: real texts, or pairs of them, at least one.

    Raises:
        LengthError: a length above what the bundle takes.
        DataError: no texts, or an empty one.
    """
    total = len(lengths) * len(batches) * _PROGRESS_PER_POINT
    description = dict(pipeline.chain.backend.description)
    points: list[BenchPoint] = []
    for length in lengths:
        rows = pipeline.tokenizer.rows_of_length(
            texts, length, min(len(texts), MAX_ROWS), pipeline.task.protected
        )
        rows = asking(rows, pipeline.task.outputs)
        for batch in batches:
            step = f"{description['backend']}, {length} tokens, batch {batch}"
            before = len(points) * _PROGRESS_PER_POINT

            def tell(share: float, step: str = step, before: int = before) -> None:
                progress(step, before + int(share * _PROGRESS_PER_POINT), total)

            points.append(measure_point(pipeline, rows, batch, rounds, tell))
    measured = BackendBench(description, tuple(points))
    return BenchReport(describe_machine(), _describe_bundle(pipeline), (measured,))


def measure_point(
    pipeline: Pipeline,
    rows: Sequence[TokenRow],
    batch: int,
    rounds: Rounds,
    tell: Callable[[float], None] = lambda share: None,
) -> BenchPoint:
    """Time both models, in turns, on batches drawn from ``rows`` one after the other.

    Args:
        rows: different rows of one length.
        tell: told how far the point is, from 0 to 1.
    """
    tell(0.0)
    supply = cycle(rows)
    for _ in range(_WARM_UP_ROUNDS):
        members = list(islice(supply, batch))
        pipeline.run(members, dense=True)
        pipeline.run(members)
    timings: dict[bool, list[Timing]] = {True: [], False: []}  # by dense
    tokens: list[tuple[int, ...]] = []  # of every row, in each segment
    share = 0.0
    start = time.perf_counter()
    while share < 1.0:
        members = list(islice(supply, batch))
        done = len(tokens) // batch
        # The first of a pair may find colder or warmer caches: each model has its turn.
        for dense in (True, False) if done % 2 == 0 else (False, True):
            timing = Timing()
            results = pipeline.run(members, dense=dense, timing=timing)
            timings[dense].append(timing)
            if not dense:
                tokens += [
                    (len(row), *map(len, result.kept))
                    for row, result in zip(members, results, strict=True)
                ]
        share = rounds.share_done(done + 1, time.perf_counter() - start)
        tell(min(share, 1.0))
    length = len(rows[0])
    return BenchPoint(
        length=length,
        batch=batch,
        rounds=len(timings[True]),
        different_rows=min(len(rows), len(tokens)),
        dense=_summary(timings[True], batch, length),
        reduced=_summary(timings[False], batch, length),
        kept=tuple(float(mean) for mean in np.mean(tokens, axis=0)[1:]),
        flops_speedup=speedup(pipeline.encoder, pipeline.reduction, tokens),
        left=left_shares(tokens) if pipeline.reduction.rows_leave else (),
    )


def _summary(timings: Sequence[Timing], batch: int, length: int) -> ModelTiming:
    seconds = np.array([timing.total_seconds for timing in timings])
    inside = sum(sum(timing.graph_seconds.values()) for timing in timings)
    graphs = {name for timing in timings for name in timing.graph_seconds}
    texts_per_s = batch * len(timings) / float(seconds.sum())
    return ModelTiming(
        p50_ms=float(np.percentile(seconds, 50)) * 1e3,
        p95_ms=float(np.percentile(seconds, 95)) * 1e3,
        mean_ms=float(np.mean(seconds)) * 1e3,
        texts_per_s=texts_per_s,
        tokens_per_s=texts_per_s * length,
        outside_share=1.0 - inside / float(seconds.sum()),
        graph_ms={
            name: float(np.mean([timing.graph_seconds.get(name, 0.0) for timing in timings])) * 1e3
            for name in sorted(graphs)
        },
    )


def _describe_bundle(pipeline: Pipeline) -> dict[str, Any]:
    encoder = pipeline.encoder
    return {
        "path": str(pipeline.path),
        "family": encoder.family,
        "num_layers": encoder.num_layers,
        "hidden_size": encoder.hidden_size,
        "max_length": pipeline.tokenizer.max_length,
        "cuts": [
            asdict(segment.cut) for segment in pipeline.chain.segments if segment.cut is not None
        ],
    }

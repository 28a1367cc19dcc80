"""Evaluates a model: the dense model and the chain on the same rows.

Where all texts have labels, these judge, by the task's measures. Otherwise the dense model (or the
teacher) does: how far the chain's answers agree with its own, and how far they diverge from them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import DataError
from trbert_deploy.evaluation.metrics import paired_change
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TOKENIZED_AT_A_TIME, TextTokenizer
from trbert_deploy.selection.exits import left_shares
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.task import (
    AGREEMENT,
    DIVERGENCE,
    Targets,
    Task,
    mean_agreement,
    mean_score,
)

BATCH_SIZE = 8


class DataWarning(UserWarning):
    """Labelled texts say less than they seem to."""


@dataclass(frozen=True)
class ModelQuality:
    """How good one model's answers are.

    Attributes:
        metrics: the task's measures by name, or agreement and divergence where there are no
            labels; the first one is what models are judged by.
        seconds: time in the chain, without tokenizing.
    """

    metrics: Mapping[str, float]
    seconds: float

    @property
    def score(self) -> float:
        """The first measure."""
        return next(iter(self.metrics.values()))

    def to_json(self) -> dict[str, Any]:
        return {**self.metrics, "seconds": self.seconds}


@dataclass(frozen=True)
class QualityReport:
    """Both models on the same rows.

    Attributes:
        backend: what both ran on.
        teacher: directory of the dense model, where it is not the chain's own weights.
        measure: what models are judged by, the first of their metrics.
        rows: how many.
        tokens_per_row: mean, special tokens included.
        dense, reduced: their quality.
        score_change: of that measure, reduced minus dense, in points.
        interval: 95 % interval of that change, by paired bootstrap over the rows.
        deviation: standard deviation of what a row adds to that change, in points.
        agreement: how far the answers are the same, as the task says.
        kept_share: for each cut the tokens left, as a share of all tokens.
        flops_speedup: FLOPs of the dense model over the chain's.
        measured_speedup: ratio of the two times.
        left_share: of the rows, at each cut those that left there; none where no row can.
    """

    backend: str
    teacher: str | None
    measure: str
    rows: int
    tokens_per_row: float
    dense: ModelQuality
    reduced: ModelQuality
    score_change: float
    interval: tuple[float, float]
    deviation: float
    agreement: float
    kept_share: tuple[float, ...]
    flops_speedup: float
    measured_speedup: float
    left_share: tuple[float, ...] = ()

    def rows_needed(self, points: float) -> int:
        """Rows from which the change's 95 % interval reaches ``points`` (above 0) to each side.

        By the deviation of the paired differences; where the rows show none, by the rule of
        three (Hanley and Lippman-Hand 1983).
        """
        if self.deviation == 0.0:
            return math.ceil(100.0 * 3.0 / points)
        return math.ceil((1.96 * self.deviation / points) ** 2)

    def to_json(self) -> dict[str, Any]:
        models = {"dense": self.dense.to_json(), "reduced": self.reduced.to_json()}
        return {**asdict(self), **models}


@dataclass
class ModelRun:
    """One model under evaluation, and what it answered so far.

    Attributes:
        pipeline: the model.
        dense: remove no token.
        view: what the model is given of a row.
        outputs: of every row.
        tokens: of every row, in each segment.
        timing: in the chain, without tokenizing.
    """

    pipeline: Pipeline
    dense: bool = False
    view: Callable[[TokenRow], TokenRow] = lambda row: row
    outputs: list[Outputs] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)

    def answer(self, rows: Sequence[TokenRow]) -> None:
        """Run the model on further rows."""
        rows = [self.view(row) for row in rows]
        results = self.pipeline.run(rows, dense=self.dense, timing=self.timing)
        for row, result in zip(rows, results, strict=True):
            self.outputs.append(result.outputs)
            for part, read in zip(row.parts, result.parts, strict=True):
                self.tokens.append([len(part), *map(len, read.kept)])

    def outputs_as(self, other: Pipeline) -> list[Outputs]:
        """All outputs, as another model would have them."""
        task = self.pipeline.task
        return [task.translated(outputs, other.task) for outputs in self.outputs]

    @property
    def left_share(self) -> tuple[float, ...]:
        """Share of the rows that left at each cut; none where no row can."""
        if self.dense or not self.pipeline.reduction.rows_leave:
            return ()
        return left_shares(self.tokens)

    @property
    def flops(self) -> float:
        """Operations of all rows."""
        encoder, lengths = self.pipeline.encoder, np.array(self.tokens).T
        if self.dense:
            return float(dense_flops(encoder, lengths[0]).sum())
        return float(reduced_flops(encoder, self.pipeline.reduction, list(lengths)).sum())


def evaluate_quality(
    pipeline: Pipeline,
    texts: Sequence[Example],
    *,
    teacher: Pipeline | None = None,
    progress: Progress = no_progress,
) -> QualityReport:
    """Compare the chain with the dense model.

    Args:
        teacher: take its dense model, instead of the one with the chain's own weights.

    Raises:
        DataError: no texts, a text without a label that the model knows, or a teacher with
            other labels.
    """
    (report,) = evaluate_points([pipeline], texts, teacher=teacher, progress=progress)
    return report


def evaluate_points(
    points: Sequence[Pipeline],
    texts: Sequence[Example],
    *,
    teacher: Pipeline | None = None,
    progress: Progress = no_progress,
) -> list[QualityReport]:
    """Compare operating points of one model with one run of the dense model.

    Args:
        points: the model, with other rules each.
        texts, teacher: as ``evaluate_quality`` takes them.

    Raises:
        DataError: as ``evaluate_quality``.
    """
    runs = [ModelRun(point) for point in points]
    return compare_runs(runs, texts, teacher=teacher, progress=progress)


def compare_runs(
    runs: Sequence[ModelRun],
    texts: Sequence[Example],
    *,
    teacher: Pipeline | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> list[QualityReport]:
    """Compare models with one run of the dense model, the first one's own or the teacher's.

    Args:
        runs: nothing answered yet.
        texts, teacher: as ``evaluate_quality`` takes them.
        batch_size: texts that are answered at a time.

    Raises:
        ConfigError: a batch size under 1.
        DataError: as ``evaluate_quality``.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    targets, rows = _tokenized_targets(runs[0].pipeline, texts, teacher)
    tokenized = {} if rows is None else {runs[0].pipeline.tokenizer: rows}
    if targets is not None and len(texts) > 1 and _are_same(targets):
        label = runs[0].pipeline.task.told_target(texts[0].target)
        warnings.warn(
            f"all {len(texts):,} texts have the label {label!r}: the figures say nothing "
            "of the others; expected texts of every label",
            DataWarning,
            stacklevel=2,
        )
    dense = ModelRun(teacher or runs[0].pipeline, dense=True)
    progress("evaluate", 0, len(texts))
    for run in (dense, runs[0]):  # the first call of a graph loads it
        run.pipeline.run(tokenize(run.pipeline, texts[:1]), dense=run.dense)
    run_in_turns([dense, *runs], texts, progress, batch_size, tokenized)
    return [_compare(dense, run, targets, teacher) for run in runs]


def run_in_turns(
    runs: Sequence[ModelRun],
    texts: Sequence[Example],
    progress: Progress = no_progress,
    batch_size: int = BATCH_SIZE,
    tokenized: Mapping[TextTokenizer, Sequence[TokenRow]] = {},
) -> None:
    """Let all models answer all texts, batch by batch.

    In turns, so that what slows the machine meets all of them; and each batch begins with
    another one, since a later one finds warmer caches.

    Args:
        tokenized: the texts as rows of those tokenizers that were asked before.

    Raises:
        ConfigError: a batch size under 1.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    for turn, start in enumerate(range(0, len(texts), batch_size)):
        part = slice(start, start + batch_size)
        tokenizing = {run.pipeline.tokenizer: run.pipeline for run in runs}
        rows = {
            tokenizer: tokenized[tokenizer][part]
            if tokenizer in tokenized
            else tokenize(pipeline, texts[part])
            for tokenizer, pipeline in tokenizing.items()
        }
        first = turn % len(runs)
        for run in (*runs[first:], *runs[:first]):
            run.answer(rows[run.pipeline.tokenizer])
        progress("evaluate", min(part.stop, len(texts)), len(texts))


def tokenize(pipeline: Pipeline, texts: Sequence[Example]) -> list[TokenRow]:
    """The rows of texts; errors call these by their names."""
    return pipeline.tokenize([each.text for each in texts], [each.name for each in texts])


def _compare(
    dense: ModelRun, reduced: ModelRun, targets: Targets | None, teacher: Pipeline | None
) -> QualityReport:
    """What two finished runs say of the chain."""
    task = reduced.pipeline.task
    outputs = [dense.outputs_as(reduced.pipeline), reduced.outputs]
    rows = len(reduced.outputs)
    if targets is None:
        metrics = [_likeness(task, outputs[0], answers) for answers in outputs]
        agreements = [task.agreement(*pair) for pair in zip(*outputs, strict=True)]
        statistics = [np.ones((rows, 1)), np.array(agreements)[:, None]]
        measured = mean_score
    else:
        metrics = [task.metrics(answers, targets) for answers in outputs]
        statistics = [task.statistics(answers, targets) for answers in outputs]
        measured = task.measured
    qualities = [
        ModelQuality(measures, run.timing.total_seconds)
        for run, measures in zip((dense, reduced), metrics, strict=True)
    ]
    change = paired_change(measured, *statistics)
    totals = np.sum(reduced.tokens, axis=0)
    return QualityReport(
        backend=reduced.pipeline.chain.backend.description["backend"],
        teacher=None if teacher is None else str(teacher.path),
        measure=next(iter(metrics[0])),
        rows=rows,
        tokens_per_row=float(totals[0] / rows),
        dense=qualities[0],
        reduced=qualities[1],
        score_change=100.0 * change.value,
        interval=(100.0 * change.interval[0], 100.0 * change.interval[1]),
        deviation=100.0 * change.error * rows**0.5,
        agreement=mean_agreement(task, *outputs),
        kept_share=tuple(float(left / totals[0]) for left in totals[1:]),
        flops_speedup=dense.flops / reduced.flops,
        measured_speedup=dense.timing.total_seconds / reduced.timing.total_seconds,
        left_share=reduced.left_share,
    )


def _likeness(
    task: Task, teacher: Sequence[Outputs], answers: Sequence[Outputs]
) -> dict[str, float]:
    """How like a teacher's answers others are; its own agree as far as they agree with anything."""
    pairs = list(zip(teacher, answers, strict=True))
    return {
        AGREEMENT: mean_agreement(task, teacher, answers),
        DIVERGENCE: float(np.mean([task.divergence(*pair) for pair in pairs])),
    }


def true_targets(
    pipeline: Pipeline, texts: Sequence[Example], teacher: Pipeline | None = None
) -> Targets | None:
    """The targets of texts, as the model counts them; None unless all have one.

    Raises:
        DataError: as ``evaluate_quality``.
    """
    return _tokenized_targets(pipeline, texts, teacher)[0]


def _tokenized_targets(
    pipeline: Pipeline, texts: Sequence[Example], teacher: Pipeline | None
) -> tuple[Targets | None, list[TokenRow] | None]:
    """The targets as ``true_targets`` gives them, and the rows of the texts where targets are of
    their tokens.
    """
    if not texts:
        raise DataError("no texts to evaluate: expected at least one")
    if teacher is not None:
        teacher.task.require_like(pipeline.task, f"the teacher {teacher.path}")
    labelled = [example for example in texts if example.target is not None]
    if not labelled:
        return None, None
    task = pipeline.task
    if not task.answers_tokens:
        targets = task.targets(labelled)
        return targets if len(labelled) == len(texts) else None, None
    rows: list[TokenRow] = []
    found: list[Any] = []
    for start in range(0, len(texts), TOKENIZED_AT_A_TIME):
        part = texts[start : start + TOKENIZED_AT_A_TIME]
        names = [each.name for each in part]
        inputs = pipeline.inputs_of([each.text for each in part])
        encodings = pipeline.tokenizer.encode(inputs, names)
        rows += pipeline.rows(encodings, inputs, names)
        pairs = [p for p in zip(part, encodings, strict=True) if p[0].target is not None]
        found += task.targets([each for each, _ in pairs], [encoding for _, encoding in pairs])
    return found if len(found) == len(texts) else None, rows


def _are_same(targets: Targets) -> bool:
    """Whether all rows are to answer the same."""
    return all(np.array_equal(target, targets[0]) for target in targets)


def warn_of_few_rows(report: QualityReport, points: float) -> None:
    """Warn where ``report`` cannot tell a change by ``points`` (above 0) from chance."""
    needed = report.rows_needed(points)
    if report.rows < needed:
        warnings.warn(
            f"{report.rows:,} texts are too few to judge a change by {points:g} points: its 95 % "
            f"interval is that narrow from about {needed:,} texts on",
            DataWarning,
            stacklevel=2,
        )

"""Validation: how good the dense model and the chain are on held-out rows, at what cost.

Held-out rows that all have labels are judged by these, by the task's first measure. Others are
judged by the teacher: how far the answers agree with its own, as the task says, and how far they
diverge from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trbert_deploy.flops import REACHED, speedup
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import (
    TokenState,
    choose_by_rule,
    dense_outputs,
    first_segment,
    row_lengths,
    select_at_cuts,
    walk_on,
)
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.exits import exit_of
from trbert_deploy.selection.exits import ExitRule, left_shares
from trbert_deploy.tasks.task import AGREEMENT, Task, mean_agreement
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow, targets_of
from trbert_deploy.training.row_outputs import RowAnswer, RowOutputs, row_answers

#: Calibration looks at so many tokens at most: their first segment's output stays in memory.
CALIBRATION_TOKENS = 100_000
CALIBRATION_STEPS = 14
CALIBRATION_TOLERANCE = 0.005
#: For the table of other points, which says what each saves on all rows, these do.
TABLE_TOKENS = 20_000
TABLE_TOLERANCE = 0.02
_BEYOND = 0.1
#: Confidences that are tried, in equal steps of how many answers are surer.
CALIBRATED_CONFIDENCES = 100


@dataclass(frozen=True)
class Quality:
    """How good answers to the held-out rows are.

    Attributes:
        score: mean of what the rows are judged by, from 0 to 1: the task's first measure, or the
            agreement with the teacher.
        divergence: mean divergence from the teacher's answers, which tells more than agreement
            where answers hardly ever change; None before there is a teacher.
    """

    score: float
    divergence: float | None


@dataclass(frozen=True)
class ValidatedPoint:
    """The chain at one operating point.

    Attributes:
        threshold: keep probability from which a token survives.
        score, divergence: its quality.
        kept: for each cut the tokens left, as a share of all tokens.
        flops_speedup: FLOPs of the dense model over the chain's.
        left: share of the rows that leave at each cut, where it has exits.
        exit_confidence: from which they do; None where none has exits, 1 where none leaves.
    """

    threshold: float
    score: float
    divergence: float | None
    kept: tuple[float, ...]
    flops_speedup: float
    left: tuple[float, ...] = ()
    exit_confidence: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": list(self.kept), "left": list(self.left)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ValidatedPoint:
        shares = {name: tuple(data.get(name, ())) for name in ("kept", "left")}
        return cls(**{**data, **shares})


@dataclass(frozen=True)
class Evaluation:
    """Quality on held-out rows.

    Attributes:
        rows: how many.
        measure: what they are judged by: the task's first measure, or ``agreement`` with the
            teacher.
        dense_score: of the dense model.
        score, divergence, kept, flops_speedup, left: of the chain, as in ``ValidatedPoint``.
    """

    rows: int
    measure: str
    dense_score: float
    score: float
    divergence: float | None
    kept: tuple[float, ...]
    flops_speedup: float
    left: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        shares = {name: tuple(data.get(name, ())) for name in ("kept", "left")}
        return cls(**{**data, **shares})


@dataclass(frozen=True)
class PassedRows:
    """What the exits and the end of a chain say of every row, wherever it will leave.

    Attributes:
        answers: at each exit, and at the end.
        lengths: for each row its tokens in every segment.
    """

    answers: tuple[RowOutputs, ...]
    lengths: list[list[int]]

    def left_by(self, rule: ExitRule | None, task: Task) -> tuple[RowOutputs, list[list[int]]]:
        """The answers, and the tokens in every segment, where rows leave by a rule."""
        if rule is None or not rule.is_active:
            return self.answers[-1], self.lengths
        outputs, lengths = [], []
        for row, own in enumerate(self.lengths):
            cut = exit_of([found[row] for found in self.answers[:-1]], rule, task)
            outputs.append(self.answers[-1 if cut is None else cut][row])
            passed = len(own) if cut is None else cut + 1
            lengths.append([*own[:passed], *[0] * (len(own) - passed)])
        return RowOutputs(tuple(outputs)), lengths

    def changed(self, answers: RowOutputs, task: Task) -> NDArray[np.bool_]:
        """Which of some answers to all rows are others than those at the end: [N]."""
        pairs = zip(answers, self.answers[-1], strict=True)
        return np.array([not task.same_answer(*pair) for pair in pairs])

    def confidences(self, count: int, task: Task) -> list[float]:
        """Confidences to try, ascending: so many at most, in equal steps of how many of the exits'
        answers are surer; none without exits.
        """
        found = [task.confidence(answer) for exit in self.answers[:-1] for answer in exit]
        if not found:
            return []
        steps = np.quantile(found, np.linspace(0.0, 1.0, count))
        return sorted({round(float(step), 4) for step in steps})


@dataclass(frozen=True)
class Validator:
    """Held-out rows, and how to run them.

    Several processes divide the batches among themselves; what is returned is of all rows, and
    the same in each.

    Attributes:
        rows: the rows.
        task: what is answered.
        labelled: all rows have targets, which they are judged by.
        batch_tokens: tokens of one batch.
        device: where the model is.
        teacher: its outputs on the rows; None before there is one. Rows without targets need it.
        progress: told of every batch.
    """

    rows: Sequence[TrainingRow]
    task: Task
    labelled: bool
    batch_tokens: int
    device: torch.device
    teacher: RowOutputs | None = None
    progress: Progress = no_progress

    @property
    def measure(self) -> str:
        """What rows are judged by."""
        return self.task.measure if self.labelled else AGREEMENT

    @property
    def can_judge(self) -> bool:
        """Whether there is anything to judge by yet."""
        return self.labelled or self.teacher is not None

    def evaluate(self, model: ReducedModel, found: ValidatedPoint | None = None) -> Evaluation:
        """The dense model and the chain at its own rules.

        Args:
            found: the chain there, where it was judged just before.
        """
        point = found or self.chain(model)
        return Evaluation(
            len(self.rows),
            self.measure,
            self.dense(model).score,
            point.score,
            point.divergence,
            point.kept,
            point.flops_speedup,
            point.left,
        )

    def rank(self, point: Quality | ValidatedPoint) -> float:
        """What checkpoints are compared by, the highest is best.

        Without labels that is the divergence: of 2,000 texts hardly any change their label from
        one checkpoint to the next.
        """
        return point.score if self.labelled or point.divergence is None else -point.divergence

    def dense(self, model: ReducedModel) -> Quality:
        """The dense model."""
        answers: list[RowAnswer] = []
        with evaluating(model), autocast(self.device):
            for batch in self._batches(self.rows, "validation, dense"):
                answers += row_answers(self.task, dense_outputs(model, batch), batch)
        return self.judged(RowOutputs.gathered(answers))

    def chain(self, model: ReducedModel) -> ValidatedPoint:
        """The chain at its own rules."""
        return self.left_by(model, self.passed(model), model.reduction.exits)

    def exits(self, model: ReducedModel) -> float:
        """The mean rank of what the exits and the end say, each of all rows."""
        answers = self.passed(model).answers
        return float(np.mean([self.rank(self.judged(outputs)) for outputs in answers]))

    def calibrate_exits(self, model: ReducedModel, passed: PassedRows, most_drop: float) -> None:
        """Set the confidence from which rows leave, the lowest that changes few answers.

        A loss on some hundred rows is for the most part chance: right answers become wrong, about
        as many wrong ones right. How many change at all is known better, and no more is lost.

        Args:
            passed: the rows, through the model as it is.
            most_drop: points that may be lost, and of a hundred answers as many that may change.
                From the highest confidence down the first one that costs more ends the search, so
                that no lucky value far below is taken.
        """
        last, found = self.judged(passed.answers[-1]).score, 1.0
        for confidence in reversed(passed.confidences(CALIBRATED_CONFIDENCES, self.task)):
            outputs, _ = passed.left_by(ExitRule(confidence), self.task)
            lost = last - self.judged(outputs).score
            changed = float(passed.changed(outputs, self.task).mean())
            if 100.0 * max(lost, changed) > most_drop:
                break
            found = confidence
        model.set_reduction(model.reduction.with_exits(ExitRule(found)))

    def passed(self, model: ReducedModel) -> PassedRows:
        """All rows passed through the chain, to the end."""
        answers: list[list[RowAnswer]] = [[] for _ in range(len(model.exits) + 1)]
        lengths: list[tuple[int, list[int]]] = []
        with evaluating(model), autocast(self.device):
            for batch in self._batches(self.rows, "validation"):
                early: list[Outputs] = []
                start, choice = first_segment(model, batch), choose_by_rule(model)
                walked = walk_on(model, start, choice, early)
                for found, outputs in zip(answers, [*early, walked.answer(model)], strict=True):
                    found += row_answers(self.task, outputs, batch)
                kept = [torch.from_numpy(layout.lengths) for layout in walked.layouts]
                lengths += zip(batch.rows.tolist(), row_lengths(batch, kept), strict=True)
        by_row = dict(processes.gather(lengths))
        return PassedRows(
            tuple(RowOutputs.gathered(found) for found in answers),
            [by_row[row] for row in range(len(by_row))],
        )

    def left_by(
        self, model: ReducedModel, passed: PassedRows, rule: ExitRule | None
    ) -> ValidatedPoint:
        """The chain where rows leave by a rule."""
        outputs, lengths = passed.left_by(rule, self.task)
        return _point(model, self.judged(outputs), lengths, rule)

    def points(self, model: ReducedModel, passed: PassedRows) -> list[ValidatedPoint]:
        """The chain at its own rules; before it, where it has exits, as it is when no row leaves.

        Args:
            passed: the rows, through the model as it is.
        """
        rule = model.reduction.exits
        own = self.left_by(model, passed, rule)
        if rule is None or rule.confidence == 1.0:
            return [own]
        return [self.left_by(model, passed, ExitRule(1.0)), own]

    def judged(self, outputs: RowOutputs) -> Quality:
        """How good answers to all rows are."""
        teacher = self.teacher or ()
        divergence = None
        if teacher:
            pairs = zip(teacher, outputs, strict=True)
            divergence = float(np.mean([self.task.divergence(*pair) for pair in pairs]))
        if self.labelled:
            statistics = self.task.statistics(outputs, targets_of(self.task, self.rows))
            return Quality(self.task.measured(statistics), divergence)
        return Quality(mean_agreement(self.task, teacher, outputs), divergence)

    def calibrate(self, model: ReducedModel, target_speedup: float) -> float:
        """Set one threshold for all cuts, at which rows take the wanted FLOPs.

        What a policy learns is above all an order of the tokens; where its probabilities lie
        depends on the training's length and penalty. So the threshold is set on held-out data.

        Args:
            target_speedup: FLOPs of the dense model over the chain's, summed over rows.

        Returns:
            The speed-up found (less than wanted where dropping all but protected tokens does not
            reach it); the model's rules have the threshold already.
        """
        with evaluating(model), autocast(self.device):
            starts = self._starts(model, CALIBRATION_TOKENS)
            return _search(model, starts, target_speedup, CALIBRATION_TOLERANCE, self.progress)

    def operating_points(
        self, model: ReducedModel, speedups: Sequence[float]
    ) -> list[ValidatedPoint]:
        """The chain at the thresholds that save about each of ``speedups``, as far as they can
        be reached, as ``points`` gives it at each; the model's rules stay.
        """
        rules = model.reduction
        points = []
        with evaluating(model), autocast(self.device):
            starts = self._starts(model, TABLE_TOKENS)
            for wanted in speedups:
                reached = _search(model, starts, wanted, TABLE_TOLERANCE, self.progress)
                if reached < wanted * REACHED:
                    break
                points += self.points(model, self.passed(model))
        model.set_reduction(rules)
        return points

    def _starts(self, model: ReducedModel, tokens: int) -> list[Start]:
        """The first segment's output, which depends on no threshold."""
        return [
            (batch, first_segment(model, batch))
            for batch in self._batches(self._sample(tokens), "calibration")
        ]

    def _sample(self, most_tokens: int) -> Sequence[TrainingRow]:
        """The first rows, of so many tokens at most."""
        tokens = 0
        for count, row in enumerate(self.rows):
            tokens += len(row)
            if tokens > most_tokens and count:
                return self.rows[:count]
        return self.rows

    def _batches(self, rows: Sequence[TrainingRow], what: str) -> Iterator[PackedBatch]:
        plan = plan_batches([len(row) for row in rows], self.batch_tokens)
        plan = plan[processes.index() :: processes.count()]
        self.progress(what, 0, len(plan))
        for number, batch in enumerate(load_batches(rows, plan, self.device), start=1):
            yield batch
            self.progress(what, number, len(plan))


#: A batch and the first segment's output on it.
Start = tuple[PackedBatch, TokenState]


def _search(
    model: ReducedModel,
    starts: Sequence[Start],
    target_speedup: float,
    tolerance: float,
    progress: Progress,
) -> float:
    """False position (Illinois) over the share of tokens below the threshold at the first cut, of
    which the logarithm of the saving is a smooth function; see ``Validator.calibrate``.
    """
    own = [model.keep_logit(0, start.hidden).float().cpu().numpy().ravel() for _, start in starts]
    logits = np.sort(np.concatenate(processes.gather(own)))
    # Below and above all of them, too: later cuts have logits of their own.
    values = [logits[0] - 1.0, *logits, logits[-1] + 1.0]
    shares = [-_BEYOND, *np.linspace(0.0, 1.0, len(logits)), 1.0 + _BEYOND]

    def gap(share: float) -> float:
        """How far the saving is from the wanted one, where this share is below the threshold."""
        threshold = float(np.interp(share, shares, values))
        set_threshold(model, 1.0 / (1.0 + math.exp(-threshold)))
        return math.log(_speedup_of(model, starts) / target_speedup)

    progress("threshold", 0, CALIBRATION_STEPS)
    low, below = -_BEYOND, -math.log(target_speedup) - tolerance  # what saves nothing saves least
    high, above = 1.0 + _BEYOND, gap(1.0 + _BEYOND)
    found = above
    for step in range(1, CALIBRATION_STEPS):
        if abs(found) < tolerance or above <= 0:
            break
        progress("threshold", step, CALIBRATION_STEPS)
        share = (low * above - high * below) / (above - below)
        earlier, found = found, gap(share)
        if found < 0:
            low, below = share, found
            above /= 2 if earlier < 0 else 1  # the other end moves, too
        else:
            high, above = share, found
            below /= 2 if earlier > 0 and step > 1 else 1
    progress("threshold", CALIBRATION_STEPS, CALIBRATION_STEPS)
    return target_speedup * math.exp(found)


def _speedup_of(model: ReducedModel, starts: Sequence[Start]) -> float:
    """FLOPs speed-up by the model's rules; the last segment need not run for it."""
    lengths: list[list[int]] = []
    for batch, start in starts:
        walk = select_at_cuts(model, start, choose_by_rule(model))
        lengths += row_lengths(batch, [torch.from_numpy(left.layout.lengths) for left in walk])
    return speedup(model.spec, model.reduction, processes.gather(lengths))


def set_threshold(model: ReducedModel, threshold: float) -> None:
    """Let every cut keep tokens from this keep probability on."""
    model.set_reduction(model.reduction.at_threshold(threshold))


def _point(
    model: ReducedModel, quality: Quality, lengths: list[list[int]], rule: ExitRule | None
) -> ValidatedPoint:
    totals = [sum(column) for column in zip(*lengths, strict=True)]
    rules = [cut.rule for cut in model.reduction.cuts]
    return ValidatedPoint(
        threshold=rules[0].value if rules else 0.0,
        score=quality.score,
        divergence=quality.divergence,
        kept=tuple(left / totals[0] for left in totals[1:]),
        flops_speedup=speedup(model.spec, model.reduction, lengths),
        left=left_shares(lengths) if model.exits else (),
        exit_confidence=None if rule is None else rule.confidence,
    )

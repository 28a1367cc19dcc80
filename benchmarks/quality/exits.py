"""What exits, dropped tokens and both save at the same quality.

    python benchmarks/quality/exits.py --teacher TEACHER --validation FILE --test FILE \\
        exits=CKPT without=OTHER_CKPT ...

Of every checkpoint all pairs of threshold and confidence are looked at on the validation texts. For
each of --drop points under the teacher the fastest pair is taken that loses no more there: of those
where every text reaches the end (tokens), of those where no token is dropped (exits), and of all
(both). With --changed, as in training, no more answers of a hundred may be others than those at the
end. What it comes to on the test texts, which nothing was chosen by, is the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from setting import Setting, set_up_torch, teacher_in, teacher_score

from trbert_deploy import console
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.evaluation.metrics import paired_change
from trbert_deploy.files import write_json
from trbert_deploy.flops import REACHED
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training.data import targets_of
from trbert_deploy.training.validation import (
    PassedRows,
    ValidatedPoint,
    Validator,
    set_threshold,
)

#: About these many times fewer FLOPs, by the tokens alone.
SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
#: Texts by which the thresholds for them are found.
FEW = 100
#: Confidences that are looked at, in equal steps of how many answers are surer.
CONFIDENCES = 40
BATCH_TOKENS = 4096
TOKENS, EXITS, BOTH = KINDS = ("tokens", "exits", "both")


@dataclass(frozen=True)
class Pair:
    """An operating point, and what it comes to on the validation texts.

    Attributes:
        confidence: from which texts leave; None where all reach the end.
        changed: answers, of a hundred, that are others than those at the end.
    """

    threshold: float
    confidence: float | None
    point: ValidatedPoint
    changed: float

    def is_of(self, kind: str) -> bool:
        """Whether it saves by no more than ``kind``."""
        if kind == TOKENS:
            return self.confidence is None
        return kind == BOTH or self.threshold == 0.0

    @property
    def rule(self) -> ExitRule:
        return ExitRule(self.confidence)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        kind: what saves.
        drop: points that it may lose on the validation texts.
        chosen: the pair.
        test: what that comes to on the test texts.
        change: there, in points under or over the teacher.
        interval: its 95 % interval, by paired bootstrap over the texts.
    """

    checkpoint: str
    kind: str
    drop: float
    chosen: Pair
    test: ValidatedPoint
    change: float
    interval: tuple[float, float]


def pairs_of(
    model: ReducedModel, validator: Validator, speedups: Sequence[float]
) -> Iterator[Pair]:
    """All pairs, on the validation texts: thresholds for about each of ``speedups``, and 0."""
    thresholds = [0.0]
    few = replace(validator, rows=validator.rows[:FEW])  # where exactly does not matter
    for wanted in sorted(speedups):
        if few.calibrate(model, wanted) < wanted * REACHED:
            break
        thresholds.append(model.reduction.cuts[0].rule.value)
    for threshold in thresholds:
        set_threshold(model, threshold)
        passed = validator.passed(model)
        for confidence in (None, *passed.confidences(CONFIDENCES, validator.task)):
            rule = ExitRule(confidence)
            point = validator.left_by(model, passed, rule)
            answers, _ = passed.left_by(rule, validator.task)
            changed = 100.0 * float(passed.changed(answers, validator.task).mean())
            yield Pair(threshold, confidence, point, changed)


def fastest(pairs: Sequence[Pair], kind: str, least: float, changed: float) -> Pair | None:
    """The pair of a kind that saves most of those whose score is at least ``least``, and that
    change no more answers of a hundred than ``changed``.
    """
    within = [
        pair
        for pair in pairs
        if pair.is_of(kind) and pair.point.score >= least and pair.changed <= changed
    ]
    return max(within, key=lambda pair: pair.point.flops_speedup, default=None)


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, metavar="NAME=CHECKPOINT...")
@click.option("--teacher", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--validation", required=True, metavar="FILE", help="Texts to choose by.")
@click.option("--test", required=True, metavar="FILE", help="Texts to report.")
@click.option("--drop", "drops", multiple=True, type=float, default=(0.5, 1.0), show_default=True)
@click.option("--changed", default=100.0, help="Most answers to change, of a hundred.")
@click.option(
    "--speedup",
    "speedups",
    multiple=True,
    type=float,
    default=SPEEDUPS,
    show_default=True,
    help="Thresholds to look at: about so many times fewer FLOPs, by the tokens alone.",
)
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(
    checkpoints: tuple[str, ...],
    teacher: Path,
    validation: str,
    test: str,
    drops: tuple[float, ...],
    changed: float,
    speedups: tuple[float, ...],
    max_length: int | None,
    threads: int | None,
    json_path: Path | None,
) -> None:
    set_up_torch(threads)
    try:
        rows = compare(checkpoints, teacher, validation, test, drops, changed, speedups, max_length)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    print(
        "| checkpoint | saved by | allowed | threshold, confidence | left at the cuts "
        "| change, points | 95 % | times fewer FLOPs |"
    )
    print("| --- | --- | ---: | --- | --- | ---: | --- | ---: |")
    for row in rows:
        sure = "-" if row.chosen.confidence is None else f"{row.chosen.confidence:g}"
        left = ", ".join(f"{share:.0%}" for share in row.test.left) or "-"
        low, high = row.interval
        print(
            f"| {row.checkpoint} | {row.kind} | {row.drop:g} | {row.chosen.threshold:.3f}, {sure} "
            f"| {left} | {row.change:+.2f} | [{low:+.2f}, {high:+.2f}] "
            f"| {row.test.flops_speedup:.2f} |"
        )
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in rows])


def compare(
    checkpoints: Sequence[str],
    teacher: Path,
    validation: str,
    test: str,
    drops: Sequence[float],
    changed: float,
    speedups: Sequence[float],
    max_length: int | None,
) -> list[Row]:
    """The lines of the table.

    Raises:
        ConfigError: a checkpoint has no name, or no cuts.
    """
    setting = Setting(teacher_in(teacher), validation, validation, max_length=max_length)
    chosen_by, told_by = (
        setting.answered_validator(texts, BATCH_TOKENS)
        for texts in (setting.validation_rows, setting.read(test))
    )
    task, targets = setting.task, targets_of(setting.task, told_by.rows)
    wanted, known = (100.0 * teacher_score(each) for each in (chosen_by, told_by))
    assert told_by.teacher is not None
    dense = task.statistics(told_by.teacher, targets)
    console.notes.print(f"teacher: {wanted:.2f} on the validation texts, {known:.2f} on the others")
    rows = []
    for named in checkpoints:
        name, _, path = named.partition("=")
        if not path:
            raise ConfigError(f"{named} has no name: expected NAME=CHECKPOINT")
        model = load_checkpoint(Path(path)).model
        if not model.reduction.cuts:
            raise ConfigError(f"{path} has no cuts: expected a reduced checkpoint")
        with console.progress(transient=True) as progress:
            pairs = list(pairs_of(model, replace(chosen_by, progress=progress), speedups))
            passed: dict[float, PassedRows] = {}  # threshold -> the test texts
            for drop in drops:
                for kind in KINDS if model.exits else (TOKENS,):
                    pair = fastest(pairs, kind, (wanted - drop) / 100.0, changed)
                    if pair is None:
                        console.notes.print(f"{name}, {kind}: every pair loses more than {drop:g}")
                        continue
                    set_threshold(model, pair.threshold)
                    judge = replace(told_by, progress=progress)
                    if pair.threshold not in passed:
                        passed[pair.threshold] = judge.passed(model)
                    here = passed[pair.threshold]
                    found = judge.left_by(model, here, pair.rule)
                    answers, _ = here.left_by(pair.rule, task)
                    change = paired_change(task.measured, dense, task.statistics(answers, targets))
                    low, high = (100.0 * end for end in change.interval)
                    points = 100.0 * change.value
                    rows.append(Row(name, kind, drop, pair, found, points, (low, high)))
    return rows


if __name__ == "__main__":
    main()

"""How the confidence of exits is best chosen on held-out texts: what each rule comes to on others.

    python benchmarks/quality/exit_rules.py CKPT --data FILE --data MORE --max-length 256

All labelled texts pass the chain once, at the threshold for --speedup by dropped tokens alone. Then
they are divided at random, --splits times: so many (--held-out) choose the confidence by each rule,
and the others tell what texts lose that leave by it, against the end of the same chain, and what
they save against the dense model. From the highest confidence down, the first one that a rule does
not allow ends its search. Rules, POINTS of them allowed:

    loss     points of the task's measure
    error    the same and its standard error
    differ   answers, of a hundred, that are not the end's
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from setting import Setting, set_up_torch

from trbert_deploy import console
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training.data import targets_of
from trbert_deploy.training.validation import Validator

BATCH_TOKENS = 4096
CONFIDENCES = 100
RULES = ("loss", "error", "differ")


@dataclass(frozen=True)
class Leaving:
    """What the texts come to that leave at a confidence, row by row.

    Attributes:
        confidence: 1 where none leaves.
        statistics: [N, K] of the task's measure.
        other: [N] bool, the answer is not the end's.
        flops: [N] float64.
    """

    confidence: float
    statistics: NDArray[np.float64]
    other: NDArray[np.bool_]
    flops: NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """All texts, passed through a chain.

    Attributes:
        measured: statistics [M, K] -> the task's measure, from 0 to 1.
        end: where all reach it.
        leaving: at each confidence, from the highest down.
        dense: [N] float64, FLOPs of the dense model.
    """

    measured: Callable[[NDArray[np.float64]], float]
    end: Leaving
    leaving: Sequence[Leaving]
    dense: NDArray[np.float64]

    def loss(self, leaving: Leaving, which: NDArray[np.int64]) -> float:
        """Points of the measure that leaving costs some texts."""
        scores = [self.measured(each.statistics[which]) for each in (self.end, leaving)]
        return 100.0 * (scores[0] - scores[1])

    def speedup(self, leaving: Leaving, which: NDArray[np.int64]) -> float:
        """FLOPs of the dense model over the chain's, of some texts."""
        return float(self.dense[which].sum() / leaving.flops[which].sum())

    def costs(self, rule: str, leaving: Leaving, which: NDArray[np.int64]) -> float:
        """What a rule counts of some texts, in points."""
        if rule == "differ":
            return 100.0 * float(leaving.other[which].mean())
        loss = self.loss(leaving, which)
        if rule == "error":  # one text more than differ: of none the error would be none
            changed = (leaving.statistics != self.end.statistics).any(1)[which]
            loss += 100.0 * float(np.sqrt((changed.sum() + 1) / len(which) ** 2))
        return loss

    def chosen(self, rule: str, points: float, which: NDArray[np.int64]) -> Leaving:
        """The lowest confidence that a rule allows on some texts."""
        found = self.end
        for leaving in self.leaving:
            if self.costs(rule, leaving, which) > points:
                break
            found = leaving
        return found


@dataclass(frozen=True)
class Row:
    """A line of the table: what a rule comes to on texts that nothing was chosen by.

    Attributes:
        held_out: texts that chose.
        loss, most_loss: points, the mean and the 90th percentile over the splits.
        flops_speedup: the mean.
    """

    rule: str
    points: float
    held_out: int
    loss: float
    most_loss: float
    flops_speedup: float


def pass_texts(model: ReducedModel, validator: Validator) -> Texts:
    """Run all texts through a chain, at its threshold."""
    passed, task = validator.passed(model), validator.task
    targets = targets_of(task, validator.rows)

    def leaving(confidence: float) -> Leaving:
        outputs, lengths = passed.left_by(ExitRule(confidence), task)
        return Leaving(
            confidence,
            task.statistics(outputs, targets),
            passed.changed(outputs, task),
            reduced_flops(model.spec, model.reduction, np.array(lengths).T).astype(np.float64),
        )

    confidences = reversed(passed.confidences(CONFIDENCES, task))
    whole = np.array([len(row) for row in validator.rows])
    dense = dense_flops(model.spec, whole).astype(np.float64)
    return Texts(task.measured, leaving(1.0), [leaving(each) for each in confidences], dense)


def compare(
    texts: Texts,
    rules: Sequence[tuple[str, float]],
    counts: Sequence[int],
    splits: int,
) -> Iterator[Row]:
    """The lines of the table: all rules see the same splits."""
    total = len(texts.dense)
    for count in counts:
        generator = np.random.default_rng(0)
        orders = [generator.permutation(total) for _ in range(splits)]
        for rule, points in rules:
            losses, speedups = [], []
            for order in orders:
                leaving = texts.chosen(rule, points, order[:count])
                losses.append(texts.loss(leaving, order[count:]))
                speedups.append(texts.speedup(leaving, order[count:]))
            most = float(np.quantile(losses, 0.9))
            yield Row(rule, points, count, float(np.mean(losses)), most, float(np.mean(speedups)))


def named_rule(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    """RULE=POINTS each."""
    return tuple(_rule(value) for value in values)


def _rule(value: str) -> tuple[str, float]:
    name, _, points = value.partition("=")
    try:
        found = float(points)
    except ValueError:
        found = -1.0
    if name not in RULES or not found >= 0.0:
        raise click.BadParameter(f"{value!r}: expected one of {', '.join(RULES)} with its points")
    return name, found


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--data", "sources", required=True, multiple=True, metavar="FILE", help="Texts.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--speedup", default=3.0, show_default=True, help="Times fewer FLOPs, by tokens.")
@click.option("--held-out", multiple=True, type=int, default=(200, 500, 1000), show_default=True)
@click.option("--splits", default=150, show_default=True)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    default=("loss=0.3", "error=0.3", "error=0.5", "differ=0.3", "differ=0.5", "differ=1"),
    show_default=True,
    callback=named_rule,
    metavar="RULE=POINTS",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(
    checkpoint: Path,
    sources: tuple[str, ...],
    max_length: int | None,
    speedup: float,
    held_out: tuple[int, ...],
    splits: int,
    rules: tuple[tuple[str, float], ...],
    threads: int | None,
    json_path: Path | None,
) -> None:
    set_up_torch(threads)
    try:
        model = load_checkpoint(checkpoint).model
        if not model.exits:
            raise ConfigError(f"{checkpoint} has no exits: expected one whose texts can leave")
        setting = Setting(str(checkpoint), sources[0], sources[0], max_length=max_length)
        rows = [row for source in sources for row in setting.read(source)]
        if max(held_out) >= len(rows):
            raise ConfigError(f"there are {len(rows)} texts: expected more than --held-out takes")
        with console.progress(transient=True) as progress:
            validator = setting.validator(rows, BATCH_TOKENS, progress)
            reached = validator.calibrate(model, speedup)
            texts = pass_texts(model, validator)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    everyone = np.arange(len(rows))
    print(f"{len(rows)} texts, {reached:.2f} times fewer FLOPs by dropped tokens\n")
    print("| confidence | loss, points | other answers | times fewer FLOPs |")
    print("| ---: | ---: | ---: | ---: |")
    for each in texts.leaving[:: max(1, len(texts.leaving) // 15)]:
        print(
            f"| {each.confidence:.3f} | {texts.loss(each, everyone):.2f} "
            f"| {each.other.mean():.2%} | {texts.speedup(each, everyone):.2f} |"
        )
    print("\n| held-out texts | rule | points | loss, mean | 90 % below | times fewer FLOPs |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    table = []
    for row in compare(texts, rules, held_out, splits):
        print(
            f"| {row.held_out} | {row.rule} | {row.points:g} | {row.loss:.2f} "
            f"| {row.most_loss:.2f} | {row.flops_speedup:.2f} |",
            flush=True,
        )
        table.append(row)
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in table])


if __name__ == "__main__":
    main()

"""What windows in the attention of layer 0 would change: tokens see their block and two more.

    python benchmarks/quality/windows.py MODEL --data FILE --max-length 512 --longer-than 400 \\
        --windows 32,64,128
    python benchmarks/quality/windows.py MODEL ... --train FILE --learn 400

MODEL is a reduced checkpoint, whose chain is judged, or with --dense a fine-tuned model or the
teacher of a run. A block sees itself and its two neighbours; [CLS] and the first tokens see all,
and all see them. Nothing is trained for it; with --learn the model then learns its own answers
without windows again, once over so many texts. Every row is compared with the model without
windows on the same texts. How fast such attention is, benchmarks/attention_cost.py tells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from distilling import BATCH_TOKENS, distill_once
from setting import Setting, set_up_torch, teacher_in
from torch import Tensor, nn

from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.numbers import Wholes
from trbert_deploy.errors import ConfigError, DataError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import choose_by_rule, first_segment, later_segments, walk_on
from trbert_deploy.tasks.task import mean_agreement
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow, targets_of
from trbert_deploy.training.row_outputs import RowAnswer, RowOutputs, row_answers

LEARNING_RATE = 3e-5


def seen_in_windows(positions: Tensor, width: int, first: int, last: bool = False) -> Tensor:
    """Who sees whom: positions [B, S] of whole rows -> [B, S, S] bool.

    Args:
        width: tokens of a block. It sees three blocks, its own among them: those beside it, at the
            ends of the row the outermost three.
        first: tokens at the beginning that see all, and that all see.
        last: whether the last one does so, too.
    """
    block = positions // width
    middle = block.clamp(min=1).minimum(block.amax(1, keepdim=True) - 1)
    near = (middle[:, :, None] - block[:, None, :]).abs() <= 1
    leads = positions < first
    if last:
        leads = leads | (positions == positions.amax(1, keepdim=True))
    return near | leads[:, :, None] | leads[:, None, :]


class WindowedAttention(Attention):
    """Self-attention within windows, by a mask: as slow as without."""

    width: int
    first: int
    last: bool

    @classmethod
    def of(
        cls, attention: nn.Module, width: int, first: int, last: bool = False
    ) -> WindowedAttention:
        """The same attention, with windows.

        Raises:
            ConfigError: it has positions of its own to add.
        """
        if type(attention) is not Attention:
            raise ConfigError(
                f"attention of this family is {type(attention).__name__}: expected BERT's"
            )
        windowed = deepcopy(attention)
        windowed.__class__ = cls
        assert isinstance(windowed, cls)
        windowed.width, windowed.first, windowed.last = width, first, last
        return windowed

    def score_bias(self, query: Tensor, key: Tensor, relative: nn.Module | None) -> ScoreBias:
        return ScoreBias(self._seen)

    def _seen(self, group: RowGroup) -> Tensor:
        return seen_in_windows(group.positions, self.width, self.first, self.last)[:, None]


def with_windows(model: ReducedModel, width: int, first: int, last: bool) -> ReducedModel:
    """A copy of a model whose layer 0 attends within windows."""
    changed = deepcopy(model)
    layer = changed.encoder.layers[0]
    layer.attention = WindowedAttention.of(layer.attention, width, first, last)
    return changed


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        width: tokens of a block; None without windows.
        learned: whether the model has learned it.
        score: by the labels.
        agreement, divergence: with and from the model without windows.
        kept: tokens behind the first cut, as a share; 1 of a dense model.
    """

    width: int | None
    learned: bool
    score: float
    agreement: float
    divergence: float
    kept: float


def answers_of(
    model: ReducedModel, rows: Sequence[TrainingRow], setting: Setting
) -> tuple[RowOutputs, float]:
    """The chain's answers at its own rules, and the share of tokens behind its first cut."""
    found: list[RowAnswer] = []
    left = whole = 0
    plan = plan_batches([len(row) for row in rows], BATCH_TOKENS)
    with evaluating(model), autocast(setting.device):
        for batch in load_batches(rows, plan, setting.device):
            walked = walk_on(model, first_segment(model, batch), choose_by_rule(model))
            found += row_answers(setting.task, walked.answer(model), batch)
            whole += int(batch.layout.lengths.sum())
            left += int((walked.layouts or [batch.layout])[0].lengths.sum())
    return RowOutputs.gathered(found), left / whole


def learn(
    model: ReducedModel, rows: Sequence[TrainingRow], told: RowOutputs, setting: Setting
) -> None:
    """Distill answers into a model, once over the rows."""

    def losses_of(batch: PackedBatch) -> Tensor:
        outputs, _kept = later_segments(model, first_segment(model, batch), choose_by_rule(model))
        teacher = told.of_batch(setting.task, batch.rows, batch.layout)
        return model.head.loss(outputs, batch.targets, teacher)

    body = [*model.encoder.parameters(), *model.head.parameters()]
    distill_once(model, body, losses_of, rows, learning_rate=LEARNING_RATE, device=setting.device)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--dense", is_flag=True, help="Judge the dense model, not a chain.")
@click.option("--data", required=True, metavar="FILE", help="Labelled texts.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--longer-than", default=0, help="Leave shorter texts out.")
@click.option("--most", default=400, show_default=True, help="So many of them at most.")
@click.option("--windows", type=Wholes(MOST_TOKENS), default="64,128,256", show_default=True)
@click.option("--first", default=4, show_default=True, help="First tokens that see all.")
@click.option("--last", is_flag=True, help="So does the last token.")
@click.option("--train", metavar="FILE", help="Texts to learn from.")
@click.option("--learn", "learned", default=0, help="How many of them; those long enough.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(
    model: Path,
    dense: bool,
    data: str,
    max_length: int | None,
    longer_than: int,
    most: int,
    windows: tuple[int, ...],
    first: int,
    last: bool,
    train: str | None,
    learned: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    set_up_torch(threads)
    try:
        setting = Setting(teacher_in(model), train or data, data, max_length=max_length)
        rows = long_rows(setting.validation_rows, longer_than, most)
        lessons = long_rows(setting.training_rows, longer_than, learned) if learned else []
        judged = setting.load_teacher("") if dense else load_checkpoint(model).model
        table = compare(judged, rows, setting, windows, first, last, lessons)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    tokens = sum(map(len, rows)) / len(rows)
    print(f"{len(rows)} texts, {tokens:.0f} tokens on average\n")
    print("| block | learned | right | same answer | divergence | left behind the first cut |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for row in table:
        print(
            f"| {row.width or '-'} | {'yes' if row.learned else 'no'} | {row.score:.2%} "
            f"| {row.agreement:.2%} | {row.divergence:.5f} | {row.kept:.1%} |"
        )
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in table])


def long_rows(rows: Sequence[TrainingRow], longer_than: int, most: int) -> list[TrainingRow]:
    """The first rows that are longer.

    Raises:
        DataError: there are none.
    """
    found = [row for row in rows if len(row) > longer_than][:most]
    if not found:
        raise DataError(f"no text is longer than {longer_than} tokens: expected some that are")
    return found


def compare(
    model: ReducedModel,
    rows: Sequence[TrainingRow],
    setting: Setting,
    windows: Sequence[int],
    first: int,
    last: bool,
    lessons: Sequence[TrainingRow],
) -> list[Row]:
    """The lines of the table: without windows, and with each, before it learns and behind."""
    task = setting.task
    expected, kept = answers_of(model, rows, setting)
    told = answers_of(model, lessons, setting)[0] if lessons else RowOutputs(())
    targets = targets_of(task, rows)

    def row(found: RowOutputs, width: int | None, learned: bool, kept: float) -> Row:
        pairs = list(zip(expected, found, strict=True))
        divergence = sum(float(task.divergence(*pair)) for pair in pairs) / len(pairs)
        score = task.measured(task.statistics(found, targets))
        agreement = mean_agreement(task, expected, found)
        return Row(width, learned, score, agreement, divergence, kept)

    table = [row(expected, None, False, kept)]
    for width in windows:
        changed = with_windows(model, width, first, last)
        found, kept = answers_of(changed, rows, setting)
        table.append(row(found, width, False, kept))
        if lessons:
            learn(changed, lessons, told, setting)
            found, kept = answers_of(changed, rows, setting)
            table.append(row(found, width, True, kept))
    return table


if __name__ == "__main__":
    main()

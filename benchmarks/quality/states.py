"""Whether the teacher's states at the cuts teach more than its answers alone.

    python benchmarks/quality/states.py RUN/stages/joint --teacher RUN --train FILE \\
        --validation FILE --test FILE --max-length 256 --wanted 5 --weights 0,0.3,1

The chain of a checkpoint, with rules that save --wanted times the FLOPs, learns the teacher's
answers once from the training texts, and with each weight but 0 also the states that tokens have in
the teacher: at every cut those that it leaves, and the last ones at the end. What a state is off by
is the squared difference over the teacher's own square; the mean is taken over a row's tokens, then
over these places.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import torch
from distilling import BATCH_TOKENS, distill_once
from number_lists import numbers
from setting import Setting, set_up_torch, teacher_in, teacher_score
from torch import Tensor

from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import TokenState, begin, choose_by_rule, first_segment, walk_on
from trbert_deploy.training.batches import PackedBatch
from trbert_deploy.training.validation import ValidatedPoint

LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        weight: of the states beside the answers; None before the chain learns.
        validation, test: what the chain comes to.
    """

    weight: float | None
    validation: ValidatedPoint
    test: ValidatedPoint


@torch.no_grad()
def teacher_walk(
    teacher: ReducedModel, batch: PackedBatch, stops: Sequence[int]
) -> tuple[list[Tensor], Outputs]:
    """The dense teacher's states [T, H] behind each of ``stops``, and its answers."""
    tokens, states = begin(teacher, batch), []
    for start, stop in pairwise([0, *stops]):
        tokens = tokens.run(teacher, start, stop)
        states.append(tokens.hidden)
    return states, tokens.answer(teacher)


def chain_walk(model: ReducedModel, batch: PackedBatch) -> tuple[list[TokenState], Outputs]:
    """What every cut leaves, and the last states; and the answers. Cuts choose by their rules."""
    by_rule, left = choose_by_rule(model), list[TokenState]()

    def choose(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
        keep = by_rule(index, logit, tokens)
        left.append(tokens.compact(keep))
        return keep

    walked = walk_on(model, first_segment(model, batch), choose)
    return [*left, walked.tokens], walked.answer(model)


def state_error(left: Sequence[TokenState], wanted: Sequence[Tensor]) -> Tensor:
    """How far states are from the teacher's of the same tokens: [B], 0 where they are the same.

    Args:
        left: of the chain, behind every segment.
        wanted: the teacher's states of all tokens there, [T, H] each.
    """
    errors = []
    for tokens, all_states in zip(left, wanted, strict=True):
        states = all_states[tokens.token].float()
        error = (tokens.hidden.float() - states).square().sum(-1) / states.square().sum(-1)
        errors.append(tokens.layout.mean(error[:, None]).squeeze(-1))
    return torch.stack(errors).mean(0)


def learn(
    model: ReducedModel, teacher: ReducedModel, setting: Setting, weight: float, texts: int | None
) -> None:
    """Distill the teacher into encoder and head, once over the texts, on what the cuts leave."""
    stops = [segment.stop for segment in model.segments]  # half layers
    teacher.eval()

    def losses_of(batch: PackedBatch) -> Tensor:
        states, told = teacher_walk(teacher, batch, stops)
        left, outputs = chain_walk(model, batch)
        losses = model.head.loss(outputs, batch.targets, told)
        return losses + weight * state_error(left, states) if weight else losses

    body = [*model.encoder.parameters(), *model.head.parameters()]
    rows = setting.training_rows[:texts]
    distill_once(model, body, losses_of, rows, learning_rate=LEARNING_RATE, device=setting.device)


weights = numbers("numbers from 0 on, such as 0,0.3,1", lambda weight: weight >= 0)


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--teacher", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--train", required=True, metavar="FILE", help="Texts to learn from.")
@click.option("--validation", required=True, metavar="FILE", help="Texts that set the rules.")
@click.option("--test", required=True, metavar="FILE", help="Texts to report.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--texts", type=click.IntRange(min=1), help="Learn from the first so many.")
@click.option("--wanted", default=5.0, show_default=True, help="Times fewer FLOPs.")
@click.option("--weights", default="0,0.3,1", show_default=True, callback=weights)
@click.option("--output", type=click.Path(path_type=Path), help="Keep the chains here.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(
    checkpoint: Path,
    teacher: Path,
    train: str,
    validation: str,
    test: str,
    max_length: int | None,
    texts: int | None,
    wanted: float,
    weights: tuple[float, ...],
    output: Path | None,
    threads: int | None,
    json_path: Path | None,
) -> None:
    set_up_torch(threads)
    try:
        setting = Setting(teacher_in(teacher), train, validation, max_length=max_length)
        start = load_checkpoint(checkpoint)
        if not start.model.reduction.cuts:
            raise ConfigError(f"{checkpoint} has no cuts: expected one that drops tokens")
        dense = setting.load_teacher("")
        validators = [
            setting.answered_validator(setting.read(each), BATCH_TOKENS)
            for each in (validation, test)
        ]
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    told = [f"{teacher_score(each):.2%} of {len(each.rows)}" for each in validators]
    print(f"teacher: {told[0]} validation texts, {told[1]} test texts\n")
    print("| weight | validation: right | divergence | FLOPs | test: right | divergence | FLOPs |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    table = []
    for weight in (None, *weights):
        student = deepcopy(start.model)
        validators[0].calibrate(student, wanted)
        if weight is not None:
            learn(student, dense, setting, weight, texts)
            validators[0].calibrate(student, wanted)
        row = Row(weight, *(each.chain(student) for each in validators))
        cells = [
            f"{point.score:.2%} | {point.divergence:.4f} | {point.flops_speedup:.2f}x less"
            for point in (row.validation, row.test)
        ]
        name = "before" if weight is None else f"{weight:g}"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        table.append(row)
        if output is not None and weight is not None:
            save_checkpoint(replace(start, model=student), output / f"weight-{weight:g}")
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in table])


if __name__ == "__main__":
    main()

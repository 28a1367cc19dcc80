"""How early can tokens be answered? A guide to where a model that answers every token is cut.

    python benchmarks/quality/early_answers.py --teacher TEACHER --train FILE --validation FILE

At each place a linear map from the states there to last ones is fitted on training texts (as that
of tokens which a cut drops is), and validation tokens are answered by it. The table says how many
of these answers are the teacher's own, and how many are not among the surest 30, 50, 70 and 80 % of
all tokens, which a good policy would drop there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
import torch
from setting import Setting, set_up_torch
from torch import Tensor

from trbert_deploy import console
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import begin
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import evaluating
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.stages.regression import Regression

SHARES = (0.3, 0.5, 0.7, 0.8)
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Place:
    """What tokens say at one place.

    Attributes:
        cut: it, in layers.
        agreement: share of the tokens whose answer is the teacher's.
        wrong: for each of ``SHARES`` how many answers of the surest tokens are not.
    """

    cut: float
    agreement: float
    wrong: tuple[int, ...]


def early_answers(
    model: ReducedModel,
    training: Sequence[TrainingRow],
    validation: Sequence[TrainingRow],
    device: torch.device,
    progress: Progress = no_progress,
) -> list[Place]:
    """What tokens say at each cut of a model.

    Raises:
        ConfigError: it does not answer each token.
    """
    if not model.spec.answers_tokens:
        raise ConfigError(f"the teacher is for {model.spec.task}: expected one that answers tokens")
    cuts = model.reduction.cuts
    regressions = [Regression(model.spec.hidden_size, device) for _ in cuts]
    with evaluating(model):
        for states, last, _ in _states(model, training, device, "fit", progress):
            for regression, each in zip(regressions, states, strict=True):
                regression.add(each, last)
        for index, regression in enumerate(regressions):
            both = torch.from_numpy(regression.solved())
            model.projection(index).fit(both[:, :-1], both[:, -1])
        early: list[list[Tensor]] = [[] for _ in cuts]
        final, asked = [], []
        for states, last, batch in _states(model, validation, device, "answer", progress):
            final.append(model.tokens_head().each(last)[LOGITS].argmax(-1))
            targets = [torch.from_numpy(validation[row].target) for row in batch.rows.tolist()]
            asked.append(torch.cat(targets).to(device) != NO_TOKEN)
            for index, each in enumerate(states):
                early[index].append(model.each_dropped(index, each)[LOGITS].softmax(-1))
    answers, which = torch.cat(final), torch.cat(asked)
    places = []
    for cut, parts in zip(cuts, early, strict=True):
        sure, found = torch.cat(parts)[which].max(-1)
        wrong = (found != answers[which])[sure.argsort(descending=True)]
        counts = tuple(int(wrong[: int(share * len(wrong))].sum()) for share in SHARES)
        places.append(Place(cut.position, 1.0 - float(wrong.float().mean()), counts))
    return places


def _states(
    model: ReducedModel,
    rows: Sequence[TrainingRow],
    device: torch.device,
    what: str,
    progress: Progress,
) -> Iterator[tuple[list[Tensor], Tensor, PackedBatch]]:
    """States [T, H] at every cut, and last ones, batch by batch."""
    plan = plan_batches([len(row) for row in rows], BATCH_TOKENS)
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        tokens, done, states = begin(model, batch), 0, []
        for cut in model.reduction.cuts:
            tokens, done = tokens.run(model, done, cut.step), cut.step
            states.append(tokens.hidden)
        yield states, tokens.run(model, done, model.spec.num_steps).hidden, batch
        progress(what, number, len(plan))


@click.command(help=__doc__)
@click.option("--teacher", required=True, type=click.Path(exists=True))
@click.option("--train", required=True, metavar="FILE", help="Texts to fit the maps by.")
@click.option("--validation", required=True, metavar="FILE", help="Texts to answer.")
@click.option("--texts", default=400, show_default=True, help="Random training texts.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--places", default="0.5,1,1.5,2,2.5,3,4", show_default=True, metavar="CUTS")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
def main(
    teacher: str,
    train: str,
    validation: str,
    texts: int,
    max_length: int | None,
    places: str,
    threads: int | None,
) -> None:
    set_up_torch(threads)
    try:
        setting = Setting(teacher, train, validation, texts, max_length)
        model = setting.load_teacher("")
        model.set_reduction(ReductionConfig.parse(places))
        rows = setting.training_rows, setting.validation_rows
        with console.progress() as progress:
            found = early_answers(model, *rows, setting.device, progress)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    shares = "".join(f"{share:>8.0%}" for share in SHARES)
    console.out.print(f"at layer  as the teacher  wrong of the surest{shares}", soft_wrap=True)
    for place in found:
        wrong = "".join(f"{count:>8}" for count in place.wrong)
        told = f"{place.cut:>8g}  {place.agreement:>14.2%}  {'':19}{wrong}"
        console.out.print(told, soft_wrap=True)


if __name__ == "__main__":
    main()

"""What a cut before layer 0 would save, if its scorer sees the words around a token.

    python benchmarks/quality/early_cut.py RUN --train FILE --validation FILE --test FILE \\
        --max-length 256 --wanted 4.5 --learn 2000

RUN has a first cut inside layer 0, so attention of that layer reads every token. Scorers that read
embeddings alone learn which tokens that cut keeps, and which are salient to the teacher; the first
table tells how well they do on training texts that they did not learn from. Then they drop a share
of the tokens before layer 0, and the chain goes on by its own rules (second table), and by rules
under which some (--by) save as much as none (--wanted; third table). With --learn the chains with
these cuts and the one without learn once more from so many training texts, all else being equal
(last table).

With --seen dropped tokens ask nothing, but those that are left see them in layer 0: it computes
keys and values of all tokens, and all else of what is left. What is left then has the states that
it would have without the cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from distilling import BATCH_TOKENS, distill_once
from number_lists import numbers
from numpy.typing import NDArray
from setting import Setting, set_up_torch, teacher_in, teacher_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import (
    TokenState,
    begin,
    choose_by_rule,
    first_segment,
    later_segments,
    row_lengths,
    select_at_cuts,
)
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.row_outputs import RowAnswer, RowOutputs, row_answers
from trbert_deploy.training.stages.guide import Guide
from trbert_deploy.training.stages.stage import rank_shares
from trbert_deploy.training.validation import PassedRows, Validator, set_threshold

CPU = torch.device("cpu")
#: Training texts behind those that scorers learn from: they judge scorers and set their thresholds.
HELD_OUT = 400
#: Texts by which the rules of later cuts are set.
CALIBRATED_BY = 150
CALIBRATION_STEPS = 12
CALIBRATION_TOLERANCE = 0.01
#: What counts as salient: so large a part of a row.
SALIENT = 0.25
SCORER_RATE = 3e-3
#: What no scorer of embeddings can be better than: it has seen what it is to save.
BEST = "the cut at 0.5 itself"
HARD_RATE = 5e-5

#: (batch, its embeddings) -> what tokens are ranked by [T].
Score = Callable[[PackedBatch, TokenState], Tensor]


class Scorer(nn.Module):
    """Scores tokens by their embeddings, place and rarity, and by those of their neighbours.

    Args:
        reach: neighbours to each side.
        whole: whether it is told the mean over the row, too.
        rarity: [V] float32, of every token of the vocabulary.
    """

    WIDTH = 64

    def __init__(self, hidden_size: int, rarity: Tensor, reach: int, whole: bool = False) -> None:
        super().__init__()
        self.register_buffer("rarity", rarity)
        self.reach, self.whole = reach, whole
        self.own = nn.Linear(hidden_size + 2, self.WIDTH)
        self.around = nn.Conv1d(
            self.WIDTH, self.WIDTH, 2 * reach + 1, padding=reach, groups=self.WIDTH
        )
        self.mixed = nn.Linear(self.WIDTH * (2 if whole else 1), self.WIDTH)
        self.score = nn.Linear(self.WIDTH, 1)

    def forward(self, batch: PackedBatch, tokens: TokenState) -> Tensor:
        """A batch and its embeddings [T, H] -> keep logits [T]."""
        layout = batch.layout
        read = layout.positions / layout.counts[layout.row_of_token]
        facts = torch.stack([self.rarity[batch.input_ids], read], 1)
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            own = gelu(self.own(torch.cat([tokens.hidden.float(), facts], 1)))
            near = self.around(layout.pad(own).transpose(1, 2)).transpose(1, 2)
            known = own + layout.unpad(near)
            if self.whole:
                known = torch.cat([known, layout.mean(known)[layout.row_of_token]], 1)
            return self.score(gelu(self.mixed(known))).squeeze(-1)

    @property
    def flops(self) -> int:
        """Operations for one token."""
        layers = (self.own, self.mixed, self.score)
        return 2 * sum(layer.weight.numel() for layer in layers) + 2 * self.around.weight.numel()


@dataclass(frozen=True)
class EarlyCut:
    """A cut before layer 0: what scores at least the threshold, or is protected, goes on.

    Attributes:
        flops: operations that the score takes for one token.
        seen: attention of layer 0 still has the keys and values of dropped tokens.
    """

    score: Score
    threshold: float
    flops: int = 0
    seen: bool = False

    def keep(self, batch: PackedBatch, tokens: TokenState) -> Tensor:
        """Which of a batch's embeddings go on: [1, T] bool."""
        return ((self.score(batch, tokens) >= self.threshold) | tokens.protected)[None]


@dataclass(frozen=True)
class Point:
    """What a chain comes to.

    Attributes:
        score, divergence: its quality, as ``ValidatedPoint`` has it.
        kept: of all tokens, before layer 0 and behind every cut.
        flops_speedup: FLOPs of the dense model over its own, the early score's among them.
    """

    score: float
    divergence: float
    kept: tuple[float, ...]
    flops_speedup: float


# The chain with a cut before layer 0


def start(model: ReducedModel, batch: PackedBatch, early: EarlyCut | None) -> TokenState:
    """What the first segment comes to, of all tokens or of those that the early cut leaves."""
    if early is None:
        return first_segment(model, batch)
    tokens = begin(model, batch)
    keep = early.keep(batch, tokens)
    attended = model.segments[0].stop  # half a layer
    if early.seen:  # queries do not meet: to drop them behind attention computes the same
        return tokens.run(model, 0, attended).compact(keep)
    return tokens.compact(keep).run(model, 0, attended)


def speedup(model: ReducedModel, lengths: Sequence[Sequence[int]], early: EarlyCut | None) -> float:
    """FLOPs of the dense model over the chain's.

    Args:
        lengths: for each row all its tokens, then those in each segment.
    """
    whole, *segments = np.array(lengths).T
    own = reduced_flops(model.spec, model.reduction, segments)
    if early is not None:
        own = own + early.flops * whole
        if early.seen:
            width, left = model.spec.hidden_size, segments[0]
            own = own + (whole - left) * (4 * width**2 + 4 * left * width)
    return float(dense_flops(model.spec, whole).sum() / own.sum())


def _lengths(batch: PackedBatch, begun: TokenState, kept: Sequence[Tensor]) -> list[list[int]]:
    return row_lengths(batch, [torch.from_numpy(begun.layout.lengths), *kept])


def judge(model: ReducedModel, validator: Validator, early: EarlyCut | None) -> Point:
    """The chain at its own rules, behind an early cut or none."""
    found: list[RowAnswer] = []
    lengths: list[list[int]] = []
    with evaluating(model), autocast(CPU):
        for batch in batches_of(validator.rows):
            begun = start(model, batch, early)
            outputs, kept = later_segments(model, begun, choose_by_rule(model))
            found += row_answers(validator.task, outputs, batch)
            lengths += _lengths(batch, begun, kept)
    passed = PassedRows((RowOutputs.gathered(found),), [row[1:] for row in lengths])
    quality = validator.left_by(model, passed, None)
    assert quality.divergence is not None  # the validator knows the teacher's answers
    sums = np.sum(lengths, axis=0)
    kept_shares = tuple((sums[1:] / sums[0]).tolist())
    return Point(quality.score, quality.divergence, kept_shares, speedup(model, lengths, early))


def calibrate(
    model: ReducedModel, rows: Sequence[TrainingRow], early: EarlyCut | None, wanted: float
) -> None:
    """Set the later cuts' rules so that all cuts together save ``wanted`` times the FLOPs."""
    with evaluating(model), autocast(CPU):
        starts = [(batch, start(model, batch, early)) for batch in batches_of(rows)]
        low, high = -4.0, 4.0
        for _ in range(CALIBRATION_STEPS):
            middle = (low + high) / 2
            set_threshold(model, 1.0 / (1.0 + float(np.exp(-middle))))
            lengths = []
            for batch, begun in starts:
                walk = select_at_cuts(model, begun, choose_by_rule(model))
                kept = [torch.from_numpy(left.layout.lengths) for left in walk]
                lengths += _lengths(batch, begun, kept)
            reached = speedup(model, lengths, early)
            if abs(reached / wanted - 1.0) < CALIBRATION_TOLERANCE:
                return
            low, high = (middle, high) if reached < wanted else (low, middle)


def batches_of(rows: Sequence[TrainingRow]) -> Iterator[PackedBatch]:
    yield from load_batches(rows, plan_batches([len(row) for row in rows], BATCH_TOKENS), CPU)


# Scorers


def rarity_of(rows: Sequence[TrainingRow], vocabulary: int) -> Tensor:
    """Inverse document frequency of every token, over that of a token that no text has: [V]."""
    found = np.zeros(vocabulary)
    for row in rows:
        found[np.unique(row.tokens.input_ids)] += 1
    most = np.log(1 + len(rows))
    return torch.from_numpy((most - np.log1p(found)) / most).float()


@dataclass(frozen=True)
class Wanted:
    """What scorers learn of a batch.

    Attributes:
        kept: [T] bool, what the first cut keeps.
        salient: [T] float32, the share of the row that a token is more salient than.
    """

    kept: Tensor
    salient: Tensor


def wanted_of(model: ReducedModel, guide: Guide, batch: PackedBatch) -> Wanted:
    tokens = first_segment(model, batch)
    logit = model.keep_logit(0, tokens.hidden)
    (kept,) = choose_by_rule(model)(0, logit, tokens)
    return Wanted(kept, rank_shares(guide.saliency_of(batch)[0], batch.layout))


def learn_scorers(
    model: ReducedModel,
    guide: Guide,
    rows: Sequence[TrainingRow],
    scorers: Mapping[tuple[str, str], Scorer],
    epochs: int,
) -> None:
    """Train scorers, by what each wants: ``kept`` or ``salient``. The model stays."""
    plan = plan_batches([len(row) for row in rows], BATCH_TOKENS, epochs, seed=0)
    parameters = [each for scorer in scorers.values() for each in scorer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=SCORER_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SCORER_RATE, len(plan))
    known: dict[int, Wanted] = {}  # of each row; the model says the same in every epoch
    with evaluating(model), autocast(CPU):
        for batch in batches_of(rows):
            wanted, counts = wanted_of(model, guide, batch), batch.layout.lengths.tolist()
            parts = zip(wanted.kept.split(counts), wanted.salient.split(counts), strict=True)
            known |= {
                row: Wanted(*part) for row, part in zip(batch.rows.tolist(), parts, strict=True)
            }
    model.eval()
    for batch in load_batches(rows, plan, CPU):
        with torch.no_grad():
            tokens = begin(model, batch)
        own = [known[row] for row in batch.rows.tolist()]
        targets = {
            "kept": torch.cat([each.kept for each in own]).float(),
            "salient": torch.cat([each.salient for each in own]),
        }
        losses = [
            binary_cross_entropy_with_logits(scorer(batch, tokens), targets[wanted])
            for (_, wanted), scorer in scorers.items()
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()


def area_and_precision(score: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Area under the ROC curve, and average precision; equal scores are taken together."""
    _, group = np.unique(-score, return_inverse=True)
    hits = np.bincount(group, weights=right).cumsum()
    taken = np.bincount(group).cumsum()
    recall, false = hits / hits[-1], (taken - hits) / (taken - hits)[-1]
    area = np.trapezoid(np.append(0.0, recall), np.append(0.0, false))
    return float(area), float((np.diff(recall, prepend=0.0) * hits / taken).sum())


def judge_score(
    model: ReducedModel, guide: Guide, rows: Sequence[TrainingRow], score: Score
) -> tuple[dict[str, tuple[float, float]], NDArray[np.float64]]:
    """How well a score finds what is kept and what is salient, and all scores."""
    scores, kept, salient = [], [], []
    with evaluating(model), autocast(CPU):
        for batch in batches_of(rows):
            wanted = wanted_of(model, guide, batch)
            scores.append(score(batch, begin(model, batch)).double().numpy())
            kept.append(wanted.kept.numpy())
            salient.append((wanted.salient >= 1.0 - SALIENT).numpy())
    told = np.concatenate(scores)
    return {
        "kept": area_and_precision(told, np.concatenate(kept)),
        "salient": area_and_precision(told, np.concatenate(salient)),
    }, told


# A round of learning


def learn(
    model: ReducedModel,
    guide: Guide,
    rows: Sequence[TrainingRow],
    early: EarlyCut | None,
    seed: int,
) -> None:
    """Distill the teacher into layers and head, once over the rows, on what the cuts leave.

    Embeddings stay, so that the early cut keeps what it kept.
    """

    def losses_of(batch: PackedBatch) -> Tensor:
        begun = start(model, batch, early)
        outputs, _kept = later_segments(model, begun, choose_by_rule(model))
        return model.head.loss(outputs, batch.targets, guide.outputs_of(batch))

    body = [*model.encoder.layers.parameters(), *model.head.parameters()]
    distill_once(model, body, losses_of, rows, learning_rate=HARD_RATE, device=CPU, seed=seed)


# The command


@dataclass(frozen=True)
class Trial:
    """All that is read, and the scores to compare."""

    model: ReducedModel
    guide: Guide
    training: Sequence[TrainingRow]
    held_out: Sequence[TrainingRow]
    scores: Mapping[str, Score]
    seen: bool

    def cut(self, name: str, told: NDArray[np.float64], dropped: float) -> EarlyCut:
        """The cut that drops so large a share of the held-out texts' tokens by a score."""
        score = self.scores[name]
        flops = score.flops if isinstance(score, Scorer) else 0
        return EarlyCut(score, float(np.quantile(told, dropped)), flops, self.seen)


def open_trial(run: Path, setting: Setting, texts: int, epochs: int, seen: bool) -> Trial:
    """Read a run, and let scorers learn.

    Raises:
        ConfigError: its first cut is not inside layer 0, or its guide is of other texts.
    """
    model = load_checkpoint(run / "stages" / "hard").model
    if not model.reduction.cuts or model.reduction.cuts[0].position != 0.5:
        raise ConfigError(f"{run} has no first cut at 0.5: expected one inside layer 0")
    guide = Guide.load(run / "stages" / "guide" / "guide.safetensors", setting.task)
    rows = setting.training_rows
    if guide.starts[-1] != sum(map(len, rows)):
        raise ConfigError(f"the guide of {run} is of other texts: expected those of --train")
    rarity = rarity_of(rows, model.spec.vocab_size)
    torch.manual_seed(0)
    make = partial(Scorer, model.spec.hidden_size, rarity)
    scorers = {
        (name, wanted): make(reach, whole)
        for name, reach, whole in (
            ("one token", 0, False),
            ("9 tokens", 4, False),
            ("9 tokens, row's mean", 4, True),
        )
        for wanted in ("kept", "salient")
    }
    learn_scorers(model, guide, rows[:texts], scorers, epochs)
    for scorer in scorers.values():
        scorer.eval().requires_grad_(False)
    scores: dict[str, Score] = {f"{name}: {what}": each for (name, what), each in scorers.items()}
    scores["rarity"] = lambda batch, tokens: rarity[batch.input_ids]
    scores["first tokens"] = lambda batch, tokens: -tokens.layout.positions.float()
    scores["random"] = lambda batch, tokens: torch.rand(len(tokens.token))
    scores[BEST] = lambda batch, tokens: model.keep_logit(0, tokens.run(model, 0, 1).hidden)
    # Rows keep their numbers in the guide, which counts from the first one.
    behind = replace(guide, starts=guide.starts[texts:])
    held_out = rows[texts : texts + HELD_OUT]
    return Trial(model, behind, rows, held_out, scores, seen)


shares = numbers("shares between 0 and 1, such as 0.25,0.5", lambda share: 0 < share < 1)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--train", required=True, metavar="FILE", help="The run's training texts.")
@click.option("--validation", required=True, metavar="FILE", help="Texts to compare by.")
@click.option("--test", metavar="FILE", help="Texts to report what has learned on.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--texts", default=1500, show_default=True, help="Texts that scorers learn from.")
@click.option("--epochs", default=6, show_default=True, help="Their passes over these.")
@click.option("--judged", default=600, show_default=True, help="Validation texts to compare by.")
@click.option("--shares", "dropped", default="0.25,0.5,0.7", show_default=True, callback=shares)
@click.option("--seen", is_flag=True, help="Let layer 0 see dropped tokens.")
@click.option("--wanted", default=4.5, show_default=True, help="Times fewer FLOPs, for all alike.")
@click.option("--learn", "learned", default=0, help="Texts of the round of learning.")
@click.option(
    "--by",
    multiple=True,
    default=("9 tokens, row's mean: kept", "one token: kept"),
    show_default=True,
    help="Scores of the third table and of that round.",
)
@click.option("--drop", default=0.5, show_default=True, help="The share that they drop there.")
@click.option("--seeds", default=1, show_default=True, help="Orders of the texts of that round.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(
    run: Path,
    train: str,
    validation: str,
    test: str | None,
    max_length: int | None,
    texts: int,
    epochs: int,
    judged: int,
    dropped: tuple[float, ...],
    seen: bool,
    wanted: float,
    learned: int,
    by: tuple[str, ...],
    drop: float,
    seeds: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    set_up_torch(threads)
    try:
        setting = Setting(teacher_in(run), train, validation, max_length=max_length)
        trial = open_trial(run, setting, texts, epochs, seen)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    validator = setting.answered_validator(setting.validation_rows[:judged], BATCH_TOKENS)
    print(f"teacher: {teacher_score(validator):.2%} on {len(validator.rows)} texts\n")
    figures: dict[str, object] = {}

    print("| score | kept: AUC | precision | salient: AUC | precision | FLOPs a token |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    told = {}
    for name, score in trial.scores.items():
        found, told[name] = judge_score(trial.model, trial.guide, trial.held_out, score)
        cells = [f"{value:.3f}" for pair in found.values() for value in pair]
        flops = trial.cut(name, told[name], 0.5).flops
        print(f"| {name} | {' | '.join(cells)} | {flops:,} |", flush=True)
        figures[name] = found

    def show(table: str, name: str, share: float, point: Point) -> None:
        kept = ", ".join(f"{part:.0%}" for part in point.kept)
        print(
            f"| {name} | {share:.0%} | {kept} | {point.score:.2%} | {point.divergence:.4f} "
            f"| {point.flops_speedup:.2f} |",
            flush=True,
        )
        figures[f"{table}, {name}, {share}"] = asdict(point)

    heading = "| score | dropped | tokens at the cuts | right | divergence | times fewer FLOPs |"
    line = "| --- | ---: | --- | ---: | ---: | ---: |"
    few = validator.rows[:CALIBRATED_BY]
    rules = trial.model.reduction
    for target in (None, wanted):
        table = "own rules" if target is None else f"{target:g} times"
        print(f"\n{table}\n\n{heading}\n{line}")
        trials: list[tuple[str, float]] = [("none", 0.0)]
        trials += product(trial.scores if target is None else (*by, BEST), dropped)
        for name, share in trials:
            early = trial.cut(name, told[name], share) if share else None
            trial.model.set_reduction(rules)  # the cut at 0.5 scores alike at any
            if target is not None:
                calibrate(trial.model, few, early, target)
            show(table, name, share, judge(trial.model, validator, early))
    if learned:
        print(f"\nbehind {learned} texts, {wanted:g} times\n\n{heading}\n{line}")
        others = (
            None if test is None else setting.answered_validator(setting.read(test), BATCH_TOKENS)
        )
        for seed in range(seeds):
            for name in ("none", *by):
                early = None if name == "none" else trial.cut(name, told[name], drop)
                student = deepcopy(trial.model)
                student.set_reduction(rules)
                calibrate(student, few, early, wanted)
                whole = replace(trial.guide, starts=_starts(trial.training))
                learn(student, whole, trial.training[:learned], early, seed)
                calibrate(student, few, early, wanted)
                for texts_of, judges in (("validation", validator), ("test", others)):
                    if judges is not None:
                        point = judge(student, judges, early)
                        row = f"{name}; {texts_of}, seed {seed}"
                        show("learned", row, drop if early else 0.0, point)
    if json_path is not None:
        write_json(json_path, figures)


def _starts(rows: Sequence[TrainingRow]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])])


if __name__ == "__main__":
    main()

"""What the rows of the quality tables run: our chain, and what it is compared with.

Every one is a model with the teacher's weights to begin with, and one way to save computation:
it reads a part of the text, it has fewer layers, or it drops tokens at cuts by some score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trbert_deploy.bench import baselines as baselines
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.blocks.encoder import EncoderLayer
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.layout import RowGroup, ScoreBias
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.received_attention import attending_layers
from trbert_deploy.modeling.walk import (
    Chooser,
    TokenState,
    choose_by_rule,
    dense_outputs,
    first_segment,
    later_segments,
    row_lengths,
)
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.selection.select import select
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import evaluating
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.row_outputs import RowAnswer, RowOutputs, row_answers

#: (batch, whether it is a training step) -> what decides at the cuts.
Choose = Callable[[PackedBatch, bool], Chooser]


@dataclass(frozen=True)
class Student:
    """A model and its way to save computation.

    Attributes:
        model: without cuts where ``choose`` is None.
        view: what it reads of a row.
        choose: decides at the cuts which tokens survive.
    """

    model: ReducedModel
    view: Callable[[TrainingRow], TrainingRow] = lambda row: row
    choose: Choose | None = None

    def forward(
        self, batch: PackedBatch, training: bool = False
    ) -> tuple[Outputs, list[list[int]]]:
        """The outputs of rows in its own view, and each row's tokens in every segment."""
        if self.choose is None:
            return dense_outputs(self.model, batch), row_lengths(batch, [])
        start = first_segment(self.model, batch)
        outputs, kept = later_segments(self.model, start, self.choose(batch, training))
        return outputs, row_lengths(batch, kept)


@dataclass(frozen=True)
class Answers:
    """What a student says of rows.

    Attributes:
        outputs: of every row.
        flops: operations of all rows.
    """

    outputs: RowOutputs
    flops: float

    def speedup(self, teacher: EncoderSpec, rows: Sequence[TrainingRow]) -> float:
        """FLOPs of the teacher on the whole rows over these."""
        return float(dense_flops(teacher, lengths_of(rows)).sum()) / self.flops


def answer(
    student: Student,
    rows: Sequence[TrainingRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> Answers:
    """Run a student on whole rows, of which it reads its own view."""
    model = student.model
    task = task_of(model.spec)
    viewed = [student.view(row) for row in rows]
    plan = plan_batches([len(row) for row in viewed], batch_tokens)
    found: list[RowAnswer] = []
    flops = 0.0
    with evaluating(model):
        for number, batch in enumerate(load_batches(viewed, plan, device), start=1):
            outputs, lengths = student.forward(batch)
            found += row_answers(task, outputs, batch)
            columns = list(np.array(lengths).T)
            flops += float(reduced_flops(model.spec, model.reduction, columns).sum())
            progress("evaluation", number, len(plan))
    return Answers(RowOutputs.gathered(found), flops)


def lengths_of(rows: Sequence[TrainingRow]) -> NDArray[np.int64]:
    """Tokens of each row: [N]."""
    return np.array([len(row) for row in rows], np.int64)


# A part of the text


def first_tokens(count: int) -> Callable[[TrainingRow], TrainingRow]:
    """The first ``count`` tokens of a text."""
    view = baselines.first_tokens(count)
    return lambda row: replace(row, tokens=view(row.tokens)) if len(row) > count else row


def head_and_tail(count: int) -> Callable[[TrainingRow], TrainingRow]:
    """``count`` tokens: the first and the last ([CLS], [SEP]), of the others a quarter from the
    text's head and three from its tail, about the 128 + 382 of Sun et al. 2019.
    """

    def view(row: TrainingRow) -> TrainingRow:
        if len(row) <= count:
            return row
        head = 1 + (count - 2) // 4
        places = [*range(head), *range(len(row) - (count - head), len(row))]
        return replace(row, tokens=row.tokens.part(places))

    return view


# Fewer layers

_LAYERS = "encoder.layers."
_NOT_SHARED = (_LAYERS, "policies.")


def thinner(teacher: ReducedModel, layers: int) -> ReducedModel:
    """A model of ``layers`` of the teacher's layers, evenly spaced from the first one on
    (as DistilBERT begins, Sanh et al. 2019).
    """
    taken = [index * teacher.spec.num_layers // layers for index in range(layers)]
    model = ReducedModel(replace(teacher.spec, num_layers=layers), ReductionConfig())
    weights = teacher.state_dict()
    state = {name: weights[name] for name in weights if not name.startswith(_NOT_SHARED)}
    for index, layer in enumerate(taken):
        own = teacher.encoder.layers[layer].state_dict()
        state |= {f"{_LAYERS}{index}.{name}": value for name, value in own.items()}
    model.load_state_dict(state)
    return model.to(next(teacher.parameters()).device)


# Dropping tokens at cuts, as many as the cuts' rules say


def by_policy(model: ReducedModel) -> Choose:
    """By the policies' keep logits."""
    return lambda batch, training: choose_by_rule(model)


def by_chance(model: ReducedModel, seed: int) -> Choose:
    """At random: anew in every training step, and always the same of a row in evaluation."""

    def choose_in(batch: PackedBatch, training: bool) -> Chooser:
        if training:
            scores = torch.rand(len(batch.input_ids), device=batch.targets.device)
        else:
            rows = zip(batch.rows.tolist(), batch.layout.lengths.tolist(), strict=True)
            drawn = [np.random.default_rng([seed, row]).random(length) for row, length in rows]
            scores = torch.from_numpy(np.concatenate(drawn)).float().to(batch.targets.device)

        def choose(index: int, _: Tensor, tokens: TokenState) -> Tensor:
            return _select(model, index, scores[tokens.token], tokens)

        return choose

    return choose_in


def by_attention(model: ReducedModel) -> Choose:
    """By the attention that a token receives in the last layer before the cut (LTP, Kim et al.
    2022, equation 2).

    Raises:
        ConfigError: no attention runs before a cut, or none since the cut before it.
    """
    modules = [_attention_of(model, layer) for layer in attending_layers(model.reduction)]
    inputs: dict[Attention, tuple[Tensor, PackedLayout, nn.Module | None]] = {}
    for module in modules:
        module.register_forward_pre_hook(inputs.__setitem__)

    def choose(index: int, _: Tensor, tokens: TokenState) -> Tensor:
        hidden, layout, relative = inputs.pop(modules[index])
        scores = received_attention(modules[index], hidden.detach(), layout, relative)
        return _select(model, index, scores, tokens)

    return lambda batch, training: choose


@torch.no_grad()
def received_attention(
    attention: Attention, hidden: Tensor, layout: PackedLayout, relative: nn.Module | None = None
) -> Tensor:
    """Attention probability that each token gets, mean over heads and over the row's queries.

    Args:
        hidden: [T, H] what ``attention`` is run on.
        relative: as ``attention`` takes it.

    Returns:
        [T] float32.
    """
    lengths = layout.lengths.tolist()
    states = attention.norm(hidden) if attention.norm_first else hidden
    query, key = attention.query(states), attention.key(states)
    bias = attention.score_bias(query, key, relative)
    queries, keys = (
        attention.rotated(each, layout).float().unflatten(-1, (attention.num_heads, -1))
        for each in (query, key)
    )
    needed = () if bias is None else (layout.positions, *bias.per_token)
    columns = [each.split(lengths) for each in (queries, keys, *needed)]
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.cat([_mean_attention(bias, *row) for row in zip(*columns, strict=True)])


def _attention_of(model: ReducedModel, layer: int) -> Attention:
    """The attention of a layer."""
    return cast(EncoderLayer, model.encoder.layers[layer]).attention


def _mean_attention(bias: ScoreBias | None, query: Tensor, key: Tensor, *needed: Tensor) -> Tensor:
    """Attention probability that each token of a row gets, mean over heads and queries.

    Args:
        bias: what is added to the products, if anything.
        query, key: [S, N, D] float32.
        needed: positions [S], and what else the bias needs of every token.

    Returns:
        [S] float32; they sum to 1.
    """
    scores = torch.einsum("qnd,knd->nqk", query, key) * query.shape[-1] ** -0.5
    if bias is not None:
        positions, *per_token = (each[None] for each in needed)
        (added,) = bias.compute(RowGroup(positions), *per_token)  # [N or 1, S, S]
        blocking = added.dtype == torch.bool
        scores = scores.masked_fill(~added, -torch.inf) if blocking else scores + added
    return scores.softmax(-1).mean((0, 1))


def _select(model: ReducedModel, index: int, scores: Tensor, tokens: TokenState) -> Tensor:
    """Keep the best by ``scores`` [T], as many as the rule of a cut says: keep [1, T]."""
    layout = tokens.layout
    lengths = torch.from_numpy(layout.lengths).to(scores.device)
    rule = model.reduction.cuts[index].rule
    protected = layout.pad(tokens.protected)
    return layout.unpad(select(layout.pad(scores), lengths, rule, protected))[None]

"""Outputs of all tokens: a token that is dropped answers where it is dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_spec
from torch import Tensor, nn

from trbert_deploy.batching import Padding
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.modeling.device_chain import DeviceChain
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.heads.registry import HEADS, register_head
from trbert_deploy.modeling.heads.tokens import TokensHead
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.recorded_chain import RecordedChain
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.modeling.walk import choose_by_rule, dense_outputs, first_segment, later_segments
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.feature_extraction import EMBEDDING
from trbert_deploy.tasks.outputs import Output
from trbert_deploy.tasks.registry import TASKS, register_task, task_of
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.estimators.gates import run_gated

CPU = torch.device("cpu")
LENGTHS = (5, 9, 1, 14, 9)


class Tagging(TextClassification):
    name = "tagging-of-tests"
    outputs = (Output(LOGITS, "token"),)


class TaggingHead(TokensHead):
    task = Tagging.name

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(Tagging.outputs)
        self.tags = nn.Linear(spec.hidden_size, 3)

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec)

    def each(self, hidden: Tensor) -> dict[str, Tensor]:
        return {LOGITS: self.tags(hidden)}

    def loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None) -> Any:
        raise NotImplementedError

    path_loss = correct = has_target = answers = loss  # type: ignore[assignment]


KINDS = ("token", "mean", "max", "first")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    register_task(Tagging)
    register_head(TaggingHead)
    yield request.param
    del TASKS[Tagging.name, ""], HEADS[Tagging.name, ""]


def model_of(kind: str, cuts: str = "1,2", ratio: float | None = None) -> ReducedModel:
    """A tiny model whose projections are no identities."""
    changes: dict[str, Any] = {"task": Tagging.name}
    if kind != "token":
        changes = {"task": "feature-extraction", "labels": (), "answers": {"pooling": kind}}
    model = tiny_model(cuts, **changes)
    with torch.no_grad():
        for projection in model.projections:
            projection.weight.add_(0.3 * torch.randn_like(projection.weight))
            projection.bias.add_(torch.randn_like(projection.bias))
    return model


def rows_of(lengths: Sequence[int]) -> list[TrainingRow]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 200, length) for length in lengths]
    return [TrainingRow(TokenRow(each, np.zeros_like(each)), 0) for each in ids]


def batch_of(lengths: Sequence[int]) -> tuple[PackedBatch, list[TrainingRow]]:
    rows = rows_of(lengths)
    (batch,) = load_batches(rows, [list(range(len(rows)))], CPU)
    return batch, rows


def by_row(outputs: Outputs, batch: PackedBatch, rows: Sequence[TrainingRow]) -> dict[int, Any]:
    """Row -> its one output, without what lies behind its tokens."""
    (values,) = outputs.values()
    found = {}
    for place, row in enumerate(batch.rows.tolist()):
        whole = values[place]
        found[row] = whole[: len(rows[row])] if whole.ndim == 2 else whole
        if whole.ndim == 2:
            assert not whole[len(rows[row]) :].any()
    return found


def assert_same(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert found.keys() == expected.keys()
    for row, values in expected.items():
        np.testing.assert_allclose(
            torch.as_tensor(found[row]), torch.as_tensor(values), rtol=1e-4, atol=1e-4
        )


def naive(model: ReducedModel, row: TokenRow) -> Any:
    """One row, token by token: its states, its fate, what it says where it leaves."""
    from trbert_deploy.modeling.layouts.padded import PaddedLayout

    ids = torch.from_numpy(row.input_ids)[None]
    places = torch.arange(len(row))
    layout = PaddedLayout(None, places[None])
    hidden = model.embed(ids, torch.zeros_like(ids), layout)
    said: dict[int, Tensor] = {}
    for segment in model.segments:
        hidden = model.encoder.run_steps(hidden, layout, segment.start, segment.stop)
        if segment.cut is None:
            break
        keep = model.keep_logit(segment.index, hidden)[0].sigmoid() >= segment.cut.rule.value
        keep[0] = True
        for token in (~keep).nonzero()[:, 0].tolist():
            state = model.projection(segment.index)(hidden[0, token])
            (said[int(places[token])],) = model.tokens_head().each(state).values()
        hidden, places = hidden[:, keep], places[keep]
        layout = PaddedLayout(None, places[None])
    for token, place in enumerate(places.tolist()):
        (said[place],) = model.tokens_head().each(hidden[0, token]).values()
    everything = torch.stack([said[place] for place in range(len(row))])
    (output,) = model.tokens_head().outputs
    if output.per == "token":
        return everything
    return everything.mean(0) if output.per == "mean" else everything.amax(0)


@torch.no_grad()
@pytest.mark.parametrize("cuts", ["1,2", "0.5,3", "2", "0,1,1.5"])
def test_every_way_through_the_model_says_the_same(kind: str, cuts: str) -> None:
    model = model_of(kind, cuts)
    batch, rows = batch_of(LENGTHS)
    start = first_segment(model, batch)
    outputs, kept = later_segments(model, start, choose_by_rule(model))
    assert any(0 < left < whole for left, whole in zip(kept[0], batch.layout.lengths, strict=True))
    walked = by_row(outputs, batch, rows)
    if kind != "first":
        tokens = [row.tokens for row in rows]
        assert_same(walked, {index: naive(model, row) for index, row in enumerate(tokens)})
    assert_same(by_row(run_gated(model, batch).outputs, batch, rows), walked)
    for chain in (
        Chain(TorchBackend(model), model.reduction, 4, task=task_of(model.spec)),
        Chain(
            TorchBackend(model),
            model.reduction,
            4,
            padding=Padding(share=1.0),
            task=task_of(model.spec),
        ),
        DeviceChain(model),
        RecordedChain(model),
    ):
        results = chain.run([row.tokens for row in rows])
        found = {index: next(iter(r.outputs.values())) for index, r in enumerate(results)}
        assert_same(found, walked)
        dense = chain.run_dense([row.tokens for row in rows])
        found = {index: next(iter(r.outputs.values())) for index, r in enumerate(dense)}
        assert_same(found, by_row(dense_outputs(model, batch), batch, rows))


@torch.no_grad()
def test_several_choices_are_answered_like_single_ones(kind: str) -> None:
    model = model_of(kind)
    batch, _ = batch_of(LENGTHS)
    start = first_segment(model, batch)
    torch.manual_seed(1)
    choices = torch.rand(3, len(batch.input_ids)) < 0.6
    choices |= batch.protected

    def choose(several: Tensor) -> Any:
        return lambda index, logit, tokens: (
            several if index == 0 else torch.ones(1, len(tokens.hidden), dtype=torch.bool)
        )

    (together,) = later_segments(model, start, choose(choices))[0].values()
    singles = [
        next(iter(later_segments(model, start, choose(each[None]))[0].values())) for each in choices
    ]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-4, atol=1e-4)


def test_gates_and_projections_learn_from_what_dropped_tokens_say(kind: str) -> None:
    if kind == "first":
        return  # which hears no dropped token
    model = model_of(kind)
    batch, _ = batch_of(LENGTHS)
    (values,) = run_gated(model, batch).outputs.values()
    values.square().sum().backward()
    assert all(projection.weight.grad.abs().sum() > 0 for projection in model.projections)
    assert all(policy.score.weight.grad.abs().sum() > 0 for policy in model.policies)


def test_projections_are_there_where_dropped_tokens_are_heard() -> None:
    assert len(tiny_model("1,2").projections) == 0
    spec = tiny_spec(task="feature-extraction", labels=(), answers={"pooling": "mean"})
    model = ReducedModel(spec, ReductionConfig.parse("1,2"))
    for projection in model.projections:
        torch.testing.assert_close(projection.weight, torch.eye(32))
        assert not projection.bias.any()
    assert EMBEDDING in dense_outputs(model, batch_of((3, 4))[0])
    first = ReducedModel(
        tiny_spec(task="feature-extraction", labels=(), answers={"pooling": "first"}),
        ReductionConfig.parse("1,2"),
    )
    assert len(first.projections) == 0


@pytest.mark.parametrize("longest", [4, 9])
def test_packed_layouts_pad_values_of_any_width(longest: int) -> None:
    layout = PackedLayout(np.array([2, longest, 3]))
    values = torch.randn(longest + 5, 6)
    padded = layout.pad(values)
    assert padded.shape == (3, longest, 6)
    torch.testing.assert_close(layout.unpad(padded), values)
    assert not padded[0, 2:].any()
    torch.testing.assert_close(layout.max(values)[1], values[2 : 2 + longest].amax(0))

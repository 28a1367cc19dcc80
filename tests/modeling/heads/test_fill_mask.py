"""Outputs of masks alone: every way through the model says the same, and keeps the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from trbert_deploy.batching import Padding
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.device_chain import DeviceChain
from trbert_deploy.modeling.heads.fill_mask import FillMaskHead
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.recorded_chain import RecordedChain
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.modeling.walk import choose_by_rule, dense_outputs, first_segment, later_segments
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.samples import asking
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.tasks.fill_mask import MASK_ID, TARGET_IDS, TARGETS
from trbert_deploy.tasks.outputs import asked_token
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.estimators.gates import run_gated
from trbert_deploy.training.row_outputs import RowOutputs, row_answers

CPU = torch.device("cpu")
MASK = 4
WORDS = {TARGETS: ["a", "b", "c"], TARGET_IDS: [9, 200, 31]}


def model_of(cuts: str = "1,2", among: bool = False) -> ReducedModel:
    answers = {MASK_ID: MASK, TARGET_IDS: [], **(WORDS if among else {})}
    model = tiny_model(cuts, task="fill-mask", labels=(), answers=answers)
    with torch.no_grad():
        model.head.decoder.bias.normal_()  # type: ignore[union-attr, operator]
    return model


def rows_of(masks: list[list[int]], length: int = 14, seed: int = 0) -> list[TokenRow]:
    """Rows with masks at these places; behind the last of them there are some tokens."""
    generator = np.random.default_rng(seed)
    rows = []
    for places in masks:
        ids = generator.integers(5, 200, max([length, *(place + 1 for place in places)]))
        ids[places] = MASK
        protected = (ids == MASK) | (np.arange(len(ids)) == 0)
        rows.append(TokenRow(ids, np.zeros_like(ids), protected))
    return rows


def batch_of(rows: list[TokenRow]) -> PackedBatch:
    targets = [np.arange(int((row.input_ids == MASK).sum())) for row in rows]
    training = [TrainingRow(*pair) for pair in zip(rows, targets, strict=True)]
    (batch,) = load_batches(training, [list(range(len(rows)))], CPU)
    return batch


def by_row(outputs: Any, batch: PackedBatch, model: ReducedModel) -> list[np.ndarray]:
    found = dict(row_answers(task_of(model.spec), outputs, batch))
    return [found[row]["logits"] for row in range(len(found))]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        one = one.outputs["logits"] if isinstance(one, RowResult) else one
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize("cuts", ["1,2", "0.5,3", "0,1,1.5", "none"])
def test_every_way_through_the_model_says_the_same(cuts: str, among: bool) -> None:
    model = model_of(cuts, among)
    task = task_of(model.spec)
    rows = rows_of([[3], [0, 13], [20], [5, 6, 7], [1]])
    batch = batch_of(rows)
    walked = by_row(
        later_segments(model, first_segment(model, batch), choose_by_rule(model))[0], batch, model
    )
    assert [each.shape for each in walked] == [
        (count, 3 if among else 256) for count in (1, 2, 1, 3, 1)
    ]
    dense = by_row(dense_outputs(model, batch), batch, model)
    if cuts != "none":
        assert_same(by_row(run_gated(model, batch).outputs, batch, model), walked)
        assert (
            max(np.abs(one - other).max() for one, other in zip(walked, dense, strict=True)) > 0.01
        )
    for chain in (
        Chain(TorchBackend(model), model.reduction, 4, task=task),
        Chain(TorchBackend(model), model.reduction, 4, padding=Padding(share=1.0), task=task),
        DeviceChain(model),
        RecordedChain(model),
        RecordedChain(model),
    ):
        assert_same(chain.run(rows), walked)
        assert_same(chain.run_dense(rows), dense)
        for row, result in zip(rows, chain.run(rows), strict=True):
            (masks,) = np.nonzero(row.input_ids == MASK)
            assert all({*masks} <= {*kept} for kept in result.kept)


@torch.no_grad()
def test_the_words_that_are_chosen_among_are_columns_of_all() -> None:
    rows = rows_of([[3], [0, 13]])
    whole, some = (model_of(among=among) for among in (False, True))
    some.load_state_dict(whole.state_dict())
    batch = batch_of(rows)
    torch.testing.assert_close(
        dense_outputs(some, batch)["logits"],
        dense_outputs(whole, batch)["logits"][..., WORDS[TARGET_IDS]],
    )


@torch.no_grad()
def test_several_choices_are_answered_like_single_ones() -> None:
    model = model_of()
    batch = batch_of(rows_of([[3], [0, 13], [5]]))
    start = first_segment(model, batch)
    torch.manual_seed(1)
    choices = (torch.rand(3, len(batch.input_ids)) < 0.6) | batch.protected

    def choose(several: torch.Tensor) -> Any:
        return lambda index, logit, tokens: (
            several if index == 0 else torch.ones(1, len(tokens.hidden), dtype=torch.bool)
        )

    (together,) = later_segments(model, start, choose(choices))[0].values()
    singles = [
        next(iter(later_segments(model, start, choose(each[None]))[0].values())) for each in choices
    ]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-4, atol=1e-4)


def test_a_row_without_a_mask_has_no_answer() -> None:
    model = model_of()
    rows = rows_of([[], [3]])
    task = task_of(model.spec)
    for chain in (
        Chain(TorchBackend(model), model.reduction, 4, task=task),
        DeviceChain(model),
    ):
        shapes = [each.outputs["logits"].shape for each in chain.run(rows)]
        assert shapes == [(0, 256), (1, 256)]
        (alone,) = chain.run(rows[:1])
        assert alone.outputs["logits"].shape == (0, 256)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 15), max_size=3, unique=True), min_size=1, max_size=5))
def test_answers_do_not_depend_on_neighbours(masks: list[list[int]]) -> None:
    model = model_of()
    rows = rows_of([sorted(places) for places in masks])
    chain = Chain(
        TorchBackend(model),
        model.reduction,
        4,
        task=task_of(model.spec),
        padding=Padding(share=1.0),
    )
    together = chain.run(rows)
    assert_same(
        [chain.run([row])[0] for row in rows], [each.outputs["logits"] for each in together]
    )
    assert_same(DeviceChain(model).run(rows), [each.outputs["logits"] for each in together])


def test_gates_policies_and_embeddings_learn_from_masks() -> None:
    model = model_of(among=True)
    batch = batch_of(rows_of([[3], [0, 13], [5]]))
    gated = run_gated(model, batch)
    model.head.loss(gated.outputs, batch.targets).sum().backward()
    assert all(policy.score.weight.grad.abs().sum() > 0 for policy in model.policies)
    table = model.encoder.embeddings.token.weight.grad
    assert table is not None and table[WORDS[TARGET_IDS]].abs().sum(1).min() > 0
    assert [name for name, _ in model.head.named_parameters()] == [
        "dense.weight", "dense.bias", "norm.weight", "norm.bias", "decoder.bias",
    ]  # fmt: skip


def test_losses_look_at_masks_alone() -> None:
    model = model_of(among=True)
    head = model.head
    assert isinstance(head, FillMaskHead)
    logits = torch.tensor([[[2.0, 0, 0], [0, 0, 0]], [[0, 1.0, 0], [0, 0, 3.0]]])
    targets = torch.tensor([[0, NO_TOKEN], [1, 0]])
    found = head.loss({"logits": logits}, targets)
    expected = -logits.log_softmax(-1)
    assert found.tolist() == pytest.approx(
        [expected[0, 0, 0].item(), (expected[1, 0, 1] + expected[1, 1, 0]).item() / 2]
    )
    assert head.correct({"logits": logits}, targets).tolist() == [1.0, 0.5]
    assert head.answers({"logits": logits}, targets).tolist() == [[0, NO_TOKEN], [1, 2]]
    assert head.has_target(torch.tensor([[-1, NO_TOKEN], [1, NO_TOKEN]])).tolist() == [False, True]
    same = head.loss({"logits": logits}, None, {"logits": logits})
    assert same.abs().max() < 1e-6
    paths = head.path_loss({"logits": torch.cat([logits, logits])}, targets, {"logits": logits})
    assert paths.shape == (2, 2) and torch.equal(paths[0], paths[1])


def test_answers_of_masks_are_kept_and_given_out_again() -> None:
    model = model_of(among=True)
    task = task_of(model.spec)
    batch = batch_of(rows_of([[3], [0, 13], [5]]))
    with torch.no_grad():
        outputs = dense_outputs(model, batch)
    kept = RowOutputs.gathered(row_answers(task, outputs, batch))
    again = RowOutputs.of_tensors({name: each.numpy() for name, each in kept.tensors().items()})
    found = again.of_batch(task, batch.rows, batch.layout)
    torch.testing.assert_close(found["logits"], outputs["logits"])


def test_rows_that_nobody_encoded_get_a_mask() -> None:
    outputs = task_of(model_of().spec).outputs
    assert asked_token(outputs) == MASK and asked_token(()) is None
    ids = np.arange(10, 17)
    with_one, without = asking(
        [TokenRow(np.array([9, MASK, 9]), np.zeros(3, np.int64)), TokenRow(ids, ids * 0)], outputs
    )
    assert with_one.protected.tolist() == [True, True, False]
    assert without.input_ids.tolist() == [10, 11, 12, MASK, 14, 15, 16]
    assert without.protected.nonzero()[0].tolist() == [0, 3]
    assert ids[3] == 13
    text = task_of(tiny_model().spec).outputs
    assert asking([without], text) == [without]


def test_a_model_that_does_not_know_the_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not say which token is the mask"):
        tiny_model(task="fill-mask", labels=())
    assert ReductionConfig.parse("none").cuts == ()

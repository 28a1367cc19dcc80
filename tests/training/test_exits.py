"""Exits: trained behind the others, calibrated, and the same row for row in every chain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from training_in_tests import options_for, same, weights, with_recipe

from trbert_deploy import load
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.runtime.exits import exit_of
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.gradients import set_gradients
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import EXITS, STAGES, ExitsRecipe, Recipe
from trbert_deploy.training.row_outputs import RowOutputs
from trbert_deploy.training.run import train
from trbert_deploy.training.validation import PassedRows, Validator


def with_exits(options: TrainOptions) -> TrainOptions:
    return with_recipe(options, stages=STAGES, exits={"epochs": 4.0, "exit_learning_rate": 1e-2})


def texts_of(workplace: Path) -> list[str]:
    lines = (workplace / "validation.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    notes: list[str] = []
    train(with_exits(options_for(workplace)), workplace / "ckpt", note=notes.append)
    (workplace / "notes").write_text("\n".join(notes))
    return workplace / "ckpt"


def test_a_run_ends_with_exits_that_answer_and_a_confidence(trained: Path) -> None:
    model = load_checkpoint(trained).model
    rule = model.reduction.exits
    assert rule is not None and rule.confidence is not None and rule.patience is None
    assert len(model.exits) == len(model.reduction.cuts)
    figures = json.loads((trained / "training.json").read_text())
    lines = (trained / "stages" / EXITS / "figures.jsonl").read_text().splitlines()
    first, last = (json.loads(line) for line in (lines[0], lines[-1]))
    assert last["agreement_1"] >= 0.9 and last["task_loss"] < first["task_loss"]
    points = figures["points"]
    assert all(len(point["left"]) == 2 for point in points)
    for threshold in {point["threshold"] for point in points}:
        pair = [point for point in points if point["threshold"] == threshold]
        to_the_end, own = min(pair, key=_left), max(pair, key=_left)
        assert to_the_end["exit_confidence"] == 1.0 and _left(to_the_end) == 0.0
        assert own["exit_confidence"] == rule.confidence
        assert own["flops_speedup"] >= to_the_end["flops_speedup"]
        assert len(pair) == (1 if rule.confidence == 1.0 else 2)
    last_stage = figures["stages"][EXITS]
    (same_point,) = (
        point
        for point in points
        if point["threshold"] == model.reduction.cuts[0].rule.value
        and point["exit_confidence"] == rule.confidence
    )
    for name in ("score", "divergence", "kept", "flops_speedup", "left"):
        assert last_stage[name] == same_point[name]
    hard = weights(trained / "stages" / "hard")
    assert not any(name.startswith("exits.") for name in hard)
    policies = [name for name in hard if name.startswith("policies.")]
    own = weights(trained)
    assert policies and all(torch.equal(own[name], hard[name]) for name in policies)


def test_few_texts_do_not_tell_a_confidence(trained: Path, workplace: Path) -> None:
    rule = load_checkpoint(trained).model.reduction.exits
    assert rule is not None and rule.confidence is not None and rule.confidence < 1.0
    told = (workplace / "notes").read_text()
    assert f"leave at a confidence of {rule.confidence:.2f}, which 32 held-out texts alone" in told
    assert "give 500 or more, or an --exit-confidence of your own" in told


def _left(point: dict[str, Any]) -> float:
    return float(sum(point["left"]))


def test_a_wanted_quality_holds_for_tokens_and_exits_together(
    workplace: Path, tmp_path: Path
) -> None:
    """With it the fastest of the pairs is taken."""
    options = replace(with_exits(options_for(workplace)), max_drop=40.0)
    notes: list[str] = []
    report = train(options, tmp_path / "ckpt", note=notes.append)
    teacher = report.teacher_score or 0.0
    within = [point for point in report.points if 100.0 * (teacher - point.score) <= 40.0]
    chosen = max(within, key=lambda point: point.flops_speedup)
    own = load_checkpoint(tmp_path / "ckpt").model.reduction
    assert own.exits == ExitRule(chosen.exit_confidence)
    assert own.cuts[0].rule.value == chosen.threshold
    assert report.stages[EXITS].left == chosen.left and sum(chosen.left) > 0.0
    assert any(f"leave at a confidence of {chosen.exit_confidence:.2f}" in note for note in notes)


def test_rows_leave_with_the_answer_of_their_exit(trained: Path, workplace: Path) -> None:
    bundle = workplace / "bundle"
    export_bundle(trained, bundle)
    texts = texts_of(workplace)
    whole = load(bundle, exit_confidence=1.0)
    rows = whole.tokenize(texts)
    ends = whole.run(rows)
    assert all(result.exit is None for result in ends)
    first = load(bundle, exit_confidence=0.0).run(rows)
    assert [result.exit for result in first] == [0] * len(rows)
    assert all(not len(kept) for result in first for kept in result.kept)
    second = load(bundle, exit_patience=2).run(rows)  # where both agree
    assert {result.exit for result in second} <= {1, None}
    confidences = [whole.task.confidence(result.outputs) for result in first]
    middle = float(np.median(confidences))
    pipelines = [load(bundle, name, exit_confidence=middle) for name in ("onnxruntime", "torch")]
    for pipeline in pipelines:
        some = pipeline.run(rows)
        for early, late, sure, result in zip(first, ends, confidences, some, strict=True):
            if sure > middle:
                assert result.exit == 0
                np.testing.assert_allclose(
                    result.outputs["logits"], early.outputs["logits"], 0, 1e-4
                )
            else:
                assert result.exit != 0
            if result.exit is None:
                np.testing.assert_allclose(
                    result.outputs["logits"], late.outputs["logits"], 0, 1e-4
                )
        alone = [pipeline.run([row])[0] for row in rows]
        assert [result.exit for result in alone] == [result.exit for result in some]
    assert {result.exit for result in some} >= {0}


def test_an_interrupted_run_ends_where_another_one_does(
    trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(workplace)
    shorter = with_exits(options)
    before = replace(shorter, recipe=replace(shorter.recipe, stages=STAGES[:-1]))
    train(before, workplace / "again")
    train(shorter, workplace / "again", resume=True)  # exits may be added to a run that is done
    assert same(workplace / "again", trained)


def test_exits_are_refused_where_no_row_could_leave(workplace: Path, tmp_path: Path) -> None:
    options = with_exits(options_for(workplace))
    with pytest.raises(ConfigError, match="exits stand at cuts, and there are none"):
        train(with_recipe(options, cuts="none"), tmp_path / "none")
    rows = [{"text": "a b", "label": value} for value in (0.5, 1.25, 2.0, 0.75)] * 8
    data = tmp_path / "numbers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = replace(options, train=str(data), validation=None)
    with pytest.raises(ConfigError, match="do not tell how sure they are"):
        train(numbers, tmp_path / "numbers")
    assert not (tmp_path / "none").exists() and not (tmp_path / "numbers").exists()


def test_a_model_without_exits_refuses_to_leave(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the model has no exits"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", exit_confidence=0.9)
    assert not (tmp_path / "bundle").exists()
    for point in ({"exit_confidence": 0.9}, {"exit_patience": 1}):
        with pytest.raises(ConfigError, match="the model has no exits"):
            load(tiny_bundle, **point)
    for point, message in (
        ({"exit_confidence": 1.5}, "exit_confidence is 1.5: expected a probability from 0 to 1"),
        ({"exit_patience": 0}, "exit_patience is 0: expected a whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            OperatingPoint(**point)


def test_one_graph_answers_at_the_end(trained: Path, workplace: Path) -> None:
    bundle = workplace / "fused"
    export_bundle(trained, bundle, fused=True)
    with pytest.raises(ConfigError, match="answers at the end of the chain alone"):
        load(bundle, "one-graph", exit_confidence=0.5)
    texts = texts_of(workplace)
    whole = load(bundle, exit_confidence=1.0)
    rows = whole.tokenize(texts)
    pairs = zip(load(bundle, "one-graph").run(rows), whole.run(rows), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], 0, 1e-4)
        assert one.exit is None


LABELS = TextClassification(("no", "yes"))


def outputs(*logits: float) -> RowOutputs:
    return RowOutputs(
        tuple({"logits": np.array([-value, value], np.float32) / 2} for value in logits)
    )


def test_confidence_and_patience_say_where_a_row_leaves() -> None:
    answers = [each[0] for each in map(outputs, (0.1, 3.0, -2.0, -2.1))]
    assert exit_of(answers, None, LABELS) is None
    assert exit_of(answers, ExitRule(), LABELS) is None
    assert exit_of(answers, ExitRule(1.0), LABELS) is None and not ExitRule(1.0).is_active
    assert exit_of(answers, ExitRule(0.0), LABELS) == 0
    assert exit_of(answers, ExitRule(0.9), LABELS) == 1
    assert exit_of(answers, ExitRule(None, 1), LABELS) == 0
    assert exit_of(answers, ExitRule(None, 2), LABELS) == 1
    assert exit_of(answers[1:], ExitRule(None, 2), LABELS) == 2
    assert exit_of(answers, ExitRule(0.99, 3), LABELS) is None
    broken = [outputs(float("nan"))[0]] * 3
    assert exit_of(broken, ExitRule(0.0, 2), LABELS) is None


def test_rows_that_leave_have_no_tokens_behind() -> None:
    passed = PassedRows((outputs(3.0, 0.1), outputs(-3.0, 0.2)), [[9, 4], [7, 7]])
    answers, lengths = passed.left_by(ExitRule(0.9), LABELS)
    assert lengths == [[9, 0], [7, 7]]
    assert answers[0] is passed.answers[0][0] and answers[1] is passed.answers[1][1]


@pytest.mark.parametrize(("most", "confidence"), [(0.0, 0.971), (21.0, 0.961), (41.0, 0.881)])
def test_few_answers_may_change_where_rows_leave(most: float, confidence: float) -> None:
    """The exit answers five rows, from the surest on: alike, other, other, alike, other."""
    exit = outputs(4.0, 3.5, 3.2, 3.0, 2.0)
    end = outputs(1.0, -1.0, -1.0, 1.0, -1.0)
    passed = PassedRows((exit, end), [[9, 4]] * 5)
    # By the labels the second row gets worse and the third gets better: nothing is lost by both.
    rows = [
        TrainingRow(TokenRow(np.arange(9), np.zeros(9, np.int64)), target)
        for target in (1, 0, 1, 1, 0)
    ]
    model = tiny_model("1")
    model.set_reduction(model.reduction.with_exits(ExitRule(1.0)))
    validator = Validator(rows, LABELS, True, 64, torch.device("cpu"))
    validator.calibrate_exits(model, passed, most)
    rule = model.reduction.exits
    assert rule is not None and rule.confidence == pytest.approx(confidence, abs=0.003)


def test_a_gradient_gives_way_where_it_opposes() -> None:
    one, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([one, other], 1.0)

    def gradients(second: tuple[float, float]) -> list[float]:
        loss = one @ torch.tensor([3.0, 4.0]) + 0.0 * other.sum()
        set_gradients(optimizer, loss, one @ torch.tensor(second))
        assert one.grad is not None
        return one.grad.tolist()

    assert gradients((1.0, 1.0)) == [4.0, 5.0]  # nothing opposes
    assert gradients((-3.0, -4.0)) == [3.0, 4.0]  # all of it does
    assert np.allclose(gradients((4.0, -3.0)), [7.0, 1.0])  # across
    assert np.allclose(gradients((-1.0, 0.0)), [3.0 - 1.0 + 9 / 25, 4.0 + 12 / 25])


def test_the_recipe_named_exits_has_all_stages() -> None:
    assert Recipe.named("exits").stages == STAGES and EXITS not in Recipe().stages
    with pytest.raises(ConfigError, match="exits"):
        Recipe(exits=ExitsRecipe(mutual_weight=-1.0))


def test_a_model_has_as_many_exits_as_cuts_or_none() -> None:
    model = tiny_model("1,2")
    assert len(model.exits) == 0
    model.set_reduction(model.reduction.with_exits(ExitRule()))
    assert len(model.exits) == 2
    model.set_reduction(model.reduction.with_exits(None))
    assert len(model.exits) == 0
    model.to("meta").set_reduction(model.reduction.with_exits(ExitRule()))
    assert {each.device.type for each in model.exits.parameters()} == {"meta"}  # as all others are

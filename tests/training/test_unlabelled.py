"""Training on texts without labels: the fine-tuned model's own answers are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_in_tests import write
from conftest import make_texts, tiny_model
from training_in_tests import make_workplace, options_for, with_recipe

from trbert_deploy.errors import DataError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.text_classification import LOGITS, NO_TARGET
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import prepare
from trbert_deploy.training.run import train
from trbert_deploy.training.stages.guide import Guide, batch_saliency

CPU = torch.device("cpu")


def without_labels(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": row["text"]} for row in rows]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A fine-tuned teacher, and texts without labels."""
    place = make_workplace(tmp_path_factory.mktemp("unlabelled"), tokenizer_dir)
    train(with_recipe(options_for(place), stages=("teacher",)), place / "teacher")
    write(place / "texts.jsonl", without_labels(make_texts(160, 5)))
    write(place / "held-out.jsonl", without_labels(make_texts(48, 6)))
    return place


@pytest.fixture
def options(workplace: Path) -> TrainOptions:
    return replace(
        options_for(workplace),
        model=str(workplace / "teacher"),
        train=str(workplace / "texts.jsonl"),
        validation=str(workplace / "held-out.jsonl"),
    )


@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
def test_a_model_learns_from_its_own_answers(
    options: TrainOptions, workplace: Path, tmp_path: Path, estimator: str
) -> None:
    options = with_recipe(options, estimator=estimator)
    notes: list[str] = []
    report = train(options, tmp_path / "ckpt", note=notes.append)
    assert any("48 of 48 validation texts have no label: judged is" in note for note in notes)
    assert report.measure == "agreement"
    assert report.teacher_score == 1.0
    assert list(report.stages) == ["policy", "joint", "hard"]  # the teacher was only looked at
    last = report.stages["hard"]
    assert last.measure == "agreement"
    assert last.flops_speedup == pytest.approx(1.5, rel=0.15)
    # Such a teacher hangs on one word of a text: nothing at all may be lost without the others.
    assert all(0.0 <= stage.divergence < 1.0 for stage in report.stages.values())

    # The same figures by the runtime's chain and the task.
    texts = [row["text"] for row in make_texts(48, 6)]
    teacher = load_checkpoint_pipeline(workplace / "teacher")
    student = load_checkpoint_pipeline(tmp_path / "ckpt")
    wanted = teacher.run(teacher.tokenize(texts), dense=True)
    found = student.run(student.tokenize(texts))
    agreement, divergence = compare(student.task, wanted, found)
    assert agreement == last.score > 0.9
    assert divergence == pytest.approx(last.divergence, rel=0.1, abs=2e-3)  # bf16 here and there

    # Resuming a finished run changes nothing.
    assert train(options, tmp_path / "ckpt", resume=True) == report


def compare(task: Task, wanted: Sequence[RowResult], found: Sequence[RowResult]) -> list[float]:
    """Mean agreement and divergence of rows' answers."""
    pairs = [(one.outputs, two.outputs) for one, two in zip(wanted, found, strict=True)]
    return [
        float(np.mean([measure(*pair) for pair in pairs]))
        for measure in (task.agreement, task.divergence)
    ]


def test_the_checkpoint_that_diverges_least_is_kept(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    short = with_recipe(options, stages=("guide", "policy"), policy={"epochs": 1.0})
    train(short, tmp_path / "ckpt")
    run = prepare(short, tmp_path, CPU, lambda message: None)
    guide_path = tmp_path / "ckpt" / "stages" / "guide" / "guide.safetensors"
    guide = Guide.load(guide_path, run.validator.task)
    validator = replace(run.validator, teacher=guide.validation)
    dense = validator.dense(load_checkpoint(tmp_path / "ckpt").model)
    assert (dense.score, dense.divergence) == (1.0, pytest.approx(0.0, abs=1e-6))
    worse = replace(dense, divergence=0.2)
    assert validator.rank(dense) > validator.rank(worse)
    # A model that learned nothing is far away, as far as the runtime's chain says.
    texts = [row["text"] for row in make_texts(48, 6)]
    models = [load_checkpoint_pipeline(workplace / name) for name in ("teacher", "fine-tuned")]
    answers = [model.run(model.tokenize(texts), dense=True) for model in models]
    stranger = validator.dense(load_checkpoint(workplace / "fine-tuned").model)
    assert [stranger.score, stranger.divergence] == pytest.approx(
        compare(models[0].task, *answers), rel=0.05
    )
    assert stranger.divergence > 0.05 and validator.rank(stranger) < validator.rank(dense)
    by_labels = replace(validator, labelled=True)
    assert by_labels.rank(dense) == by_labels.rank(worse)


def test_labelled_and_unlabelled_texts_mix(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    rows = make_texts(60, 7)
    mixed = write(tmp_path / "mixed.jsonl", rows[:20] + without_labels(rows[20:]))
    known = replace(options, train=mixed, validation=str(workplace / "validation.jsonl"))
    run = prepare(known, tmp_path, CPU, lambda message: None)
    assert run.fine_tuned
    assert run.validator.measure == "accuracy"  # all of these have labels
    assert [len(run.rows_of(stage)) for stage in ("policy", "joint", "hard")] == [60] * 3

    # A new head learns from the labels, and is judged by them; the others wait for its answers.
    fresh = replace(known, model=str(workplace / "encoder"), validation=mixed)
    run = prepare(fresh, tmp_path, CPU, lambda message: None)
    assert [len(run.rows_of(stage)) for stage in ("teacher", "policy", "hard")] == [20, 60, 60]
    assert run.validator.labelled
    assert len(run.validator.rows) == 20
    report = train(with_recipe(fresh, teacher={"epochs": 1.0}), tmp_path / "ckpt")
    assert report.measure == "accuracy"
    assert report.teacher_score == report.stages["teacher"].dense_score

    # The same model's answers decide as soon as one text has no label.
    judged = prepare(replace(known, validation=mixed), tmp_path, CPU, lambda message: None)
    assert judged.validator.measure == "agreement"
    assert len(judged.validator.rows) == 60


@pytest.mark.parametrize("validation", ["held-out.jsonl", None])
def test_a_new_head_needs_labels(
    options: TrainOptions, workplace: Path, tmp_path: Path, validation: str | None
) -> None:
    held_out = None if validation is None else str(workplace / validation)
    bare = replace(options, model=str(workplace / "encoder"), validation=held_out)
    with pytest.raises(DataError, match=r"the texts have no labels, and .*encoder has no head"):
        train(bare, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


def test_a_new_head_needs_labelled_validation_texts(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    bare = replace(options, model=str(workplace / "encoder"), train=str(workplace / "train.jsonl"))
    with pytest.raises(DataError, match="none of the 48 validation texts has a label, which a new"):
        train(bare, tmp_path / "ckpt")


def test_the_teacher_stage_alone_teaches_a_fine_tuned_model_further(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    labelled = {name: str(workplace / f"{name}.jsonl") for name in ("train", "validation")}
    further = replace(options, **labelled)
    further = with_recipe(further, stages=("teacher",))
    further = with_recipe(further, teacher={"epochs": 0.5, "learning_rate": 1e-6})
    report = train(further, tmp_path / "ckpt")
    assert report.measure == "accuracy"
    before, after = (
        load_checkpoint(path).model for path in (workplace / "teacher", tmp_path / "ckpt")
    )
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-4, rtol=0.0, msg=name)  # its own head
    assert not torch.equal(before.head.classifier.weight, after.head.classifier.weight)
    # Without labels there is nothing to learn from
    notes: list[str] = []
    train(with_recipe(options, stages=("teacher",)), tmp_path / "same", note=notes.append)
    assert any("no teacher stage" in note for note in notes)


def test_a_row_without_target_is_taken_for_what_the_teacher_answers() -> None:
    model = tiny_model()
    generator = np.random.default_rng(0)
    tokens = [generator.integers(5, 60, length) for length in (4, 7, 9)]
    rows = [TrainingRow(TokenRow(ids, np.zeros_like(ids)), 0) for ids in tokens]
    (batch,) = load_batches(rows, [[0, 1, 2]], CPU)
    _, outputs = batch_saliency(model, batch)
    answers = outputs[LOGITS].argmax(-1)
    told = replace(batch, targets=answers)
    unknown = replace(batch, targets=torch.full_like(answers, NO_TARGET))
    wrong = replace(batch, targets=1 - answers)
    for expected, found, other in zip(
        *(batch_saliency(model, each)[0] for each in (told, unknown, wrong)), strict=True
    ):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, other)


def test_a_path_without_label_is_held_to_the_teacher_alone() -> None:
    head = tiny_model().head
    logits, teacher = torch.randn(6, 2), {LOGITS: torch.randn(3, 2)}
    target = torch.tensor([1, NO_TARGET, 0])
    mixed = head.path_loss({LOGITS: logits}, target, teacher)
    alone = head.path_loss({LOGITS: logits}, None, teacher)
    labelled = head.path_loss({LOGITS: logits}, target.clamp_min(0), teacher)
    torch.testing.assert_close(mixed[:, 1], alone[:, 1])
    torch.testing.assert_close(mixed[:, ::2], labelled[:, ::2])
    assert not torch.allclose(mixed[:, ::2], alone[:, ::2])


def test_rows_that_are_held_out_may_have_labels_of_their_own(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    rows = [{**row, "label": f"kind {place}"} for place, row in enumerate(make_texts(30, 8))]
    data = write(tmp_path / "data.jsonl", rows)
    model = str(workplace / "encoder")
    run = prepare(
        replace(options, model=model, train=data, validation=None), tmp_path, CPU, lambda told: None
    )
    assert len(run.validator.rows) == 3
    assert set(run.checkpoint.model.spec.labels) == {row["label"] for row in rows}

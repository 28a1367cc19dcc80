"""Whole training runs on a tiny model: stages, figures, resuming, seeds, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from training_in_tests import (
    STAGES_OF,
    Interrupted,
    by,
    options_for,
    same,
    weights,
    with_recipe,
)

import trbert_deploy.training.run as run_module
from trbert_deploy.errors import CheckpointError, ConfigError, DataError, LengthError, StorageError
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.training.loop import RESUME_FILE
from trbert_deploy.training.options import LARGEST_SPEEDUP, TrainOptions
from trbert_deploy.training.prepare import Prepared
from trbert_deploy.training.recipe import (
    HardRecipe,
    JointRecipe,
    PolicyRecipe,
    Recipe,
    TeacherRecipe,
)
from trbert_deploy.training.row_outputs import RowOutputs
from trbert_deploy.training.run import RUN_VERSION, train
from trbert_deploy.training.stages.guide import Guide
from trbert_deploy.training.stages.stage import Stage
from trbert_deploy.training.validation import Quality, Validator


@pytest.mark.parametrize(
    ("estimator", "recombined"), [("gates", 0.0), ("gates", 0.5), ("reinforce", 0.5)]
)
def test_all_stages_leave_checkpoints_and_figures(
    options: TrainOptions, tmp_path: Path, estimator: str, recombined: float
) -> None:
    options = with_recipe(by(estimator, options), recombined=recombined)
    output = tmp_path / "ckpt"
    steps: list[str] = []

    def progress(step: str, done: int, total: int | None) -> None:
        assert done >= 0 and (total is None or done <= total)
        steps.append(step.partition(" ")[0])

    report = train(options, output, progress=progress)
    assert "answers" in steps  # on the validation rows, and on recombined ones
    assert set(steps) <= {
        "read", "load", "tokenize", "recombine", *options.recipe.stages, "answers", "validation",
        "validation,", "calibration", "threshold",
    }  # fmt: skip
    assert {"read", "tokenize"} < set(steps)
    assert list(report.stages) == STAGES_OF[estimator]
    for stage, evaluation in report.stages.items():
        directory = output / "stages" / stage
        checkpoint = load_checkpoint(directory)
        assert list(checkpoint.training["stages"])[-1] == stage
        lines = (directory / "figures.jsonl").read_text().splitlines()
        figures = [json.loads(line) for line in lines]
        assert [step["step"] for step in figures] == list(range(len(figures)))
        assert sum("validation" in step for step in figures) == options.recipe.validations_of(stage)
        assert all(0 <= step.get("agreement", 0.0) <= 1 for step in figures)
        assert 0 < evaluation.kept[1] <= evaluation.kept[0] <= 1
        assert evaluation.flops_speedup >= 1.0 or evaluation.kept[0] > 0.9
        assert {path.name for path in directory.glob("*.safetensors")} == {"model.safetensors"}
    assert report.stages["teacher"].dense_score > 0.8  # one telling word a text
    assert report.teacher_score == report.stages["teacher"].dense_score
    assert list((output / "stages").glob("events.out.tfevents.*"))
    assert same(output, output / "stages" / STAGES_OF[estimator][-1])
    final = load_checkpoint(output)
    assert final.samples
    assert final.training["options"]["recipe"]["seed"] == 0
    speedups = [point.flops_speedup for point in report.points]
    assert speedups == sorted(speedups)
    thresholds = [point.threshold for point in report.points]
    assert len(set(thresholds)) == len(thresholds)
    if options.target_speedup is not None:
        last = report.stages["hard"].flops_speedup
        assert last == pytest.approx(options.target_speedup, rel=0.15)
        assert last in speedups

    # Resuming a finished run changes nothing.
    before = weights(output)
    again = train(options, output, resume=True)
    assert again == report
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(output).items())


def test_a_stage_ends_with_its_best_checkpoint(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.6, 0.9, 0.7])
    seen: list[torch.Tensor] = []

    def dense(self: Validator, model: ReducedModel) -> Quality:
        seen.append(model.head.classifier.weight.detach().clone())
        return Quality(next(scores, 0.0), None)

    monkeypatch.setattr(Validator, "dense", dense)
    options = with_recipe(options, teacher={"epochs": 1.0}, validations=3, stages=("teacher",))
    train(options, tmp_path / "ckpt")
    model = load_checkpoint(tmp_path / "ckpt").model
    assert torch.equal(model.head.classifier.weight, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_hard_stage_that_does_harm_leaves_what_it_began_with(
    options: TrainOptions, tmp_path: Path
) -> None:
    options = with_recipe(options, hard={"learning_rate": 0.5})
    output = tmp_path / "ckpt"
    train(options, output)
    joint = weights(output / "stages" / "joint")
    assert all(torch.equal(joint[name], value) for name, value in weights(output).items())


def test_a_wanted_quality_decides_what_is_saved(options: TrainOptions, tmp_path: Path) -> None:
    notes: list[str] = []
    generous = replace(options, max_drop=60.0)
    report = train(generous, tmp_path / "ckpt", note=notes.append)
    fastest = max(report.points, key=lambda point: point.flops_speedup)
    chosen = load_checkpoint(tmp_path / "ckpt").model.reduction.cuts[0].rule.value
    assert chosen == fastest.threshold
    assert report.stages["hard"].flops_speedup == fastest.flops_speedup
    strict = with_recipe(options, hard={"epochs": 0.2}, joint={"epochs": 0.5})
    strict = replace(strict, max_drop=0.001)
    report = train(strict, tmp_path / "strict", note=notes.append)
    assert any("32 validation rows cannot tell a loss of 0.001 points" in note for note in notes)
    kept = report.stages["hard"]
    assert kept.score == max(point.score for point in report.points)


def test_a_speedup_out_of_reach_is_told(options: TrainOptions, tmp_path: Path) -> None:
    notes: list[str] = []
    far = with_recipe(options, teacher={"epochs": 1.0}, hard={"epochs": 0.2})
    train(replace(far, target_speedup=40.0), tmp_path / "ckpt", note=notes.append)
    assert any("a speed-up of 40 cannot be reached with cuts at 0.5,2" in note for note in notes)


@pytest.mark.parametrize(
    ("estimator", "stage"),
    [
        ("gates", "teacher"),
        ("gates", "policy"),
        ("gates", "joint"),
        ("gates", "hard"),
        ("reinforce", "policy"),
        ("reinforce", "joint"),
    ],
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    options: TrainOptions, tmp_path: Path, estimator: str, stage: str
) -> None:
    once = {"epochs": 1.0}
    options = with_recipe(
        by(estimator, options), save_seconds=0.0, teacher=once, policy=once, joint=once
    )
    train(options, tmp_path / "whole")

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith(stage) and total and done == total // 2 + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(options, tmp_path / "parts", progress=interrupt)
    assert (tmp_path / "parts" / "stages" / stage / RESUME_FILE).exists()
    train(options, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    figures = [
        (tmp_path / name / "stages" / stage / "figures.jsonl").read_text()
        for name in ("whole", "parts")
    ]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def reduced(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages, for a speed-up of 1.5."""
    output = tmp_path_factory.mktemp("reduced") / "ckpt"
    train(options_for(workplace), output)
    return output


@pytest.fixture
def warm(options: TrainOptions, reduced: Path) -> TrainOptions:
    """Options that go on from ``reduced``, with its teacher."""
    teacher = str(reduced / "stages" / "teacher")
    return replace(options, model=teacher, warm_start=str(reduced), target_speedup=2.0)


def test_a_warm_start_goes_on_from_a_reduced_model(
    warm: TrainOptions, reduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings: list[float] = []
    make_stage = run_module.make_stage

    def spy(name: str, *rest: Any) -> Stage:
        openings.append(rest[-1])
        return make_stage(name, *rest)

    monkeypatch.setattr(run_module, "make_stage", spy)
    notes: list[str] = []
    steps: list[str] = []
    report = train(
        warm,
        tmp_path / "ckpt",
        note=notes.append,
        progress=lambda step, done, total: steps.append(step),
    )
    assert any(f"go on from {reduced}: no policy stage" in note for note in notes)
    assert not any(step.startswith(("teacher", "policy")) for step in steps)
    assert same(reduced, tmp_path / "ckpt" / "stages" / "policy")
    before = load_checkpoint(reduced).training["stages"]
    assert report.teacher_score == before["teacher"]["dense_score"]
    assert report.stages["policy"].flops_speedup == before["hard"]["flops_speedup"]
    assert openings == [before["hard"]["flops_speedup"], 1.0]  # joint, hard
    assert not same(reduced, tmp_path / "ckpt")
    assert report.stages["hard"].flops_speedup == pytest.approx(2.0, rel=0.15)


def test_a_warm_start_for_less_saving_opens_at_what_is_wanted(
    warm: TrainOptions, tmp_path: Path
) -> None:
    less = with_recipe(warm, joint={"epochs": 0.3}, hard={"epochs": 0.2})
    report = train(replace(less, target_speedup=1.2), tmp_path / "ckpt")
    assert report.stages["joint"].flops_speedup == pytest.approx(1.2, rel=0.1)


def test_a_warm_started_run_can_be_resumed(warm: TrainOptions, tmp_path: Path) -> None:
    warm = with_recipe(warm, save_seconds=0.0, hard={"epochs": 0.2})
    train(warm, tmp_path / "whole")

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith("joint") and total and done == total // 2 + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(warm, tmp_path / "parts", progress=interrupt)
    train(warm, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_warm_start_must_fit(
    warm: TrainOptions, workplace: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            train(replace(warm, **changes), tmp_path / "ckpt")
        assert not (tmp_path / "ckpt").exists()

    refused(StorageError, "nowhere", warm_start=str(tmp_path / "nowhere"))
    refused(CheckpointError, "no reduction.json", warm_start=str(workplace / "encoder"))
    refused(CheckpointError, "drops no tokens", warm_start=str(workplace / "fine-tuned"))
    elsewhere = replace(warm.recipe, cuts="1,3")
    refused(ConfigError, r"drops tokens at 0\.5,2, not at 1,3: leave cuts out", recipe=elsewhere)
    refused(
        CheckpointError, "max_positions 64, the teacher 100: .* same --max-length", max_length=100
    )
    save_checkpoint(Checkpoint(tiny_model("1", num_layers=3), tokenizer_dir, 64), tmp_path / "thin")
    refused(CheckpointError, "num_layers 3, the teacher", warm_start=str(tmp_path / "thin"))


def test_a_seed_gives_the_same_run_again_and_another_seed_another(
    options: TrainOptions, tmp_path: Path
) -> None:
    options = with_recipe(options, teacher={"epochs": 1.0}, policy={"epochs": 1.0})
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        train(with_recipe(options, seed=seed), tmp_path / name)
    assert same(tmp_path / "first", tmp_path / "again")
    assert not same(tmp_path / "first", tmp_path / "other")


def test_a_fine_tuned_model_skips_the_teacher_stage(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    options = replace(options, model=str(workplace / "fine-tuned"))
    options = with_recipe(options, stages=("teacher", "guide", "policy"))
    notes: list[str] = []
    train(options, tmp_path / "ckpt", note=notes.append)
    assert any("no teacher stage" in note for note in notes)
    before, after = weights(workplace / "fine-tuned"), weights(tmp_path / "ckpt")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_longer_texts_than_the_positions_need_extending(
    options: TrainOptions, tmp_path: Path
) -> None:
    notes: list[str] = []
    options = replace(
        with_recipe(options, teacher={"epochs": 0.2}, stages=("teacher",)), max_length=100
    )
    train(options, tmp_path / "ckpt", note=notes.append)
    checkpoint = load_checkpoint(tmp_path / "ckpt")
    assert (checkpoint.max_length, checkpoint.model.spec.max_positions) == (100, 100)
    assert "positions extended from 64 to 100 by tiling" in notes
    refusing = replace(with_recipe(options, truncate=False), max_length=20)
    with pytest.raises(LengthError, match=r"takes at most 20; .* extends the encoder's positions"):
        train(refusing, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_stages_can_be_run_one_at_a_time(options: TrainOptions, tmp_path: Path) -> None:
    output = tmp_path / "ckpt"
    with pytest.raises(ConfigError, match="stage policy needs the stages teacher, guide"):
        train(with_recipe(options, stages=("policy",)), output)
    assert not output.exists()
    train(with_recipe(options, stages=("teacher",)), output)
    train(with_recipe(options, stages=("guide", "policy")), output, resume=True)
    assert set(json.loads((output / "training.json").read_text())["stages"]) == {
        "teacher",
        "guide",
        "policy",
    }


def test_a_run_is_not_overwritten_nor_mixed(options: TrainOptions, tmp_path: Path) -> None:
    output = tmp_path / "ckpt"
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        train(options, output, resume=True)
    train(with_recipe(options, teacher={"epochs": 0.2}, stages=("teacher",)), output)
    with pytest.raises(ConfigError, match="holds a run already: add --resume"):
        train(options, output)
    other = replace(with_recipe(options, policy={"rollouts": 7}, seed=1), max_drop=1.0)
    changed = r"\(max_drop, seed, \[teacher\] epochs, \[policy\] rollouts\)"
    with pytest.raises(ConfigError, match=rf"other options {changed}"):
        train(other, output, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        train(options, tmp_path / "other")


def test_one_run_at_a_time_trains_into_a_directory(options: TrainOptions, tmp_path: Path) -> None:
    options = with_recipe(options, teacher={"epochs": 0.2}, stages=("teacher",))
    (tmp_path / "ckpt").mkdir()
    message = "another training run is writing into .*ckpt: wait until it ends"

    def second(*_: object) -> None:
        for resume in (False, True):
            with pytest.raises(ConfigError, match=message):
                train(options, tmp_path / "ckpt", resume=resume)

    second_while_first_runs: list[None] = []
    report = train(
        options,
        tmp_path / "ckpt",
        progress=lambda *step: second_while_first_runs.append(second()),
    )
    assert second_while_first_runs
    assert train(options, tmp_path / "ckpt", resume=True) == report
    assert "lock" not in " ".join(path.name for path in (tmp_path / "ckpt").iterdir())


def test_a_directory_that_another_run_made_meanwhile_is_left_alone(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = run_module.prepare

    def slow(*given: Any) -> Prepared:
        (tmp_path / "ckpt").mkdir()
        (tmp_path / "ckpt" / "training.json").write_text("{}")
        return prepare(*given)

    monkeypatch.setattr(run_module, "prepare", slow)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(options, tmp_path / "ckpt")
    assert (tmp_path / "ckpt" / "training.json").read_text() == "{}"


def test_what_a_killed_run_left_in_a_new_directory_is_no_obstacle(
    options: TrainOptions, tmp_path: Path
) -> None:
    (tmp_path / "ckpt" / ".trbert-staging-0123456789abcdef").mkdir(parents=True)
    train(with_recipe(options, teacher={"epochs": 0.2}, stages=("teacher",)), tmp_path / "ckpt")
    assert not list((tmp_path / "ckpt").glob(".*"))


def test_validation_labels_must_be_known(
    options: TrainOptions, workplace: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "the film", "label": "ugly"}\n')
    with pytest.raises(DataError, match="does not know the label 'ugly'"):
        train(replace(options, validation=str(path)), tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 1}, "max_length is 1: expected a whole number from 2 to 2,147,483,647"),
        ({"max_length": 2**40}, "max_length is 1099511627776: expected a whole number from 2"),
        ({"target_speedup": 0.5}, "target_speedup is 0.5: expected 1 or more"),
        ({"max_drop": -1.0}, "max_drop is -1.0: expected 0 or more points"),
        ({"recipe": Recipe(averaged_from="joint"), "max_drop": 1.0}, "must aim at one computation"),
    ],
)
def test_options_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions(model="m", train="t", **changes)


def test_named_columns_belong_to_a_run() -> None:
    options = TrainOptions(model="m", train="t", text_column="body", label_column="mark")
    assert options.columns == ColumnNames("body", None, "mark")
    assert options.changed(TrainOptions(model="m", train="t")) == ["text_column", "label_column"]


def test_a_fixed_penalty_is_adjusted_where_a_computation_is_asked_for() -> None:
    def final(recipe: str, **given: Any) -> float | None:
        return TrainOptions("m", "t", recipe=Recipe.named(recipe), **given).final_speedup

    assert (final("gates"), final("gates", target_speedup=2.0)) == (3.0, 2.0)
    assert (final("tr-bert"), final("tr-bert", target_speedup=2.0)) == (None, 2.0)
    assert final("gates", max_drop=0.5) == final("tr-bert", max_drop=0.5) == LARGEST_SPEEDUP


@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
def test_every_stage_learns_at_the_rates_of_its_table(estimator: str) -> None:
    recipe = Recipe(
        estimator=estimator,
        teacher=TeacherRecipe(learning_rate=1.0),
        policy=PolicyRecipe(learning_rate=2.0),
        joint=JointRecipe(learning_rate=3.0, policy_learning_rate=4.0),
        hard=HardRecipe(learning_rate=5.0),
    )
    options, model = TrainOptions("m", "t", recipe=recipe), tiny_model()
    guide = Guide(task_of(model.spec), RowOutputs(()), np.zeros(1, np.int64), ())
    found = {
        stage: [
            group["lr"]
            for group in run_module.make_stage(
                stage, model, options, None if stage == "teacher" else guide
            ).groups
        ]
        for stage in STAGES_OF["gates"]
    }
    assert found == {"teacher": [1.0], "policy": [2.0], "joint": [3.0, 4.0], "hard": [5.0]}


def test_options_come_back_from_their_record() -> None:
    recipe = Recipe(cuts="1,3", stages=("joint",), joint=JointRecipe(epochs=2.0))
    for options in (
        TrainOptions("m", "t", target_speedup=2.5, recipe=recipe),
        TrainOptions("m", "t", max_length=9, recipe=Recipe.named("tr-bert")),
        TrainOptions("m", "t"),
    ):
        again = TrainOptions.from_json(json.loads(json.dumps(options.to_json())))
        assert again == replace(options, target_speedup=options.wanted_speedup)
        assert options.changed(again) == again.changed(options) == []
    assert TrainOptions.from_json({"model": "m", "train": "t"}).changed(options) == []
    with pytest.raises(ConfigError, match="the options of a run has the fields"):
        TrainOptions.from_json({"model": "m", "train": "t", "teacher_epochs": 3})


def test_a_resumed_run_may_have_other_stages_and_saves() -> None:
    one = TrainOptions("m", "t")
    other = TrainOptions("m", "t", recipe=Recipe(stages=("teacher",), save_seconds=1.0, cuts="1"))
    assert one.changed(other) == ["cuts"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, f"has version 2: this release goes on with runs of version {RUN_VERSION}"),
        ({"options": {"model": "m"}}, "is damaged: the options of a run has the fields"),
        ({"options": {"model": "m", "train": "t", "recipe": {"seed": "x"}}}, "is damaged: seed is"),
        ({"options": 3}, "is damaged: the options of a run has the fields int"),
        ({"stages": 3}, "is damaged: the record of its stages is 3: expected"),
    ],
)
def test_a_record_that_cannot_be_gone_on_with_is_refused(
    options: TrainOptions, tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    whole = {"options": options.to_json(), "stages": {}, "points": []}
    record = {"version": RUN_VERSION, **whole, **damage}
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message):
        train(options, tmp_path, resume=True)


def test_the_recipe_lies_beside_every_checkpoint_as_it_was_used(
    options: TrainOptions, tmp_path: Path
) -> None:
    short = {"epochs": 0.2}
    options = with_recipe(options, teacher=short, stages=("teacher",), save_seconds=7.0)
    train(options, tmp_path / "ckpt")
    places = [tmp_path / "ckpt", tmp_path / "ckpt" / "stages" / "teacher"]
    assert all(Recipe.read(place / "recipe.toml") == options.recipe for place in places)
    # From there on, by the file; checkpoints without one are read as before.
    again = replace(Recipe.read(places[0] / "recipe.toml"), stages=("guide", "policy"))
    (places[1] / "recipe.toml").unlink()
    train(replace(options, recipe=again), tmp_path / "ckpt", resume=True)
    assert Recipe.read(tmp_path / "ckpt" / "stages" / "policy" / "recipe.toml") == again
    assert Recipe.read(tmp_path / "ckpt" / "recipe.toml") == again

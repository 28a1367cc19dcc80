"""Runs of which several are averaged: what they begin and end with, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_in_tests import Interrupted, same, with_recipe

import trbert_deploy.training.prepare as prepare_module
import trbert_deploy.training.run as run_module
from trbert_deploy.files import read_json, write_json
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.modeling.checkpoints.pretrained import Pretrained, load_pretrained
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import STAGES, Recipe
from trbert_deploy.training.run import RUN_FILE, train


def require_mean(averaged: Path, alone: Path) -> None:
    """Assert that a stage is the mean of two runs, of which the first is the one that ran alone."""
    first, second = (load_file(averaged / f"run-{run}" / "result.safetensors") for run in (1, 2))
    single = load_checkpoint(alone).model.state_dict()
    for name, tensor in load_checkpoint(averaged).model.state_dict().items():
        one, other = first[f"model.{name}"], second[f"model.{name}"]
        assert torch.allclose(tensor, (one + other) / 2, atol=1e-7)
        assert torch.equal(single[name], one)  # a run is a run as any other
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("first", ["policy", "hard"])
def test_averaged_runs_begin_alike_and_end_in_their_mean(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(run_module, "clear_progress", lambda *_, **__: None)  # the runs stay
    options = with_recipe(options, teacher={"epochs": 1.0}, policy={"epochs": 1.0})
    train(options, tmp_path / "single")
    averaged = with_recipe(options, averaged_runs=2, averaged_from=first)
    report = train(averaged, tmp_path / "averaged")
    for stage in ("policy", "joint", "hard"):
        alone, stages = tmp_path / "single" / "stages" / stage, tmp_path / "averaged" / "stages"
        if STAGES.index(stage) < STAGES.index(first):
            assert same(alone, stages / stage)
        else:
            require_mean(stages / stage, alone)
    wanted = pytest.approx(options.target_speedup, rel=0.15)  # the mean has a threshold of its own
    assert report.stages["joint"].flops_speedup == wanted
    assert report.stages["hard"].flops_speedup == wanted


def require_mean_of_seeds(place: Path) -> None:
    """Assert that ``averaged`` is the mean of ``seed-0`` and ``seed-1``, which differ."""
    one, other, mean = (
        load_checkpoint(place / name).model.state_dict()
        for name in ("seed-0", "seed-1", "averaged")
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (one[name] + other[name]) / 2, atol=1e-7)


def test_averaged_runs_are_whole_trainings_with_seeds_of_their_own(
    workplace: Path, options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_alike(*given: Any) -> Pretrained:
        torch.manual_seed(0)
        return load_pretrained(*given)

    monkeypatch.setattr(prepare_module, "load_pretrained", begin_alike)
    options = replace(options, model=str(workplace / "fine-tuned"))
    options = with_recipe(options, policy={"epochs": 1.0})
    for seed in (0, 1):
        train(with_recipe(options, seed=seed), tmp_path / f"seed-{seed}")
    train(with_recipe(options, averaged_runs=2, averaged_from="policy"), tmp_path / "averaged")
    require_mean_of_seeds(tmp_path)


def test_a_hard_run_is_that_of_its_seed(options: TrainOptions, tmp_path: Path) -> None:
    once = {"epochs": 1.0}
    options = with_recipe(options, teacher=once, policy=once, joint=once)
    train(with_recipe(options, stages=("teacher", "guide", "policy", "joint")), tmp_path / "seed-0")
    copytree(tmp_path / "seed-0", tmp_path / "seed-1")
    copytree(tmp_path / "seed-0", tmp_path / "averaged")
    for name, recipe in (
        ("seed-0", {"seed": 0}),
        ("seed-1", {"seed": 1}),
        ("averaged", {"averaged_runs": 2}),
    ):
        record = read_json(tmp_path / name / RUN_FILE)
        record["options"]["recipe"] |= recipe
        write_json(tmp_path / name / RUN_FILE, record)
        train(with_recipe(options, stages=("hard",), **recipe), tmp_path / name, resume=True)
    require_mean_of_seeds(tmp_path)


@pytest.mark.parametrize(
    ("place", "first", "max_drop"),
    [
        ("2/2 policy", "policy", None),
        ("2/2 joint", "policy", None),
        ("2/2 hard", "joint", None),
        ("1/2 hard", "hard", None),
        ("2/2 hard", "hard", 5.0),
    ],
)
def test_interrupted_averaged_runs_end_where_uninterrupted_ones_do(
    options: TrainOptions, tmp_path: Path, place: str, first: str, max_drop: float | None
) -> None:
    once = {"epochs": 1.0}
    options = with_recipe(options, averaged_runs=2, save_seconds=0.0, teacher=once, policy=once)
    options = with_recipe(options, averaged_from=first)
    if max_drop is not None:
        options = replace(options, target_speedup=None, max_drop=max_drop)
    train(options, tmp_path / "whole")

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith(place) and total and done == total // 2 + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(options, tmp_path / "parts", progress=interrupt)
    train(options, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    left = {path.name for path in (tmp_path / "parts").rglob("*.safetensors")}
    assert left == {"model.safetensors", "guide.safetensors"}


def test_a_resumed_run_clears_what_a_killed_one_left(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was killed between its record and its clearing."""
    short = {"epochs": 0.2}
    options = with_recipe(options, teacher=short, policy=short, joint=short)
    stages = ("teacher", "guide", "policy")
    options = with_recipe(options, averaged_runs=2, averaged_from="policy", stages=stages)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "clear_progress", lambda *_, **__: None)
        train(options, tmp_path / "killed")
    assert list((tmp_path / "killed").rglob("result.safetensors"))
    train(options, tmp_path / "whole")
    for name in ("killed", "whole"):
        train(with_recipe(options, stages=("joint",)), tmp_path / name, resume=True)
        left = {path.name for path in (tmp_path / name).rglob("*.safetensors")}
        assert left == {"model.safetensors", "guide.safetensors"}
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_stages_are_averaged_from_one_on() -> None:
    def runs(**recipe: Any) -> list[int]:
        options = TrainOptions(model="m", train="t", recipe=Recipe(**recipe))
        return [options.averaged_runs_of(stage) for stage in STAGES]

    assert dict(zip(STAGES, runs(), strict=True)) == dict.fromkeys(STAGES, 1) | {"hard": 3}
    assert runs(averaged_runs=2, averaged_from="joint") == [1, 1, 1, 2, 2, 1]
    assert runs(averaged_runs=2, averaged_from="policy") == [1, 1, 2, 2, 2, 1]

"""How long a run will take, told from a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_in_tests import options_for, with_recipe

from trbert_deploy.training import estimate as module
from trbert_deploy.training.estimate import estimate_seconds
from trbert_deploy.training.gradients import set_gradients
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import Prepared, prepare
from trbert_deploy.training.recipe import STAGES


def prepared(options: TrainOptions, scratch: Path) -> Prepared:
    return prepare(options, scratch, torch.device("cpu"), lambda message: None)


def test_stages_are_priced_by_token(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds_per_token", lambda run, batches: 0.5)
    options = with_recipe(
        options_for(workplace), validations=3, averaged_runs=2, averaged_from="joint"
    )
    run = prepared(options, tmp_path)
    mean = sum(map(len, run.training)) / len(run.training)
    looked_at = 0.5 * 10 * sum(map(len, run.validator.rows)) / len(run.validator.rows)
    found = estimate_seconds(options, run, texts=1000, held_out=10)
    once = 0.5 * 1000 * mean
    assert found == pytest.approx(
        {
            "teacher": 6 * once + 3 * looked_at,
            "guide": once + looked_at,
            "policy": 2 * once + looked_at,
            "joint": 2 * (once + 3 * looked_at),
            "hard": 2 * (once + 3 * looked_at),
        }
    )


def test_exits_are_priced_with_both_of_their_gradients(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second: list[bool] = []

    def seen(optimizer: object, loss: torch.Tensor, yielding: torch.Tensor | None) -> None:
        second.append(yielding is not None)
        set_gradients(optimizer, loss, yielding)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "set_gradients", seen)
    options = with_recipe(options_for(workplace), stages=STAGES, exits={"aligned": True})
    found = estimate_seconds(options, prepared(options, tmp_path), 160, 32)
    assert list(found) == list(STAGES) and found["exits"] > 0
    assert second[-1] and not second[0]


@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
def test_every_stage_is_really_run_and_the_model_stays(
    workplace: Path, tmp_path: Path, estimator: str
) -> None:
    options = replace(options_for(workplace), model=str(workplace / "fine-tuned"))
    options = with_recipe(options, estimator=estimator)
    run = prepared(options, tmp_path)
    before = {name: value.clone() for name, value in run.checkpoint.model.state_dict().items()}
    rules = run.checkpoint.model.reduction
    found = estimate_seconds(options, run, 160, 32)
    assert list(found) == ["guide", "policy", "joint", "hard"]  # it is fine-tuned already
    assert all(seconds > 0 for seconds in found.values())
    after = run.checkpoint.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.checkpoint.model.reduction == rules

"""Training on a GPU: every stage from every start, and how long it will take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_texts
from training_in_tests import by, options_for, weights

from trbert_deploy.training.estimate import estimate_seconds
from trbert_deploy.training.prepare import prepare
from trbert_deploy.training.run import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("model", ["encoder", "fine-tuned"])
@pytest.mark.parametrize("estimator", ["gates", "reinforce"])
@pytest.mark.parametrize("warm", [False, True])
def test_all_stages_run(
    workplace: Path, tmp_path: Path, model: str, estimator: str, warm: bool
) -> None:
    options = by(estimator, replace(options_for(workplace), model=str(workplace / model)))
    report = train(options, tmp_path / "first")
    assert report.teacher_score is not None
    if warm:
        going_on = replace(
            options,
            model=str(tmp_path / "first" / "stages" / "teacher"),
            warm_start=str(tmp_path / "first"),
        )
        report = train(going_on, tmp_path / "second")
    stages = list(report.stages)
    assert stages[0] == "teacher" and "joint" in stages
    saved = weights(report.checkpoint)
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_texts_without_labels(workplace: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in make_texts(96, 5)))
    options = replace(
        options_for(workplace),
        model=str(workplace / "fine-tuned"),
        train=str(texts),
        validation=None,
    )
    report = train(options, tmp_path / "ckpt")
    assert report.measure == "agreement"
    assert report.teacher_score == 1.0


def test_the_time_is_told(workplace: Path, tmp_path: Path) -> None:
    options = replace(options_for(workplace), model=str(workplace / "fine-tuned"))
    run = prepare(options, tmp_path, torch.device("cuda"), lambda message: None)
    assert all(seconds > 0 for seconds in estimate_seconds(options, run, 160, 32).values())

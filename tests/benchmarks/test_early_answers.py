"""Early answers become the teacher's own towards the last layer, and are counted by sureness."""

from __future__ import annotations

import json
from pathlib import Path

import early_answers
import pytest
import torch
from click.testing import CliRunner
from conftest import tiny_model
from test_tokens_end_to_end import tagged

from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint

LABELS = ("B-BLAME", "B-PLACE", "B-PRAISE", "O")


def test_the_command_tells_each_place(tokenizer_dir: Path, tmp_path: Path) -> None:
    model = tiny_model("1,2", task="token-classification", labels=LABELS)
    with torch.no_grad():  # further from each other, so that labels differ
        for parameter in model.head.parameters():
            parameter.mul_(20.0)
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), tmp_path / "teacher")
    for name, count, seed in (("train", 60, 0), ("validation", 20, 1)):
        lines = [json.dumps(row) + "\n" for row in tagged(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    options = ["--teacher", tmp_path / "teacher", "--places", "0.5,2,3.5"]
    for name in ("train", "validation"):
        options += [f"--{name}", tmp_path / f"{name}.jsonl"]
    done = CliRunner().invoke(early_answers.main, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    heading, *lines = done.stdout.splitlines()
    assert heading.endswith("30%     50%     70%     80%")
    places = [line.split() for line in lines]
    assert [place[0] for place in places] == ["0.5", "2", "3.5"]
    agreement = [float(place[1].rstrip("%")) for place in places]
    assert agreement[0] < agreement[2] and agreement[2] > 95.0
    for place in places:
        wrong = [int(count) for count in place[2:]]
        assert wrong == sorted(wrong)


def test_a_task_of_whole_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match="text-classification: expected one that answers tokens"):
        early_answers.early_answers(tiny_model("1,2"), [], [], torch.device("cpu"))

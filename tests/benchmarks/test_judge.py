"""Checkpoints judged beside their teacher: a checkpoint that drops nothing is the teacher."""

from __future__ import annotations

import json
from pathlib import Path

import judge
import pytest
from benchmarks.test_compare import workplace
from click.testing import CliRunner
from conftest import tiny_model

from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint

__all__ = ["workplace"]  # the fixture


def test_figures_are_taken_from_the_teacher(
    workplace: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    for name, cuts in (("whole", "none"), ("cut", "1,2")):
        save_checkpoint(Checkpoint(tiny_model(cuts), tokenizer_dir, 64), tmp_path / name)
    figures = tmp_path / "figures.json"
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    options = ["--teacher", whole, "--test", str(workplace / "test.jsonl"), "--json", str(figures)]
    done = CliRunner().invoke(judge.main, [*options, whole, cut])
    assert done.exit_code == 0, done.output
    found = json.loads(figures.read_text())
    assert found["rows"] == 40
    teacher, same, fewer = found["models"].values()
    assert same["accuracy"] == teacher["accuracy"] and same["agreement"] == 1.0
    assert same["over teacher"] == [0.0, 0.0, 0.0]
    assert fewer["flops_speedup"] > same["flops_speedup"] == pytest.approx(1.0, rel=0.01)
    low, high = fewer["over teacher"][1:]
    assert low <= fewer["over teacher"][0] <= high

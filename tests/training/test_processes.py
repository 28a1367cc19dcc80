"""Training in two processes, against training in one; how rows are shared out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from training.test_recombining import rows_of
from training_in_tests import make_workplace, options_for, weights, with_recipe

from trbert_deploy.progress import no_progress
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification
from trbert_deploy.training import processes
from trbert_deploy.training.batches import plan_batches
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.processes import Share
from trbert_deploy.training.run import train
from trbert_deploy.training.stages.guide import GUIDE_FILE, Guide, make_guide

#: The command line in float32: in half precision batches of other shapes round too differently.
IN_FLOAT32 = """
import torch

torch.cpu.get_capabilities = dict

from trbert_deploy.cli import main

main()
"""


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5))
def test_processes_take_every_row_once_and_like_numbers_of_tokens(
    lengths: list[int], count: int
) -> None:
    ascending = np.array(sorted(lengths))
    shares = [Share.of(ascending, index, count) for index in range(count)]
    taken = [place for share in shares if share.counts for place in share.places.tolist()]
    assert sorted(taken) == list(range(len(lengths)))
    assert all(len(share.places) for share in shares)
    assert {(share.rows, share.tokens) for share in shares} == {(len(lengths), sum(lengths))}
    tokens = [ascending[share.places].sum() * share.counts for share in shares]
    assert max(tokens) - min(tokens) <= ascending[-1]
    values = torch.rand(2, len(lengths))
    parts = sum(share.mean(values[:, share.places]) for share in shares)
    torch.testing.assert_close(parts, values.mean(1))


def test_a_process_that_no_batch_is_left_to_adds_nothing_to_the_guide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of(9, 20, 14)
    making = (10_000, torch.device("cpu"), no_progress)  # one batch
    whole = make_guide(tiny_model(), rows, *making)
    known = list(enumerate(whole.answers))
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: 1)
    monkeypatch.setattr(processes, "gather", lambda own: [*known, *own])
    monkeypatch.setattr(processes, "total", lambda own: own)
    guide = make_guide(tiny_model(), rows, *making)
    assert list(guide.answers) == list(whole.answers) and len(guide.answers) == 3
    assert not any(scores.any() for scores in guide.saliency)


def launch(command: list[str], options: TrainOptions, output: Path, *flags: str) -> None:
    """Train in two processes on the CPU, with a command line such as ``-m trbert_deploy``."""
    recipe = output.with_suffix(".toml")
    options.recipe.write(recipe)
    given = {
        entry.name: str(getattr(options, entry.name))
        for entry in fields(options)
        if getattr(options, entry.name) != entry.default
    } | {"recipe": str(recipe)}
    # accelerate starts several processes where it is told of several GPUs, and joins them on the
    # CPU where there is none.
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = [*launcher, "--main_process_port=0", *command, "train", *arguments]
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(output.parent / "home"),  # no configuration that a user has
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *command, *flags, f"--output={output}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,  # processes that wait for each other would do so for ever
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on the validation texts after each stage") == 1


def figures(output: Path, stage: str) -> list[dict[str, float]]:
    text = (output / "stages" / stage / "figures.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_alike(found: Path, expected: Path, stage: str) -> None:
    """A stage's figures and its weights are the same but for rounding."""
    for step, wanted in zip(figures(found, stage), figures(expected, stage), strict=True):
        assert step == pytest.approx(wanted, abs=1e-4)
    after, wanted_after = (weights(path / "stages" / stage) for path in (found, expected))
    for name, tensor in wanted_after.items():
        # The keys' biases change no attention: Adam makes their gradient, which is rounding, large.
        atol = 1e-2 if name.endswith("key.bias") else 1e-4
        torch.testing.assert_close(after[name], tensor, atol=atol, rtol=0.0)
    records = [json.loads((path / "training.json").read_text()) for path in (found, expected)]
    evaluations = [record["stages"][stage] for record in records]
    for name, value in evaluations[1].items():
        assert evaluations[0][name] == pytest.approx(value, abs=0.02)


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> tuple[TrainOptions, Path, Path]:
    """Options without dropout, a run of one process up to the guide, and the command line."""
    path = tmp_path_factory.mktemp("taught")
    workplace = make_workplace(path, tokenizer_dir, dropout=0.0)
    (path / "cli.py").write_text(IN_FLOAT32)
    options = with_recipe(
        # More than the chain can save, so that it is always short of it, and there is a penalty.
        replace(options_for(workplace), target_speedup=4.0),
        # Some batches have one row, which leaves a process without any.
        batch_tokens=72,
        teacher={"epochs": 2.0},
        # Slow enough that what rounding changes does not turn choices around.
        policy={"epochs": 0.5, "learning_rate": 1e-3},
        joint={"epochs": 0.5, "learning_rate": 3e-4, "policy_learning_rate": 1e-3},
        hard={"epochs": 0.5, "learning_rate": 3e-4},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        train(with_recipe(options, stages=("teacher", "guide")), path / "one")
    return options, path / "one", path / "cli.py"


@pytest.mark.slow
def test_two_processes_teach_what_one_teaches(
    taught: tuple[TrainOptions, Path, Path], tmp_path: Path
) -> None:
    options, one, command = taught
    two = tmp_path / "two"
    launch([str(command)], with_recipe(options, stages=("teacher", "guide")), two)
    assert_alike(two, one, "teacher")
    task = TextClassification(("0", "1"))
    found, expected = (
        Guide.load(path / "stages" / "guide" / GUIDE_FILE, task) for path in (two, one)
    )
    for ours, theirs in zip(found.answers, expected.answers, strict=True):
        np.testing.assert_allclose(ours[LOGITS], theirs[LOGITS], atol=1e-3)
    for scores, wanted in zip(found.saliency, expected.saliency, strict=True):
        np.testing.assert_allclose(scores, wanted, atol=1e-3 * wanted.max())


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_to_where_it_comes(
    taught: tuple[TrainOptions, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, start, command = taught
    one, two = (Path(shutil.copytree(start, tmp_path / name)) for name in ("one", "two"))
    plans: list[list[list[int]]] = []

    def planned(*arguments: Any, **options: Any) -> list[list[int]]:
        plans.append(plan_batches(*arguments, **options))
        return plans[-1]

    monkeypatch.setattr("trbert_deploy.training.loop.plan_batches", planned)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    train(options, one, resume=True)
    assert 1 in {len(batch) for batch in plans[1]}  # of the joint stage
    launch([str(command)], options, two, "--resume")
    assert max(step["penalty"] for step in figures(one, "joint")) > 0.1
    for stage in ("policy", "joint", "hard"):
        assert_alike(two, one, stage)


@pytest.mark.slow
def test_two_processes_sample_for_themselves(tmp_path: Path, tokenizer_dir: Path) -> None:
    workplace = make_workplace(tmp_path / "work", tokenizer_dir)
    options = with_recipe(
        replace(options_for(workplace), model=str(workplace / "fine-tuned")),
        estimator="reinforce",
        stages=("teacher", "guide", "policy", "joint"),
        validations=1,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    train(options, one)
    launch(["-m", "trbert_deploy"], options, two)
    # In the joint stage the runs drift apart, as any two seeds do.
    for stage, steps in (("policy", None), ("joint", 3)):
        kept = [
            np.mean([[step["kept_0"], step["kept_1"]] for step in figures(path, stage)[:steps]], 0)
            for path in (two, one)
        ]
        np.testing.assert_allclose(*kept, atol=0.15)

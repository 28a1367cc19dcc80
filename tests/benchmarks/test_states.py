"""The teacher's states as a target: what a chain is off by, what it learns, and the command."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import states
import torch
from click.testing import CliRunner
from commands_in_tests import write
from conftest import make_texts, tiny_model
from setting import Setting

from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.contexts import evaluating
from trbert_deploy.training.validation import set_threshold

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A teacher, a chain, and data."""
    path = tmp_path_factory.mktemp("states")
    for name, count, seed in (("train", 40, 0), ("validation", 16, 1)):
        write(path / f"{name}.jsonl", make_texts(count, seed))
    for name, cuts in (("teacher", ""), ("chain", "0.5,2")):
        save_checkpoint(Checkpoint(tiny_model(cuts), tokenizer_dir, 64), path / name)
    return path


def setting_in(path: Path) -> Setting:
    return Setting(*(str(path / name) for name in ("teacher", "train.jsonl", "validation.jsonl")))


def first_batch(path: Path) -> PackedBatch:
    return next(iter(load_batches(setting_in(path).validation_rows, [[0, 1, 2, 3]], CPU)))


def chain_at(threshold: float) -> ReducedModel:
    model = tiny_model("0.5,2")
    set_threshold(model, threshold)
    return model


def walked(
    model: ReducedModel, batch: PackedBatch
) -> tuple[list[states.TokenState], list[torch.Tensor]]:
    """What the chain leaves at its ends, and the states of all tokens there without cuts."""
    with evaluating(model):
        wanted, _ = states.teacher_walk(model, batch, [1, 4, model.spec.num_steps])
        left, _ = states.chain_walk(model, batch)
    return left, wanted


def test_a_chain_that_drops_nothing_is_off_by_nothing(workplace: Path) -> None:
    error = states.state_error(*walked(chain_at(0.0), first_batch(workplace)))
    assert error.shape == (4,)
    torch.testing.assert_close(error, torch.zeros(4), atol=1e-6, rtol=0)


def test_the_error_is_relative_and_of_what_is_left(workplace: Path) -> None:
    left, wanted = walked(chain_at(0.5), first_batch(workplace))
    counts = [len(tokens.token) for tokens in left]
    assert len(wanted[0]) > counts[0] > counts[1] == counts[2]  # each cut drops some
    assert states.state_error(left, wanted).min() > 0.0
    right = [
        replace(tokens, hidden=full[tokens.token])
        for tokens, full in zip(left, wanted, strict=True)
    ]
    torch.testing.assert_close(states.state_error(right, wanted), torch.zeros(4))
    double = [replace(tokens, hidden=2.0 * tokens.hidden) for tokens in right]
    torch.testing.assert_close(states.state_error(double, wanted), torch.ones(4))


def test_a_chain_learns_states_where_they_weigh(workplace: Path) -> None:
    setting, batch = setting_in(workplace), first_batch(workplace)
    teacher, errors = setting.load_teacher(""), []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        student = deepcopy(chain_at(0.5))
        states.learn(student, teacher, setting, weight, None)
        with evaluating(student):
            left, _ = states.chain_walk(student, batch)
            wanted, _ = states.teacher_walk(teacher, batch, [1, 4, student.spec.num_steps])
        errors.append(float(states.state_error(left, wanted).mean()))
    assert errors[1] < errors[0]


def run(workplace: Path, checkpoint: str, *options: str) -> tuple[int, str]:
    given = [str(workplace / checkpoint), "--teacher", str(workplace / "teacher")]
    for name in ("train", "validation"):
        given += [f"--{name}", str(workplace / f"{name}.jsonl")]
    given += ["--test", str(workplace / "validation.jsonl"), *options]
    done = CliRunner().invoke(states.main, given)
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command_tells_each_weight(workplace: Path) -> None:
    path, chains = workplace / "figures.json", workplace / "chains"
    code, told = run(
        workplace, "chain", "--weights", "0,1", "--wanted", "1.5", "--json", str(path),
        "--output", str(chains),
    )  # fmt: skip
    assert code == 0, told
    rows = json.loads(path.read_text())
    assert [row["weight"] for row in rows] == [None, 0.0, 1.0]
    assert len({row["test"]["divergence"] for row in rows}) == 3
    for row in rows:  # the test texts are the validation texts here
        assert row["test"] == row["validation"]
        assert row["test"]["flops_speedup"] == pytest.approx(1.5, rel=0.03)
    assert sorted(path.name for path in chains.iterdir()) == ["weight-0", "weight-1"]


def test_a_model_without_cuts_is_refused(workplace: Path) -> None:
    code, told = run(workplace, "teacher")
    assert code == 1
    assert told.endswith("teacher has no cuts: expected one that drops tokens\n")


def test_weights_are_numbers(workplace: Path) -> None:
    for wrong in ("-1", "0,x", ""):
        code, told = run(workplace, "chain", "--weights", wrong)
        assert code == 2
        assert "expected numbers from 0 on, such as 0,0.3,1" in told

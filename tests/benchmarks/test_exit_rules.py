"""Rules that choose the confidence of exits: what they count, and the commands that compare."""

from __future__ import annotations

import json
from pathlib import Path

import exit_rules
import exits
import numpy as np
import pytest
from click.testing import CliRunner
from commands_in_tests import write
from conftest import make_texts, tiny_model
from exit_rules import Leaving, Texts, compare

from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.tasks.task import mean_score

ALL = np.arange(10)


def leaving(confidence: float, wrong: int, other: int, flops: float) -> Leaving:
    """Of ten texts so many wrong, from the first one on, and so many with other answers."""
    right = (wrong <= ALL).astype(np.float64)
    return Leaving(confidence, right[:, None], other > ALL, np.full(10, flops))


def made_texts(*steps: Leaving) -> Texts:
    return Texts(mean_score, leaving(1.0, 0, 0, 2.0), steps, np.full(10, 8.0))


def test_each_rule_counts_what_it_is_named_by() -> None:
    one = leaving(0.9, 1, 2, 1.0)
    texts = made_texts(one)
    assert texts.loss(one, ALL) == pytest.approx(10.0)
    assert texts.costs("loss", one, ALL) == pytest.approx(10.0)
    assert texts.costs("differ", one, ALL) == pytest.approx(20.0)
    assert texts.costs("error", one, ALL) == pytest.approx(10.0 + 100.0 * np.sqrt(2 / 100))
    assert texts.costs("differ", one, ALL[2:]) == texts.costs("loss", one, ALL[2:]) == 0.0
    assert texts.costs("error", texts.end, ALL) == pytest.approx(10.0)  # one text might differ
    assert texts.speedup(one, ALL) == 8.0


def test_the_first_confidence_that_costs_too_much_ends_the_search() -> None:
    steps = [leaving(0.9, 0, 1, 1.8), leaving(0.8, 2, 3, 1.5), leaving(0.7, 0, 3, 1.0)]
    texts = made_texts(*steps)
    assert texts.chosen("loss", 5.0, ALL) is steps[0]
    assert texts.chosen("loss", 25.0, ALL) is steps[2]
    assert texts.chosen("differ", 5.0, ALL) is texts.end
    assert texts.chosen("differ", 15.0, ALL) is steps[0]


def test_what_a_rule_comes_to_is_told_of_other_texts() -> None:
    """The one text that leaving makes wrong is among those that choose, or it is not."""
    texts = made_texts(leaving(0.9, 1, 1, 1.0))
    (row,) = compare(texts, [("loss", 0.0)], [5], 200)
    # Chosen where the wrong one is not seen: half of the splits, 20 points of the other five.
    assert row.loss == pytest.approx(10.0, abs=2.5) and row.most_loss == pytest.approx(20.0)
    assert row.flops_speedup == pytest.approx((4.0 + 8.0) / 2, abs=0.5)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A checkpoint with exits, the model it is of, and texts."""
    path = tmp_path_factory.mktemp("rules")
    write(path / "texts.jsonl", make_texts(60))
    model = tiny_model("0.5,2")
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), path / "without")
    save_checkpoint(Checkpoint(tiny_model(""), tokenizer_dir, 64), path / "teacher")
    model.set_reduction(model.reduction.with_exits(ExitRule(1.0)))
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), path / "with")
    return path


def run(workplace: Path, checkpoint: str, *options: str) -> tuple[int, str]:
    given = [str(workplace / checkpoint), "--data", str(workplace / "texts.jsonl"), *options]
    done = CliRunner().invoke(exit_rules.main, [*given, "--splits", "4", "--speedup", "1.3"])
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command_compares_rules(workplace: Path) -> None:
    path = workplace / "figures.json"
    rules = ["--rule", "loss=1", "--rule", "differ=0"]
    code, told = run(workplace, "with", *rules, "--held-out", "20", "--json", str(path))
    assert code == 0, told
    rows = json.loads(path.read_text())
    assert [(row["rule"], row["points"]) for row in rows] == [("loss", 1.0), ("differ", 0.0)]
    assert all(row["flops_speedup"] >= 1.2 for row in rows)


def test_bad_input_is_told_in_a_line(workplace: Path) -> None:
    code, told = run(workplace, "without")
    assert code == 1 and "has no exits: expected one whose texts can leave" in told
    code, told = run(workplace, "with", "--held-out", "60")
    assert code == 1 and "there are 60 texts: expected more" in told
    for wrong in ("loss", "loss=x", "luck=1", "differ=-1"):
        code, told = run(workplace, "with", "--rule", wrong)
        assert code == 2 and "expected one of loss, error, differ with its points" in told


@pytest.mark.slow
def test_few_changed_answers_are_allowed_where_pairs_are_chosen(workplace: Path) -> None:
    """The command that compares tokens, exits and both, on the same texts twice."""
    path, texts = workplace / "pairs.json", str(workplace / "texts.jsonl")
    given = [f"a={workplace / 'with'}", "--teacher", str(workplace / "teacher"), "--drop", "100"]
    given += ["--validation", texts, "--test", texts, "--speedup", "1.3", "--json", str(path)]
    chosen = {}
    for most in (100.0, 5.0):
        done = CliRunner().invoke(exits.main, [*given, "--changed", str(most)])
        assert done.exit_code == 0, done.output
        rows = json.loads(path.read_text())
        assert [row["kind"] for row in rows] == ["tokens", "exits", "both"]
        assert all(row["chosen"]["changed"] <= most for row in rows)
        chosen[most] = rows[-1]["test"]["flops_speedup"]
    assert chosen[5.0] < chosen[100.0]

"""The cut before layer 0: scores, thresholds, FLOPs and what a chain learns behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import early_cut
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_texts, tiny_model
from early_cut import (
    CPU,
    EarlyCut,
    Scorer,
    area_and_precision,
    batches_of,
    judge,
    speedup,
    start,
)
from setting import Setting
from sklearn.metrics import average_precision_score, roc_auc_score

from trbert_deploy.flops import dense_flops, reduced_flops
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.walk import begin, first_segment
from trbert_deploy.training.stages.guide import make_guide
from trbert_deploy.training.validation import Validator


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A run whose hard stage is done, and data."""
    path = tmp_path_factory.mktemp("early")
    for name, count, seed in (("train", 60, 0), ("validation", 24, 1)):
        lines = [json.dumps(row) + "\n" for row in make_texts(count, seed)]
        (path / f"{name}.jsonl").write_text("".join(lines))
    model = tiny_model("0.5,2")
    for stage in ("teacher", "hard"):
        save_checkpoint(Checkpoint(model, tokenizer_dir, 64), path / "run" / "stages" / stage)
    guide = path / "run" / "stages" / "guide" / "guide.safetensors"
    guide.parent.mkdir()
    rows = setting_in(path).training_rows
    make_guide(model, rows, 512, CPU, lambda *_: None).save(guide)
    return path


def setting_in(path: Path) -> Setting:
    teacher, train, validation = "run/stages/teacher", "train.jsonl", "validation.jsonl"
    return Setting(*(str(path / name) for name in (teacher, train, validation)))


def validator_in(path: Path) -> Validator:
    setting = setting_in(path)
    return setting.answered_validator(setting.validation_rows, 512)


def run(workplace: Path, *options: str) -> tuple[int, str]:
    given = [str(workplace / "run"), *options]
    for name in ("train", "validation"):
        given += [f"--{name}", str(workplace / f"{name}.jsonl")]
    done = CliRunner().invoke(early_cut.main, given)
    return done.exit_code, done.output


def test_areas_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    right = random.random(200) < 0.3
    score = np.round(right + random.normal(size=200), 1)  # many are equal
    expected = (roc_auc_score(right, score), average_precision_score(right, score))
    assert area_and_precision(score, right) == pytest.approx(expected)


def test_a_cut_that_keeps_all_changes_nothing(workplace: Path) -> None:
    model, validator = tiny_model("0.5,2"), validator_in(workplace)
    plain = judge(model, validator, None)
    early = EarlyCut(lambda batch, tokens: torch.zeros(len(tokens.token)), 0.0, flops=1000)
    point = judge(model, validator, early)
    assert point == replace(plain, flops_speedup=point.flops_speedup)
    assert point.flops_speedup < plain.flops_speedup  # the score costs something


def test_a_cut_leaves_what_scores_enough_and_what_is_protected(workplace: Path) -> None:
    model = tiny_model("0.5,2")
    early = EarlyCut(lambda batch, tokens: -tokens.layout.positions.float(), -3.0)
    batch = next(batches_of(setting_in(workplace).training_rows))
    batch.protected[7] = True
    tokens = begin(model, batch)
    left = tokens.compact(early.keep(batch, tokens))
    assert left.layout.lengths.tolist() == [5, *[4] * (len(batch.rows) - 1)]
    assert left.token[:5].tolist() == [0, 1, 2, 3, 7]
    assert left.layout.positions[:5].tolist() == [0, 1, 2, 3, 7]


def test_what_is_left_sees_dropped_tokens_where_it_may(workplace: Path) -> None:
    model = tiny_model("0.5,2")
    batch = next(batches_of(setting_in(workplace).training_rows))
    early = EarlyCut(lambda batch, tokens: -tokens.layout.positions.float(), -3.0)
    with torch.no_grad():
        whole = first_segment(model, batch)
        alone, seeing = (start(model, batch, replace(early, seen=each)) for each in (False, True))
    assert alone.token.tolist() == seeing.token.tolist()
    torch.testing.assert_close(seeing.hidden, whole.hidden[seeing.token])
    assert (alone.hidden - seeing.hidden).abs().max() > 0.1


def test_flops_are_those_of_the_tokens_that_are_left() -> None:
    model = tiny_model("0.5,2")
    early = EarlyCut(lambda batch, tokens: tokens.hidden[:, 0], 0.0, flops=10)
    whole = float(dense_flops(model.spec, 40) + dense_flops(model.spec, 20))
    own = sum(reduced_flops(model.spec, model.reduction, row) for row in ([20, 9, 4], [10, 5, 2]))
    found = speedup(model, [[40, 20, 9, 4], [20, 10, 5, 2]], early)
    assert found == pytest.approx(whole / (own + 10 * 60))
    # Keys and values of the others, and what they weigh in the sums of those that are left.
    width = model.spec.hidden_size
    others = sum(4 * left * width**2 + 4 * left * left * width for left in (20, 10))
    found = speedup(model, [[40, 20, 9, 4], [20, 10, 5, 2]], replace(early, seen=True))
    assert found == pytest.approx(whole / (own + 10 * 60 + others))


def test_a_scorer_sees_its_neighbours_and_no_other_row(workplace: Path) -> None:
    model = tiny_model("0.5,2")
    batch = next(batches_of(setting_in(workplace).training_rows))
    torch.manual_seed(0)
    near, alone = (
        Scorer(model.spec.hidden_size, torch.zeros(model.spec.vocab_size), reach)
        for reach in (2, 0)
    )
    tokens = begin(model, batch)
    changed = tokens.hidden.detach().clone()
    second = int(batch.layout.lengths[0])  # where the second row begins
    changed[second] += 1.0
    for scorer, expected in ((near, [0, 1, 2]), (alone, [0])):
        with torch.no_grad():
            differs = scorer(batch, replace(tokens, hidden=changed)) != scorer(batch, tokens)
        assert differs.nonzero().flatten().tolist() == [second + place for place in expected]


@pytest.mark.slow
def test_the_command_tells_all_tables(workplace: Path) -> None:
    path = workplace / "figures.json"
    options = ["--texts", "40", "--epochs", "1", "--shares", "0.5", "--wanted", "1.3"]
    options += ["--learn", "40", "--by", "9 tokens: kept", "--json", str(path)]
    code, told = run(workplace, *options, "--test", str(workplace / "validation.jsonl"))
    assert code == 0, told
    figures = json.loads(path.read_text())
    assert figures[early_cut.BEST]["kept"] == [1.0, 1.0]
    own = figures["own rules, random, 0.5"]
    assert own["kept"][0] == pytest.approx(0.5, abs=0.15)
    learned = [name for name in figures if name.startswith("learned")]
    assert learned == [
        f"learned, {name}; {texts}, seed 0, {share}"
        for name, share in (("none", 0.0), ("9 tokens: kept", 0.5))
        for texts in ("validation", "test")
    ]


def test_a_run_with_a_later_first_cut_is_refused(workplace: Path, tokenizer_dir: Path) -> None:
    path = workplace / "later"
    for stage in ("teacher", "hard"):
        save_checkpoint(Checkpoint(tiny_model("1,2"), tokenizer_dir, 64), path / "stages" / stage)
    data = str(workplace / "train.jsonl")
    given = [str(path), "--train", data, "--validation", data]
    done = CliRunner().invoke(early_cut.main, given)
    assert done.exit_code == 1
    assert "has no first cut at 0.5: expected one inside layer 0" in done.output


def test_a_guide_of_other_texts_is_refused(workplace: Path) -> None:
    data = str(workplace / "validation.jsonl")
    given = [str(workplace / "run"), "--train", data, "--validation", data]
    done = CliRunner().invoke(early_cut.main, given)
    assert done.exit_code == 1
    assert "is of other texts: expected those of --train" in done.output

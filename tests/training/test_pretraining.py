"""Masked words before the teacher: what is hidden, learned, gone on with, and refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from training.test_run import make_workplace, options_for, with_recipe
from transformers import AutoModelForMaskedLM

from trbert_deploy.errors import CheckpointError, ConfigError, DataError
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.training import run as run_module
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.masking import (
    NO_WORD,
    Masking,
    masked_losses,
    rows_of_words,
    words_of,
)
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.pretraining import load_masked_model
from trbert_deploy.training.run import train

OTHERS = torch.arange(5, 256)
MASK = 4


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    return make_workplace(tmp_path_factory.mktemp("pretraining"), tokenizer_dir)


@pytest.fixture
def options(workplace: Path) -> TrainOptions:
    chosen = replace(options_for(workplace), pretrain=str(workplace / "train.jsonl"))
    return with_recipe(
        chosen,
        stages=("teacher",),
        pretrain={"epochs": 2.0, "learning_rate": 3e-3},
        teacher={"epochs": 1.0},
    )


def batch_of(*words: Sequence[int]) -> PackedBatch:
    """A row for each list of words, from the beginning of which tokens are special."""
    rows = []
    for each in words:
        target = np.array([NO_WORD, *each, NO_WORD])
        ids = np.random.default_rng(len(each)).integers(5, 256, len(target))
        rows.append(TrainingRow(TokenRow(ids, np.zeros_like(ids)), target))
    (batch,) = load_batches(rows, [list(range(len(rows)))], torch.device("cpu"))
    return batch


@given(
    st.lists(
        st.lists(st.integers(1, 4), max_size=12).map(
            lambda sizes: [word for word, size in enumerate(sizes) for _ in range(size)]
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(0.0, 1.0),
    st.integers(0, 2**32),
)
def test_whole_words_are_hidden_and_nothing_else(
    words: list[list[int]], share: float, seed: int
) -> None:
    batch = batch_of(*words)
    generator = torch.Generator().manual_seed(seed)
    shown, hidden = Masking(share, MASK, OTHERS).hide(batch, generator)
    target = batch.layout.unpad(batch.targets)
    for row in range(len(batch.rows)):
        own = batch.layout.row_of_token == row
        for word in set(target[own].tolist()):
            of_word = hidden[own & (target == word)]
            assert bool(of_word.all()) or not of_word.any()
            assert word != NO_WORD or not of_word.any()
    assert torch.equal(shown.input_ids[~hidden], batch.input_ids[~hidden])
    assert hidden.any() == any(map(len, words))  # one at least
    if share == 1.0:
        assert torch.equal(hidden, target != NO_WORD)


def test_so_many_words_are_hidden_so() -> None:
    batch = batch_of(*[list(range(400))] * 20)
    masking = Masking(0.15, MASK, OTHERS)
    shown, hidden = masking.hide(batch, torch.Generator().manual_seed(0))
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.02)
    given, seen = batch.input_ids[hidden], shown.input_ids[hidden]
    masked = (seen == MASK).float().mean().item()
    stayed = (seen == given).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.05) and stayed == pytest.approx(0.1, abs=0.04)
    other = seen[(seen != MASK) & (seen != given)]
    assert len(set(other.tolist())) > 50 and int(other.min()) >= 5


def test_a_draw_is_repeated_by_its_seed() -> None:
    batch, masking = batch_of(list(range(50)), list(range(9))), Masking(0.3, MASK, OTHERS)
    one, other, third = (
        masking.hide(batch, torch.Generator().manual_seed(seed))[0].input_ids for seed in (1, 1, 2)
    )
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_a_token_knows_its_word(tokenizer_dir: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_dir / "tokenizer.json", 12, overlap=1)
    texts: list[Any] = ["unbelievable cities", ("the war", "the city of war and peace " * 4)]
    encodings = tokenizer.encode(texts)
    for encoding in encodings:
        words = words_of(encoding)
        for word in set(words.tolist()) - {NO_WORD}:
            (places,) = np.nonzero(words == word)
            assert (np.diff(places) == 1).all()  # of one text, one behind the other
            assert len({encoding.sequence_ids[place] for place in places}) == 1
            starts = [encoding.tokens[place].startswith("##") for place in places]
            assert starts == [False] + [True] * (len(places) - 1)
    rows = rows_of_words(
        encodings, tokenizer.rows(encodings, lambda _: np.zeros(99, np.bool_)[: len(_)])
    )
    assert len(rows) > 2 and max(map(len, rows)) == 12  # in pieces
    for row in rows:
        assert len(row.target) == len(row) and row.target[0] == row.target[-1] == NO_WORD


def test_the_loss_is_that_of_transformers(workplace: Path, options: TrainOptions) -> None:
    train(options, workplace / "loss")
    folder = workplace / "loss" / "stages" / "pretrain"
    reference = AutoModelForMaskedLM.from_pretrained(folder).eval()
    model = load_checkpoint(folder).model
    batch = batch_of(list(range(20)))
    shown, hidden = Masking(0.5, MASK, OTHERS).hide(batch, torch.Generator().manual_seed(0))
    labels = torch.where(hidden, batch.input_ids, -100)
    with torch.no_grad():
        ours = masked_losses(model, batch, shown, hidden).mean()
        theirs = reference(shown.input_ids[None], labels=labels[None]).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_the_teacher_begins_with_what_was_learned(
    workplace: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    output = workplace / "learned"
    train(
        with_recipe(options, teacher={"epochs": 1.0, "learning_rate": 1e-12}),
        output,
        note=told.append,
    )
    (line,) = [line for line in told if line.startswith("masked words")]
    before, after = (float(word) for word in line.split() if word[:1].isdigit() and "." in word)
    assert after < 0.8 * before
    learned = load_checkpoint(output / "stages" / "pretrain").model.encoder.state_dict()
    teacher = load_checkpoint(output).model.encoder.state_dict()
    assert learned.keys() == teacher.keys()
    for name, tensor in learned.items():
        torch.testing.assert_close(teacher[name], tensor, atol=1e-6, rtol=0)
    figures = (output / "stages" / "pretrain" / "figures.jsonl").read_text().splitlines()
    assert "validation" in json.loads(figures[-1])


class Interrupted(Exception):
    """The process was killed."""


@pytest.mark.parametrize("where", ["within", "between"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    where: str, workplace: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = with_recipe(options, save_seconds=0.0)
    whole, broken = workplace / f"whole-{where}", workplace / f"broken-{where}"
    train(chosen, whole)

    def interrupting(label: str, done: int, total: int | None) -> None:
        stage = "pretrain" if where == "within" else "teacher"
        if label.startswith(stage) and done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(chosen, broken, progress=interrupting)
    if where == "between":  # it is not learned again
        monkeypatch.setattr(run_module, "pretrain", None)
    train(chosen, broken, resume=True)
    one, other = (load_file(path / "model.safetensors") for path in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((broken / "stages" / "pretrain").glob("resume*"))


def test_a_model_that_answers_is_refused(workplace: Path, options: TrainOptions) -> None:
    tuned = replace(options, model=str(workplace / "fine-tuned"))
    tuned = with_recipe(tuned, stages=("teacher", "guide"))
    with pytest.raises(ConfigError, match="answers already, and learns masked words no more"):
        train(tuned, workplace / "refused")
    assert not (workplace / "refused").exists()


def test_a_model_of_some_words_is_refused(tmp_path: Path, make_checkpoint: Any) -> None:
    answers = {"mask_token_id": 4, "targets": ["film", "city"], "target_ids": [20, 21]}
    path = make_checkpoint(task="fill-mask", labels=(), answers=answers, head={"logits": 2})
    with pytest.raises(ConfigError, match="chooses among 2 words: masked words of --pretrain may"):
        load_masked_model(str(path), [])


def test_texts_that_cannot_be_read_are_refused(workplace: Path, options: TrainOptions) -> None:
    empty = workplace / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        train(replace(options, pretrain=str(empty)), workplace / "nothing")


def test_a_tokenizer_without_a_mask_is_refused(
    workplace: Path, options: TrainOptions, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for path in (workplace / "encoder").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "mask_token": None}))
    assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises((ConfigError, CheckpointError), match="mask"):
        train(replace(options, model=str(folder)), tmp_path / "out")

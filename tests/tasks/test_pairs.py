"""A text of a pair that no token is dropped of: in training, and wherever the bundle runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_texts, tiny_spec
from hf_folders import classifier_folder
from training_in_tests import options_for, with_recipe
from transformers import BertForTokenClassification

from trbert_deploy import load
from trbert_deploy.compress.probe import BUNDLE, measure_payoff
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.pairs import PairRules
from trbert_deploy.tasks.registry import answering, task_of
from trbert_deploy.training.prepare import prepare

TEXTS = [row["text"] for row in make_texts(24, seed=5)]
PAIRS = [("a wonderful film in the city", text) for text in TEXTS]


@pytest.mark.parametrize("part", [0, 1])
def test_tokens_of_one_text_survive(tokenizer_dir: Path, part: int) -> None:
    spec = tiny_spec(answers={"protect": ("first", "second")[part]})
    task = task_of(spec)
    tokenizer = TextTokenizer(tokenizer_dir / "tokenizer.json", 64)
    alone, together = tokenizer.encode([TEXTS[0], PAIRS[0]])
    assert task.protected(alone).tolist() == [True] + [False] * (len(alone) - 1)
    expected = [owner == part for owner in together.sequence_ids]
    assert task.protected(together).tolist() == [True, *expected[1:]]
    bare: Any = SimpleNamespace(ids=[1, 2, 3])
    assert task_of(tiny_spec()).protected(bare).tolist() == [True, False, False]


def test_another_text_is_refused() -> None:
    for rules, message in (
        ({"protect": "third"}, "protect is 'third': expected one of first, second"),
        ({"protect": True}, "protect is True: expected one of first, second"),
        ({"truncation": 3}, "truncation is 3: expected one of longest_first, only_first, only_s"),
    ):
        with pytest.raises(ConfigError, match=message):
            PairRules.of(rules)
        with pytest.raises(ConfigError, match=message):
            answering(tiny_spec(task="text-ranking", labels=("LABEL_0",)), rules)
    with pytest.raises(ConfigError, match=r"protect is third: expected one of first, second"):
        with_recipe(options_for(Path("nowhere")), protect="third")


def test_what_is_learned_stays_with_the_bundle(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",))
    data = tmp_path / "pairs.jsonl"
    rows = [{"query": query, "passage": text, "label": 1} for query, text in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(
        options_for(tmp_path), model=str(folder), train=str(data), validation=str(data)
    )
    options = with_recipe(options, protect="first", truncation="only_second")
    (tmp_path / "scratch").mkdir()
    prepared = prepare(options, tmp_path / "scratch", torch.device("cpu"), lambda note: None)
    query = int(prepared.training[0].tokens.input_ids.tolist().index(3)) - 1  # before [SEP]
    for row in prepared.training:
        assert row.tokens.protected.sum() == 1 + query  # [CLS] besides
        assert row.tokens.protected[: 1 + query].all()
    save_checkpoint(prepared.checkpoint, tmp_path / "ckpt")
    entries = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    assert (entries["protect"], entries["truncation"]) == ("first", "only_second")
    again = load_checkpoint(tmp_path / "ckpt").model.spec
    assert again == prepared.checkpoint.model.spec
    assert 'protect = "first"' in (tmp_path / "ckpt" / "recipe.toml").read_text()
    export_bundle(tmp_path / "ckpt", tmp_path / "bundle")
    for point in ({"threshold": 1.0}, {"ratio": 0.01}, {"max_tokens": 1}):
        for answer in load(tmp_path / "bundle", threads=1, **point)(PAIRS, return_kept=True):
            for cut in answer.kept or ():
                assert cut.positions == tuple(range(1 + query))
    for row in load(tmp_path / "bundle", threads=1).tokenize(PAIRS):
        assert np.flatnonzero(row.protected).tolist() == list(range(1 + query))


def test_a_probe_keeps_what_training_will(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",))
    examples = [Example(pair, name=f"line {place}") for place, pair in enumerate(PAIRS)]
    measure_payoff(str(folder), examples, 1.5, tmp_path, answers={"protect": "first"})
    probe = load(tmp_path / BUNDLE, threads=1)
    assert probe.encoder.answers["protect"] == "first"
    assert probe.tokenize(PAIRS[:1])[0].protected.sum() > 1
    assert probe.require_bundle().samples() == PAIRS


def test_a_task_without_pairs_refuses(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = classifier_folder(
        tmp_path / "folder", tokenizer_dir, ("O", "B-PLACE"), BertForTokenClassification
    )
    data = tmp_path / "tags.jsonl"
    data.write_text('{"tokens": ["a", "film"], "ner_tags": ["O", "B-PLACE"]}\n' * 9)
    options = replace(
        options_for(tmp_path), model=str(folder), train=str(data), validation=str(data)
    )
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ConfigError, match="is for token-classification, which has no protect: le"):
        prepare(
            with_recipe(options, protect="first"),
            tmp_path / "scratch",
            torch.device("cpu"),
            lambda note: None,
        )

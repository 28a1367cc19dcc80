"""A lexicon that cannot be trained with is refused in one line, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands_in_tests import write
from conftest import CheckpointMaker, make_texts
from hf_folders import deeper_folder

from trbert_deploy.errors import ConfigError, DataError, StorageError, TrbertError
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.run import train

WORDS = [
    {"tokens": ["the", "film", "of", name], "ner_tags": ["O", "O", "O", "B-PER"]}
    for name in ("mother", "sailor", "merchant", "nobody")
] * 6


def refused(tmp_path: Path, kind: type[TrbertError], message: str, **options: Any) -> None:
    with pytest.raises(kind, match=message) as problem:
        train(TrainOptions(**options), tmp_path / "run")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run").exists()


def lexicon(tmp_path: Path, tag: str = "PER") -> str:
    (tmp_path / "names.tsv").write_text(f"sailor\t{tag}\n")
    return str(tmp_path / "names.tsv")


def test_another_task_takes_none(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write(tmp_path / "data.jsonl", list(make_texts(30)))
    refused(
        tmp_path, ConfigError, "text-classification, which takes no lexicon",
        model=str(tiny_checkpoint), train=data, lexicon=lexicon(tmp_path),
    )  # fmt: skip


def test_tags_are_those_of_the_labels(tmp_path: Path, tokenizer_dir: Path) -> None:
    encoder = deeper_folder(tmp_path / "encoder", tokenizer_dir)
    given = {"model": str(encoder), "task": "token-classification"}
    given["train"] = write(tmp_path / "data.jsonl", WORDS)
    known = r"the lexicon .*names.tsv has tags .*: CITY \(it knows PER\)"
    refused(tmp_path, ConfigError, known, **given, lexicon=lexicon(tmp_path, "CITY"))
    refused(tmp_path, StorageError, "nowhere.tsv", **given, lexicon=str(tmp_path / "nowhere.tsv"))
    (tmp_path / "empty.tsv").write_text("\n")
    refused(tmp_path, DataError, "is empty", **given, lexicon=str(tmp_path / "empty.tsv"))


def test_a_first_lexicon_needs_labels(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    tagger = make_checkpoint(task="token-classification", labels=("O", "B-PER"))
    data = write(tmp_path / "data.jsonl", [{"text": row["text"]} for row in make_texts(30)])
    refused(
        tmp_path, DataError, "no labels, and what a lexicon's matches mean is learned",
        model=str(tagger), train=data, lexicon=lexicon(tmp_path),
    )  # fmt: skip

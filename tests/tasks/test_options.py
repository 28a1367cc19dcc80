"""What a user may choose of how tags and questions are answered: load, predict, beside drop-ins."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import make_texts
from hf_folders import classifier_folder
from transformers import BertForQuestionAnswering, BertForTokenClassification

import trbert_deploy
from trbert_deploy import load
from trbert_deploy.cli import cli
from trbert_deploy.errors import ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.tasks.entities import AGGREGATIONS

TEXT = make_texts(1, seed=9)[0]["text"]
ASKED = ("a film", TEXT)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("tagger")
    labels = ("O", "B-PLACE", "I-PLACE")
    classifier_folder(path / "folder", tokenizer_dir, labels, BertForTokenClassification)
    export_bundle(path / "folder", path / "bundle")
    return path / "bundle"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("reader")
    labels = ("LABEL_0", "LABEL_1")
    classifier_folder(path / "folder", tokenizer_dir, labels, BertForQuestionAnswering)
    export_bundle(path / "folder", path / "bundle")
    return path / "bundle"


def predicted(bundle: Path, *options: str, pair: str = "") -> dict[str, Any]:
    file = bundle.parent / "texts.jsonl"
    record = {"question": "a film", "context": TEXT} if pair else {"text": TEXT}
    file.write_text(json.dumps(record) + "\n")
    done = CliRunner().invoke(
        cli, ["predict", str(bundle), "--input", str(file), *options], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("strategy", AGGREGATIONS)
def test_tags_are_aggregated_as_asked(tagger: Path, strategy: str) -> None:
    drop_in = trbert_deploy.pipeline(
        "token-classification", tagger, aggregation_strategy=strategy, threads=1
    )
    expected = drop_in(TEXT)
    (found,) = load(tagger, threads=1, aggregation_strategy=strategy)([TEXT])
    assert [asdict(each) for each in found.entities] == expected
    printed = predicted(tagger, "--aggregation-strategy", strategy)
    assert [list(each) for each in printed["entities"]] == [list(each) for each in expected]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"top_k": 3}, ["--top-k", "3"]),
        ({"max_answer_len": 2}, ["--max-answer-len", "2"]),
        ({"handle_impossible_answer": True}, ["--no-answer"]),
        (
            {"top_k": 4, "max_answer_len": 40, "handle_impossible_answer": False},
            ["--top-k", "4", "--max-answer-len", "40", "--answer"],
        ),
    ],
)
def test_questions_are_answered_as_asked(
    reader: Path, options: dict[str, Any], flags: list[str]
) -> None:
    (found,) = load(reader, threads=1, **options)([ASKED])
    drop_in = trbert_deploy.pipeline("question-answering", reader, threads=1)
    called = {"handle_impossible_answer": True, **options}
    expected = drop_in(question=ASKED[0], context=ASKED[1], **called)
    answers = expected if isinstance(expected, list) else [expected]
    assert [asdict(each) for each in found.answers] == (answers if len(answers) > 1 else [])
    assert {key: getattr(found, key) for key in answers[0]} == answers[0]
    printed = predicted(reader, *flags, pair="context")
    assert {key: printed[key] for key in ("start", "end", "answer")} == {
        key: answers[0][key] for key in ("start", "end", "answer")
    }
    assert len(printed.get("answers", [0])) == len(answers)


def test_other_tasks_and_values_are_refused(tiny_bundle: Path, tagger: Path, reader: Path) -> None:
    for bundle, options, message in (
        (tiny_bundle, {"top_k": 2}, "top_k is 2, and the model is for text-classification, which"),
        (tagger, {"max_answer_len": 2}, "is for token-classification, which has no max_answer_len"),
        (
            reader,
            {"aggregation_strategy": "max"},
            "question-answering, which has no aggregation_st",
        ),
        (tiny_bundle, {"handle_impossible_answer": False}, "which has no handle_impossible_answer"),
        (tagger, {"aggregation_strategy": "best"}, "aggregation_strategy is 'best': expected one"),
        (reader, {"top_k": 0}, "top_k is 0: expected a whole number from 1 to 1,000"),
        (reader, {"max_answer_len": 0}, "max_answer_len is 0: expected a whole number from 1"),
        (reader, {"handle_impossible_answer": "no"}, "handle_impossible_answer"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load(bundle, threads=1, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="unknown option max_answer_len: expected one of"):
        trbert_deploy.pipeline("token-classification", tagger, max_answer_len=2)

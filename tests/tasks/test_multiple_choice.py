"""Choices: read, divided into pairs, answered, learned and judged; lists of passages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands_in_tests import run, write
from conftest import LABELS, make_texts
from hf_folders import classifier_folder, deeper_folder
from transformers import AutoTokenizer, BertForMultipleChoice

from trbert_deploy import load, pipeline
from trbert_deploy.cli import cli
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.reading.examples import examples_of
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.multiple_choice import MultipleChoice
from trbert_deploy.tasks.text_ranking import TextRanking

PROMPT, CHOICES = "the sailor returns", ["to his village", "and the film is a masterpiece", "never"]


def read(task: Any = MultipleChoice, whole: bool = True, **record: Any) -> list[Example]:
    return list(examples_of([Record("line 1", record)], "data", task, whole=whole))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": PROMPT, "choices": CHOICES, "label": 1},
        {"question": PROMPT, "options": json.dumps(CHOICES), "answer": "B"},
        {"ctx": PROMPT, "endings": CHOICES, "label": "1"},
        {"text": PROMPT, "choices": CHOICES, "label": 1.0},
        {
            "question": PROMPT,
            "choices": {"text": CHOICES, "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        {"question": PROMPT, "choices": {"text": CHOICES, "label": list("ABC")}, "answerKey": "B"},
        {
            "premise": PROMPT,
            **{f"choice{n}": each for n, each in enumerate(CHOICES, 1)},
            "label": 1,
        },
        {"sent1": PROMPT, **{f"ending{n}": each for n, each in enumerate(CHOICES)}, "label": "1"},
        {"prompt": PROMPT, "choices": CHOICES, "label": CHOICES[1]},
    ],
)
def test_records_are_read_however_data_sets_write_them(record: dict[str, Any]) -> None:
    (example,) = read(**record)
    assert example == Example((PROMPT, CHOICES), 1)
    pairs = read(whole=False, **record)
    assert [pair.text for pair in pairs] == [(PROMPT, choice) for choice in CHOICES]
    assert [pair.target for pair in pairs] == [
        (False, "line 1"),
        (True, "line 1"),
        (False, "line 1"),
    ]
    assert pairs[2].name == "choice 3 of line 1"


def test_ten_numbered_choices_stand_in_order() -> None:
    record = {f"option_{n}": f"text {n}" for n in reversed(range(11))}
    (example,) = read(prompt="which", **record)
    assert example.text == ("which", [f"text {n}" for n in range(11)]) and example.target is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": PROMPT}, "line 1 is one text: expected one and its choices, in columns such"),
        ({"prompt": PROMPT, "choices": []}, "line 1 has no choices: expected a list of one or"),
        ({"prompt": PROMPT, "choices": ["a", 3]}, "number 2 of the choices is of type int"),
        ({"prompt": PROMPT, "choices": ["a", " "]}, "number 2 of the choices is empty"),
        ({"prompt": PROMPT, "choices": "a", "label": 0}, "the label 0 and no choices: expected"),
        ({"prompt": " ", "choices": CHOICES}, 'the field "prompt" is empty'),
        ({"prompt": PROMPT, "choices": CHOICES, "label": 3}, "label 3 for 3 choices: expected a "),
        ({"prompt": PROMPT, "choices": CHOICES, "label": "D"}, "a number from 0 to 2, or the text"),
        ({"prompt": PROMPT, "choices": CHOICES, "label": [1, 0, 0]}, "for 3 choices: expected a"),
        ({"prompt": PROMPT, "choices": CHOICES, "label": True}, "for 3 choices: expected a number"),
        (
            {"question": PROMPT, "choices": {"text": CHOICES, "label": list("ABC")}, "answer": "E"},
            "the label 'E' for 3 choices: expected one of A, B, C, or the text of one",
        ),
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(whole=False, **record)


def test_the_share_of_right_choices_is_measured() -> None:
    task = MultipleChoice()
    examples = [
        part
        for place, right in enumerate((1, 0, 2))
        for part in task.divided(Example((PROMPT, CHOICES), right, f"line {place}"))
    ]
    targets = task.targets(examples)
    assert targets.tolist()[:4] == [[0, 0], [1, 0], [0, 0], [1, 1]]
    logits = [-9.0, -8.0, -9.0, 1.0, 2.0, 3.0, 7.0, 7.0, 7.0]  # right, wrong, tied: the first
    outputs = [{"logits": np.array([value], np.float32)} for value in logits]
    assert task.statistics(outputs, targets).tolist() == [[1], [0], [0]]
    assert task.metrics(outputs, targets) == {"accuracy": pytest.approx(1 / 3)}
    with pytest.raises(DataError, match='choice 1 of x: expected a field "label"'):
        task.targets(task.divided(Example((PROMPT, CHOICES), None, "x")))
    with pytest.raises(DataError, match="no question has a right choice"):
        task.statistics(outputs[:1], np.zeros((1, 2), np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("choice")
    classifier_folder(path / "folder", tokenizer_dir, ("LABEL_0", "LABEL_1"), BertForMultipleChoice)
    export_bundle(path / "folder", path / "bundle")
    return path


def test_the_dense_bundle_answers_as_transformers(folder: Path) -> None:
    model = BertForMultipleChoice.from_pretrained(folder / "folder").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "folder")
    encoded = tokenizer([PROMPT] * 3, CHOICES, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**{key: value[None] for key, value in encoded.items()}).logits[0]
    expected = logits.softmax(-1)
    opened = load(folder / "bundle", threads=1)
    (found,) = opened([(PROMPT, CHOICES)])
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.choice == int(expected.argmax()) and found.score == max(found.scores)
    assert found.num_tokens == int(encoded["attention_mask"].sum()) and found.kept is None
    assert sum(found.scores) == pytest.approx(1.0)
    (found, pair), alone = opened([(PROMPT, CHOICES[:2]), (PROMPT, "never")]), logits[2]
    assert len(found.scores) == 2 and pair.score == pytest.approx(float(alone), abs=1e-5)
    assert [each["corpus_id"] for each in opened.rank(PROMPT, CHOICES)] == (
        torch.argsort(-logits).tolist()
    )
    for text, message in (
        ("alone", "text 1 is one text: expected one and its choices"),
        ((PROMPT, []), "text 1 has no choice: expected one or more"),
        ((PROMPT, 3), "text 1 has a int in the second place: expected a text, or a list of"),
        ((PROMPT, [" "]), "choice 1 of text 1"),
    ):
        with pytest.raises(DataError, match=message):
            opened([text])
    with pytest.raises(ConfigError, match="multiple-choice"):
        pipeline("multiple-choice", folder / "bundle")


def test_the_command_answers_question_by_question(folder: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    records = [{"prompt": PROMPT, "choices": CHOICES}, {"prompt": PROMPT, "choices": CHOICES[1:]}]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = CliRunner().invoke(
        cli, ["predict", str(folder / "bundle"), "--input", str(questions), "--kept"]
    )
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer["scores"]) for answer in answers] == [3, 2]
    assert list(answers[0]) == ["choice", "score", "scores", "num_tokens", "kept"]
    assert len(answers[0]["kept"]) == 3


def questions(count: int) -> list[dict[str, Any]]:
    """The right choice is the text with a good word; every question has two choices."""
    rows = make_texts(3 * count, seed=8)
    good, bad = ([row["text"] for row in rows if row["label"] == label] for label in LABELS[::-1])
    labels = np.random.default_rng(0).integers(2, size=count).tolist()
    return [
        {"prompt": f"the film {place}", "choices": [one, other][:: -1 if label else 1],
         "label": label}
        for place, (one, other, label) in enumerate(zip(good, bad, labels, strict=False))
    ]  # fmt: skip


@pytest.mark.slow
def test_choices_are_learned_served_and_compressed(tmp_path: Path, tokenizer_dir: Path) -> None:
    encoder = deeper_folder(tmp_path / "encoder", tokenizer_dir)
    (tmp_path / "recipe.toml").write_text(
        "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[teacher]\nepochs = 8.0\n"
        "learning_rate = 3e-3\n"
    )
    rows = questions(160)
    test = write(tmp_path / "test.jsonl", rows[-40:])
    run(
        "train", "--model", str(encoder), "--task", "multiple-choice",
        "--train", write(tmp_path / "train.jsonl", rows[:-40]), "--validation", test,
        "--recipe", str(tmp_path / "recipe.toml"), "--target-speedup", "1.5",
        "--output", str(tmp_path / "ckpt"),
    )  # fmt: skip
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    assert config["architectures"] == ["BertForMultipleChoice"]
    run("export", str(tmp_path / "ckpt"), "--output", str(tmp_path / "bundle"))
    report = tmp_path / "report.json"
    run("evaluate", str(tmp_path / "bundle"), "--data", test, "--json", str(report))
    quality = json.loads(report.read_text())
    assert quality["measure"] == "accuracy" and quality["flops_speedup"] > 1.2
    assert quality["dense"]["accuracy"] > 0.85 and quality["reduced"]["accuracy"] > 0.8
    run("bench", str(tmp_path / "bundle"), "--lengths", "48", "--rounds", "1")
    answers = tmp_path / "answers.jsonl"
    run("predict", str(tmp_path / "bundle"), "--input", test, "--output", str(answers))
    right = [json.loads(answer)["choice"] == row["label"] for answer, row in
             zip(answers.read_text().splitlines(), rows[-40:], strict=True)]  # fmt: skip
    assert np.mean(right) == pytest.approx(quality["reduced"]["accuracy"])
    run(
        "compress", str(tmp_path / "ckpt"), "--texts", test, "--output", str(tmp_path / "again"),
        "--work", str(tmp_path / "work"), "--max-drop", "100",
        "--recipe", str(tmp_path / "recipe.toml"),
    )  # fmt: skip
    assert load(tmp_path / "again", threads=1).task.name == MultipleChoice.name


# Lists of passages, which a reranker orders.


def test_passages_are_read_divided_and_ranked(tmp_path: Path, tokenizer_dir: Path) -> None:
    record = {"query": PROMPT, "passages": CHOICES, "labels": [0, 1, 0]}
    (example,) = read(TextRanking, **record)
    assert example == Example((PROMPT, CHOICES), ["0", "1", "0"])
    pairs = read(TextRanking, whole=False, **record)
    assert [(pair.text, pair.target) for pair in pairs] == [
        ((PROMPT, passage), label) for passage, label in zip(CHOICES, "010", strict=True)
    ]
    (cells,) = read(TextRanking, query=PROMPT, docs=json.dumps(CHOICES), label="[0, 1, 0]")
    assert cells == example
    (pair,) = read(TextRanking, query=PROMPT, passage="never", label=1)
    assert pair == Example((PROMPT, "never"), "1")
    for labels, message in (([1, 0], "has 2 label for 3 passages"), (1, "has one label for 3")):
        with pytest.raises(DataError, match=message):
            read(TextRanking, query=PROMPT, passages=CHOICES, labels=labels)
    with pytest.raises(DataError, match="line 1 has no passages: expected a list of one or more"):
        read(TextRanking, query=PROMPT, passages=[])

    export_bundle(
        classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",)), tmp_path / "bundle"
    )
    reranker = load(tmp_path / "bundle", threads=1)
    (found, pair) = reranker([(PROMPT, CHOICES), (PROMPT, CHOICES[0])], return_kept=True)
    expected = reranker.rank(PROMPT, CHOICES)
    assert [each.corpus_id for each in found.ranking] == [each["corpus_id"] for each in expected]
    assert [each.score for each in found.ranking] == pytest.approx(
        [each["score"] for each in expected]
    )
    assert pair.score == pytest.approx(
        next(each.score for each in found.ranking if not each.corpus_id)
    )
    assert found.kept == ((), (), ()) and pair.kept == ()
    assert list(found.to_json()) == ["ranking", "num_tokens", "kept"]

"""Lessons for Mandarin classifiers: what is masked, and the figures that are to be beaten."""

from __future__ import annotations

import json
import random
from pathlib import Path

import classifiers
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, AutoTokenizer

from trbert_deploy.tasks.examples import Example

TAGGED = (
    """
迈向/v 充满/v 希望/n 的/u 新/a 世纪/n <comma>/w 这/r 条/q 路/n 走/v 不/d 通/v 。/w
他/r 买/v 了/u 三/m 本/q 书/n <comma>/w 一/m 只/q 猫/n 看见/v [中国/ns 队/n]nt 。/w

""".replace("<comma>", "\uff0c")
    * 30
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "tagged.txt").write_text(TAGGED, encoding="utf-8")
    phrases = [{"text": f"{n}三[MASK]書", "label": "本"} for n in "一二三四五六七八九十"]
    phrases += [{"text": f"{n}這[MASK]路", "label": "條"} for n in "一二三四五六七八九十"]
    lines = "".join(json.dumps(each) + "\n" for each in phrases)
    for name in ("train", "test"):
        (tmp_path / f"{name}-phrases.jsonl").write_text(lines)
    files = [str(tmp_path / name) for name in ("tagged.txt", "train-phrases.jsonl")]
    files.append(str(tmp_path / "test-phrases.jsonl"))
    done = CliRunner().invoke(classifiers.main, [*files, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    return tmp_path / "out"


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_phrases_and_lines_are_traditional_and_masked(made: Path) -> None:
    phrases = read(made / "newspaper.jsonl")
    learned = read(made / "train.jsonl")
    assert phrases[-len(learned) :] == learned
    assert {(each["text"], each["label"]) for each in phrases[: -len(learned)]} == {
        ("這[MASK]路走不通", "條"),
        ("他買了三[MASK]書", "本"),
    }  # and no cat: nobody asks for its classifier
    for line in read(made / "words.jsonl"):
        labels = line["label"] if isinstance(line["label"], list) else [line["label"]]
        assert line["text"].count("[MASK]") == len(labels)
    assert [len(read(made / f"{name}.jsonl")) for name in ("train", "validation", "test")] == [
        18,
        2,
        20,
    ]
    figures = json.loads((made / "baselines.json").read_text())
    assert figures["ngrams"] == figures["ngrams_with_newspaper"] == 1.0
    assert figures["most_frequent"] == 0.5 and figures["phrases_of_newspaper"] == 60
    model = AutoModelForMaskedLM.from_pretrained(made / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(made / "encoder")
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.tokenize("三[MASK]書") == ["三", "[MASK]", "書"]


@given(st.text("三本書他買了", min_size=1, max_size=48), st.integers(0, 5))
def test_a_masked_line_comes_back_by_its_labels(line: str, seed: int) -> None:
    found = classifiers.masked(line, random.Random(seed))
    labels = found["label"] if isinstance(found["label"], list) else [found["label"]]
    text = str(found["text"])
    for label in labels:
        text = text.replace("[MASK]", label, 1)
    assert text == line


@given(st.lists(st.lists(st.tuples(st.text("三本書", min_size=1, max_size=60), st.just("n")))))
def test_lines_hold_neighbouring_clauses(clauses: list[list[tuple[str, str]]]) -> None:
    lines = list(classifiers.lines_of(clauses))
    assert all(0 < len(line) <= classifiers.LONGEST for line in lines)


def test_ngrams_back_off_to_what_they_know() -> None:
    learned = [Example("三[MASK]書", "本")] * 3 + [Example("三[MASK]狗", "隻")] * 2
    tested = [Example("五[MASK]書", "本"), Example("五[MASK]狗", "隻"), Example("五[MASK]馬", "本")]
    assert classifiers.ngram_accuracy(learned, tested) == 1.0


def test_phrases_with_several_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "phrases.jsonl"
    path.write_text(json.dumps({"text": "[MASK]三[MASK]", "label": ["本", "本"]}) + "\n")
    (tmp_path / "tagged.txt").write_text(TAGGED)
    command = [str(tmp_path / "tagged.txt"), str(path), str(path), "--output", str(tmp_path / "o")]
    done = CliRunner().invoke(classifiers.main, command)
    assert done.exit_code == 1 and "expected one label, the classifier, for each" in done.output
    assert not (tmp_path / "o").exists()

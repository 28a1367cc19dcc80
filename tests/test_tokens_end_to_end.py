"""Tagging and question answering through every command: data with words, windows, offsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_in_tests import run, write
from conftest import BAD, GOOD, make_texts
from hf_folders import deeper_folder

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.samples import are_random

KINDS = {"PRAISE": GOOD, "BLAME": BAD, "PLACE": ("city", "village", "house")}
RECIPE = "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[teacher]\nepochs = 15.0\n"
RECIPE += "learning_rate = 1e-3\n"


@pytest.fixture
def encoder(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """A seeded tiny encoder without a head."""
    return deeper_folder(tmp_path / "encoder", tokenizer_dir)


def tagged(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Words, of which the telling ones are entities of two kinds, and the city is one, too."""
    kinds = {word: kind for kind, words in KINDS.items() for word in words}
    rows = []
    for row in make_texts(count, seed):
        words = row["text"].split()
        found = [kinds.get(word.strip(".")) for word in words]
        tags = ["O" if kind is None else f"B-{kind}" for kind in found]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def asked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Which word tells: the answer is a telling good word, or there is none."""
    rows = []
    for row in make_texts(count, seed):
        found = next((word for word in GOOD if word in row["text"]), None)
        answers: dict[str, Any] = {"text": [], "answer_start": []}
        if found is not None:
            answers = {"text": [found], "answer_start": [row["text"].index(found)]}
        rows.append({"question": "the film", "context": row["text"], "answers": answers})
    return rows


def served(
    tmp_path: Path, encoder: Path, task: str, rows: list[dict[str, Any]], bare: list[dict[str, Any]]
) -> tuple[Pipeline, dict[str, Any]]:
    """Train and export a model, evaluate it: the bundle, and the report on further rows."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    data = write(tmp_path / "train.jsonl", rows[:-40] + bare)
    test = write(tmp_path / "test.jsonl", rows[-40:])
    run(
        "train", "--model", str(encoder), "--task", task, "--train", data, "--validation", test,
        "--recipe", str(tmp_path / "recipe.toml"), "--target-speedup", "1.5",
        "--output", str(tmp_path / "ckpt"),
    )  # fmt: skip
    run("export", str(tmp_path / "ckpt"), "--output", str(tmp_path / "bundle"))
    assert not are_random(Bundle.open(tmp_path / "bundle"))
    run("bench", str(tmp_path / "bundle"), "--lengths", "48", "--rounds", "1")
    report = tmp_path / "report.json"
    run("evaluate", str(tmp_path / "bundle"), "--data", test, "--json", str(report))
    return load(tmp_path / "bundle", threads=1), json.loads(report.read_text())


def long_text(count: int) -> str:
    """Many times the maximum length, with an entity in every part of it."""
    return " ".join(row["text"] for row in make_texts(count, seed=9))


@pytest.mark.slow
def test_a_tagger_is_trained_served_and_judged(tmp_path: Path, encoder: Path) -> None:
    bare = [{"text": row["text"]} for row in make_texts(20, seed=7)]
    pipeline, report = served(tmp_path, encoder, "token-classification", tagged(280), bare)
    assert report["measure"] == "entity_f1" and report["flops_speedup"] > 1.2
    assert report["dense"]["entity_f1"] > 0.9 and report["reduced"]["entity_f1"] > 0.8
    text = long_text(12)
    (found,) = pipeline([text], return_kept=True)
    assert found.num_tokens > 4 * 64
    entities = found.to_json()["entities"]
    for entity in entities:
        assert set(entity) == {"entity_group", "score", "word", "start", "end"}
        assert entity["entity_group"] in KINDS
    begun = {text[entity["start"] : entity["end"]].split()[0].strip(".") for entity in entities}
    assert begun & {*GOOD} and begun & {*BAD}
    assert max(entity["end"] for entity in entities) > len(text) * 3 / 4  # behind the first windows
    assert len(found.kept[0].positions) < found.num_tokens


@pytest.mark.slow
def test_a_reader_is_trained_served_and_judged(tmp_path: Path, encoder: Path) -> None:
    bare = [{"question": "the film", "context": row["text"]} for row in make_texts(20, seed=7)]
    pipeline, report = served(tmp_path, encoder, "question-answering", asked(280), bare)
    assert report["measure"] == "f1" and report["flops_speedup"] > 1.1
    assert report["dense"]["f1"] > 0.8 and report["reduced"]["f1"] > 0.7
    context = long_text(8)
    (found,) = pipeline([("the film", context)])
    assert found.num_tokens > 3 * 64
    answer = found.to_json()
    assert set(answer) == {"score", "start", "end", "answer", "num_tokens"}
    assert context[answer["start"] : answer["end"]] == answer["answer"]
    short = load(tmp_path / "bundle", threads=1, max_length=32)
    rows = short.tokenize([("the film", context)])
    assert len(rows[0].parts) > len(pipeline.tokenize([("the film", context)])[0].parts)
    (result,) = short.run(rows)
    assert len(next(iter(result.outputs.values()))) == len(rows[0])
    assert all(np.isfinite(values).all() for values in result.outputs.values())

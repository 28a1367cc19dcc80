"""Token classification against the pipeline of transformers: field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from modeling.families.test_token_heads import TAGS, folder_of
from tokenizer_kinds import write_kind
from transformers import AutoModelForTokenClassification
from transformers import pipeline as their_pipeline

import trbert_deploy
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.loading import load
from trbert_deploy.tasks.entities import AGGREGATIONS

TEXTS = [
    "Angela Merkel visits Paris, (in France) for 1,234.56.",
    "She doesn't live-in Roma; élan, naïve and İstanbul!",
    "Ein Film, 映画 und кино.",
]
WIDE: dict[str, Any] = {"vocab_size": 1500}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of random weights, and its dense bundle."""
    path = tmp_path_factory.mktemp("made")
    tokenizer = write_kind("bert, lower-cased", path / "tokenizer")
    (tokenizer / "config.json").unlink()
    names = {"id2label": dict(enumerate(TAGS))}
    model = AutoModelForTokenClassification
    folder = folder_of(path / "folder", tokenizer, "bert", model, changes=WIDE, **names)
    export_bundle(folder, path / "bundle")
    return folder, path / "bundle"


def assert_same(ours: Any, theirs: Any) -> None:
    """Of one structure, with the same keys in one order and the same values; scores to 1e-4."""
    if isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
        return
    assert list(ours) == list(theirs)
    assert ours["score"] == pytest.approx(float(theirs["score"]), abs=1e-4)
    assert {**ours, "score": 0} == {**theirs, "score": 0}


@pytest.mark.parametrize("aggregation", [None, *AGGREGATIONS])
def test_answers_are_those_of_transformers(
    made: tuple[Path, Path], aggregation: str | None
) -> None:
    folder, bundle = made
    options = {} if aggregation is None else {"aggregation_strategy": aggregation}
    theirs = their_pipeline("ner", str(folder), **options)
    ours = trbert_deploy.pipeline("ner", bundle, threads=1, **options)
    assert sum(map(len, theirs(TEXTS))) > 10
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1]):
        found = ours(inputs)
        assert_same(found, theirs(inputs))
        assert json.loads(json.dumps(found)) == found
    assert_same(list(ours(iter(TEXTS))), theirs(TEXTS))
    ignored = ["O", "B-PER", "PER"]
    strict = their_pipeline("ner", str(folder), ignore_labels=ignored, **options)
    assert_same(ours(TEXTS, ignore_labels=ignored), strict(TEXTS))


def test_a_loaded_bundle_answers_with_entities(made: tuple[Path, Path]) -> None:
    theirs = their_pipeline("ner", str(made[0]), aggregation_strategy="simple")
    answers = load(made[1], threads=1)(TEXTS)
    assert_same([list(answer.to_json()["entities"]) for answer in answers], theirs(TEXTS))


def test_mistakes_are_one_line(made: tuple[Path, Path], tiny_bundle: Path) -> None:
    ours = trbert_deploy.pipeline("token-classification", made[1], threads=1)
    for call, error, message in (
        (lambda: ours({"text": "a"}), DataError, "^text 1 is of type dict: expected a string$"),
        (lambda: ours([["a", "b"]]), DataError, "^text 1 is of type list: expected a string$"),
        (
            lambda: ours("a", aggregation_strategy="mean"),
            ConfigError,
            "^aggregation_strategy is 'mean': expected one of none, simple, first, average, max$",
        ),
        (
            lambda: ours("a", ignore_labels="O"),
            ConfigError,
            "^ignore_labels is 'O': expected a list of labels$",
        ),
        (
            lambda: trbert_deploy.pipeline("ner", tiny_bundle, threads=1),
            ConfigError,
            "is for text-classification: expected a bundle for token-classification$",
        ),
    ):
        with pytest.raises(error, match=message):
            call()

"""Masked words against the pipeline of transformers: field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from modeling.families.test_mask_heads import mask_folder
from modeling.families.test_token_heads import folder_of
from tokenizer_kinds import write_kind
from transformers import AutoModelForMaskedLM
from transformers import pipeline as their_pipeline

import trbert_deploy
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.loading import load

#: Tokenizer -> family, and words that are one token to it.
KINDS = {
    "bert, lower-cased": ("bert", ["comment", "return"]),
    "roberta": ("roberta", [" comment", " return"]),
    "xlm-roberta": ("xlm-roberta", ["comment", "FFFFFFIFF"]),
}
WIDE: dict[str, Any] = {"vocab_size": 1500}


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[str], list[str]]:
    """A checkpoint of random weights, its dense bundle, texts with its mask, and words."""
    path = tmp_path_factory.mktemp("made")
    tokenizer = write_kind(request.param, path / "tokenizer")
    (tokenizer / "config.json").unlink()
    family, words = KINDS[request.param]
    changes = WIDE | ({} if family == "bert" else {"pad_token_id": 1})
    folder = folder_of(path / "folder", tokenizer, family, AutoModelForMaskedLM, changes)
    export_bundle(folder, path / "bundle")
    mask = "[MASK]" if family == "bert" else "<mask>"
    texts = [
        f"Angela visits {mask}, (in France) for 1,234.56.",
        f"She doesn't {mask} in {mask}; élan, naïve!",
        f"{mask} Film, 映画 und кино.",
    ]
    return folder, path / "bundle", texts, words


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


def test_answers_are_those_of_transformers(made: tuple[Path, Path, list[str], list[str]]) -> None:
    folder, bundle, texts, words = made
    theirs = their_pipeline("fill-mask", str(folder))
    ours = trbert_deploy.pipeline("fill-mask", bundle, threads=1)
    for inputs in (texts[0], texts[1], texts, texts[:1]):
        found = ours(inputs)
        assert_same(found, theirs(inputs))
        assert json.loads(json.dumps(found)) == found
    assert_same(list(ours(iter(texts), top_k=2)), [theirs(text, top_k=2) for text in texts])
    assert_same(ours(texts, top_k=7), theirs(texts, top_k=7))
    for targets in (words[0], words[:1], words):
        assert_same(ours(texts[0], targets=targets), theirs(texts[0], targets=targets))
        assert_same(ours(texts, targets=targets, top_k=1), theirs(texts, targets=targets, top_k=1))
    answers = load(bundle, threads=1)(texts)
    told = json.loads(json.dumps([answer.to_json()["fills"] for answer in answers]))
    assert_same(told, theirs(texts))


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A bundle that chooses among three words."""
    path = tmp_path_factory.mktemp("chooser")
    words = ["film", "city", "war"]
    export_bundle(mask_folder(path / "folder", tokenizer_dir, targets=words), path / "bundle")
    return path / "bundle"


def test_a_model_for_some_words_answers_with_these(chooser: Path) -> None:
    ours = trbert_deploy.pipeline("fill-mask", chooser, threads=1)
    found = ours("the [MASK]")
    assert {each["token_str"] for each in found} == {"film", "city", "war"}
    assert sum(each["score"] for each in found) == pytest.approx(1.0)
    scores = {each["token_str"]: each["score"] for each in found}
    (war,) = ours("the [MASK]", targets="war")
    assert war["score"] == scores["war"] and war["sequence"] == "the war"
    always = trbert_deploy.pipeline("fill-mask", chooser, threads=1, targets=["war"])
    assert always(["the [MASK]"]) == [war]


def test_mistakes_are_one_line(chooser: Path, tiny_bundle: Path) -> None:
    ours = trbert_deploy.pipeline("fill-mask", chooser, threads=1)
    for call, error, message in (
        (lambda: ours("the film"), DataError, r"^text 1 has no mask among the 4 tokens that are"),
        (lambda: ours({"text": "a"}), DataError, "^text 1 is of type dict: expected a string$"),
        (lambda: ours("a [MASK]", top_k=0), ConfigError, "^top_k is 0"),
        (lambda: ours("a [MASK]", targets=[]), ConfigError, "^targets is ..: expected a word"),
        (lambda: ours("a [MASK]", targets=[1]), ConfigError, "^targets is .1.: expected a word"),
        (
            lambda: ours("a [MASK]", targets=["two words"]),
            ConfigError,
            "^the target 'two words' is not one token of the model's: expected words of one$",
        ),
        (
            lambda: trbert_deploy.pipeline("fill-mask", chooser, targets=["house"]),
            ConfigError,
            "^the target 'house' is none of the words that .* chooses among$",
        ),
        (
            lambda: trbert_deploy.pipeline("fill-mask", tiny_bundle, threads=1),
            ConfigError,
            "is for text-classification: expected a bundle for fill-mask$",
        ),
    ):
        with pytest.raises(error, match=message):
            call()

"""predict and rank against the CrossEncoder of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_texts
from hf_folders import classifier_folder

from trbert_deploy import Pipeline, load
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SIGMOID, SOFTMAX

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [" ".join(row["text"].split()[-10:]) for row in make_texts(10, seed=9)]
PAIRS = list(zip(TEXTS[:5], TEXTS[5:], strict=True))
TWO = ("no", "yes")
THREE = ("contradiction", "entailment", "neutral")
#: Labels of a checkpoint, and what its files say is put on the logits.
CHECKPOINTS = {
    "score": (("LABEL_0",), None),
    "raw": (("LABEL_0",), "torch.nn.modules.linear.Identity"),
    "two": (TWO, None),
    "three": (THREE, None),
    "several": (THREE, "torch.nn.modules.activation.Sigmoid"),
}
Both = Callable[[str], tuple[Pipeline, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Both:
    """A model here, and in sentence-transformers: ``both("raw")``."""
    made: dict[str, tuple[Pipeline, Any]] = {}

    def make(name: str) -> tuple[Pipeline, Any]:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            labels, activation = CHECKPOINTS[name]
            entry = {"sentence_transformers": {"activation_fn": activation}} if activation else {}
            folder = classifier_folder(path / "folder", tokenizer_dir, labels, **entry)
            export_bundle(folder, path / "bundle")
            theirs = sentence_transformers.CrossEncoder(str(folder))
            made[name] = load(path / "bundle", threads=1), theirs
        return made[name]

    return make


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 2, "show_progress_bar": False},
        {"apply_softmax": True},
        {"activation_fn": torch.nn.Sigmoid()},
        {"activation_fn": torch.nn.Identity(), "apply_softmax": True},
    ],
    ids=str,
)
def test_pairs_are_scored_as_by_a_cross_encoder(
    both: Both, name: str, options: dict[str, Any]
) -> None:
    ours, theirs = both(name)
    assert np.ptp(theirs.predict(PAIRS, activation_fn=torch.nn.Identity())) > 0.01
    assert_same(ours.predict(PAIRS, **options), theirs.predict(PAIRS, **options))
    assert_same(ours.predict(PAIRS[1], **options), theirs.predict(PAIRS[1], **options))
    lists = [list(pair) for pair in PAIRS]
    assert_same(ours.predict(np.array(lists), **options), theirs.predict(lists, **options))


def test_no_pairs_have_no_scores(both: Both) -> None:
    assert both("score")[0].predict([]).shape == (0,)
    assert both("three")[0].predict([]).shape == (0, 3)


def test_functions_and_names_make_scores(both: Both) -> None:
    ours, _ = both("three")
    logits = ours.predict(PAIRS)
    assert np.allclose(ours.predict(PAIRS, activation_fn=np.tanh), np.tanh(logits))
    for name in (SIGMOID, SOFTMAX, IDENTITY):
        found = ours.predict(PAIRS, activation_fn=name)
        assert np.allclose(found, ACTIVATIONS[name](logits), atol=1e-6)


@pytest.mark.parametrize(("name", "label"), [("two", "yes"), ("three", "entailment")])
def test_a_label_of_a_classifier_ranks(both: Both, name: str, label: str) -> None:
    ours, theirs = both(name)
    place = CHECKPOINTS[name][0].index(label)
    pairs = [("a film", text) for text in TEXTS]
    expected = theirs.predict(pairs, apply_softmax=True)[:, place]
    assert_same(ours.predict(pairs, label=label), expected)
    assert_same(ours.predict(pairs, label=label, apply_softmax=True), expected)
    found = ours.rank("a film", TEXTS, 4, True, label=label)
    assert [each["corpus_id"] for each in found] == list(np.argsort(-expected)[:4])
    for each in found:
        assert each["score"] == pytest.approx(expected[each["corpus_id"]], abs=1e-4)
        assert each["text"] == TEXTS[each["corpus_id"]]


@pytest.mark.parametrize("name", ["score", "raw"])
def test_documents_are_ranked_by_any_activation(both: Both, name: str) -> None:
    ours, theirs = both(name)
    options = {"batch_size": 3, "activation_fn": torch.nn.Sigmoid(), "show_progress_bar": False}
    found = ours.rank("a film", TEXTS, **options)
    expected = theirs.rank("a film", TEXTS, **options)
    assert [each["corpus_id"] for each in found] == [each["corpus_id"] for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert type(one["score"]) is float and type(one["corpus_id"]) is int


def test_mistakes_are_one_line(both: Both) -> None:
    one, three = both("score")[0], both("three")[0]
    for call, error, message in (
        (
            lambda: three.rank("a film", TEXTS),
            ConfigError,
            "^the model answers contradiction, entailment, neutral: expected label=, the one",
        ),
        (
            lambda: three.predict(PAIRS, label="perhaps"),
            ConfigError,
            "^label is 'perhaps': expected one of contradiction, entailment, neutral$",
        ),
        (
            lambda: one.predict(PAIRS, activation_fn="Tanh"),
            ConfigError,
            "^activation_fn is 'Tanh': expected one of Sigmoid, Softmax, Identity, or a function$",
        ),
        (
            lambda: one.predict(PAIRS, activation_fn=torch.nn.Tanh()),
            ConfigError,
            "^activation_fn takes no arrays .*: expected a function of numpy arrays, or one of",
        ),
        (
            lambda: one.predict(PAIRS, activation_fn=lambda logits: logits.sum()),
            ConfigError,
            r"^activation_fn makes \[\] of \[5, 1\]: expected a function",
        ),
        (lambda: one.predict(PAIRS, batch_size=0), ConfigError, "^batch_size is 0"),
        (
            lambda: one.predict([*PAIRS, ("a", " ")], batch_size=2),
            DataError,
            "^pair 6 is empty",
        ),
        (lambda: one.predict([("a",)]), DataError, "^pair 1 is a tuple of 1"),
        (lambda: one.predict("a film"), DataError, "^the texts are of type str"),
    ):
        with pytest.raises(error, match=message):
            call()

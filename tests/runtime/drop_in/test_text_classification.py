"""Text classification against the pipeline of transformers: field by field, in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import make_texts
from hf_folders import classifier_folder
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as their_pipeline
from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset
from transformers.pipelines.text_classification import ClassificationFunction

import trbert_deploy
from trbert_deploy.errors import ConfigError, DataError, LengthError, OutputError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.drop_in.drop_in import MOST_TOKENIZERS, DropIn
from trbert_deploy.tasks.text_classification import LOGITS, MULTI_LABEL, REGRESSION, SINGLE_LABEL

TEXTS = [" ".join(row["text"].split()[-10:]) for row in make_texts(5, seed=9)]
PAIR = {"text": TEXTS[0], "text_pair": TEXTS[1]}
LONG = "the film " * 60
THREE = ("cold", "warm", "wet")
#: Kind of checkpoint -> its labels, and entries of config.json.
CHECKPOINTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "single": (THREE, {"problem_type": SINGLE_LABEL}),
    "unsaid": (THREE, {}),
    "multi": (THREE, {"problem_type": MULTI_LABEL}),
    "number": (("LABEL_0",), {"problem_type": REGRESSION}),
    "numbers": (THREE, {"problem_type": REGRESSION}),
    "one logit": (("LABEL_0",), {}),
    "raw score": (
        ("LABEL_0",),
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ),
}
Both = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path
) -> Callable[[str], tuple[Path, Path]]:
    """Checkpoint and dense bundle of a kind: ``made("multi")``."""
    known: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in known:
            path = tmp_path_factory.mktemp("made")
            labels, entries = CHECKPOINTS[kind]
            folder = classifier_folder(path / "folder", tokenizer_dir, labels, **entries)
            export_bundle(folder, path / "bundle")
            known[kind] = folder, path / "bundle"
        return known[kind]

    return make


@pytest.fixture(scope="module")
def both(made: Callable[[str], tuple[Path, Path]]) -> Both:
    """The pipeline here and that of transformers: ``both("multi", top_k=2)``."""

    def make(kind: str, **options: Any) -> tuple[Any, Any]:
        folder, bundle = made(kind)
        theirs = their_pipeline(
            "text-classification",
            AutoModelForSequenceClassification.from_pretrained(folder),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            **options,
        )
        ours = trbert_deploy.pipeline("text-classification", model=bundle, threads=1, **options)
        return ours, theirs

    return make


def assert_same(ours: Any, theirs: Any) -> None:
    """Of one structure, with the same keys in one order, types and labels; scores to 1e-4."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-4)
    else:
        assert ours == theirs


class Texts(Dataset[str]):
    """A data set of PyTorch, which has an index and no iterator."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, place: int) -> str:
        return TEXTS[place]


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_answers_are_those_of_transformers(both: Both, kind: str) -> None:
    ours, theirs = both(kind)
    assert len({answer["score"] for answer in theirs(TEXTS)}) == len(TEXTS)
    calls: list[dict[str, Any]] = [
        {},
        *({"top_k": top_k} for top_k in (None, 1, 2, 7)),
        *({"function_to_apply": name} for name in ("sigmoid", "softmax", "none", "SoftMax")),
        {"function_to_apply": ClassificationFunction.SIGMOID, "top_k": None},
        {"function_to_apply": None},
        {"batch_size": 2},
    ]
    for options in calls:
        theirs_too = {key: value for key, value in options.items() if key != "batch_size"}
        for inputs in (
            TEXTS[0],
            TEXTS,
            TEXTS[:1],
            PAIR,
            {"text": TEXTS[0]},
            [PAIR, {"text": TEXTS[2], "text_pair": TEXTS[3]}],
            [TEXTS[0], PAIR, [[TEXTS[0], TEXTS[1]]]],
        ):
            assert_same(ours(inputs, **options), theirs(inputs, **theirs_too))


@pytest.mark.parametrize("options", [{"top_k": None}, {"top_k": 1}, {"function_to_apply": "none"}])
def test_options_hold_for_all_calls(both: Both, options: dict[str, Any]) -> None:
    ours, theirs = both("single", **options)
    for inputs in (TEXTS[0], TEXTS, PAIR):
        assert_same(ours(inputs), theirs(inputs))
        assert_same(ours(inputs, top_k=2), theirs(inputs, top_k=2))


def test_generators_and_data_sets_are_answered_as_they_come(both: Both) -> None:
    ours, theirs = both("multi")
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    answers = iter(ours(texts()))
    first = next(answers)
    assert read == TEXTS[:1]
    assert_same([first, *answers], list(theirs(text for text in TEXTS)))
    column = datasets.Dataset.from_dict({"text": TEXTS})
    for data in (
        Texts(),
        KeyDataset(column, "text"),
        KeyPairDataset([PAIR] * 2, "text", "text_pair"),
    ):
        assert_same(list(ours(data, top_k=None)), list(theirs(data, top_k=None)))
    assert_same(list(ours(column["text"])), theirs(TEXTS))
    pairs = ({"text": text, "text_pair": TEXTS[0]} for text in TEXTS)
    expected = [theirs({"text": text, "text_pair": TEXTS[0]}) for text in TEXTS]
    assert_same(list(ours(pairs, batch_size=3)), expected)
    assert list(ours(iter([]))) == [] == ours([])


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_texts_are_cut_as_a_call_says(both: Both, kind: str) -> None:
    ours, theirs = both(kind)
    long_pair = {"text": LONG, "text_pair": TEXTS[0]}
    for options in (
        {"truncation": True, "max_length": 16, "padding": True},
        {"truncation": "longest_first", "max_length": 9},
        {"truncation": True, "max_length": 64, "padding": "max_length"},
    ):
        with pytest.warns(UserWarning, match="are cut to that length"):
            found = ours([*TEXTS, LONG, long_pair], **options)
        assert_same(found, theirs([*TEXTS, LONG, long_pair], **options))
    short, long = {"text": TEXTS[0], "text_pair": LONG}, {"text": LONG, "text_pair": TEXTS[0]}
    for which, pair in (("only_first", long), ("only_second", short)):
        with pytest.warns(UserWarning, match="are cut to that length"):
            found = ours(pair, truncation=which, max_length=20)
        assert_same(found, theirs(pair, truncation=which, max_length=20))
    with pytest.raises(LengthError, match="the first text of text 1 has more than"):
        ours(long, truncation="only_second", max_length=20)
    again = [ours(TEXTS, max_length=length) for length in (*range(30, 50), 40)]
    assert again == [again[0]] * 21 and len(ours._others) <= MOST_TOKENIZERS
    with pytest.raises(LengthError, match="text 2 has 122 tokens: the model takes at most 64"):
        ours([TEXTS[0], LONG], truncation=False)


def test_a_reduced_bundle_answers_in_the_same_shape(tiny_bundle: Path) -> None:
    ours = trbert_deploy.pipeline("sentiment-analysis", tiny_bundle, threads=1, threshold=0.4)
    (answer,) = (ours("a wonderful film", top_k=None),)
    assert [list(each) for each in answer] == [["label", "score"]] * 2
    expected = trbert_deploy.load(tiny_bundle, threads=1, threshold=0.4)(["a wonderful film"])[0]
    assert {each["label"]: each["score"] for each in answer} == pytest.approx(expected.scores)


def test_equal_scores_stay_in_the_order_of_the_labels(both: Both) -> None:
    ours, _ = both("single")
    outputs = {LOGITS: np.array([0.5, 2.0, 2.0], np.float32)}
    answers = ours.answer(outputs, None, "", ours.options.updated({"top_k": None}))
    assert [answer["label"] for answer in answers] == ["warm", "wet", "cold"]
    with pytest.raises(OutputError, match=r"logits have the shape \[2\]: expected \[3\]"):
        ours.answer({LOGITS: np.zeros(2, np.float32)}, None, "", ours.options)


def test_mistakes_are_one_line(both: Both, tiny_bundle: Path) -> None:
    ours, _ = both("single")
    for call, error, message in (
        (lambda: ours(TEXTS, top_k=0), ConfigError, "^top_k is 0: expected a whole number"),
        (lambda: ours(TEXTS, top_k="all"), ConfigError, "^top_k is all: expected a whole number"),
        (
            lambda: ours(TEXTS, function_to_apply="tanh"),
            ConfigError,
            "^function_to_apply is 'tanh': expected one of sigmoid, softmax, none$",
        ),
        (
            lambda: ours(TEXTS, truncation="first"),
            ConfigError,
            "^truncation is 'first': expected one of True, longest_first, only_first, only_s",
        ),
        (lambda: ours(TEXTS, max_length=65), ConfigError, "^maximum length is 65: the bundle"),
        (lambda: ours(TEXTS, batch_size=0), ConfigError, "^batch_size is 0"),
        (
            lambda: ours(TEXTS, return_all_scores=True),
            ConfigError,
            "^unknown option return_all_scores of a call: expected one of batch_size, truncation,",
        ),
        (lambda: ours(5), DataError, "^the input is of type int: expected a string, a dictionary"),
        (lambda: ours(("a", "b")), DataError, "^the input is of type tuple: expected a string"),
        (lambda: ours(["a film", ["a", "b"]]), DataError, "^text 2 is of type list: expected a"),
        (lambda: ours({"sentence": "a"}), DataError, "^text 1 is of type dict: expected a string,"),
        (lambda: ours(["a film", " "]), DataError, "^text 2 is empty: expected at least one word$"),
        (
            lambda: trbert_deploy.pipeline("feature-extraction", tiny_bundle),
            ConfigError,
            r"^feature-extraction is no pipeline of a bundle: .*load\(BUNDLE\).encode\(texts\)$",
        ),
        (
            lambda: trbert_deploy.pipeline("text-generation", tiny_bundle),
            ConfigError,
            "^unknown pipeline 'text-generation': expected one of text-classification, ",
        ),
        (
            lambda: trbert_deploy.pipeline("text-classification", tiny_bundle, device=0),
            ConfigError,
            "^unknown option device: expected one of backend, batch_size, dense_below,",
        ),
        (
            lambda: trbert_deploy.pipeline("text-classification", tiny_bundle, max_length=99),
            ConfigError,
            "^maximum length is 99: the bundle .* takes 1 to 64 tokens$",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_bundle_for_another_task_is_refused(tiny_bundle: Path) -> None:
    class Other(DropIn):
        name = "fill-mask"
        tasks = ("fill-mask",)
        text_of = answer = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="is for text-classification: expected a bundle for fill"):
        Other(trbert_deploy.load(tiny_bundle, threads=1))

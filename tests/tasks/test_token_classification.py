"""Tags of words: how they are read, what they are of tokens, entities, and how these are judged."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from many_scripts import lines
from seqeval.metrics import f1_score, precision_score, recall_score
from tokenizer_kinds import KINDS, write_kind
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    TokenClassificationPipeline,
)
from transformers.pipelines.token_classification import AggregationStrategy

from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.runtime.reading.examples import examples_of, read_examples
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.entities import AGGREGATIONS
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.token_classification import AGGREGATION, TokenClassification
from trbert_deploy.tasks.tokens import UNKNOWN

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
WORDS = ["Angela", "Merkel", "visits", "Paris", "."]
TAGS = ["B-PER", "I-PER", "O", "B-LOC", "O"]


@cache
def tokenizers_of(kind: str) -> tuple[Any, TextTokenizer]:
    """transformers' tokenizer of a kind, and ours with the same file."""
    directory = Path(mkdtemp())
    theirs = AutoTokenizer.from_pretrained(write_kind(kind, directory))
    path = directory / "ours.json"
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.save(str(path))
    return theirs, TextTokenizer(path, 512)


def read(**record: Any) -> Example:
    (example,) = examples_of([Record("line 1", record)], "data", TokenClassification)
    return example


def outputs_of(tags: list[str], width: int = len(LABELS)) -> dict[str, np.ndarray]:
    """Outputs that are sure of a label for every token."""
    logits = np.zeros((len(tags), width), np.float32)
    logits[range(len(tags)), [LABELS.index(tag) for tag in tags]] = 9.0
    return {LOGITS: logits}


def test_words_become_a_text_with_their_places() -> None:
    expected = Example(
        "Angela Merkel visits Paris .",
        ((0, 6, "B-PER"), (7, 13, "I-PER"), (14, 20, "O"), (21, 26, "B-LOC"), (27, 28, "O")),
    )
    assert read(tokens=WORDS, ner_tags=TAGS) == expected
    assert read(words=WORDS, tags=TAGS, text="another") == expected
    assert read(Tokens=json.dumps(WORDS), labels=json.dumps(TAGS)) == expected  # cells of a table
    assert read(text=expected.text, label=[list(word) for word in expected.target]) == expected
    assert read(tokens=WORDS).target is None
    assert read(text="[1] plain text") == Example("[1] plain text")
    assert read(sentence="plain text", ner_tags=None) == Example("plain text")
    assert [tag for _, _, tag in read(tokens=["a", "b"], ner_tags=[0, 3]).target] == ["0", "3"]
    assert read(tokens=["a", "", "b"], tags=["O", "O", "X"]).target[2] == (3, 4, "X")


@pytest.mark.parametrize(
    "record, message",
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "line 1 has 2 tags for 1 words: expected one for"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1 has 1 tags for 2 words"),
        ({"tokens": [], "tags": []}, "line 1 has no words: expected at least one"),
        ({"tokens": [" "], "tags": ["O"]}, "line 1 has no words"),
        ({"tokens": ["a", 3]}, "line 1 has a word of type int: expected a list of strings"),
        ({"tokens": ["\ud800"]}, "line 1 is no valid Unicode"),
        ({"tokens": ["a"], "tags": [0.5]}, "line 1 has a tag of type float: expected names, or"),
        ({"tokens": ["a"], "tags": [True]}, "line 1 has a tag of type bool"),
        ({"tokens": ["a"], "tags": [None]}, "line 1 has a tag of type NoneType"),
        ({"tokens": ["a"], "tags": [" "]}, "line 1 has a tag ' ': expected names"),
        ({"tokens": ["a"], "tags": "O"}, "line 1 has tags of type str: expected a list of them"),
        ({"text": "a b", "tags": ["O", "O"]}, "line 1 has one text, and tags: expected a list of"),
        ({"text": "a b", "tags": "O"}, "line 1 has tags of type str: expected a list of words"),
        ({"text": "a b", "tags": [[0, 9, "O"]]}, "line 1 has a tag from 0 to 9: expected places"),
        ({"text": "a b", "tags": [[2, 3, "O"], [0, 1, "O"]]}, "line 1 has a tag from 0 to 1"),
        ({"text": " "}, 'line 1: the field "text" is empty'),
        ({"text": 3}, "is of type int, expected a string"),
    ],
)  # fmt: skip
def test_what_has_no_words_or_other_tags_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**record)


def test_a_file_of_words_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ner.jsonl"
    path.write_text(json.dumps({"tokens": WORDS, "ner_tags": TAGS, "id": 7}) + "\n")
    notes: list[str] = []
    (example,) = read_examples(path, TokenClassification, note=notes.append)
    assert example.text == " ".join(WORDS) and [tag for *_, tag in example.target] == TAGS
    assert notes == [f'{path.name}: text from "tokens", label from "ner_tags"']


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_of_each_word_has_its_tag(kind: str) -> None:
    _, tokenizer = tokenizers_of(kind)
    task = TokenClassification(LABELS)
    example = read(tokens=[*WORDS, "Hollandaise-like", "don't"], ner_tags=[*TAGS, "O", "MISC"])
    (encoding,) = tokenizer.encode([example.text])
    (target,) = task.targets([example], [encoding])
    assert target.dtype == np.int64 and len(target) == len(encoding.ids)
    (places,) = np.nonzero(target >= 0)
    assert [LABELS[label] for label in target[places]] == [*TAGS, "O", "MISC"]
    for place, (start, _, _) in zip(places.tolist(), example.target, strict=True):
        begin, end = encoding.offsets[place]
        assert example.text[begin:end].strip()[0] == example.text[start]
        assert begin in (start - 1, start) and not encoding.special_tokens_mask[place]
    unknown = task.no_target(encoding)
    special = np.array(encoding.special_tokens_mask, bool)
    assert (unknown[special] == NO_TOKEN).all() and (unknown[~special] == UNKNOWN).all()
    assert np.array_equal(np.where(target >= 0, UNKNOWN, target), unknown)


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_of_any_script_has_two_tags_or_another_ones(kind: str) -> None:
    _, tokenizer = tokenizers_of(kind)
    task = TokenClassification([str(number) for number in range(40)])
    for line in lines(60, seed=3):
        words = line.split()
        if not words:
            continue
        example = read(tokens=words, tags=list(range(len(words))))
        (encoding,) = tokenizer.encode([example.text])
        (target,) = task.targets([example], [encoding])
        (places,) = np.nonzero(target >= 0)
        found = target[places].tolist()
        assert found == sorted(set(found))  # in order, each once
        for place, word in zip(places.tolist(), found, strict=True):
            start, end, _ = example.target[word]
            begin, stop = encoding.offsets[place]
            letters = example.text[begin:stop].lstrip()
            assert letters and start <= stop - len(letters) < end


def test_words_that_are_cut_off_or_dropped_have_no_token() -> None:
    _, tokenizer = tokenizers_of("bert, cased")
    example = read(tokens=["a", "\u200d", "b"], ner_tags=["O", "B-PER", "B-LOC"])
    (encoding,) = tokenizer.encode([example.text])
    (target,) = TokenClassification(LABELS).targets([example], [encoding])
    assert [label for label in target.tolist() if label >= 0] == [0, 3]
    encoding.truncate(2)
    (target,) = TokenClassification(LABELS).targets([example], [encoding])
    assert [label for label in target.tolist() if label >= 0] == [0]


def test_tags_that_the_model_does_not_know_are_refused() -> None:
    task = TokenClassification(LABELS)
    encoding: Any = SimpleNamespace(
        ids=[1], offsets=[(0, 1)], sequence_ids=[0], special_tokens_mask=[0]
    )
    with pytest.raises(DataError, match="line 1: the model does not know the tag 'B-ORG' \\(it"):
        task.targets([read(tokens=["a"], tags=["B-ORG"])], [encoding])
    with pytest.raises(DataError, match="line 1: expected a field of tags beside the words"):
        task.targets([read(tokens=["a"])], [encoding])
    assert task.targets([read(tokens=["a"], tags=[3])], [encoding])[0].tolist() == [3]
    with pytest.raises(DataError, match="does not know: B-ORG"):
        task.require_names(["O", "B-ORG"], "the model")


def test_a_new_head_has_the_tags_that_occur() -> None:
    examples = [read(tokens=WORDS, tags=TAGS), read(tokens=["a"], tags=["B-ORG"])]
    head = TokenClassification.new_head(examples)
    assert head.labels == head.found == ("O", "B-LOC", "B-ORG", "B-PER", "I-PER")
    numbers = read(tokens=list("abc"), tags=[10, 0, 9])
    assert TokenClassification.new_head([numbers]).labels == ("0", "9", "10")
    with pytest.raises(DataError, match="the data has one tag only \\(O\\): expected two or more"):
        TokenClassification.new_head([read(tokens=["a"], tags=["O"])])


@cache
def pipeline_of(kind: str) -> TokenClassificationPipeline:
    config = BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8,
        vocab_size=8, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    return TokenClassificationPipeline(
        model=BertForTokenClassification(config), tokenizer=tokenizers_of(kind)[0]
    )


@pytest.mark.parametrize("kind, aggregation", [*product(KINDS, AGGREGATIONS)])
def test_entities_are_those_of_transformers(kind: str, aggregation: str) -> None:
    pipeline, (_, tokenizer) = pipeline_of(kind), tokenizers_of(kind)
    task = TokenClassification(LABELS, aggregation).spelled(tokenizer.spelling)
    generator = np.random.default_rng(7)
    compared = 0
    texts = [*lines(40, seed=11), "Angela Merkel's visit to Paris, (France) cost 1,234.56."]
    for text, encoding in zip(texts, tokenizer.encode(texts), strict=True):
        (inputs,) = pipeline.preprocess(text, is_split_into_words=False)
        assert inputs["input_ids"][0].tolist() == encoding.ids
        logits = generator.normal(size=(len(encoding.ids), len(LABELS))).astype(np.float32) * 3
        logits += np.repeat(generator.normal(size=(len(logits) // 3 + 1, len(LABELS))), 3, 0)[
            : len(logits)
        ].astype(np.float32) * 6  # neighbours that often agree  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Tokenizer does not support real words"
            expected = pipeline.postprocess(
                [{**inputs, "logits": torch.from_numpy(logits)[None]}],
                aggregation_strategy=AggregationStrategy(aggregation),
            )
        found = task.decode({LOGITS: logits}, encoding, text).to_json()
        assert found["num_tokens"] == len(encoding.ids)
        assert len(found["entities"]) == len(expected)
        for ours, theirs in zip(found["entities"], expected, strict=True):
            assert list(ours) == list(theirs)
            assert ours.pop("score") == pytest.approx(float(theirs.pop("score")), abs=1e-4)
            assert ours == {key: getattr(each, "item", lambda each=each: each)() for key, each in
                            theirs.items()}  # fmt: skip
        compared += len(expected)
    assert compared > 100


def test_predictions_are_plain_values() -> None:
    _, tokenizer = tokenizers_of("bert, cased")
    text = "Angela Merkel visits Paris"
    (encoding,) = tokenizer.encode([text])
    places = dict(zip((0, 7, 14, 21), TAGS, strict=False))
    tags = ["O"] * len(encoding.ids)
    for place, (start, end) in enumerate(encoding.offsets):
        if end > start:
            word = max(begin for begin in places if begin <= start)
            tags[place] = places[word] if word == start else places[word].replace("B-", "I-")
    task = TokenClassification(LABELS).spelled(tokenizer.spelling)
    answer = task.decode(outputs_of(tags), encoding, text)
    assert [(e.entity_group, e.start, e.end) for e in answer.entities] == [  # type: ignore[union-attr]
        ("PER", 0, 13),
        ("LOC", 21, 26),
    ]
    assert json.loads(json.dumps(answer.to_json()))["entities"][0]["word"] == "Angela Merkel"
    assert task.summary(answer) == "Angela Merkel (PER), Paris (LOC)"
    assert task.told_target(read(tokens=WORDS, tags=TAGS).target) == "PER, LOC"
    nothing = task.decode(outputs_of(["O"] * len(encoding.ids)), encoding, text)
    assert task.summary(nothing) == "none" == task.told_target(((0, 1, "O"),))
    plain = TokenClassification(LABELS, "none").decode(outputs_of(tags), encoding, text)
    assert TokenClassification(LABELS, "none").summary(plain).startswith("A")


def test_a_text_of_no_tokens_has_no_entities() -> None:
    _, tokenizer = tokenizers_of("bert, cased")
    (encoding,) = tokenizer.encode(["\u200d"])
    assert all(encoding.special_tokens_mask)
    for aggregation in AGGREGATIONS:
        task = TokenClassification(LABELS, aggregation)
        logits = np.zeros((len(encoding.ids), len(LABELS)), np.float32)
        assert task.decode({LOGITS: logits}, encoding, "\u200d").entities == ()


def test_outputs_that_are_no_answer_are_refused() -> None:
    task = TokenClassification(LABELS)
    _, tokenizer = tokenizers_of("bert, cased")
    (encoding,) = tokenizer.encode(["a b"])
    bad = outputs_of(["O"] * len(encoding.ids))
    with pytest.raises(DataError, match="the text is a pair: expected one text"):
        task.decode(bad, encoding, ("a", "b"))
    bad[LOGITS][1, 1] = math.nan
    with pytest.raises(OutputError, match="nan"):
        task.decode(bad, encoding, "a b")
    with pytest.raises(OutputError, match=r"have the shape \[1, 6\]: expected \[\d, 6\], one for"):
        task.decode(outputs_of(["O"]), encoding, "a b")
    with pytest.raises(ConfigError, match="aggregation_strategy is 'mean': expected one of none"):
        TokenClassification(LABELS, "mean")
    spec = tiny_spec(task=task.name, labels=LABELS, answers={AGGREGATION: "first"})
    assert TokenClassification.of(spec).aggregation == "first"


def tags_of(labels: tuple[str, ...]) -> Any:
    row = st.lists(st.tuples(st.sampled_from(labels), st.sampled_from(labels)), max_size=12)
    return st.lists(row, min_size=1, max_size=5)


SCHEMES = ("O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC", "A-B")))


@given(st.one_of(tags_of(SCHEMES), tags_of(("O", "I-PER", "I-LOC")), tags_of(SCHEMES[:7])))
def test_entities_are_judged_as_by_seqeval(rows: list[list[tuple[str, str]]]) -> None:
    task = TokenClassification(SCHEMES)
    outputs, targets = [], []
    for row in rows:
        places = [SCHEMES.index(answer) for answer, _ in row]
        # between the words stand tokens of which nothing is asked
        logits = np.zeros((2 * len(row) + 1, len(SCHEMES)), np.float32)
        logits[:, 1] = 1.0
        logits[range(1, 2 * len(row), 2), places] = 2.0
        target = np.full(len(logits), NO_TOKEN)
        target[1::2] = [SCHEMES.index(true) for _, true in row]
        outputs.append({LOGITS: logits})
        targets.append(target)
    answered = [[answer for answer, _ in row] for row in rows]
    true = [[each for _, each in row] for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no entity
        expected = {
            "entity_f1": f1_score(true, answered),
            "precision": precision_score(true, answered),
            "recall": recall_score(true, answered),
        }
    found = task.metrics(outputs, targets)
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})
    assert next(iter(found)) == task.measure
    statistics = task.statistics(outputs, targets)
    assert statistics.shape == (len(rows), 3)
    assert task.measured(statistics) == pytest.approx(found["entity_f1"])


def test_a_label_without_a_scheme_is_a_type() -> None:
    task = TokenClassification(("O", "ORG", "PER"))
    logits = np.eye(3, dtype=np.float32)[[1, 1, 2, 0, 1]]
    assert task.statistics([{LOGITS: logits}], [np.array([1, 1, 2, 0, 0])]).tolist() == [[2, 3, 2]]


def test_agreement_and_divergence() -> None:
    task = TokenClassification(LABELS)
    one = outputs_of(["O", "B-PER", "I-PER", "B-LOC"])
    assert task.agreement(one, one) == 1.0
    assert task.agreement(one, outputs_of(["O", "B-PER", "I-PER", "O"])) == pytest.approx(2 / 3)
    assert task.agreement(one, outputs_of(["O", "B-PER", "O", "B-LOC"])) == 0.5
    assert task.agreement(outputs_of(["O"] * 4), outputs_of(["O"] * 4)) == 1.0
    assert task.agreement(one, outputs_of(["O"] * 4)) == 0.0
    assert task.agreement(one, {LOGITS: one[LOGITS] * math.nan}) == 0.0
    assert task.divergence(one, one) == 0.0
    other = outputs_of(["O", "O", "I-PER", "B-LOC"])
    probabilities = torch.from_numpy(one[LOGITS]).double().softmax(-1)
    difference = probabilities.log() - torch.from_numpy(other[LOGITS]).double().log_softmax(-1)
    expected = (probabilities * difference).sum(-1).mean().item()
    assert task.divergence(one, other) == pytest.approx(expected)


def test_a_teacher_with_other_places_of_labels_is_read_in_ours() -> None:
    task, teacher = TokenClassification(LABELS), TokenClassification(LABELS[::-1])
    teacher.require_like(task, "the teacher")
    given_ = {LOGITS: np.arange(12, dtype=np.float32).reshape(2, 6)}
    found = teacher.translated(given_, task)[LOGITS]
    assert np.array_equal(found, given_[LOGITS][:, ::-1])
    with pytest.raises(DataError, match="the teacher knows the labels O, B-PER: expected those"):
        TokenClassification(("O", "B-PER")).require_like(task, "the teacher")

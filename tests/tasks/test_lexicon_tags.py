"""A tagger and lexicons: their tags, which matches are right, and what labels they mean."""

from __future__ import annotations

import pytest
from conftest import tiny_spec

from trbert_deploy.errors import ConfigError
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.registry import answering, task_of
from trbert_deploy.tasks.token_classification import TokenClassification

LABELS = ("O", "I-LOC", "B-PER", "B-LOC", "I-PER")
TAGGER = TokenClassification(LABELS, takes_lexicon=True)


def test_tags_are_the_types_of_the_labels_in_their_order() -> None:
    assert TAGGER.lexicon_tags == ("LOC", "PER")
    assert TokenClassification(LABELS).lexicon_tags == ()
    assert TAGGER.with_options({"aggregation_strategy": "max"}).lexicon_tags == ("LOC", "PER")
    assert TAGGER.spelled(TAGGER.spelling).lexicon_tags == ("LOC", "PER")
    assert TAGGER.protects and not TokenClassification(LABELS).protects


def test_a_match_means_the_labels_of_its_place() -> None:
    wanted = [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert TAGGER.labels_of_matches().tolist() == wanted


def test_right_matches_are_whole_entities() -> None:
    words = [(0, 3, "B-LOC"), (4, 8, "I-LOC"), (9, 12, "O"), (13, 17, "B-PER")]
    example = Example("New York and Lena", words, "it")
    assert TAGGER.right_matches(example) == {(0, 8, "LOC"), (13, 17, "PER")}


def test_whether_one_is_taken_is_true_or_false() -> None:
    spec = tiny_spec(task="token-classification", labels=LABELS, answers={"takes_lexicon": "yes"})
    with pytest.raises(ConfigError, match="takes_lexicon is 'yes': expected true or false"):
        task_of(spec)
    bare = tiny_spec(task="token-classification", labels=LABELS)
    taking = answering(bare, TokenClassification.taking_lexicon())
    assert task_of(taking).lexicon_tags == ("LOC", "PER")


def test_other_tasks_take_none() -> None:
    with pytest.raises(ConfigError, match="text-classification, which takes no lexicon"):
        task_of(tiny_spec()).taking_lexicon()

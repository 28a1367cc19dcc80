"""Rows of one length of texts and of pairs, for benchmarks and checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts, tiny_spec
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.registry import task_of

CLS, SEP = 2, 3
TEXTS = [row["text"] for row in make_texts(6, seed=2)]
PAIRS = [("a wonderful film", text) for text in TEXTS]
ASKING = task_of(tiny_spec(task="question-answering"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_dir / "tokenizer.json", 64)


@given(length=st.integers(1, 64), count=st.integers(1, 9))
def test_pairs_keep_their_first_text(tokenizer: TextTokenizer, length: int, count: int) -> None:
    (pair,) = tokenizer.encode([PAIRS[0]])
    opening = pair.ids[: pair.ids.index(SEP) + 1]
    for row in tokenizer.rows_of_length(PAIRS, length, count, ASKING.protected):
        ids = row.input_ids.tolist()
        assert len(ids) == len(row.token_type_ids) == len(row.protected) == length
        assert ids[0] == CLS and (length == 1 or ids[-1] == SEP)
        if length >= 2 * len(opening):
            assert ids[: len(opening)] == opening
        if length >= 6:
            first = ids.index(SEP) + 1
            assert first <= max(3, length // 2)
            assert row.token_type_ids.tolist() == [0] * first + [1] * (length - first)
            assert row.protected.tolist() == [True] * first + [False] * (length - first - 1) + [
                True
            ]
            assert ids.count(SEP) == 2


def test_what_follows_are_second_texts(tokenizer: TextTokenizer) -> None:
    pairs = [("film", "the city"), ("house", "a village"), ("sailor", "the war")]
    bodies = {
        pair: [
            token
            for token, owner in zip(encoding.ids, encoding.sequence_ids, strict=True)
            if owner == 1
        ]
        for pair, encoding in zip(pairs, tokenizer.encode(pairs), strict=True)
    }
    rows = tokenizer.rows_of_length(pairs, 40, 4)
    assert len({row.input_ids.tobytes() for row in rows[:3]}) == 3
    assert rows[0].input_ids.tolist() == rows[3].input_ids.tolist()
    ids = rows[1].input_ids.tolist()
    expected = [token for place in (1, 2, 0) for token in bodies[pairs[place]]] * 9
    start = ids.index(SEP) + 1
    assert ids[start:-1] == expected[: len(ids) - start - 1]
    assert rows[1].protected.tolist() == [True] + [False] * 39


def test_texts_and_pairs_may_be_mixed(tokenizer: TextTokenizer) -> None:
    alone, paired = tokenizer.rows_of_length(["a film", ("a film", "the city")], 32, 2)
    assert not alone.token_type_ids.any()
    assert (np.diff(paired.token_type_ids) >= 0).all() and paired.token_type_ids.any()


def test_a_pair_without_a_second_token_begins_no_row(tokenizer: TextTokenizer) -> None:
    nothing = ("a film", "\x00")
    both = tokenizer.rows_of_length([nothing, PAIRS[0]], 16, 2)
    assert [row.input_ids.tolist() for row in both] == [
        row.input_ids.tolist() for row in tokenizer.rows_of_length([PAIRS[0]], 16, 2)
    ]
    with pytest.raises(DataError, match="no token that the tokenizer knows"):
        tokenizer.rows_of_length([nothing], 16, 1)

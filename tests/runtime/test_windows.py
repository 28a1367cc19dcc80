"""Windows: every token is read, each window fits, and each token is answered where it sees most."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import template
from tokenizers import Tokenizer, models, pre_tokenizers

from trbert_deploy.errors import LengthError
from trbert_deploy.runtime.windows import merged, windows_of


def encoding_of(opening: int, first: int | None, body: int, closing: int) -> Any:
    """Special tokens, a text or a pair of them, and special tokens again."""
    owners: list[int | None] = [None] * opening
    if first is not None:
        owners += [0] * first + [None]
    owners += [0 if first is None else 1] * body + [None] * closing
    return SimpleNamespace(ids=[7] * len(owners), sequence_ids=owners)


ENCODINGS = st.builds(
    encoding_of,
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(0, 6)),
    st.integers(1, 90),
    st.integers(0, 2),
)


@given(ENCODINGS, st.integers(1, 40), st.integers(0, 30))
def test_every_token_is_read_and_every_window_fits(
    encoding: Any, max_length: int, overlap: int
) -> None:
    length = len(encoding.ids)
    owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
    body = owners == owners.max()
    (inside,) = np.nonzero(body)
    if length > max_length and max_length <= length - len(inside):
        with pytest.raises(
            LengthError, match=r"question 3 has \d+ tokens beside the text that is read in"
        ):
            windows_of(encoding, max_length, overlap, "question 3")
        return
    windows = windows_of(encoding, max_length, overlap)
    assert set(np.concatenate(windows).tolist()) == set(range(length))
    if length <= max_length:
        assert len(windows) == 1
        return
    room = max_length - (length - len(inside))
    wanted = min(overlap, room // 2)
    for window in windows:
        assert len(window) == max_length and (np.diff(window) > 0).all()
        assert np.isin(np.flatnonzero(~body), window).all()
        part = window[body[window]]
        assert (np.diff(part) == 1).all() and len(part) == room
    for one, other in pairwise(windows):
        both = np.intersect1d(one[body[one]], other[body[other]])
        assert len(both) >= wanted and one[-1] <= other[-1] and not np.array_equal(one, other)
        assert len(both) == wanted or other is windows[-1]
    for one, other in zip(windows, windows[2:], strict=False):
        assert other is windows[-1] or not np.intersect1d(one[body[one]], other[body[other]]).size


@given(ENCODINGS, st.integers(1, 40), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_a_token_is_answered_where_it_stands_farthest_from_the_ends(
    encoding: Any, max_length: int, overlap: int, seed: int
) -> None:
    try:
        windows = windows_of(encoding, max_length, overlap)
    except LengthError:
        return
    generator = np.random.default_rng(seed)
    outputs = [
        {
            "logits": generator.normal(size=(len(window), 3)).astype(np.float32),
            "depth": generator.normal(size=len(window)).astype(np.float32),
        }
        for window in windows
    ]
    found = merged(windows, outputs)
    length = len(encoding.ids)
    assert {name: values.shape for name, values in found.items()} == {
        "logits": (length, 3),
        "depth": (length,),
    }
    if len(windows) == 1:
        for name in found:
            assert np.array_equal(found[name], outputs[0][name])
        return
    owners = [-1 if owner is None else owner for owner in encoding.sequence_ids]
    for token, owner in enumerate(owners):
        answers = []
        for window, answer in zip(windows, outputs, strict=True):
            part = [place for place in window.tolist() if owners[place] == max(owners)]
            if token in window:
                place = window.tolist().index(token)
                depth = 0
                if owner == max(owners):
                    depth = min(part.index(token), len(part) - 1 - part.index(token))
                answers.append((depth, answer["logits"][place], answer["depth"][place]))
        if owner == max(owners):
            _, logits, value = max(answers, key=lambda each: each[0])  # the first of the best
        else:
            logits = np.min([each[1] for each in answers], 0)
            value = min(each[2] for each in answers)
        assert np.array_equal(found["logits"][token], logits)
        assert found["depth"][token] == value


@cache
def letters() -> Tokenizer:
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {
        letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz", start=4)
    }
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = template()
    return tokenizer


def test_windows_of_a_pair_have_its_first_text_in_each() -> None:
    encoding = letters().encode("a b", "c d e f g h i")
    found = [
        " ".join(encoding.tokens[place] for place in each) for each in windows_of(encoding, 9, 1)
    ]
    assert found == [
        "[CLS] a b [SEP] c d e f [SEP]",
        "[CLS] a b [SEP] f g h i [SEP]",
    ]
    with pytest.raises(LengthError, match="a text has 5 tokens beside the text that is read in p"):
        windows_of(encoding, 5, 1)

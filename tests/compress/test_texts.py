"""The texts of a compression: sampled in one pass, divided without overlap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.compress.texts import (
    FEWEST_TEXTS,
    MOST_HELD_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    copy_some,
    sample,
    write_split,
)
from trbert_deploy.errors import DataError
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import TextClassification


def examples(count: int, *, labelled: int | None = None) -> list[Example]:
    """Different texts, the first ``labelled`` of them with labels."""
    known = count if labelled is None else labelled
    return [Example(f"text {i}", "good" if i < known else None) for i in range(count)]


def read(directory: Path) -> dict[str, list[Example]]:
    return {
        name: list(read_examples(directory / name, TextClassification))
        for name in (TRAIN, VALIDATION, TEST)
    }


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 3))
def test_a_sample_has_so_many_different_ones(count: int, most: int, seed: int) -> None:
    chosen, seen = sample(iter(examples(count)), most, seed)
    assert seen == count
    assert len(chosen) == len({each.text for each in chosen}) == min(count, most)
    if count <= most:
        assert chosen == examples(count)


def test_every_text_is_as_likely_as_the_others() -> None:
    drawn = Counter(
        each.text for seed in range(2000) for each in sample(iter(examples(8)), 2, seed)[0]
    )
    assert len(drawn) == 8
    assert all(400 < count < 600 for count in drawn.values())  # 500 each, six deviations of 19


@pytest.mark.parametrize("count", [FEWEST_TEXTS, 57, 100])
def test_a_split_divides_the_texts(tmp_path: Path, count: int) -> None:
    split = write_split(examples(count), tmp_path, judge_by_labels=True)
    parts = read(tmp_path)
    found = [each for part in parts.values() for each in part]
    assert sorted(found, key=lambda each: int(str(each.text)[5:])) == examples(count)
    assert [len(parts[name]) for name in (TRAIN, VALIDATION, TEST)] == [
        split.train, split.validation, split.test
    ]  # fmt: skip
    assert split.validation == split.test == count // 10
    assert split.labelled


def test_not_more_than_some_thousands_are_held_out(tmp_path: Path) -> None:
    split = write_split(examples(30_000), tmp_path, judge_by_labels=True)
    assert split.validation == split.test == MOST_HELD_OUT


def test_labels_judge_only_where_all_held_out_texts_have_one(tmp_path: Path) -> None:
    mixed = examples(100, labelled=60)
    assert not write_split(mixed, tmp_path, judge_by_labels=True).labelled
    parts = read(tmp_path)
    assert all(each.target is None for name in (VALIDATION, TEST) for each in parts[name])
    assert {each.target for each in parts[TRAIN]} == {"good", None}  # they are learned from
    assert not write_split(examples(100), tmp_path, judge_by_labels=False).labelled
    assert all(each.target is None for each in read(tmp_path)[TEST])


def test_pairs_and_numbers_come_back(tmp_path: Path) -> None:
    pairs = [Example((f"a {i}", f"b {i}"), 0) for i in range(40)]
    write_split(pairs, tmp_path, judge_by_labels=True)
    texts = {each.text for part in read(tmp_path).values() for each in part}
    assert texts == {each.text for each in pairs}
    assert {each.target for each in read(tmp_path)[TRAIN]} == {"0"}


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^19 texts are too few .* 20 or more, better thousands$"):
        write_split(examples(19), tmp_path, judge_by_labels=True)
    assert not list(tmp_path.iterdir())


def test_the_first_lines_are_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n3\n")
    copy_some(tmp_path / "a", tmp_path / "b", 2)
    assert (tmp_path / "b").read_text() == "1\n2\n"

"""Texts in, labels out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, make_texts
from tokenizers import Tokenizer

import trbert_deploy
from trbert_deploy.bundle.manifest import TOKENIZER
from trbert_deploy.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    LengthError,
    OutputError,
)
from trbert_deploy.evaluation.kept import trace_texts
from trbert_deploy.evaluation.quality import run_in_turns
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.predicting import predict_lines
from trbert_deploy.runtime.tokenizing import TruncationWarning
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.text_classification import TextClassification

TEXTS = [row["text"] for row in make_texts(9, seed=5)]
LONG = "the film " * 100


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


def assert_same(ours: list[Prediction], theirs: list[Prediction]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.label, one.num_tokens, one.kept) == (other.label, other.num_tokens, other.kept)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_an_answer_is_complete(pipeline: Pipeline) -> None:
    for prediction in pipeline(TEXTS):
        assert tuple(prediction.scores) == LABELS == pipeline.labels
        assert sum(prediction.scores.values()) == pytest.approx(1.0)
        assert prediction.label == max(prediction.scores, key=prediction.scores.__getitem__)
        assert prediction.kept is None


def test_a_text_is_the_same_alone_and_among_others(pipeline: Pipeline) -> None:
    together = pipeline(TEXTS, return_kept=True)
    assert_same(together, [pipeline([text], return_kept=True)[0] for text in TEXTS])
    assert_same(together[::-1], pipeline(TEXTS[::-1], return_kept=True))
    assert_same(together, list(pipeline.stream(iter(TEXTS), batch_size=4, return_kept=True)))


def test_backends_agree(pipeline: Pipeline, tiny_bundle: Path) -> None:
    reference = load(tiny_bundle, "torch", threads=1)
    assert_same(pipeline(TEXTS, return_kept=True), reference(TEXTS, return_kept=True))
    assert_same(pipeline(TEXTS, dense=True), reference(TEXTS, dense=True))


def test_kept_positions_name_their_tokens(pipeline: Pipeline, tiny_bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_bundle / TOKENIZER))
    for text, prediction in zip(TEXTS, pipeline(TEXTS, return_kept=True), strict=True):
        tokens = tokenizer.encode(text).tokens
        assert prediction.num_tokens == len(tokens)
        assert prediction.kept is not None
        assert [kept.cut for kept in prediction.kept] == [1.0, 2.0]
        for kept in prediction.kept:
            assert kept.tokens[0] == "[CLS]"
            assert kept.tokens == tuple(tokens[position] for position in kept.positions)


def test_one_string_is_one_text(pipeline: Pipeline) -> None:
    assert_same(pipeline(TEXTS[0]), pipeline([TEXTS[0]]))
    assert pipeline([]) == []


def test_pairs_are_more_than_their_parts(pipeline: Pipeline) -> None:
    first, second = "a wonderful film", "the sailor returns"
    pair, single = pipeline([(first, second), first + " " + second])
    assert pair.num_tokens == single.num_tokens + 1  # a separator between the two
    assert pair.scores != pytest.approx(single.scores, abs=1e-6)
    assert_same([pair], pipeline([(first, second)]))


def test_threshold_zero_is_dense_and_one_keeps_the_first_token(tiny_bundle: Path) -> None:
    everything = load(tiny_bundle, threshold=0.0, threads=1)
    assert_same(everything(TEXTS), everything(TEXTS, dense=True))
    for prediction in load(tiny_bundle, threshold=1.0, threads=1)(TEXTS, return_kept=True):
        assert prediction.kept is not None
        assert [kept.positions for kept in prediction.kept] == [(0,), (0,)]


def test_one_bundle_serves_every_operating_point(tiny_bundle: Path) -> None:
    def kept(**point: float) -> list[list[int]]:
        predictions = load(tiny_bundle, threads=1, **point)(TEXTS, return_kept=True)
        return [
            [prediction.num_tokens, *(len(cut.positions) for cut in prediction.kept or ())]
            for prediction in predictions
        ]

    for tokens, first, second in kept(ratio=0.5):
        assert first == math.ceil(tokens / 2) and second == math.ceil(first / 2)
    for tokens, first, second in kept(max_tokens=6):
        assert first == second == min(tokens, 6)
    for (tokens, first, second), (_, fewer, fewest) in zip(
        kept(round_to=4), kept(round_to=1), strict=True
    ):
        assert first == min(tokens, math.ceil(fewer / 4) * 4)
        assert second % 4 == 0 or second == first
        assert second >= fewest
    with pytest.raises(ConfigError, match="threshold, ratio and max_tokens exclude each other"):
        kept(ratio=0.5, max_tokens=6)
    with pytest.raises(ConfigError, match="budget is 6: expected a multiple of round_to, 4"):
        kept(round_to=4, max_tokens=6)


def test_memory_is_bounded_by_the_tokens_on_their_way(tiny_bundle: Path) -> None:
    few = load(tiny_bundle, threads=1, max_batch_tokens=8)
    assert_same(few(TEXTS), load(tiny_bundle, threads=1)(TEXTS))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("threads", 1024),
        ("max_tokens", 2**31 - 1),
        ("max_batch_tokens", 2**31 - 1),
        ("round_to", 2**31 - 1),
    ],
)
@pytest.mark.parametrize("wrong", [-1, 1.5, 10**10, 10**20])
def test_numbers_out_of_range_are_one_line(
    tiny_bundle: Path, name: str, most: int, wrong: float
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tiny_bundle, **{name: wrong})  # type: ignore[arg-type]
    least = 0 if name == "threads" else 1
    assert str(caught.value) == (
        f"{name} is {wrong}: expected a whole number from {least} to {most:,}"
    )


@pytest.mark.parametrize("wrong", [0, -1, 10**20])
def test_a_maximum_length_out_of_range_is_one_line(tiny_bundle: Path, wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"^maximum length is {wrong}: the bundle .* tokens$"):
        load(tiny_bundle, max_length=wrong)


def test_opening_tells_its_progress(tiny_bundle: Path) -> None:
    steps: list[str] = []
    load(tiny_bundle, threads=1, progress=lambda step, done, total: steps.append(step))
    assert steps == [f"read {tiny_bundle.name}", "open graphs"]


@pytest.mark.parametrize("text", ["", " \n\t", ("a film", "")])
def test_empty_texts_are_refused_by_their_place(pipeline: Pipeline, text: str) -> None:
    with pytest.raises(DataError, match="text 2 is empty: expected at least one word"):
        pipeline(["a film", text])


def test_a_text_without_any_known_character_is_answered(pipeline: Pipeline) -> None:
    (prediction,) = pipeline(["\x00\u200b"])
    assert prediction.num_tokens == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (5, "text 1 is of type int"),
        (["a", "b", "c"], "text 1 is a list of 3"),
        ("a \ud800", "text 1 is no valid Unicode"),
    ],
)
def test_what_is_no_text_is_refused(pipeline: Pipeline, text: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pipeline([text])  # type: ignore[list-item]


def test_errors_of_a_stream_count_from_its_start(pipeline: Pipeline) -> None:
    with pytest.raises(DataError, match="text 6 is empty"):
        list(pipeline.stream([*TEXTS[:5], ""], batch_size=2))


def test_long_texts_are_cut_with_one_warning(tiny_bundle: Path) -> None:
    pipeline = load(tiny_bundle, max_length=20, threads=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictions = pipeline([LONG, "a film", (LONG, LONG), LONG])
    assert [prediction.num_tokens for prediction in predictions] == [20, 4, 20, 20]
    assert [str(warning.message) for warning in caught] == [
        "texts longer than 20 tokens are cut to that length"
    ]
    assert caught[0].category is TruncationWarning
    assert (pipeline.tokenizer.encoded, pipeline.tokenizer.truncated) == (4, 3)


def test_long_texts_are_refused_without_truncation(tiny_bundle: Path) -> None:
    pipeline = load(tiny_bundle, truncate=False, threads=1)
    message = "text 2 has 202 tokens: the model takes at most 64"
    with pytest.raises(LengthError, match=message):
        pipeline(["a film", LONG])


@pytest.mark.parametrize("max_length", [0, -1, 65])
def test_a_maximum_that_the_bundle_does_not_take(tiny_bundle: Path, max_length: int) -> None:
    with pytest.raises(ConfigError, match=f"maximum length is {max_length}: .* takes 1 to 64"):
        load(tiny_bundle, max_length=max_length)


@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_a_maximum_without_room_for_a_token(tiny_bundle: Path, max_length: int) -> None:
    with pytest.raises(ConfigError, match="expected at least 4"):
        load(tiny_bundle, max_length=max_length)


def test_options_are_checked(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'jax': expected one of onnxruntime"):
        load(tiny_bundle, "jax")
    with pytest.raises(ConfigError, match=r"threshold is 1\.5"):
        load(tiny_bundle, threshold=1.5)


def test_rows_of_length_are_real_texts_of_one_length(pipeline: Pipeline) -> None:
    for length in (1, 2, 3, 23, 64):
        rows = pipeline.tokenizer.rows_of_length(TEXTS, length, 4)
        assert [len(row) for row in rows] == [length] * 4
        assert all(row.input_ids[0] == 2 for row in rows)  # [CLS]
        assert length == 1 or all(row.input_ids[-1] == 3 for row in rows)  # [SEP]
    assert len({row.input_ids.tobytes() for row in rows}) == 4


def test_rows_of_length_neither_warn_nor_count(tiny_bundle: Path) -> None:
    tokenizer = load(tiny_bundle, truncate=False, threads=1).tokenizer
    assert len(tokenizer.rows_of_length([LONG], 64, 1)[0]) == 64
    tokenizer = load(tiny_bundle, threads=1).tokenizer
    assert len(tokenizer.rows_of_length(["\x00", LONG], 64, 1)[0]) == 64
    assert tokenizer.truncated == 0


def test_rows_of_length_need_a_token_and_a_length_in_range(pipeline: Pipeline) -> None:
    with pytest.raises(DataError, match="no texts to make rows of"):
        pipeline.tokenizer.rows_of_length([], 8, 1)
    with pytest.raises(DataError, match="no token"):
        pipeline.tokenizer.rows_of_length(["\x00"], 8, 1)
    for length in (0, 65):
        with pytest.raises(LengthError, match=f"length is {length}: the model takes 1 to 64"):
            pipeline.tokenizer.rows_of_length(TEXTS, length, 1)


def test_load_is_the_front_door(tiny_bundle: Path) -> None:
    assert trbert_deploy.load(str(tiny_bundle))("a wonderful film")[0].label in LABELS


def other_tokenizer(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Pipeline:
    """The pipeline of a bundle whose tokenizer was changed."""
    data = json.loads((bundle / TOKENIZER).read_text())
    change(data)
    (bundle / TOKENIZER).write_text(json.dumps(data))
    return load(bundle, threads=1, verify=False)


def test_tokens_that_the_model_does_not_have_are_refused(own_bundle: Path) -> None:
    def renumber(data: dict[str, Any]) -> None:
        data["model"]["vocab"]["film"] = 256

    changed = other_tokenizer(own_bundle, renumber)
    assert changed(["the sailor"])
    with pytest.raises(FileFormatError, match="gives tokens that the model does not have"):
        changed(["the film"])


def test_types_that_the_model_does_not_have_are_refused(own_bundle: Path) -> None:
    def retype(data: dict[str, Any]) -> None:
        for part in data["post_processor"]["pair"][3:]:
            next(iter(part.values()))["type_id"] = 2

    changed = other_tokenizer(own_bundle, retype)
    assert changed(["the sailor"])
    with pytest.raises(FileFormatError, match="does not have: it has 256, of 2 types"):
        changed([("the sailor", "the film")])


def test_a_tokenizer_that_fails_at_a_text_is_one_line(own_bundle: Path) -> None:
    changed = other_tokenizer(own_bundle, lambda data: data["model"].update(unk_token="[NONE]"))
    assert changed(["the film"])
    with pytest.raises(FileFormatError, match=r"^the tokenizer cannot split text 1 or one behind"):
        changed(["\u20ac"])


def test_special_tokens_have_a_name_for_each_number(own_bundle: Path) -> None:
    def unname(data: dict[str, Any]) -> None:
        data["post_processor"]["special_tokens"]["[CLS]"]["tokens"] = []

    with pytest.raises(FileFormatError, match="special tokens with 2 numbers and 1 names"):
        other_tokenizer(own_bundle, unname)


def test_special_tokens_without_numbers_are_one_line(own_bundle: Path) -> None:
    def forget(data: dict[str, Any]) -> None:
        del data["post_processor"]["special_tokens"]["[CLS]"]

    with pytest.raises(FileFormatError, match=r"is not a (readable|usable) tokenizer: "):
        other_tokenizer(own_bundle, forget)


class PanicException(BaseException):
    """As the tokenizers' library raises them."""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(PanicException("no\nentry"), FileFormatError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_panic_is_an_error_and_an_interrupt_none(
    tiny_bundle: Path, raised: BaseException, expected: type[BaseException]
) -> None:
    class Panicking:
        def encode_batch(self, texts: object) -> None:
            raise raised

    own = load(tiny_bundle, threads=1)
    own.tokenizer._tokenizer = Panicking()
    with pytest.raises(expected) as caught:
        own(["the film"])
    assert len(str(caught.value).splitlines()) == (expected is FileFormatError)


def test_as_many_logits_as_labels_are_needed(tiny_bundle: Path) -> None:
    own = load(tiny_bundle, threads=1)
    own.task = TextClassification(("a", "b", "c"))
    with pytest.raises(OutputError, match=r"logits have the shape \[2\]: expected \[3\]"):
        own(["the film"])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None, "2"])
def test_a_batch_size_that_is_no_count_is_refused_at_once(
    pipeline: Pipeline, batch_size: Any
) -> None:
    message = f"^batch_size is {batch_size}: expected a whole number from 1 to 65,536$"
    texts = [Example("a film", name="line 1")]
    for call in (
        lambda: pipeline.stream(["a film"], batch_size=batch_size),
        lambda: predict_lines(pipeline, texts, batch_size=batch_size),
        lambda: trace_texts(pipeline, texts, batch_size=batch_size),
        lambda: run_in_turns([], texts, batch_size=batch_size),
    ):
        with pytest.raises(ConfigError, match=message):
            call()

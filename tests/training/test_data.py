"""Reading labelled text."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import datasets
import pytest
from conftest import LABELS, make_texts

from trbert_deploy.errors import ConfigError, DataError, StorageError
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.tasks.token_classification import TokenClassification
from trbert_deploy.training import data
from trbert_deploy.training.batches import plan_batches
from trbert_deploy.training.data import read_data, require_targets, split_validation, tokenize

ROWS = make_texts(5)


def read_examples(source: str) -> list[Example]:
    return require_targets(read_data(source, TextClassification), TextClassification)


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines(ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    expected = [Example(row["text"], row["label"]) for row in ROWS]
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet"):
        assert read_examples(str(tmp_path / name)) == expected, name


def test_pairs_and_numbered_labels(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([{"text": "a", "text_pair": "b", "labels": 3}]))
    assert read_examples(str(path)) == [Example(("a", "b"), "3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "is empty"),
        ("a.doc", "hello", "ends in .doc: expected one of .jsonl"),
        ("a.txt", "hello", "a.txt, line 1 has no label"),
        ("a.jsonl", '{"text": "a"}\n', "line 1 has no label"),
        ("c.jsonl", '{"label": "a"}\n', "none is known to hold text"),
        ("b.jsonl", "{nonsense\n", "line 1: not JSON"),
        (
            "c.jsonl",
            lines([{"text": "a", "label": "x"}, {"text": " ", "label": "x"}]),
            'line 2: the field "text" is empty',
        ),
        (
            "d.jsonl",
            lines([{"text": "a", "label": "x"}, {"text": "b", "label": None}]),
            "line 2 has no label",
        ),
        ("e.parquet", "not parquet", "is no intact Parquet file"),
    ],
)
def test_unusable_data_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_examples(str(tmp_path / name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nothing\.jsonl is not a file"):
        read_data(str(tmp_path / "nothing.jsonl"), TextClassification)
    with pytest.raises(StorageError, match=r"nothing\.CSV\.zst is not a file"):
        read_data("nothing.CSV.zst", TextClassification)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=(lines(ROWS),), daemon=True).start()
    assert len(read_examples(str(path))) == len(ROWS)


def test_half_of_a_surrogate_pair_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    for row in ({"text": "\udc80", "label": "x"}, {"text": "b", "label": "\ud800"}):
        path.write_text(lines([ROWS[0], row]))
        with pytest.raises(DataError, match=r"^a\.jsonl, line 2 is no valid Unicode: it has half"):
            read_data(str(path), TextClassification)
    assert capfd.readouterr() == ("", "")


def test_several_processes_cannot_share_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.setattr("trbert_deploy.training.processes.count", lambda: 2)
    for source in ("-", str(tmp_path / "pipe.jsonl")):
        with pytest.raises(ConfigError, match=f"{source} can be read once, and each of 2 proc"):
            read_data(source, TextClassification)


def test_a_name_that_no_data_set_has_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nothing, no file but a hub data set, cannot be read: "):
        read_data("nothing", TextClassification)


def test_a_hub_data_set_goes_through_the_same_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"Sentence": ["a", "b"], "label": [1, -1], "picture": [None, None]}
    features = datasets.Features(
        {
            "Sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "picture": datasets.Image(),
        }
    )
    splits = {"train": datasets.Dataset.from_dict(columns, features)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    notes: list[str] = []
    examples = read_data("org/reviews", TextClassification, note=notes.append)
    assert examples == [Example("a", "yes"), Example("b", None)]
    assert notes == ['org/reviews: text from "Sentence", label from "label"']
    with pytest.raises(DataError, match="org/reviews, row 2 has no label"):
        require_targets(examples, TextClassification)
    with pytest.raises(DataError, match="org/reviews has the splits train: expected validation"):
        read_data("org/reviews", TextClassification, "validation")


def test_tags_of_a_hub_data_set_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"tokens": [["in", "Paris"]], "ner_tags": [[0, 1]]}
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-LOC"])),
        }
    )
    splits = {"train": datasets.Dataset.from_dict(columns, features)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    (example,) = read_data("org/entities", TokenClassification)
    assert example == Example("in Paris", ((0, 2, "O"), (3, 8, "B-LOC")))


def test_one_label_is_not_enough() -> None:
    with pytest.raises(DataError, match=r"one label only \(x\)"):
        TextClassification.new_head([Example("a", "x"), Example("b", "x")])


def test_unknown_labels_are_named(tokenizer_dir: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_dir / "tokenizer.json", 64)
    examples = [Example("the film", "good"), Example("the film", "ugly", "line 2")]
    message = r"line 2: the model does not know the label 'ugly' \(it knows bad, good\)"
    with pytest.raises(DataError, match=message):
        tokenize(examples, tokenizer, TextClassification(LABELS))


def test_texts_are_tokenized_some_at_a_time(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TextTokenizer(tokenizer_dir / "tokenizer.json", 64)
    examples = [Example(row["text"], row["label"]) for row in ROWS]
    whole = tokenize(examples, tokenizer, TextClassification(LABELS))
    monkeypatch.setattr(data, "TOKENIZED_AT_A_TIME", 2)
    steps: list[tuple[str, int, int | None]] = []
    parts = tokenize(
        examples, tokenizer, TextClassification(LABELS), lambda *step: steps.append(step)
    )
    assert steps == [("tokenize", done, 5) for done in (0, 2, 4, 5)]
    for one, other in zip(whole, parts, strict=True):
        assert one.target == other.target
        assert one.tokens.input_ids.tolist() == other.tokens.input_ids.tolist()
    examples[3] = Example(" ", "good")
    with pytest.raises(DataError, match=r"^text 4 is empty"):
        tokenize(examples, tokenizer, TextClassification(LABELS))


def test_passages_belong_to_their_query_however_many_there_are(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "TOKENIZED_AT_A_TIME", 3)
    tokenizer = TextTokenizer(tokenizer_dir / "tokenizer.json", 64)
    queries = [number // 4 for number in range(12)]
    examples = [Example((f"the film {query}", "a war"), "1") for query in queries]
    rows = tokenize(examples, tokenizer, TextRanking())
    assert [row.target[1] for row in rows] == queries


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS))
    steps: list[tuple[int, int | None]] = []
    read_data(
        str(path),
        TextClassification,
        progress=lambda step, done, total: steps.append((done, total)),
    )
    assert steps == [(done, None) for done in range(6)]


def test_validation_is_held_out_at_random_but_the_same_again() -> None:
    examples = [Example(str(number), "x") for number in range(50)]
    training, validation = split_validation(examples, seed=1)
    assert len(validation) == 5
    assert sorted(training + validation, key=lambda e: int(e.text)) == examples
    assert (training, validation) == split_validation(examples, seed=1)
    assert validation != split_validation(examples, seed=2)[1]
    with pytest.raises(DataError, match="one row"):
        split_validation(examples[:1], seed=0)


def test_batches_hold_every_row_once_an_epoch_within_the_budget() -> None:
    lengths = [5, 30, 7, 8, 100, 3, 12]
    plan = plan_batches(lengths, 40, epochs=1, seed=3)
    assert sorted(row for batch in plan for row in batch) == list(range(7))
    assert all(len(batch) == 1 or sum(lengths[r] for r in batch) <= 40 for batch in plan)
    assert plan == plan_batches(lengths, 40, epochs=1, seed=3)
    longer = plan_batches(lengths, 40, epochs=2.5, seed=3)
    assert longer[: len(plan)] == plan
    assert longer[len(plan) : 2 * len(plan)] != plan
    assert 2 * len(plan) < len(longer) < 3 * len(plan) + 2

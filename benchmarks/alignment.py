"""How well are two languages aligned by an encoder that never saw what belongs together?

    python benchmarks/alignment.py --train FILE.jsonl.gz --test FILE.jsonl.gz --output DIR

After Dufter and Schuetze (2020, Identifying elements essential for BERT's multilinguality). Fake
English is English whose letters are shifted to another script, so that the true alignment is known:
letter to letter. One half of the training texts is read as English, the other half as Fake English,
so that no text has a translation. A small encoder learns to fill in masked characters of both. It
is exported, and ``trbert-deploy align`` aligns test texts with their translations.

Fake English is made ever less like English: a share of its words gets letters of its own, so that
nothing but their length and their neighbours tells what they are; or neighbouring words change
places. The target text begins with words that the source lacks, so that places tell nothing.

Every condition's figures are in DIR/figures.jsonl as soon as they are there; what is there is not
measured again. The pictures are drawn from them at the end.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from trbert_deploy import console
from trbert_deploy.alignment.aligner import Aligner, Alignment
from trbert_deploy.alignment.methods import METHODS
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.reports.plots.alignments import write_alignment_plot
from trbert_deploy.reports.plots.figure import write_figure

LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: Of both languages.
SHARED = " .,'?"
#: From ``a`` to the first letter of the other script, Georgian.
SHIFT = ord("\N{GEORGIAN LETTER AN}") - ord("a")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, _, CLS, SEP, MASK = range(len(SPECIAL))

LAYERS, WIDTH, HEADS = 3, 64, 4
CHARACTERS = 32  # of a training row
ROWS = 64  # of a batch, half of them of each language
MASKED = 0.15
RATE = 4e-3
#: Words of a source text, and those before them that the target has beside them.
WORDS, BEFORE = 4, 2
#: Texts that are aligned.
PAIRS = 300


@dataclass(frozen=True)
class Condition:
    """How Fake English differs from English, and which encoder is asked.

    Attributes:
        changed: share of the kinds of words that have letters of their own.
        swapped: share of the pairs of neighbouring words that change places.
        encoder: ``rotary`` (ModernBERT), or ``table`` (BERT, with a table of positions).
        steps: of training.
        before: words that the target alone begins with.
        seed: of the encoder's first weights, of the texts that it reads and of their masks.
    """

    changed: float = 0.0
    swapped: float = 0.0
    encoder: str = "rotary"
    steps: int = 0
    before: int = BEFORE
    seed: int = 0


class FakeEnglish:
    """English in another script, with some words of its own.

    Args:
        changed: share of the kinds of words whose letters are drawn anew, as many of them.
        swapped: share of the pairs of neighbouring words that change places.
    """

    def __init__(self, changed: float = 0.0, swapped: float = 0.0) -> None:
        self.changed = changed
        self.swapped = swapped

    def word(self, word: str) -> str:
        """A word as it is written; the same for each occurrence."""
        return "".join(
            chr(ord(letter) + SHIFT) if letter in LETTERS else letter
            for letter in (self._drawn(word) if self.changes(word) else word)
        )

    def changes(self, word: str) -> bool:
        """Whether a word has letters of its own; at larger shares more of them do."""
        return random.Random(_bare(word)).random() < self.changed

    def order(self, count: int, chance: random.Random) -> list[int]:
        """The words of a text in their order: which ones of the English text they are."""
        order = list(range(count))
        for place in range(0, count - 1, 2):
            if chance.random() < self.swapped:
                order[place : place + 2] = reversed(order[place : place + 2])
        return order

    def _drawn(self, word: str) -> str:
        """A word with other letters, and the marks that it has."""
        chance = random.Random(f"{_bare(word)} drawn")
        return "".join(chance.choice(LETTERS) if letter in LETTERS else letter for letter in word)


def _bare(word: str) -> str:
    return "".join(letter for letter in word if letter in LETTERS)


def simplified(text: str) -> list[str]:
    """The words of a text, of the letters and marks that the encoder knows."""
    return re.sub(rf"[^{LETTERS} .,'?]+", " ", text.lower().replace("<br />", " ")).split()


@dataclass(frozen=True)
class Pair:
    """A text, its translation, and which letters belong together.

    Attributes:
        truth: places of a letter in the source and in the target.
    """

    source: str
    target: str
    truth: frozenset[tuple[int, int]]


def make_pair(words: Sequence[str], before: int, fake: FakeEnglish, chance: random.Random) -> Pair:
    """The words behind the first ``before`` ones as the source, all of them as the target."""
    source = words[before:]
    starts = _starts(source)
    order = fake.order(len(words), chance)
    written = [fake.word(words[place]) for place in order]
    truth = set()
    for place, start in zip(order, _starts(written), strict=True):
        if place < before:
            continue
        for letter, each in enumerate(words[place]):
            if each in LETTERS:
                truth.add((starts[place - before] + letter, start + letter))
    return Pair(" ".join(source), " ".join(written), frozenset(truth))


def _starts(words: Sequence[str]) -> list[int]:
    lengths = [len(word) + 1 for word in words]
    return [sum(lengths[:place]) for place in range(len(words))]


def make_pairs(words: Sequence[str], condition: Condition, count: int = PAIRS) -> list[Pair]:
    """Pairs of texts from anywhere in a longer one; of every condition the same texts."""
    chance = random.Random(1)
    fake = FakeEnglish(condition.changed, condition.swapped)
    pairs = []
    for _ in range(count):
        first = chance.randrange(BEFORE, len(words) - WORDS)
        chosen = words[first - condition.before : first + WORDS]
        pairs.append(make_pair(chosen, condition.before, fake, random.Random(first)))
    return pairs


@dataclass(frozen=True)
class Score:
    """How many links are right, and how many of the right ones are found: of letters alone."""

    precision: float
    recall: float
    f1: float


def score(pairs: Sequence[Pair], links: Sequence[set[tuple[int, int]]]) -> Score:
    """Score the links of letters; those of marks are left out, which both languages share."""
    right = sum(len(found & pair.truth) for pair, found in zip(pairs, links, strict=True))
    made = sum(
        pair.source[source] in LETTERS
        for pair, found in zip(pairs, links, strict=True)
        for source, _ in found
    )
    true = sum(len(pair.truth) for pair in pairs)
    return Score(right / max(made, 1), right / max(true, 1), 2 * right / max(made + true, 1))


def links_of(alignment: Alignment) -> set[tuple[int, int]]:
    """The places of linked characters."""
    return {
        (alignment.source[row].index, alignment.target[column].index)
        for row, column in np.argwhere(alignment.links)
    }


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character of both languages."""
    fake = [chr(ord(letter) + SHIFT) for letter in LETTERS]
    pieces = [*SPECIAL, *SHARED, *LETTERS, *fake]
    tokenizer = Tokenizer(WordLevel({each: place for place, each in enumerate(pieces)}, "[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def new_encoder(kind: str, seed: int = 0) -> ModernBertForMaskedLM | BertForMaskedLM:
    """A seeded encoder, small enough that the languages have to share it."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(SPECIAL) + len(SHARED) + 2 * len(LETTERS),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
    }
    if kind == "table":
        return BertForMaskedLM(BertConfig(**shape, intermediate_size=4 * WIDTH, type_vocab_size=1))
    return ModernBertForMaskedLM(
        ModernBertConfig(
            **shape,
            intermediate_size=2 * WIDTH,
            global_attn_every_n_layers=1,
            initializer_range=0.1,
            cls_token_id=CLS,
            sep_token_id=SEP,
            bos_token_id=CLS,
            eos_token_id=SEP,
        )
    )


def train(
    model: torch.nn.Module, languages: Sequence[NDArray[np.int64]], steps: int, seed: int = 0
) -> Iterator[float]:
    """Teach a model to fill in masked characters, as BERT learns it; yields each step's loss.

    Args:
        languages: the text of each, as tokens.
    """
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    chance = np.random.default_rng(seed)
    coins = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    for _ in range(steps):
        ids = torch.from_numpy(np.concatenate([_rows(text, chance) for text in languages]))
        masked = torch.rand(ids.shape, generator=coins) < MASKED
        masked[:, 0] = masked[:, -1] = False
        labels = ids.masked_fill(~masked, -100)
        fate = torch.rand(ids.shape, generator=coins)
        drawn = torch.randint(len(SPECIAL), vocabulary, ids.shape, generator=coins)
        ids = torch.where(masked & (fate < 0.8), MASK, ids)
        ids = torch.where(masked & (fate >= 0.9), drawn, ids)
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def _rows(text: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.int64]:
    """Rows from anywhere in a text, with their special tokens."""
    first = chance.integers(0, len(text) - CHARACTERS, ROWS // 2)
    rows = text[first[:, None] + np.arange(CHARACTERS)]
    edges = np.full((len(rows), 1), CLS), np.full((len(rows), 1), SEP)
    return np.concatenate([edges[0], rows, edges[1]], axis=1)


def read_words(path: Path, texts: int, skip: int = 0) -> list[str]:
    """The words of some texts of a file of JSON lines, one behind the other."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for place, line in enumerate(file) if skip <= place < skip + texts]
    return [word for line in lines for word in simplified(json.loads(line)["text"])]


def tokens_of(words: Sequence[str], fake: FakeEnglish | None, seed: int) -> NDArray[np.int64]:
    """Words as tokens, in English or in Fake English."""
    if fake is not None:
        known: dict[str, str] = {}
        for word in words:
            known.setdefault(word, fake.word(word))
        order = fake.order(len(words), random.Random(seed))
        words = [known[words[place]] for place in order]
    ids = character_tokenizer().get_vocab()
    return np.array([ids[letter] for letter in " ".join(words)], np.int64)


def measure(
    condition: Condition, train_file: Path, test_file: Path, texts: int, output: Path
) -> dict[str, object]:
    """Train an encoder, export it, and align the test texts: the figures of one condition."""
    began = time.perf_counter()
    fake = FakeEnglish(condition.changed, condition.swapped)
    model = new_encoder(condition.encoder, condition.seed)
    loss = float("nan")
    if condition.steps:
        english = tokens_of(read_words(train_file, texts), None, 0)
        foreign = tokens_of(read_words(train_file, texts, skip=texts), fake, 0)
        losses = train(model.train(), [english, foreign], condition.steps, condition.seed)
        for step, loss in enumerate(losses, start=1):
            if step % 250 == 0:
                spent = time.perf_counter() - began
                console.notes.print(f"{condition}: step {step}, loss {loss:.3f}, {spent:.0f} s")
    trained_s = time.perf_counter() - began
    checkpoint, bundle = output / "ckpt", output / "bundle"
    model.eval().save_pretrained(checkpoint)
    character_tokenizer().save_pretrained(checkpoint)
    export_bundle(checkpoint, bundle, states_after=range(LAYERS + 1))
    words = read_words(test_file, 200)
    pairs = make_pairs(words, condition)
    texts_of_pairs = [(pair.source, pair.target) for pair in pairs]
    scores = {}
    for layer in range(LAYERS + 1):
        for method in METHODS:
            aligner = Aligner(bundle, layer=layer, level="characters", method=method)
            found = aligner(texts_of_pairs)
            scores[f"{layer} {method}"] = asdict(score(pairs, [links_of(each) for each in found]))
    name = "_".join(map(str, asdict(condition).values()))
    example = Aligner(bundle, layer=2, level="characters", method="mutual")(texts_of_pairs[:1])
    write_alignment_plot(example[0], output / f"example_{name}.png")
    letters = [letter for word in words for letter in word if letter in LETTERS]
    changed = [letter for w in words if fake.changes(w) for letter in w if letter in LETTERS]
    return {
        "condition": asdict(condition),
        "letters_changed": len(changed) / len(letters),
        "loss": loss,
        "train_s": trained_s,
        "characters": sum(len(pair.target) for pair in pairs) / len(pairs),
        "scores": scores,
    }


def conditions(steps: int) -> list[Condition]:
    """What is measured: controls that learned nothing, then ever more distant languages."""
    return [
        Condition(encoder="table", before=0),
        Condition(encoder="table"),
        Condition(),
        *(Condition(changed=share, steps=steps) for share in (0.0, 1.0, 0.5, 0.25, 0.75)),
        *(Condition(swapped=share, steps=steps) for share in (1.0, 0.5)),
        Condition(changed=0.1, steps=steps),
        *(Condition(changed=share, steps=steps, seed=1) for share in (0.0, 0.25)),
        *(Condition(steps=steps, seed=seed) for seed in (2, 3)),
        Condition(changed=0.1, steps=steps, seed=1),
    ]


def draw(figures: Sequence[Mapping[str, object]]) -> Figure:
    """F1 by layer and method for the nearest language and seed 0, and of all runs by distance."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    by_layer, by_distance = figure.subplots(1, 2, sharey=True)
    trained = [each for each in figures if each["condition"]["steps"]]
    nearest = next(each for each in trained if _distance(each["condition"]) == (0.0, 0.0))
    layers = range(LAYERS + 1)
    colors = {"mutual": "#0072b2", "itermax": "#d55e00", "matching": "#009e73"}
    for method, color in colors.items():
        values = [nearest["scores"][f"{layer} {method}"]["f1"] for layer in layers]
        by_layer.plot(layers, values, color=color, marker="o", markersize=4, label=method)
        for kind, marker, fill in (("changed", "o", color), ("swapped", "s", "none")):
            other = "swapped" if kind == "changed" else "changed"
            runs = [each for each in trained if each["condition"][other] == 0.0]
            by_distance.plot(
                [each["condition"][kind] for each in runs],
                [_best(each, method) for each in runs],
                marker,
                color=color,
                markersize=4,
                markerfacecolor=fill,
            )
    by_layer.set_xticks(list(layers))
    by_layer.set_xlabel("states behind layer")
    by_layer.set_ylabel("F1 of links between letters")
    by_layer.set_ylim(bottom=0.0)
    by_layer.legend(frameon=False)
    grey = "#404040"
    by_distance.plot([], [], "o", color=grey, label="words with letters of their own")
    by_distance.plot(
        [], [], "s", color=grey, markerfacecolor="none", label="neighbouring words swapped"
    )
    by_distance.set_xlabel("share")
    by_distance.legend(frameon=False)
    for axes in (by_layer, by_distance):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _distance(condition: Mapping[str, float]) -> tuple[float, float]:
    return condition["changed"], condition["swapped"]


def _best(figures: Mapping[str, object], method: str) -> float:
    """Behind the layer that is best for the nearest language, which is chosen once: the second."""
    return figures["scores"][f"2 {method}"]["f1"]


@click.command()
@click.option("--train", "train_file", type=click.Path(path_type=Path), required=True)
@click.option("--test", "test_file", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--steps", default=1200, show_default=True, help="Of training, for each condition.")
@click.option("--texts", default=1900, show_default=True, help="Of each language.")
@click.option("--threads", default=2, show_default=True, help="Of PyTorch.")
def main(
    train_file: Path, test_file: Path, output: Path, steps: int, texts: int, threads: int
) -> None:
    """Train, export and align; figures are kept in OUTPUT as they come."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "figures.jsonl"
    figures = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for condition in conditions(steps):
        if asdict(condition) in [each["condition"] for each in figures]:
            continue
        figures.append(measure(condition, train_file, test_file, texts, output))
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures[-1]) + "\n")
    write_figure(draw(figures), output / "alignment.png")
    console.out.print(f"figures: {kept}   picture: {output / 'alignment.png'}")


if __name__ == "__main__":
    sys.exit(main())

"""What the chain keeps of real texts: the fate of every token, without any drawing.

A token or word that ``passed`` c cuts left at cut c (counted from 0), or reached the head where
c is the number of cuts, C: it leaves at most once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.token_state import RowResult
from trbert_deploy.tasks.examples import Example, Text


@dataclass(frozen=True, slots=True)
class Piece:
    """A token or a word, and how far it went.

    Attributes:
        text: a token as the tokenizer spells it, a word as the text does.
        start, stop: its characters in the text, or in one of a pair.
        part: 0, or 1 in the second text of a pair; None for special tokens.
        passed: cuts that it survived, 0 to C.
    """

    text: str
    start: int
    stop: int
    part: int | None
    passed: int


@dataclass(frozen=True)
class KeptText:
    """One text, and what was kept of it.

    Attributes:
        text: as it was read; words behind the model's maximum length are in no list.
        label: the true one, where known.
        answer: the reduced model's label.
        tokens: all of them, special ones included, in text order.
        words: what the tokenizer splits into word pieces, punctuation too. A word survives
            with any of its pieces: a reader recognizes it by one.
        lengths: tokens in each segment, C+1; the first is the whole row.
        exit: the cut at whose exit the text left, and its tokens with it; None where it reached the
            end.
    """

    text: Text
    label: str | None
    answer: str
    tokens: tuple[Piece, ...]
    words: tuple[Piece, ...]
    lengths: tuple[int, ...]
    exit: int | None = None


def trace_texts(
    pipeline: Pipeline,
    texts: Sequence[Example],
    *,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> list[KeptText]:
    """Run the chain over texts and note where every token left.

    Raises:
        ConfigError: the pipeline has no cuts, or a batch size under 1.
        DataError: no texts.
        DataError, LengthError: a text that the model cannot take, by its name.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    if not pipeline.reduction.cuts:
        raise ConfigError("the model has no cuts: expected one that drops tokens")
    if not texts:
        raise DataError("no texts to trace: expected at least one")
    traced: list[KeptText] = []
    progress("trace", 0, len(texts))
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        names = [example.name for example in part]
        texts_of_part = [example.text for example in part]
        encodings = pipeline.tokenizer.encode(texts_of_part, names)
        results = pipeline.run(pipeline.rows(encodings, texts_of_part, names))
        for example, encoding, result in zip(part, encodings, results, strict=True):
            task = pipeline.task
            answer = task.summary(task.decode(result.outputs, encoding, example.text))
            label = None if example.target is None else task.told_target(example.target)
            traced.append(trace(example.text, label, answer, encoding, result))
        progress("trace", len(traced), len(texts))
    return traced


def trace(
    text: Text, label: str | None, answer: str, encoding: Encoding, result: RowResult
) -> KeptText:
    """The fate of one text's tokens, from its encoding and what the chain kept of it."""
    passed = np.zeros(len(encoding.ids), np.int64)  # [S]
    for positions in result.kept:
        passed[positions] += 1
    fates = passed.tolist()
    places = list(zip(encoding.offsets, encoding.sequence_ids, fates, strict=True))
    tokens = tuple(
        Piece(token, start, stop, part, fate)
        for token, ((start, stop), part, fate) in zip(encoding.tokens, places, strict=True)
    )
    words = []
    keyed = zip(encoding.word_ids, tokens, strict=True)
    for (part, _), members in groupby(keyed, key=lambda pair: (pair[1].part, pair[0])):
        if part is None:
            continue
        pieces = [token for _, token in members]
        start, stop = pieces[0].start, pieces[-1].stop
        source = text if isinstance(text, str) else text[part]
        fate = max(token.passed for token in pieces)
        word = source[start:stop].strip()  # tokenizers of bytes count the space before a word to it
        if not word:
            continue
        start = source.index(word, start)
        words.append(Piece(word, start, start + len(word), part, fate))
    lengths = (len(tokens), *map(len, result.kept))
    return KeptText(text, label, answer, tokens, tuple(words), lengths, result.exit)


@dataclass(frozen=True)
class LengthBin:
    """Texts of similar length, and the share of their tokens that is left behind each cut.

    Attributes:
        shortest, longest, mean: their tokens.
        texts: how many.
        kept: median over the texts of the share left, per cut.
        low, high: 10th and 90th percentile of it.
    """

    shortest: int
    longest: int
    mean: float
    texts: int
    kept: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def kept_by_length(lengths: NDArray[np.int64], bins: int = 10) -> list[LengthBin]:
    """The kept share of texts by their length, shortest first.

    Bins hold about equally many texts, so that their spreads compare; texts of one length
    share a bin, so that there may be fewer bins than asked for.

    Args:
        lengths: [N, C+1], tokens of every text in each segment, the whole row first.
        bins: at most so many.
    """
    tokens = lengths[:, 0]
    shares = lengths[:, 1:] / tokens[:, None]  # [N, C]
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, tokens)
    found = []
    for index in np.unique(place):
        members = place == index
        low, middle, high = np.quantile(shares[members], [0.1, 0.5, 0.9], axis=0).tolist()
        found.append(
            LengthBin(
                shortest=int(tokens[members].min()),
                longest=int(tokens[members].max()),
                mean=float(tokens[members].mean()),
                texts=int(members.sum()),
                kept=tuple(middle),
                low=tuple(low),
                high=tuple(high),
            )
        )
    return found


@dataclass(frozen=True)
class WordShare:
    """How often one word is kept.

    Attributes:
        word: case folded.
        reached: its occurrences in each segment, C+1; the first is all of them.
        kept: for each cut, the estimated probability that an occurrence which reached it
            survives it (see ``word_shares``).
    """

    word: str
    reached: tuple[int, ...]
    kept: tuple[float, ...]


def word_shares(
    texts: Sequence[KeptText], least_texts: int = 10, weight: float = 10.0
) -> list[WordShare]:
    """How often each frequent word survives each cut, in alphabetical order.

    The share is of the occurrences that reached the cut, so that a later cut is described by
    what it does itself and not by what earlier ones left it. It is estimated as
    (kept + weight * p) / (reached + weight), p being the share for all words together: the
    posterior mean of a binomial share under a beta prior of mean p. The plain share would put
    words seen a few times, and by luck kept every time or never, at both ends of the list.

    Args:
        texts: traced texts.
        least_texts: texts that a word must occur in (and so occurrences that it must have): a
            name that one text repeats says little about the policy.
        weight: strength of the prior, in occurrences.
    """
    segments = len(texts[0].lengths) if texts else 0
    reached: dict[str, NDArray[np.int64]] = {}
    seen_in: Counter[str] = Counter()
    for text in texts:
        for piece in text.words:
            counts = reached.setdefault(piece.text.casefold(), np.zeros(segments, np.int64))
            counts[: piece.passed + 1] += 1
        seen_in.update({piece.text.casefold() for piece in text.words})
    totals = np.sum(list(reached.values()), axis=0)  # [C+1]
    shares = []
    for word, counts in sorted(reached.items()):
        if seen_in[word] >= least_texts:
            prior = weight * totals[1:] / np.maximum(totals[:-1], 1)  # [C]
            # Rounding alone could take a share above 1.
            kept = np.minimum((counts[1:] + prior) / (counts[:-1] + weight), 1.0)
            shares.append(WordShare(word, tuple(counts.tolist()), tuple(kept.tolist())))
    return shares


def examples(texts: Sequence[KeptText], count: int, words: int = 100) -> list[KeptText]:
    """Texts to show: of each label in turn, those whose length is nearest to so many words.

    What the policy did with them plays no part, so that they are not its best ones.
    """
    turns: Counter[str | None] = Counter()
    ranked = []
    for text in sorted(texts, key=lambda text: abs(len(text.words) - words)):
        ranked.append((turns[text.label], text))
        turns[text.label] += 1
    return [text for _, text in sorted(ranked, key=lambda entry: entry[0])[:count]]

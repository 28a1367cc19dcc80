"""Whether a model that answers for long keeps its memory, and its answers.

    python benchmarks/soak.py BUNDLE --backend openvino --precision fp32 --texts 100000

One process answers texts of every length that the model takes, alone and in batches of varying
size, for several callers at once. Whenever all callers rest, its memory is read. After 50 texts it
has met most of what it will meet: what it then takes is compared with what it takes at the end. Of
the requests some are answered again afterwards, by a model that was opened anew, and by PyTorch in
float32.

Exit code 3: the memory grew too much, or an answer was wrong.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from trbert_deploy import console
from trbert_deploy.bundle.manifest import TOKENIZER
from trbert_deploy.commands.options import json_option, precision_option
from trbert_deploy.errors import TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.reports.plots.figure import write_figure
from trbert_deploy.runtime.backends.registry import BACKENDS
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.predictions import Prediction

WARM_UP = 50  # texts
LIMIT = 1.15  # times the memory after the warm-up
#: Readings of the memory in a run, and requests that are answered again.
READINGS, REPEATED = 200, 200
#: Largest difference of a score from that of the model that was opened anew.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Memory:
    """Memory of a process in MiB: all that is resident, its share of it, and what is its alone."""

    rss: float
    pss: float
    uss: float

    @classmethod
    def of(cls, process: int | str = "self") -> Memory:
        """What a process takes, this one by default (Linux)."""
        kib: dict[str, int] = {}
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            kib[name] = int(value.split()[0])
        private = kib["Private_Clean"] + kib["Private_Dirty"]
        return cls(*(size / 1024 for size in (kib["Rss"], kib["Pss"], private)))


@dataclass(frozen=True)
class Reading:
    """What a process took after so many texts, of so many different numbers of tokens."""

    texts: int
    lengths: int
    memory: Memory


@dataclass(frozen=True)
class Soak:
    """What came of a run.

    Attributes:
        readings: in order; the first one after the warm-up.
        repeated: texts that were answered again.
        wrong: those of them that a model which was opened anew answers in another way.
        like_float32: share of them that PyTorch gives the same label.
    """

    readings: tuple[Reading, ...]
    repeated: int
    wrong: int
    like_float32: float

    @property
    def growth(self) -> float:
        """Memory at the end over that after the warm-up."""
        return self.readings[-1].memory.rss / self.readings[0].memory.rss

    @property
    def slope(self) -> float:
        """MiB that 1,000 texts add, fitted to all readings."""
        texts = [reading.texts / 1000 for reading in self.readings]
        return float(np.polyfit(texts, [reading.memory.rss for reading in self.readings], 1)[0])

    @property
    def late_slope(self) -> float:
        """The same of the second half."""
        middle = min(len(self.readings) // 2, len(self.readings) - 2)
        return Soak(self.readings[middle:], 0, 0, 0.0).slope

    def to_json(self) -> dict[str, Any]:
        return {
            "texts": self.readings[-1].texts,
            "lengths": self.readings[-1].lengths,
            "after_warm_up_mib": self.readings[0].memory.rss,
            "end_mib": self.readings[-1].memory.rss,
            "highest_mib": max(reading.memory.rss for reading in self.readings),
            "growth": self.growth,
            "mib_per_1000_texts": self.slope,
            "mib_per_1000_texts_late": self.late_slope,
            "repeated": self.repeated,
            "wrong": self.wrong,
            "like_float32": self.like_float32,
            "readings": [
                {"texts": reading.texts, "lengths": reading.lengths, **asdict(reading.memory)}
                for reading in self.readings
            ],
        }


def whole_words(pipeline: Pipeline) -> tuple[list[str], int]:
    """Words that are one token each, so that a text has the wanted length, and the number of
    tokens that stand around a text."""
    vocabulary = sorted(Tokenizer.from_file(str(pipeline.path / TOKENIZER)).get_vocab())
    words = [word for word in vocabulary if word.isascii() and word.isalpha()]
    lengths = [len(row) for row in pipeline.tokenize(words)]
    least = min(lengths)
    return [word for word, size in zip(words, lengths, strict=True) if size == least], least - 1


def request(words: Sequence[str], special: int, longest: int, seed: int, number: int) -> list[str]:
    """One text, or up to 32, mostly short, a fifth of any length; the same for the same number.

    Args:
        special: tokens that stand around a text.
        longest: most tokens of a text, those included.
    """
    rng = np.random.default_rng((seed, number))
    most = longest - special
    size = 1 if rng.random() < 0.5 else int(min(2 + rng.geometric(0.15), 32))
    short = np.exp(rng.normal(np.log(max(most / 8, 1)), 0.8, size)).astype(int)
    lengths = np.where(rng.random(size) < 0.2, rng.integers(1, most + 1, size), short)
    return [" ".join(rng.choice(words, length)) for length in np.clip(lengths, 1, most)]


@dataclass(frozen=True)
class Answer:
    """What tells an answer from another, in a few bytes: thousands are kept while memory is read.

    Attributes:
        label: its label.
        scores: of every label.
        survivors: digest of their positions.
    """

    label: str
    scores: tuple[float, ...]
    survivors: bytes

    @classmethod
    def of(cls, prediction: Prediction) -> Answer:
        places = repr([cut.positions for cut in prediction.kept]).encode()
        digest = hashlib.blake2b(places, digest_size=16).digest()
        return cls(sys.intern(prediction.label), tuple(prediction.scores.values()), digest)

    def is_like(self, other: Answer) -> bool:
        """Whether both have the same survivors, and the same scores within the tolerance."""
        apart = (abs(one - two) for one, two in zip(self.scores, other.scores, strict=True))
        return self.survivors == other.survivors and max(apart) <= TOLERANCE


def soak(
    pipeline: Pipeline,
    opened_anew: Callable[[], Pipeline],
    float32: Callable[[], Pipeline],
    texts: int,
    callers: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Soak:
    """Let ``callers`` threads ask ``pipeline`` for so many texts.

    Args:
        opened_anew, float32: make what answers some of the requests afterwards, when what it takes
            is no matter any more.
    """
    step = max(WARM_UP, texts // READINGS)
    words, special = whole_words(pipeline)
    asked = partial(request, words, special, pipeline.tokenizer.max_length, seed)
    lengths: set[int] = set()
    readings: list[Reading] = []
    repeated: dict[int, list[Answer]] = {}  # by the number of the request
    numbers = count()
    done = 0

    def answers(texts: list[str]) -> list[Prediction]:
        return pipeline(texts, return_kept=True)

    with ThreadPoolExecutor(callers) as pool:
        while done < texts:
            part: dict[int, list[str]] = {}
            wanted = WARM_UP if not readings else step
            while sum(map(len, part.values())) < wanted:
                number = next(numbers)
                part[number] = asked(number)
            for number, row in zip(part, pool.map(answers, part.values()), strict=True):
                done += len(row)
                lengths.update(each.num_tokens for each in row)
                if number == max(part) and len(repeated) < REPEATED:
                    repeated[number] = [Answer.of(each) for each in row]
            readings.append(Reading(done, len(lengths), Memory.of()))
            progress("soak", min(done, texts), texts)
    requests = [(asked(number), row) for number, row in repeated.items()]
    return Soak(tuple(readings), *compare(requests, opened_anew(), float32()))


def compare(
    repeated: Sequence[tuple[list[str], list[Answer]]], opened_anew: Pipeline, float32: Pipeline
) -> tuple[int, int, float]:
    """Texts answered again, those that got another answer, and the share PyTorch labels alike."""
    texts = wrong = alike = 0
    for asked, answers in repeated:
        again = opened_anew(asked, return_kept=True)
        for one, other, reference in zip(answers, again, float32(asked), strict=True):
            texts += 1
            wrong += not one.is_like(Answer.of(other))
            alike += one.label == reference.label
    return texts, wrong, alike / texts


def draw(runs: dict[str, dict[str, Any]]) -> Figure:
    """Memory over texts: name -> what ``Soak.to_json`` gave."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        texts = [reading["texts"] for reading in run["readings"]]
        axes.plot(texts, [reading["rss"] for reading in run["readings"]], label=name)
    axes.set(xlabel="texts answered", ylabel="resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="onnxruntime")
@precision_option
@click.option("--texts", type=click.IntRange(min=WARM_UP + 1), default=5000, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--callers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@json_option
@click.option("--plot", type=click.Path(path_type=Path), help="PNG file to write.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="JSON files of other runs, to be drawn beside this one.",
)
def main(
    bundle: Path,
    backend: str,
    precision: str | None,
    texts: int,
    threads: int,
    callers: int,
    seed: int,
    json_path: Path | None,
    plot: Path | None,
    beside: tuple[Path, ...],
) -> None:
    """Answer many texts with BUNDLE, and watch memory and answers."""
    try:
        open_model = partial(load, bundle, backend, threads=threads, precision=precision)
        pipeline, float32 = open_model(), partial(load, bundle, "torch")
        with console.progress() as progress:
            found = soak(pipeline, open_model, float32, texts, callers, seed, progress)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    settings = dict(pipeline.chain.backend.description)
    name = f"{settings['backend']} {settings['precision']}"
    figures = {
        "name": name, "machine": describe_machine(), "settings": settings, "callers": callers,
        **found.to_json(),
    }  # fmt: skip
    console.out.print(
        f"{name}: {figures['after_warm_up_mib']:.0f} MiB after {found.readings[0].texts} texts, "
        f"{figures['end_mib']:.0f} after {figures['texts']} of {figures['lengths']} lengths: "
        f"{found.growth:.2f} times; {found.slope:.2f} MiB for every 1,000 texts, "
        f"{found.late_slope:.2f} in the second half; {found.wrong} of {found.repeated} answers "
        f"wrong, {found.like_float32:.1%} as PyTorch's in float32"
    )
    if json_path is not None:
        write_json(json_path, figures)
    if plot is not None:
        others = [json.loads(path.read_text(encoding="utf-8")) for path in beside]
        write_figure(draw({run["name"]: run for run in (*others, figures)}), plot)
    if found.growth > LIMIT or found.wrong:
        sys.exit(3)


if __name__ == "__main__":
    main()

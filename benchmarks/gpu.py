"""Times the chain on a GPU against the dense model: the same kernels, rows packed without padding.

    python benchmarks/gpu.py --output docs/performance-gpu.md

The models have the shapes of MiniLM and of BERT-base, and seeded random weights. The threshold of
each cut is calibrated so that it leaves a wanted share of the tokens; how many a row keeps differs
from row to row, as in trained models. Dense and reduced take turns.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from torch import Tensor

from trbert_deploy import console
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ConfigError, DeviceError, TrbertError
from trbert_deploy.files import staged_file
from trbert_deploy.flops import speedup
from trbert_deploy.modeling import device_chain
from trbert_deploy.modeling.device_chain import PRECISIONS, DeviceChain, PackedRows
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.recorded_chain import RecordedChain
from trbert_deploy.modeling.walk import Chooser, TokenState, begin
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.rules import SelectionRule

#: Name -> layers, width, heads.
SHAPES = {"MiniLM": (6, 384, 12), "BERT-base": (12, 768, 12)}
BATCHES = ((1, 512), (32, 512), (32, 2048))
KEPT = (0.5, 0.15)
WARM_UP = 3
CUTS_REPEATED = 5


@dataclass(frozen=True)
class Figures:
    """What one model took at one batch and precision.

    Attributes:
        dense_ms, reduced_ms: medians over the rounds.
        varlen_ms: the dense model by the attention that takes rows of any lengths, as the chain's
            later segments do; rows of one length have a faster one. None for a single row.
        flops: how many times fewer operations the chain takes.
        cut_share: share of the chain's time from a cut's keep logits to its compacted rows.
        recorded: whether both were replayed as CUDA graphs.
    """

    model: str
    recorded: bool
    rows: int
    length: int
    precision: str
    dense_ms: float
    varlen_ms: float | None
    reduced_ms: float
    flops: float
    cut_share: float

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.reduced_ms

    @property
    def reached(self) -> float:
        """Speed-up over the dense model, as a share of what is saved in operations."""
        return self.speedup / self.flops

    @property
    def reached_over_varlen(self) -> float:
        return (self.varlen_ms or self.dense_ms) / self.reduced_ms / self.flops


class Clock:
    """Times what runs on a device: CUDA events there, a clock on the host."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def now(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start: torch.cuda.Event | float, stop: torch.cuda.Event | float) -> float:
        """Milliseconds between two points; waits for the second."""
        if isinstance(start, float) or isinstance(stop, float):
            assert isinstance(start, float) and isinstance(stop, float)
            return (stop - start) * 1e3
        stop.synchronize()
        return start.elapsed_time(stop)


def make_model(name: str, positions: int, shapes: dict[str, tuple[int, int, int]]) -> ReducedModel:
    """A seeded random model with the default cuts."""
    layers, width, heads = shapes[name]
    spec = EncoderSpec(
        family="bert",
        task="text-classification",
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        ffn_size=4 * width,
        vocab_size=30522,
        max_positions=positions,
        token_types=2,
        layer_norm_eps=1e-12,
        activation="gelu",
        dropout=0.0,
        pad_token_id=0,
        labels=("no", "yes"),
    )
    torch.manual_seed(0)
    return ReducedModel(spec, ReductionConfig.default_for(spec)).eval()


def random_rows(count: int, length: int, vocabulary: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, vocabulary, (count, length))
    return [TokenRow(row, np.zeros_like(row)) for row in ids]


def without_a_token(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The same rows, the first one token shorter: no longer of one length."""
    return [rows[0].part(range(len(rows[0]) - 1)), *rows[1:]]


@torch.inference_mode()
def calibrate(model: ReducedModel, batch: PackedRows, kept: tuple[float, ...]) -> None:
    """Set the cuts' thresholds so that each leaves its share of all tokens of ``batch``."""
    rules: list[SelectionRule] = []
    tokens, total = begin(model, batch), len(batch.input_ids)
    for segment, share in zip(model.segments[:-1], kept, strict=True):
        tokens = tokens.run(model, segment.start, segment.stop)
        logit = model.keep_logit(segment.index, tokens.hidden)
        threshold = logit.sort(descending=True).values[max(int(share * total), 1) - 1]
        rules.append(SelectionRule("threshold", float(threshold.double().sigmoid())))
        tokens = tokens.compact(((logit >= threshold) | tokens.protected)[None])
    model.set_reduction(model.reduction.with_rules(tuple(rules)))


@contextmanager
def repeated_cuts(times: int) -> Iterator[None]:
    """Select and compact ``times`` times at every cut: what is added tells what once costs."""
    make_chooser, compact = device_chain.choose_by_rule, TokenState.compact

    def choosing(model: ReducedModel) -> Chooser:
        choose = make_chooser(model)

        def repeated(index: int, logit: Tensor, tokens: TokenState) -> Tensor:
            return [choose(index, logit, tokens) for _ in range(times)][-1]

        return repeated

    def compacting(tokens: TokenState, keep: Tensor) -> TokenState:
        return [compact(tokens, keep) for _ in range(times)][-1]

    with (
        mock.patch.object(device_chain, "choose_by_rule", choosing),
        mock.patch.object(TokenState, "compact", compacting),
    ):
        yield


def medians(clock: Clock, runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each run, in turns; the first rounds warm up and record."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + WARM_UP):
        order = list(range(len(runs)))
        for which in order if number % 2 else reversed(order):
            start = clock.now()
            runs[which]()
            elapsed = clock.ms(start, clock.now())
            if number >= WARM_UP:
                times[which].append(elapsed)
    return [statistics.median(each) for each in times]


def measure(
    kind: type[DeviceChain],
    model: ReducedModel,
    name: str,
    rows: Sequence[TokenRow],
    precision: str,
    device: str,
    rounds: int,
) -> Figures:
    """Time one model on one batch."""
    chain, other = (kind(model, device, precision) for _ in range(2))
    batch = PackedRows.of(rows, device)
    _, layouts = chain.reduced(batch)
    lengths = [batch.layout.lengths.tolist(), *(layout.lengths.tolist() for layout in layouts)]
    with repeated_cuts(CUTS_REPEATED):
        for _ in range(WARM_UP):  # recordings are made here, and replayed below
            other.reduced(batch)

    def often() -> None:
        with repeated_cuts(CUTS_REPEATED):
            other.reduced(batch)

    runs = [lambda: chain.dense(batch), lambda: chain.reduced(batch), often]
    if len(rows) > 1:
        uneven = PackedRows.of(without_a_token(rows), device)
        runs.append(lambda: chain.dense(uneven))
    dense_ms, reduced_ms, often_ms, *varlen_ms = medians(Clock(device), runs, rounds)
    return Figures(
        name,
        kind is RecordedChain,
        len(batch.layout.lengths),
        max(lengths[0]),
        precision,
        dense_ms,
        varlen_ms[0] if varlen_ms else None,
        reduced_ms,
        speedup(model.spec, model.reduction, list(zip(*lengths, strict=True))),
        (often_ms - reduced_ms) / (CUTS_REPEATED - 1) / reduced_ms,
    )


def describe(device: str) -> str:
    """Card, driver and versions, in one line."""
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    if device != "cuda":
        return f"{platform.processor() or platform.machine()}, {versions}"
    command = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{torch.cuda.get_device_name()}, driver {driver}, {cuda}, {versions}"


def table(figures: Sequence[Figures]) -> str:
    """A table in Markdown."""
    lines = [
        "| model | rows x tokens | precision | run as | dense, ms | dense varlen, ms | reduced, ms "
        "| FLOPs | measured | of it | of it, varlen | cuts |",
        "| --- " * 4 + "| ---: " * 8 + "|",
    ]
    for one in figures:
        varlen_ms = "" if one.varlen_ms is None else f"{one.varlen_ms:.2f}"
        over_varlen = "" if one.varlen_ms is None else f"{one.reached_over_varlen:.2f}"
        lines.append(
            f"| {one.model} | {one.rows} x {one.length} | {one.precision} "
            f"| {'one recording' if one.recorded else 'launches'} "
            f"| {one.dense_ms:.2f} | {varlen_ms} | {one.reduced_ms:.2f} "
            f"| {one.flops:.2f}x | {one.speedup:.2f}x | {one.reached:.2f} | {over_varlen} "
            f"| {100 * one.cut_share:.1f} % |"
        )
    return "\n".join(lines)


def goals(figures: Sequence[Figures]) -> str:
    """What is wanted in half precision of a recording, beside what was measured."""
    halved = [one for one in figures if one.recorded and one.precision != "fp32"]

    def told(rows: int, length: int | None, tell: Callable[[Figures], str]) -> str:
        cases = [one for one in halved if one.rows == rows and one.length == (length or one.length)]
        return ", ".join(f"{one.model} {one.precision} {tell(one)}" for one in cases)

    lines = ["| wanted, in half precision | measured |", "| --- | --- |"]
    for length, share in ((512, 0.8), (2048, 0.9)):
        reached = told(32, length, lambda one: f"{one.reached_over_varlen:.2f} ({one.reached:.2f})")
        lines.append(
            f"| 32 x {length}: {share} of the saving by FLOPs, over dense varlen "
            f"(over the faster dense attention for rows of one length) | {reached} |"
        )
    cuts = told(32, None, lambda one: f"{one.length}: {100 * one.cut_share:.1f} %")
    lines.append(f"| 32 rows: cuts take at most 5 % | {cuts} |")
    single = told(1, 512, lambda one: f"{one.dense_ms / one.reduced_ms:.2f}x")
    lines.append(f"| 1 x 512: no slower than dense | {single} |")
    return "\n".join(lines)


def page(figures: list[Figures], device: str, rounds: int) -> str:
    """docs/performance-gpu.md, as far as a run makes it."""
    shares = " and ".join(f"{100 * share:g} %" for share in KEPT)
    return f"""# Performance on a GPU

{describe(device)}.

    make bench-gpu

The chain in PyTorch (`modeling/device_chain.py`) against the dense model under the same kernels.
Seeded random weights in the shape of each model, default cuts, thresholds that leave {shares}
of the tokens; rows keep different numbers of them. Rows lie one behind the other without padding:
attention runs once for all of them. float32 without TF32. Medians of {rounds} rounds in turns,
by CUDA events, which see what the GPU waits for, too.

One recording: the whole pass as a CUDA graph (`modeling/recorded_chain.py`), in tensors with room
for a few per cent more tokens than survive. Launches: operation by operation, with a wait of the
host at each cut.

Dense: rows of one length, for which PyTorch takes cuDNN's attention. Dense varlen: one row is a
token shorter, so that attention is flash attention for rows of any lengths, as it is behind the
chain's cuts. FLOPs: how many times fewer operations the chain takes (`flops.py`). Measured: over
dense. Of it: the share of that saving which the times reach, over dense and over dense varlen.
Cuts: share of the chain's time from a cut's keep logits to its compacted rows, by what it takes
to do that {CUTS_REPEATED} times.

{goals(figures)}

{table(figures)}
"""


def run_all(
    shapes: dict[str, tuple[int, int, int]],
    batches: tuple[tuple[int, int], ...],
    precisions: tuple[str, ...],
    device: str,
    rounds: int,
) -> list[Figures]:
    """Time every model at every batch and precision."""
    figures = []
    for name in shapes:
        model = make_model(name, max(length for _, length in batches), shapes).to(device)
        for count, length in batches:
            rows = random_rows(count, length, model.spec.vocab_size)
            calibrate(model, PackedRows.of(rows, device), KEPT)
            for precision in precisions:
                for kind in (RecordedChain, DeviceChain):
                    case = (model, name, rows, precision, device, rounds)
                    figures.append(measure(kind, *case))
                    console.notes.print(table(figures[-1:]).splitlines()[-1], soft_wrap=True)
    return figures


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write a page in Markdown.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["cuda", "cpu"]))
@click.option("--precisions", default=",".join(PRECISIONS), show_default=True)
def main(output: Path | None, rounds: int, device: str, precisions: str) -> None:
    """Time the chain against the dense model on a GPU."""
    try:
        wanted = tuple(precisions.split(","))
        for precision in wanted:
            if precision not in PRECISIONS:
                raise ConfigError(f"precision {precision!r}: expected {', '.join(PRECISIONS)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("no GPU that PyTorch can use: run where there is one")
        figures = run_all(SHAPES, BATCHES, wanted, device, rounds)
        if output is not None:
            with staged_file(output) as staging:
                staging.write_text(page(figures, device, rounds), encoding="utf-8")
        console.out.print(table(figures), soft_wrap=True)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()

"""What a pass would take on a GPU that is not here: a reckoning, not a measurement.

A roofline (Williams, Waterman and Patterson, 2009): a kernel takes as long as its operations or its
bytes need, whichever is more, and some time to begin. Kernels are those of the chain in PyTorch
(``modeling/device_chain.py``) in half precision: products of matrices, attention over rows without
padding, and what goes element by element, with float32 residual sums. How much of a device's peak
they reach was fitted to the times of an H100 in docs/performance-gpu.md
(``benchmarks/fit_device_model.py``), and is taken to be the same share on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import fmean
from typing import Any

from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.flops import POLICY_WIDTH, speedup

_HALF, _SINGLE = 2, 4  # bytes of a value


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        name: as the manufacturer has it.
        flops: operations a second of half-precision matrix products, without sparsity.
        bytes_per_s: of its memory.
    """

    name: str
    flops: float
    bytes_per_s: float


#: By the name that a user gives.
DEVICES: Mapping[str, Device] = {
    "h100": Device("NVIDIA H100 SXM", 989e12, 3.35e12),
    "a10": Device("NVIDIA A10", 125e12, 0.6e12),
    "l4": Device("NVIDIA L4", 121e12, 0.3e12),
    "t4": Device("NVIDIA T4", 65e12, 0.32e12),
}


@dataclass(frozen=True)
class Shares:
    """What kernels reach of a device's peak, and what they cost besides.

    Attributes:
        products, attention, memory: shares of the peak, from 0 to 1.
        begin_s: seconds that a kernel of a recording takes to begin.
        launch_s: seconds that the host takes for a kernel that is not recorded.
        wait_s: seconds that it takes at a cut besides, where it waits for the survivors' counts.
    """

    products: float
    attention: float
    memory: float
    begin_s: float
    launch_s: float
    wait_s: float


#: Fitted to an H100: recordings within 13 % of what was measured, in the median within 2.3 %.
FITTED = Shares(
    products=0.717, attention=0.348, memory=0.533, begin_s=3.68e-6, launch_s=2.78e-5, wait_s=7.3e-4
)


@dataclass(frozen=True)
class Kernel:
    """Work that is one launch.

    Attributes:
        kind: products, attention or memory: which share of the peak its operations reach.
        flops: its operations.
        bytes: what it reads and writes.
        count: equal launches that this is divided into.
    """

    kind: str
    flops: float
    bytes: float
    count: int = 1


def kernels(
    encoder: EncoderSpec, reduction: ReductionConfig | None, rows: Sequence[Sequence[int]]
) -> Iterator[Kernel]:
    """All kernels of a pass.

    Args:
        reduction: the cuts; None for the dense model.
        rows: for each row its tokens in each segment, as ``flops.reduced_flops`` takes them; of the
            dense model the first number alone counts.
    """
    width, ffn = encoder.hidden_size, encoder.ffn_size
    segments = [] if reduction is None else reduction.segments(encoder.num_layers)
    spans = [(segment.start, segment.stop) for segment in segments] or [(0, encoder.num_steps)]
    tokens = sum(row[0] for row in rows)
    yield _elements(tokens * width, 6 * _SINGLE, 5)  # embeddings, their sum and its normalization
    for place, (start, stop) in enumerate(spans):
        lengths = [row[place] for row in rows]
        tokens = sum(lengths)
        for step in range(start, stop):
            if step % 2:
                matrices = 2 if encoder.gated_ffn else 1
                yield _product(tokens, width, matrices * ffn)
                yield _elements(tokens * ffn, (matrices + 1) * _HALF)
                yield _product(tokens, ffn, width)
            else:
                yield _product(tokens, width, 3 * width)
                squares = sum(length**2 for length in lengths)
                flops = 4.0 * squares * width + 2.0 * tokens * encoder.relative_keys * width
                yield Kernel("attention", flops, 4.0 * tokens * width * _HALF)
                yield _product(tokens, width, width)
            # Sum in float32, normalization, and a copy in half precision.
            yield _elements(tokens * width, 2 * _HALF + 5 * _SINGLE, 3)
        if place + 1 < len(spans):
            left = sum(row[place + 1] for row in rows)
            yield _product(tokens, width, POLICY_WIDTH, _SINGLE)
            yield _elements(tokens * POLICY_WIDTH, 2 * _SINGLE, 8)  # scores, and the choice
            yield _elements(left * width, 2 * _SINGLE, 3)  # compaction
    yield _product(len(rows), width, width, _SINGLE)
    yield _product(len(rows), width, encoder.num_logits, _SINGLE)


def _product(rows: float, width: int, out: int, value: int = _HALF) -> Kernel:
    moved = rows * width + width * out + rows * out
    return Kernel("products", 2.0 * rows * width * out, float(moved * value))


def _elements(values: float, bytes_each: int, count: int = 1) -> Kernel:
    return Kernel("memory", 0.0, float(values * bytes_each), count)


def seconds(
    device: Device, work: Sequence[Kernel], *, cuts: int | None = None, shares: Shares = FITTED
) -> float:
    """What a pass takes.

    Args:
        cuts: of a pass whose kernels the host launches one by one, how many it waits at; None for
            a recording.
    """
    busy = 0.0
    launches = 0
    reached = {"products": shares.products, "attention": shares.attention}
    for kernel in work:
        computing = kernel.flops / (device.flops * reached.get(kernel.kind, 1.0))
        moving = kernel.bytes / (device.bytes_per_s * shares.memory)
        busy += max(computing, moving) + kernel.count * shares.begin_s
        launches += kernel.count
    if cuts is None:
        return busy
    return max(busy, launches * shares.launch_s) + cuts * shares.wait_s


@dataclass(frozen=True)
class ReckonedPoint:
    """Both models at one length and batch, on a device that is not here.

    Attributes:
        length: tokens per row.
        batch: rows per call.
        kept: mean tokens per row behind each cut.
        dense_ms, reduced_ms: of a call that is one recording, as the backend ``cuda`` makes it.
        launched_ms: of the chain without a recording.
        flops_speedup: operations of the dense model over those of the chain.
    """

    length: int
    batch: int
    kept: tuple[float, ...]
    dense_ms: float
    reduced_ms: float
    launched_ms: float
    flops_speedup: float

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.reduced_ms


def reckon_point(
    device: Device,
    encoder: EncoderSpec,
    reduction: ReductionConfig,
    rows: Sequence[Sequence[int]],
    batch: int,
) -> ReckonedPoint:
    """What a call takes, on average over calls of ``batch`` rows.

    Args:
        rows: for each of some rows of one length its tokens in each segment.
    """
    supply = cycle(rows)
    calls = [list(islice(supply, batch)) for _ in range(-(-len(rows) // batch))]
    cuts = len(reduction.cuts)

    def mean_ms(chain: ReductionConfig | None, waits: int | None) -> float:
        passes = (list(kernels(encoder, chain, call)) for call in calls)
        return 1e3 * fmean(seconds(device, work, cuts=waits) for work in passes)

    return ReckonedPoint(
        length=rows[0][0],
        batch=batch,
        kept=tuple(fmean(row[place] for row in rows) for place in range(1, cuts + 1)),
        dense_ms=mean_ms(None, None),
        reduced_ms=mean_ms(reduction, None),
        launched_ms=mean_ms(reduction, cuts),
        flops_speedup=speedup(encoder, reduction, rows),
    )


@dataclass(frozen=True)
class Reckoning:
    """What a bundle would take on a device.

    Attributes:
        device: which one.
        points: at every length and batch.
    """

    device: Device
    points: tuple[ReckonedPoint, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "points": [{**asdict(point), "speedup": point.speedup} for point in self.points],
        }

"""Benchmarks a bundle from its path: chooses backends, lengths and texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from trbert_deploy.bench.timing import BenchReport, Rounds, run_bench
from trbert_deploy.bundle import MANIFEST, Bundle
from trbert_deploy.errors import (
    DataError,
    DeviceError,
    EngineError,
    LengthError,
    MissingDependencyError,
)
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backend import DEFAULT_BACKEND
from trbert_deploy.runtime.pipeline import Pipeline, load
from trbert_deploy.runtime.reading import read_texts

DEFAULT_LENGTHS = (512, 2048)
_MAX_TEXTS = 256


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        lengths: tokens per row, or None for the default ones, cut to what the bundle takes.
        batches: rows per call.
        backend: the one to measure, or None for ONNX Runtime and, where the bundle has
            engines and a GPU answers, TensorRT.
        threads: threads of one graph; 0 lets the backend choose.
        rounds: measured repetitions of every point.
        data: JSON lines with texts, instead of the bundle's samples.
    """

    lengths: tuple[int, ...] | None = None
    batches: tuple[int, ...] = (1,)
    backend: str | None = None
    threads: int = 0
    rounds: Rounds = field(default_factory=Rounds)
    data: Path | None = None


def bench_bundle(
    path: Path,
    options: BenchOptions = BenchOptions(),
    progress: Progress = no_progress,
) -> BenchReport:
    """Measure the bundle at ``path``.

    Raises:
        StorageError, BundleError: no bundle there, or a damaged one.
        LengthError: a length that the bundle does not take.
        DataError: there are no texts, or they cannot be used.
        DeviceError, EngineError, MissingDependencyError: ``options.backend`` cannot run here.
    """
    pipelines = [load(path, options.backend or DEFAULT_BACKEND, threads=options.threads)]
    bundle = pipelines[0].bundle
    lengths = _lengths(options.lengths, bundle.manifest.max_length)
    texts = _texts(options.data, bundle)
    notes = []
    engines = sorted(file.parent.name for file in bundle.engines_path.glob(f"*/{MANIFEST}"))
    if engines and options.backend is None:
        second = _tensorrt(bundle)
        if isinstance(second, Pipeline):
            pipelines.append(second)
        else:
            notes.append(f"TensorRT engines present ({', '.join(engines)}), not timed: {second}")
    return run_bench(
        pipelines,
        lengths,
        options.batches,
        texts,
        rounds=options.rounds,
        notes=notes,
        progress=progress,
    )


def _tensorrt(bundle: Bundle) -> Pipeline | str:
    """The bundle on its engines, or why that cannot be here."""
    try:
        return load(bundle.path, "tensorrt", verify=False)
    except DeviceError:
        return "no NVIDIA GPU here"
    except (EngineError, MissingDependencyError) as problem:
        return str(problem)


def _lengths(wanted: tuple[int, ...] | None, maximum: int) -> tuple[int, ...]:
    if wanted is None:
        return tuple(dict.fromkeys(min(length, maximum) for length in DEFAULT_LENGTHS))
    for length in wanted:
        if length > maximum:
            raise LengthError(
                f"length {length} is above what the bundle takes: choose --lengths up to {maximum}"
            )
    return tuple(dict.fromkeys(wanted))


def _texts(data: Path | None, bundle: Bundle) -> list[str]:
    """Real texts to measure on."""
    if data is None:
        texts = bundle.samples()
        if not texts:
            raise DataError(
                f"bundle {bundle.path} has no sample texts: give --data FILE, or export it again "
                "with --samples"
            )
        return texts
    named = islice(read_texts(data), _MAX_TEXTS)
    return [text.text if isinstance(text.text, str) else text.text[0] for text in named]

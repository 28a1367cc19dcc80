"""Benchmarks a bundle from its path: chooses backends, lengths and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from trbert_deploy.bench.device_model import DEVICES, Reckoning, reckon_point
from trbert_deploy.bench.timing import BenchReport, Rounds, run_bench
from trbert_deploy.bench.tradeoff import TradeoffReport, measure_tradeoff
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import require_length
from trbert_deploy.errors import (
    ConfigError,
    DataError,
    DeviceError,
    EngineError,
    LengthError,
    MissingDependencyError,
)
from trbert_deploy.evaluation.kept import KeptText, trace_texts
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.registry import BACKENDS, DEFAULT_BACKEND
from trbert_deploy.runtime.backends.tensorrt.engine_set import engine_set_names
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.predicting import name_texts
from trbert_deploy.runtime.reading.examples import Note, read_examples
from trbert_deploy.runtime.samples import row_maker
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.registry import task_of

DEFAULT_LENGTHS = (512, 2048)
_MAX_TEXTS = 256
#: Rows whose survivors are counted for a reckoning.
_RECKONED_ROWS = 16
#: What a dense model without sample texts is timed on.
ANY_TEXT = "The time that a dense model takes depends on the length of a text, not on what it says."


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        lengths: tokens per row, or None for the default ones, cut to what the bundle takes.
        batches: rows per call.
        backend: the one to measure, or None for ONNX Runtime and, where the bundle has
            engines and a GPU answers, TensorRT.
        precision: what the backend computes in; None is its own choice.
        threads: threads of one graph; 0 lets the backend choose.
        point: operating point to run at, instead of the bundle's own.
        rounds: measured repetitions of every point.
        data: texts (see ``read_data``), instead of the bundle's samples.
        engines: allow the bundle's engines to run.
    """

    lengths: tuple[int, ...] | None = None
    batches: tuple[int, ...] = (1,)
    backend: str | None = None
    precision: str | None = None
    threads: int = 0
    point: OperatingPoint = OperatingPoint()
    rounds: Rounds = field(default_factory=Rounds)
    data: Sequence[Example] | None = None
    engines: bool = True


def read_data(
    bundle: Path, data: Path, names: ColumnNames, note: Note, *, labelled: bool
) -> tuple[Example, ...]:
    """The texts of a source, for the bundle at a path: read once, as a pipe can be.

    Args:
        labelled: all of them with their targets, as a sweep needs them; otherwise as many texts
            as are timed.

    Raises:
        StorageError, BundleError: no bundle there, or a damaged one.
        StorageError, DataError, MissingDependencyError: as ``read_examples``.
    """
    task = task_of(Bundle.open(bundle).manifest.encoder)
    examples = read_examples(data, task, names, note, with_targets=labelled)
    return tuple(islice(examples, None if labelled else _MAX_TEXTS))


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
    bundle = _read(path, progress)
    notes: list[str] = []
    pipeline = _open(bundle, options, progress, notes.append)
    lengths = _lengths(options.lengths, bundle.manifest.max_length)
    texts = _texts(options.data, bundle)
    if texts == [ANY_TEXT]:
        notes.append("the bundle has no sample texts: timed on a sentence that is repeated")
    beside: list[Pipeline] = []
    if options.backend is None:
        beside += _open_one_graph(bundle, options, progress, notes.append)
        if options.engines:
            beside += _open_engines(bundle, options, progress, notes.append)
    sections = 1 + len(beside)

    def measure(opened: Pipeline, section: int) -> BenchReport:
        def tell(step: str, done: int, total: int | None) -> None:
            whole = None if total is None else sections * total
            progress(step, section * (total or 0) + done, whole)

        return run_bench(
            opened, lengths, options.batches, texts, rounds=options.rounds, progress=tell
        )

    report = measure(pipeline, 0)
    for section, opened in enumerate(beside, 1):
        try:
            backends = measure(opened, section).backends
            report = replace(report, backends=report.backends + backends)
        except LengthError as problem:  # engines may be built for fewer tokens than the bundle
            notes.append(f"TensorRT engines not timed: {problem}")
    return replace(report, notes=tuple(notes))


def reckon_bundle(
    path: Path, device: str, options: BenchOptions, progress: Progress = no_progress
) -> Reckoning:
    """What the bundle at ``path`` would take on a device that is not here.

    What survives is found out on real texts, by ONNX Runtime.

    Args:
        device: one of ``DEVICES``.

    Raises:
        As ``bench_bundle``.
    """
    bundle = _read(path, progress)
    pipeline = _open(bundle, replace(options, backend=DEFAULT_BACKEND, precision=None), progress)
    texts = _texts(options.data, bundle)
    rows_of = row_maker(pipeline.tokenizer, pipeline.encoder, texts)
    points = []
    lengths = _lengths(options.lengths, bundle.manifest.max_length)
    for place, length in enumerate(lengths):
        progress(f"choose tokens of {length}", place, len(lengths))
        rows = rows_of(length, min(len(texts), _RECKONED_ROWS))
        left = [
            (len(row), *map(len, result.kept))
            for row, result in zip(rows, pipeline.run(rows), strict=True)
        ]
        points += [
            reckon_point(DEVICES[device], pipeline.encoder, pipeline.reduction, left, batch)
            for batch in options.batches
        ]
    progress("choose tokens", len(lengths), len(lengths))
    return Reckoning(DEVICES[device], tuple(points))


def trace_bundle(
    path: Path, options: BenchOptions, progress: Progress = no_progress
) -> list[KeptText]:
    """What the chain keeps of the texts that ``bench_bundle`` measures on; none without cuts.

    Raises:
        As ``bench_bundle``.
    """
    bundle = _read(path, progress)
    pipeline = _open(bundle, options, progress)
    if not pipeline.reduction.cuts:
        return []
    texts = _texts(options.data, bundle)
    return trace_texts(pipeline, list(name_texts(texts)), progress=progress)


def sweep_bundle(
    path: Path, options: BenchOptions, progress: Progress = no_progress
) -> TradeoffReport:
    """Quality against measured latency over the operating points (see ``measure_tradeoff``).

    Raises:
        As ``bench_bundle``.
        ConfigError: no data, or a model without cuts.
        DataError: data with labels that the model does not know.
    """
    if options.data is None:
        raise ConfigError(
            "a sweep needs texts to judge by, labelled or not: give them with --data FILE"
        )
    pipeline = _open(_read(path, progress), options, progress)
    return measure_tradeoff(pipeline, options.data, progress=progress)


def _read(path: Path, progress: Progress) -> Bundle:
    progress(f"read {path.name or path}", 0, None)
    return Bundle.open(path)


def _open(
    bundle: Bundle,
    options: BenchOptions,
    progress: Progress,
    note: Callable[[str], None] = lambda message: None,
) -> Pipeline:
    """The bundle as ``options`` have it run, on the backend that is always measured."""
    return load(
        bundle,
        options.backend or DEFAULT_BACKEND,
        threads=options.threads,
        precision=options.precision,
        engines=options.engines,
        note=note,
        progress=progress,
        **asdict(options.point),
    )


def _open_engines(
    bundle: Bundle, options: BenchOptions, progress: Progress, note: Callable[[str], None]
) -> list[Pipeline]:
    """The bundle on its engines, if it has any and they run here; or else a note says why not."""
    sets = engine_set_names(bundle)
    if not sets:
        return []
    point = asdict(options.point)
    try:
        opened = [load(bundle, "tensorrt", progress=progress, **point)]
        if bundle.manifest.chain is not None and options.point == OperatingPoint():
            opened.append(load(bundle, "one-engine", progress=progress))
        return opened
    except DeviceError:
        reason = "no NVIDIA GPU here"
    except (EngineError, MissingDependencyError) as problem:
        reason = str(problem)
    note(f"TensorRT engines present ({', '.join(sets)}), not timed: {reason}")
    return []


def _open_one_graph(
    bundle: Bundle, options: BenchOptions, progress: Progress, note: Callable[[str], None]
) -> list[Pipeline]:
    """The bundle's whole chain as one graph, if it has that and is asked for its own point."""
    if bundle.manifest.chain is None:
        return []
    offered = BACKENDS["one-graph"].precisions
    if options.point != OperatingPoint() or options.precision not in (None, *offered):
        note(
            f"the graph of the whole chain, of one operating point and {' or '.join(offered)}, is "
            "not timed"
        )
        return []
    precision, threads = options.precision, options.threads
    return [load(bundle, "one-graph", threads=threads, precision=precision, progress=progress)]


def _lengths(wanted: tuple[int, ...] | None, maximum: int) -> tuple[int, ...]:
    if wanted is None:
        return tuple(dict.fromkeys(min(length, maximum) for length in DEFAULT_LENGTHS))
    for length in wanted:
        require_length(length, maximum)
    return tuple(dict.fromkeys(wanted))


def _texts(data: Sequence[Example] | None, bundle: Bundle) -> list[Text]:
    """Real texts to measure on; for a dense model, whose time does not depend on them, any."""
    if data is None:
        texts = bundle.samples()
        if not texts and not bundle.manifest.reduction.cuts:
            return [ANY_TEXT]
        if not texts:
            raise DataError(
                f"bundle {bundle.path} has no sample texts: give --data FILE, or export it again "
                "with --samples"
            )
        return texts
    return [example.text for example in data[:_MAX_TEXTS]]

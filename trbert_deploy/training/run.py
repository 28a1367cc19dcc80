"""A training run: its directory, its stages in order, and going on after an interruption.

ckpt/
  config.json, model.safetensors, reduction.json, tokenizer ...   the newest checkpoint
  recipe.toml            how it was trained
  training.json          options, and what every finished stage came to
  stages/<stage>/        the stage's own checkpoint (or the guide), figures.jsonl
  stages/<stage>/run-1/  figures.jsonl of each run, where several are averaged
  stages/events...       TensorBoard
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trbert_deploy.errors import CheckpointError, ConfigError
from trbert_deploy.fields import require_kind
from trbert_deploy.files import followed, read_json, write_json
from trbert_deploy.locks import hold
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.modeling.heads.registry import require_exits
from trbert_deploy.modeling.primitive_cache import bound_primitive_cache
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.replacing import is_empty
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training import processes
from trbert_deploy.training.aim import Aim
from trbert_deploy.training.averaging import clear_progress, planned_runs, train_averaged
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import Prepared, prepare
from trbert_deploy.training.recipe import EXITS, STAGES
from trbert_deploy.training.stages.guide import GUIDE_FILE, Guide, answers, make_guide
from trbert_deploy.training.stages.stage import Stage, make_stage
from trbert_deploy.training.validation import Evaluation, ValidatedPoint

RUN_FILE = "training.json"
RUN_VERSION = 6


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    Attributes:
        checkpoint: directory of the newest checkpoint.
        measure: what the validation rows are judged by: the task's first measure where they have
            labels, else ``agreement`` with the teacher.
        teacher_score: of the teacher on them, once it is finished.
        stages: validation after each finished stage that trained weights.
        points: the newest checkpoint at several thresholds; where it has exits, at each of them
            where no row leaves, and where those do that are as sure as its own rule asks.
    """

    checkpoint: Path
    measure: str
    teacher_score: float | None
    stages: dict[str, Evaluation]
    points: tuple[ValidatedPoint, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checkpoint": str(self.checkpoint)}


def train(
    options: TrainOptions,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
) -> TrainReport:
    """Run the stages that the recipe names, each from where it was interrupted.

    Under ``accelerate launch`` all processes call this alike; the first one writes the files,
    which the others must see too, and alone uses ``progress`` and ``note``.

    Args:
        output: directory of the run; the newest checkpoint lies directly in it.
        resume: go on with the run that is there; otherwise the directory must hold none. Nobody
            else may be training into it.
        note: told what a person should know.

    Raises:
        ConfigError: options out of range, or other options than those of the run to resume.
        CheckpointError, DataError, StorageError: the model or the data cannot be used.
    """
    bound_primitive_cache()  # of its default, 1024 primitives, more than 10 GB were held
    device = processes.join()
    if not processes.is_main():
        progress, note = no_progress, lambda message: None
    with ExitStack() as stack:
        locked = processes.gather([output.exists()])[0]  # as the main one sees it
        if locked:
            _lock(output, stack)
        record = _open_record(options, output, resume)
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        run = prepare(options, Path(scratch), device, note, progress)
        finished = {*record["stages"], *(["teacher"] if run.fine_tuned else [])}
        _check_stages(options, finished)
        _check_exits(options, run)
        processes.wait()  # until all have seen the directory as it was
        if not locked:
            if processes.is_main():
                followed(output).mkdir(parents=True, exist_ok=True)
            _lock(output, stack)
            record = _open_record(options, output, resume)  # another run may have come first
            processes.wait()
        if processes.is_main():
            write_json(output / RUN_FILE, record)
            _clear(record, output)  # for a run that was killed before it did
        processes.wait()
        run.checkpoint.model.to(run.device)
        for stage in STAGES:
            _do_stage(stage, run, options, output, record, progress, note)
    stages = {name: figures for name, figures in record["stages"].items() if figures}
    return TrainReport(
        checkpoint=output,
        measure=run.validator.measure,
        teacher_score=record["teacher_score"],
        stages={name: Evaluation.from_json(figures) for name, figures in stages.items()},
        points=tuple(ValidatedPoint.from_json(point) for point in record["points"]),
    )


def _do_stage(
    stage: str,
    run: Prepared,
    options: TrainOptions,
    output: Path,
    record: dict[str, Any],
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    """Run one stage if it is wanted, or load what it came to if it is done."""
    directory = output / "stages" / stage
    checkpoint = run.checkpoint
    model = checkpoint.model
    if stage in record["stages"]:
        if stage != "guide":
            model.take_over(load_checkpoint(directory).model)
        return
    if stage not in options.recipe.stages:
        return
    validator = replace(run.validator, progress=progress)
    guide_path = output / "stages" / "guide" / GUIDE_FILE
    if stage == "guide":
        making = (options.recipe.batch_tokens, run.device, progress)
        validation = answers(model, run.validator.rows, *making)
        record["teacher_score"] = replace(validator, teacher=validation).dense(model).score
        made = replace(make_guide(model, run.training, *making), validation=validation)
        if run.recombined:
            made = replace(made, answers=made.answers + answers(model, run.recombined, *making))
        record["stages"][stage] = {}
        if processes.is_main():
            made.save(guide_path)
            write_json(output / RUN_FILE, record)
        processes.wait()  # all read it
        return
    guide = None if stage == "teacher" else Guide.load(guide_path, run.validator.task)
    if guide is not None:
        validator = replace(validator, teacher=guide.validation)
    aim = Aim(options, validator, record["teacher_score"] or 0.0, note)
    if stage == "teacher" and run.fine_tuned:
        note(f"{options.model} answers already: no teacher stage")
    elif stage == "policy" and run.warm_start is not None:
        note(f"policies and encoder go on from {options.warm_start}: no policy stage")
        model.take_over(run.warm_start)
    else:
        if stage == "policy" and guide is not None:
            guide.project(model)
        if stage == EXITS:
            with torch.random.fork_rng():
                torch.manual_seed(options.recipe.seed)
                model.set_reduction(model.reduction.with_exits(ExitRule()))
        _run_stage(stage, run, options, directory, guide, aim, progress)
    found = None
    if stage == [name for name in options.recipe.stages if name != "guide"][-1] != "teacher":
        found, points = aim.finish(model)
        record["points"] = [point.to_json() for point in points]
    judged = validator.evaluate(model, found).to_json() if validator.can_judge else {}
    record["stages"][stage] = judged
    checkpoint.training = {"options": options.to_json(), "stages": dict(record["stages"])}
    processes.wait()  # all have read the best weights
    later = STAGES[STAGES.index(stage) + 1 :]
    record["keeps_runs"] = not set(later).isdisjoint(options.recipe.stages)
    if processes.is_main():
        save_checkpoint(checkpoint, directory)
        save_checkpoint(checkpoint, output)
        write_json(output / RUN_FILE, record)
        _clear(record, output)


def _clear(record: dict[str, Any], output: Path) -> None:
    """Remove what finished stages needed to go on with, once that is recorded."""
    for stage in record["stages"]:
        clear_progress(output / "stages" / stage, keep_results=record.get("keeps_runs", True))


def _lock(output: Path, stack: ExitStack) -> None:
    """Keep other runs out of a directory until this one ends; the main process does so for all.

    Raises:
        ConfigError: another run is at work in it.
    """
    busy = False
    if processes.is_main():
        try:
            stack.enter_context(hold(output))
        except BlockingIOError:
            busy = True
    if any(processes.gather([busy])):
        raise ConfigError(
            f"another training run is writing into {output}: wait until it ends, or choose "
            "another --output"
        )


def _open_record(options: TrainOptions, output: Path, resume: bool) -> dict[str, Any]:
    """The run's record: a new one, or the one to go on with."""
    record: dict[str, Any]
    path = output / RUN_FILE
    if not path.exists():
        if resume:
            raise CheckpointError(f"{output} holds no run to resume: it has no {RUN_FILE}")
        if output.exists() and not is_empty(output):
            raise ConfigError(
                f"{output} is not empty: choose another --output, or remove what is there"
            )
        return {
            "version": RUN_VERSION,
            "options": options.to_json(),
            "teacher_score": None,
            "stages": {},
            "points": [],
            "keeps_runs": True,  # for the next stage's to go on from
        }
    if not resume:
        raise ConfigError(f"{output} holds a run already: add --resume, or choose another --output")
    record = read_json(path, CheckpointError)
    if (version := record.get("version")) != RUN_VERSION:
        raise CheckpointError(
            f"{path} has version {version}: this release goes on with runs of version "
            f"{RUN_VERSION}; train into a new directory, or go on with the release that began it"
        )
    try:
        changed = options.changed(TrainOptions.from_json(record.get("options", {})))
        require_kind(record.get("stages"), Mapping[str, Any], "the record of its stages")
    except ConfigError as problem:
        raise CheckpointError(f"{path} is damaged: {problem}; train into a new directory") from None
    if changed:
        raise ConfigError(
            f"{output} was trained with other options ({', '.join(changed)}): "
            "resume with the same ones, or choose another --output"
        )
    return record


def _check_stages(options: TrainOptions, done: set[str]) -> None:
    """Refuse stages without those that they build on; the joint stage may be left out."""
    available = done | set(options.recipe.stages)
    for place, stage in enumerate(STAGES):
        missing = [name for name in STAGES[:place] if name not in available | {"joint"}]
        if stage in options.recipe.stages and missing:
            raise ConfigError(
                f"stage {stage} needs the stages {', '.join(missing)}, which are not done: "
                "add them to the recipe's stages"
            )


def _check_exits(options: TrainOptions, run: Prepared) -> None:
    """Refuse exits where no row could leave, before anything is trained.

    Raises:
        ConfigError: there are no cuts, or answers do not tell how sure they are.
    """
    if EXITS in options.recipe.stages:
        model = run.checkpoint.model
        require_exits(model.spec)
        model.reduction.with_exits(ExitRule())


def _run_stage(
    stage: str,
    run: Prepared,
    options: TrainOptions,
    directory: Path,
    guide: Guide | None,
    aim: Aim,
    progress: Progress,
) -> None:
    """Run one trained stage on the run's model, in place."""
    model = run.checkpoint.model
    rows = run.rows_of(stage)

    def begin() -> Stage:
        return make_stage(stage, model, options, guide, aim.prepare(stage, model))

    runs = planned_runs(stage, options, rows, directory, run.device)
    train_averaged(runs, model, begin, partial(aim.judge, stage, model), rows, progress)

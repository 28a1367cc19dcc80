"""How trained checkpoints answer labelled texts, beside the dense model that they were made from.

    python benchmarks/quality/judge.py --teacher TEACHER --test FILE CHECKPOINT [CHECKPOINT ...]

Every checkpoint runs at its own thresholds, in float32. Differences are taken text by text, from
the teacher and from the first checkpoint, with their 95 % intervals by paired bootstrap.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from setting import Setting, set_up_torch, teacher_in
from students import Answers, Student, answer, by_policy

from trbert_deploy import console
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import TrbertError
from trbert_deploy.evaluation.metrics import paired_change
from trbert_deploy.files import write_json
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.tasks.task import Task, mean_agreement
from trbert_deploy.training.data import TrainingRow, targets_of

BATCH_TOKENS = 16384


def judged(
    task: Task, spec: EncoderSpec, rows: list[TrainingRow], runs: dict[str, Answers]
) -> dict[str, dict[str, Any]]:
    """Figures of each run; the first one is the teacher."""
    teacher, *students = runs
    targets = targets_of(task, rows)
    statistics = {name: task.statistics(run.outputs, targets) for name, run in runs.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        figures[name] = {
            **task.metrics(run.outputs, targets),
            "flops_speedup": run.speedup(spec, rows),
            "agreement": mean_agreement(task, runs[teacher].outputs, run.outputs),
        }
        for other in (teacher, students[0]):
            if name not in (teacher, other):
                change = paired_change(task.measured, statistics[other], statistics[name])
                points = (change.value, *change.interval)
                figures[name][f"over {other}"] = [100.0 * each for each in points]
    return figures


@click.command()
@click.option("--teacher", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--test", required=True, metavar="FILE", help="Labelled texts.")
@click.option("--max-length", type=click.IntRange(min=3), help="Most tokens of a text.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Figures as JSON.")
@click.argument(
    "checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
def main(
    teacher: Path,
    test: str,
    max_length: int | None,
    json_file: Path | None,
    checkpoints: tuple[Path, ...],
) -> None:
    """Judge checkpoints by labelled texts, beside their teacher."""
    set_up_torch(None)
    try:
        setting = Setting(teacher_in(teacher), test, test, max_length=max_length)
        rows = setting.validation_rows
        students = {"teacher": Student(setting.load_teacher(""))}
        for path in checkpoints:
            model = load_checkpoint(path).model.to(setting.device)
            students[str(path)] = Student(model, choose=by_policy(model))
        runs = {}
        for name, student in students.items():
            with console.progress(name) as progress:
                runs[name] = answer(student, rows, BATCH_TOKENS, setting.device, progress)
        figures = judged(setting.task, setting.spec, rows, runs)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    for name, values in figures.items():
        told = [f"{value:.4f}" for value in values.values() if isinstance(value, float)]
        for other, (change, low, high) in (
            (key, value) for key, value in values.items() if isinstance(value, list)
        ):
            told.append(f"{other} {change:+.2f} [{low:+.2f}, {high:+.2f}]")
        console.out.print(f"{name}  {'  '.join(told)}", soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"rows": len(rows), "models": figures})


if __name__ == "__main__":
    main()

"""Trains rows of a quality table: our chain and its baselines, all from one teacher.

    python benchmarks/quality/compare.py --teacher RUN_DIR --train FILE --validation FILE \\
        --output DIR --target-speedup 3 --row ours --row truncate [--test FILE]

A row that was stopped goes on where it was, and one that is done is skipped. Without --test the
validation data alone is looked at; a later call with it adds the test figures. Several calls may
work in one DIR at a time. tables.py makes the table.

DIR/
  setting.json                           what all rows share
  guide-<cuts>.safetensors               the teacher's answers and saliency on the training data
  <row>-<speed-up>-s<seed>/<stage>/      checkpoints; one that has begun goes on from here
  results/<row>-<speed-up>-s<seed>.json  figures
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rows import ROWS, THRESHOLDED, train_row, training_seconds
from runs import Run
from scores import retrieved, score
from setting import Setting, locked, set_up_torch, teacher_in
from students import Student, answer

from trbert_deploy import console
from trbert_deploy.commands.options import training_options
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.options import TARGET_SPEEDUP, TrainOptions
from trbert_deploy.training.recipe import Recipe

#: FLOPs speed-ups at which rows with a threshold are looked at beside their own.
OTHER_SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
#: Options of a training run that the rows decide.
DECIDED = ("model", "max_drop")


def finish(run: Run, test: str | None) -> dict[str, Any]:
    """Train what is not trained yet, and evaluate what is not evaluated yet.

    Args:
        test: test data, if it may be looked at.

    Returns:
        The row's figures, which are saved.
    """
    path = run.output / "results" / f"{run.name}.json"
    with locked(run.directory):
        if run.row != "teacher":
            run.claim()
        figures = read_json(path) if path.exists() else {}
        missing = {"validation": run.setting.validation} | ({"test": test} if test else {})
        missing = {split: data for split, data in missing.items() if split not in figures}
        if missing:
            student = train_row(run)
        for split, data in missing.items():
            figures |= {
                "row": run.row,
                "task": run.setting.task.name,
                "problem": run.setting.task.problem,
                "variant": run.variant,
                "target_speedup": run.options.target_speedup,
                "seed": run.options.recipe.seed,
                "options": run.options.to_json(),
                "training_seconds": training_seconds(run),
                split: figures_on(run, student, split, data),
            }
            write_json(path, figures)
    return figures


def figures_on(run: Run, student: Student, split: str, data: str) -> dict[str, Any]:
    """Figures of a student on a file of labelled texts; of a sentence encoder, on texts to validate
    and on questions with paragraphs to test.
    """
    setting, tokens = run.setting, run.options.recipe.batch_tokens
    with autocast(setting.device):
        if split == "test" and not setting.has_labels:
            found, answers, rows = retrieved(setting, student, data, tokens, run.progress)
        else:
            rows = setting.validation_rows if split == "validation" else setting.read(data)
            answers = answer(student, rows, tokens, setting.device, run.progress)
            found = score(setting, rows, answers.outputs)
    figures = {
        "data": data,
        "rows": len(rows),
        "score": found.value,
        "metrics": found.metrics,
        "flops_speedup": answers.speedup(setting.spec, rows),
        "statistics": found.statistics.tolist(),
    }
    if split == "validation":  # dense on all test rows would take longer than the row itself
        validator = setting.validator(rows, tokens, run.progress)
        figures["dense_score"] = validator.dense(student.model).score
        if run.row in THRESHOLDED:
            points = validator.operating_points(student.model, OTHER_SPEEDUPS)
            figures["points"] = [point.to_json() for point in points]
    return figures


def recipe_of(row: str, name: str | None, seed: int | None) -> Recipe:
    """The recipe that a row is trained by.

    Raises:
        ConfigError: there is none of this name, or it has not the row's estimator.
    """
    recipe = Recipe.found(name or ("tr-bert" if row == "tr-bert" else "gates"))
    estimator = "reinforce" if row == "tr-bert" else "gates"
    if recipe.estimator != estimator:
        raise ConfigError(
            f"row {row} takes a recipe of the estimator {estimator}, and {name} has "
            f"{recipe.estimator}: give the row a recipe of its own"
        )
    return recipe if seed is None else replace(recipe, seed=seed)


@click.command(epilog="Rows: " + "; ".join(f"{row}: {what}" for row, what in ROWS.items()) + ".")
@click.option(
    "--teacher",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="RUN_DIR",
    help="Run of trbert-deploy train whose teacher stage is done, or a fine-tuned model.",
)
@click.option("--test", metavar="FILE", help="Test data; left alone where it is not given.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the comparison.",
)
@click.option("--row", "rows", required=True, multiple=True, type=click.Choice(list(ROWS)))
@click.option("--variant", default="", help="Name that tells rows with other options apart.")
@click.option("--texts", type=click.IntRange(min=1), help="Random training texts [default: all].")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="Of the rows' training, but for the stages [default: gates; for the row tr-bert tr-bert].",
)
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's.")
@training_options
def main(
    teacher: Path,
    test: str | None,
    output: Path,
    rows: tuple[str, ...],
    variant: str,
    texts: int | None,
    threads: int | None,
    recipe: str | None,
    seed: int | None,
    validation: str | None,
    target_speedup: float | None,
    **options: Any,
) -> None:
    """Train rows of a quality table, and write down what they come to."""
    set_up_torch(threads)
    try:
        if validation is None:
            raise ConfigError("no validation data: give --validation FILE, the same for all rows")
        model = teacher_in(teacher)
        setting = Setting(model, options["train"], validation, texts, options["max_length"])
        setting.claim(output)
        for row in rows:
            chosen = TrainOptions(
                model=model,
                validation=validation,
                target_speedup=TARGET_SPEEDUP if target_speedup is None else target_speedup,
                recipe=recipe_of(row, recipe, seed),
                **options,
            )
            run = Run(row, setting, chosen, output, "" if row == "teacher" else variant)
            with console.progress(run.name) as progress:
                figures = finish(replace(run, progress=progress), test)
            told = "  ".join(
                f"{split} {figures[split]['score']:.2%} ({figures[split]['flops_speedup']:.2f}x)"
                for split in ("validation", "test")
                if split in figures
            )
            console.out.print(f"{run.name}  {told}")
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


main.params = [option for option in main.params if option.name not in DECIDED]

if __name__ == "__main__":
    main()

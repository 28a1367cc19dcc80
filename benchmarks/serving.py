"""How many requests a second a service answers, and how soon, beside what one would run otherwise.

    python benchmarks/serving.py BUNDLE --texts FILE.jsonl --checkpoint CHECKPOINT

The bundle must be a classifier. Its service answers with tokens dropped (``reduced``) and without
(``dense``); with ``--checkpoint`` the dense model, or the teacher, answers behind FastAPI and
transformers (``transformers_server.py``); with ``--infinity COMMAND`` behind infinity-emb, whose
command is the ``infinity_emb`` of its environment, by its torch engine; with ``--infinity-onnx
FOLDER`` by its optimum engine, FOLDER being the checkpoint as optimum exports it. All are asked the
same texts, one in a request, by wrk over the loopback, in turns; a figure is the median of the
rounds. Then the library answers the same texts itself, without HTTP: one text at a time, and 32 at
a time.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from trbert_deploy import console, load
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.commands.options import json_option
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import write_json
from trbert_deploy.machine import describe_machine
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.reading.examples import read_examples

HERE = Path(__file__).parent
#: Sends the bodies of a file, one after the other, and tells what came of it as JSON.
WRK_SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local place = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  place = place %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[place])
end
done = function(summary, latency, requests)
  local wrong = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "seconds": %%.6f, "wrong": %%d, "p50_ms": %%.3f, "p99_ms": %%.3f}\\n',
    summary.requests, summary.duration / 1e6,
    wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Service:
    """A service that can be asked.

    Attributes:
        name: in the table.
        url: that is asked.
        bodies: file of requests, one a line.
    """

    name: str
    url: str
    bodies: Path


@dataclass(frozen=True)
class Figures:
    """What a service did in the median of the rounds.

    Attributes:
        service: its name.
        callers: that asked at a time.
        requests_per_s: answered.
        p50_ms, p99_ms: from a request to its answer.
        wrong: requests without a good answer, of all rounds.
    """

    service: str
    callers: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    wrong: int


@contextmanager
def running(command: Sequence[str], port: int, threads: int) -> Iterator[None]:
    """A service that answers at a port, until it is not needed any more.

    Args:
        threads: of its model, for those that take them from the environment.
    """
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, **silent) as process:
        try:
            stop = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > stop:
                        sys.exit(f"error: this does not answer: {' '.join(command)}")
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()


def asked(service: Service, callers: int, seconds: int) -> dict[str, float]:
    """What wrk tells of a service."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT % service.bodies)
        script.flush()
        command = ["wrk", "-t1", f"-c{callers}", f"-d{seconds}s", "--timeout=60s"]
        done = subprocess.run(
            [*command, "-s", script.name, service.url], capture_output=True, text=True, check=True
        )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(
    services: Sequence[Service], callers: int, seconds: int, rounds: int, progress: Progress
) -> list[Figures]:
    """The figures of services that are asked in turns."""
    found: dict[str, list[dict[str, float]]] = {service.name: [] for service in services}
    for number in range(rounds):
        for place, service in enumerate(services):
            done = number * len(services) + place
            progress(f"{callers} callers: {service.name}", done, rounds * len(services))
            found[service.name].append(asked(service, callers, seconds))
    progress(f"{callers} callers", rounds * len(services), rounds * len(services))
    return [
        Figures(
            name,
            callers,
            statistics.median(each["requests"] / each["seconds"] for each in told),
            statistics.median(each["p50_ms"] for each in told),
            statistics.median(each["p99_ms"] for each in told),
            int(sum(each["wrong"] for each in told)),
        )
        for name, told in found.items()
    ]


def library_figures(
    bundle: Path, texts: Sequence[str], threads: int, seconds: int
) -> list[Figures]:
    """What the library does with the same texts, without HTTP."""
    model = load(bundle, threads=threads)
    found = []
    for batch in (1, 32):
        spent: list[float] = []
        answered, place, start = 0, 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            some = [texts[(place + each) % len(texts)] for each in range(batch)]
            before = time.perf_counter()
            model(some)
            spent.append(1e3 * (time.perf_counter() - before))
            answered, place = answered + batch, place + batch
        total = time.perf_counter() - start
        p99 = statistics.quantiles(spent, n=100)[-1] if len(spent) > 1 else spent[0]
        median = statistics.median(spent)
        found.append(Figures(f"library, {batch} at a time", 1, answered / total, median, p99, 0))
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--texts", "source", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--infinity", metavar="COMMAND", help="That of infinity-emb; needs --checkpoint.")
@click.option(
    "--infinity-onnx",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The checkpoint by optimum, for infinity-emb's optimum engine.",
)
@click.option("--callers", multiple=True, type=int, default=(1, 8, 32), show_default=True)
@click.option("--seconds", default=20, show_default=True, help="Of each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of each model.")
@click.option("--port", default=8131, show_default=True, help="And those behind it.")
@json_option
def main(
    bundle: Path,
    source: Path,
    checkpoint: Path | None,
    infinity: str | None,
    infinity_onnx: Path | None,
    callers: tuple[int, ...],
    seconds: int,
    rounds: int,
    threads: int,
    port: int,
    json_path: Path | None,
) -> None:
    """Measure services of BUNDLE."""
    try:
        if shutil.which("wrk") is None:
            raise ConfigError("wrk is not installed, which asks the services: apt-get install wrk")
        model = load(bundle)
        texts = [str(each.text) for each in read_examples(source, model.task, with_targets=False)]
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def bodies(name: str, make: Any) -> Path:
            path = place / f"{name}.jsonl"
            path.write_text("".join(json.dumps(make(text)) + "\n" for text in texts))
            return path

        plain = bodies("plain", lambda text: {"inputs": text})
        serve = [sys.executable, "-m", "trbert_deploy", "serve", str(bundle)]
        serve += ["--threads", str(threads), "--port"]
        commands = {
            "reduced": [*serve, str(port)],
            "dense": [*serve, str(port + 1), "--dense-below", str(MOST_TOKENS)],
        }
        if checkpoint is not None:
            own = [sys.executable, str(HERE / "transformers_server.py"), str(checkpoint)]
            commands["transformers"] = [*own, "--threads", str(threads), "--port", str(port + 2)]
        services = [
            Service(name, f"http://127.0.0.1:{port + number}/predict", plain)
            for number, name in enumerate(commands)
        ]
        if infinity is not None:
            if checkpoint is None or shutil.which(infinity) is None:
                sys.exit("error: --infinity needs --checkpoint, and a command that there is")
            engine, folder = "torch", checkpoint
            if infinity_onnx is not None:
                engine, folder = "optimum", infinity_onnx
            served = [infinity, "v2", "--model-id", str(folder), "--dtype", "float32"]
            served += ["--engine", engine, "--device", "cpu", "--served-model-name", "dense"]
            commands["infinity-emb"] = [*served, "--port", str(port + 3)]
            listed = bodies("listed", lambda text: {"model": "dense", "input": [text]})
            services.append(
                Service("infinity-emb", f"http://127.0.0.1:{port + 3}/classify", listed)
            )
        for number, command in enumerate(commands.values()):
            stack.enter_context(running(command, port + number, threads))
        with console.progress() as progress:
            figures = [
                each
                for count in callers
                for each in measure(services, count, seconds, rounds, progress)
            ]
        services.clear()
    figures += library_figures(bundle, texts, threads, seconds)
    print("| service | callers | requests/s | median ms | p99 ms | without a good answer |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for each in figures:
        print(
            f"| {each.service} | {each.callers} | {each.requests_per_s:.1f} | {each.p50_ms:.1f} | "
            f"{each.p99_ms:.1f} | {each.wrong} |"
        )
    if json_path is not None:
        told = {"machine": describe_machine(), "figures": [asdict(each) for each in figures]}
        write_json(json_path, told)


if __name__ == "__main__":
    main()

"""What is killed: a process that has imported everything forks one for each time it is asked to.

Requests are lines of JSON on stdin: ``[key, action, arguments, directory]`` prepares an action and
does it once; ``[key, directory]`` does it in a fork, whose id is answered, which waits for another
line before it begins, and whose exit status is the last answer. What costs time and writes no file
of the product (tracing graphs, comparing them, building engines) is done the first time, and its
results are handed out after it.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trbert_deploy.exporters import export as exporting
from trbert_deploy.exporters.onnx import trace
from trbert_deploy.files import write_json, write_text
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.runtime.autotune import cache
from trbert_deploy.training import loop
from trbert_deploy.training import run as running
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.prepare import prepare as prepared

_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)

#: Does its work in a directory.
Action = Callable[[Path], object]


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function's results, in the order of its calls, for forks to hand out again."""
    results: list[Any] = []
    owner, calls = os.getpid(), 0

    def remembered(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if os.getpid() == owner:
            result = function(*arguments, **options)
            result = list(result) if hasattr(result, "__next__") else result
            results.append(copy.deepcopy(result))
            return result
        calls += 1
        return copy.deepcopy(results[(calls - 1) % len(results)])

    return remembered


def export(checkpoint: str) -> Action:
    """Exports over place/bundle."""
    trace._export = remembering(trace._export)
    exporting.compare_graphs = remembering(exporting.compare_graphs)
    exporting.compare_chains = remembering(exporting.compare_chains)
    return lambda place: exporting.export_bundle(Path(checkpoint), place / "bundle")


def build_engine(lengths: list[int]) -> Action:
    """Builds engines over those of place/bundle."""
    from trbert_deploy.exporters.tensorrt import engine_build

    engine_build.build_engine = remembering(engine_build.build_engine)
    engine_build.compare_precision = remembering(engine_build.compare_precision)
    options = engine_build.EngineOptions(
        lengths=tuple(lengths),
        batches=(1, 2),
        compute_capability="8.6",
        flavour="rtx",
        force=True,
    )
    return lambda place: engine_build.build_engines(place / "bundle", options)


def save(checkpoint: str) -> Action:
    """Saves a checkpoint over place/ckpt."""
    return partial(_save, load_checkpoint(Path(checkpoint)))


def _save(checkpoint: Any, place: Path) -> None:
    save_checkpoint(checkpoint, place / "ckpt")


class _NoBoard:
    """In place of TensorBoard's writer, whose thread only adds to a file of its own."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def add_scalar(self, *_: Any) -> None: ...

    def close(self) -> None: ...


def training(**options: Any) -> Action:
    """Trains into place/ckpt, from where an earlier run left off."""
    loop.SummaryWriter = _NoBoard
    scratch = Path(tempfile.mkdtemp())  # which the fork's tokenizer stays in
    running.prepare = remembering(lambda options, _, *rest: prepared(options, scratch, *rest))
    chosen = TrainOptions.from_json(options)

    def act(place: Path) -> None:
        torch.manual_seed(0)
        resume = (place / "ckpt" / running.RUN_FILE).exists()
        running.train(chosen, place / "ckpt", resume=resume)

    return act


#: Of what is remembered.
CONDITIONS = {"bundle": "b" * 64}


def report() -> Action:
    """Writes a report's files and what is remembered of a machine, over others."""

    def act(place: Path) -> None:
        cache.user_cache_path = lambda name: place / name
        cache.remembered("backend", CONDITIONS, lambda: {"backend": "new"}, print)
        write_json(place / "figures.json", {"report": "new"})
        write_text(place / "report.html", "new")

    return act


ACTIONS = {
    "export": export,
    "build-engine": build_engine,
    "save": save,
    "train": training,
    "report": report,
}


def _line() -> str:
    """A line of stdin, and nothing behind it: that is for the fork."""
    read = b""
    while not read.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit()
        read += byte
    return read.decode().strip()


def main() -> None:
    torch.set_num_threads(1)
    actions: dict[str, Action] = {}
    while True:
        key, *how, place = json.loads(_line())
        if how:
            name, arguments = how
            actions[key] = ACTIONS[name](**arguments)
            actions[key](Path(place))
            # A fork must not end what its parent opened: it would wait for threads that it has not.
            gc.collect()
            gc.freeze()
            print("ready", flush=True)
            continue
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
            os.read(0, 1)
            status = 1
            try:
                actions[key](Path(place))
                status = 0
            except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
                traceback.print_exc()
            os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

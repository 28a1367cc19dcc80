"""A model repository for the server, with a bundle in it.

OUT/
  README.md             what it is, and how to start the server
  NAME/config.pbtxt     tensors, batching, instances, and what the bundle is loaded with
  NAME/1/model.py       hands what the server asks to the runtime
  NAME/1/bundle/        a copy of the bundle

or, of the whole chain as one graph, instead of the last two:

  NAME/1/model.onnx, NAME/1/weights.safetensors
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    ENGINES,
    MANIFEST,
    WEIGHTS,
    GraphDescription,
    TensorDescription,
)
from trbert_deploy.errors import ConfigError
from trbert_deploy.files import read_directory, require_directory, staged_directory
from trbert_deploy.replacing import STAGING_PREFIX
from trbert_deploy.runtime.backends.registry import BACKENDS
from trbert_deploy.serving.tensors import inputs_of, outputs_of
from trbert_deploy.serving.triton.config import config_text
from trbert_deploy.serving.triton.one_graph import graph_config_text
from trbert_deploy.serving.triton.settings import Settings
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task

README, CONFIG, VERSION, MODEL, BUNDLE = "README.md", "config.pbtxt", "1", "model.py", "bundle"
GRAPH = "model.onnx"
#: Stands in an address, and names a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What Python and killed writers leave in folders.
_LEFT = ("__pycache__", f"{STAGING_PREFIX}*")

_MODEL_TEXT = '''\
"""Lets the server's Python backend run the bundle that lies beside this file."""

from trbert_deploy.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(
    bundle: Path,
    output: Path,
    name: str | None = None,
    settings: Settings = Settings(),
    *,
    fused: bool = False,
) -> str:
    """Write a repository of one model; an older one of it at ``output`` is replaced at the end.

    Args:
        bundle: is copied, with its engines.
        output: directory to make.
        name: of the model; that of the bundle's folder by default.
        settings: how the server runs it; what it is loaded with says nothing of one graph.
        fused: the bundle's whole chain as one graph, tokens in, instead of texts.

    Returns:
        The model's name.

    Raises:
        StorageError, BundleError: as ``Bundle.open``; or ``output`` is a file.
        ConfigError: a name that is none, ``output`` is something else than a repository of this
            model alone, or the bundle has no graph of its whole chain.
    """
    require_directory(bundle, "bundle", "trbert-deploy export CHECKPOINT")
    name = bundle.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the model's name is {name!r}: expected ASCII letters, digits and . _ -, a letter or "
            "digit first; give --name"
        )
    _require_replaceable(output, name)
    with staged_directory(output) as staging:
        version = staging / name / VERSION
        version.mkdir(parents=True)
        if fused:
            chain = read_directory(bundle, lambda: _copied_graph(bundle, version))
            config, readme = graph_config_text(name, chain, settings), _graph_readme(name, chain)
        else:
            copied = read_directory(bundle, lambda: _copied(bundle, version / BUNDLE))
            task = task_of(copied.manifest.encoder)
            config, readme = config_text(name, task, settings), _readme(name, task, settings)
            (version / MODEL).write_text(_MODEL_TEXT, encoding="utf-8")
        (staging / name / CONFIG).write_text(config, encoding="utf-8")
        (staging / README).write_text(readme, encoding="utf-8")
    return name


def _require_replaceable(output: Path, name: str) -> None:
    """Refuse to replace what is no repository of one model.

    Raises:
        ConfigError: it is something else.
    """
    version = output / name / VERSION
    if not output.is_dir() or not _names(output):
        return
    if (
        _names(output) == {README, name}
        and _names(output / name) == {CONFIG, VERSION}
        and (
            (_names(version) == {MODEL, BUNDLE} and (version / BUNDLE / MANIFEST).is_file())
            or _names(version) == {GRAPH, WEIGHTS}
        )
    ):
        return
    raise ConfigError(
        f"{output} exists and is no repository of the model {name} alone: choose another folder, "
        "or remove it"
    )


def _names(folder: Path) -> set[str]:
    """What lies in a folder; nothing in one that is not there."""
    if not folder.is_dir():
        return set()
    return {each.name for each in folder.iterdir() if not any(map(each.match, _LEFT))}


def _copied(bundle: Path, target: Path) -> Bundle:
    """A copy of a bundle, verified when it is there."""
    shutil.rmtree(target, ignore_errors=True)  # begun anew: the bundle was replaced meanwhile
    target.mkdir()
    for name in (MANIFEST, *Bundle.open(bundle, verify=False).manifest.files):
        shutil.copyfile(bundle / name, target / name)
    if (bundle / ENGINES).is_dir():
        ignored = shutil.ignore_patterns(*_LEFT)
        shutil.copytree(bundle / ENGINES, target / ENGINES, ignore=ignored)
    return Bundle.open(target)


def _copied_graph(bundle: Path, target: Path) -> GraphDescription:
    """The graph of the whole chain, copied with its weights from a bundle that was verified.

    Raises:
        ConfigError: there is none.
    """
    opened = Bundle.open(bundle)
    chain = opened.require_chain()
    with opened.reading(chain.file, WEIGHTS) as path:
        shutil.copyfile(path, target / GRAPH)
        shutil.copyfile(path.with_name(WEIGHTS), target / WEIGHTS)
    return chain


def _graph_readme(name: str, chain: GraphDescription) -> str:
    def told(tensors: Iterable[TensorDescription]) -> str:
        return ", ".join(
            f"`{each.name}` {each.dtype} [{', '.join(map(str, each.shape))}]" for each in tensors
        )

    return f"""\
# {name}

A model repository for NVIDIA's Triton Inference Server, written by `trbert-deploy triton-repo
--fused`. The server's ONNX Runtime runs it, without Python:

    tritonserver --model-repository .

- Takes {told(chain.inputs)}: tokens with special tokens.
- Gives {told(chain.outputs)}: what the head says, and which tokens survived each cut, then -1.

`{name}/{CONFIG}` may be edited: batches and instances.
"""


def _readme(name: str, task: Task, settings: Settings) -> str:
    known = BACKENDS.get(settings.loading.backend)
    extras = ("cpu", "gpu") if known is None else known.extras
    installed = " or ".join(f"`pip install 'trbert-deploy[{extra}]'`" for extra in extras)
    taken = ", ".join(f"`{each}`" for each in inputs_of(task))
    given = ", ".join(
        f"`{each}` " + ("TYPE_STRING [N, 1]" if width is None else f"TYPE_FP32 [N, {width}]")
        for each, width in outputs_of(task).items()
    )
    return f"""\
# {name}

A model repository for NVIDIA's Triton Inference Server, written by `trbert-deploy triton-repo`:

    tritonserver --model-repository .

The server is to be 24.11 or newer: the Python backend of older ones does not take numpy 2. Its
Python needs trbert-deploy with the extra of the backend `{settings.loading.backend}`: {installed}.

- Takes {taken}: TYPE_STRING [N, 1], in UTF-8.
- Gives {given}: in `answer` is what `trbert-deploy predict` prints of a text.
- A bad text is an error of its own request, and of no other that runs with it.

`{name}/{CONFIG}` may be edited: batches, instances, and what the bundle is loaded with.
"""

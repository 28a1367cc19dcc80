"""The cases: a number -> what is done to which bundle."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.mutators import damaged, edited, renumbered, to_text

from trbert_deploy.bundle.manifest import DIGEST, ENGINES, MANIFEST, SAMPLES, TOKENIZER, WEIGHTS

#: What may come of a case besides one line of an error.
SAME = "the original's answers"  # the damage says nothing
ASKED = "what the manifest asks for"  # its rules, labels and longest row
ANY = "any answer"  # the content is another one, and says so


@dataclass(frozen=True)
class Case:
    """A damaged bundle.

    Attributes:
        number: repeats it.
        kind: what was done.
        bundle: name of the original.
        files: path in the bundle -> its bytes, or what makes it otherwise.
        may: what may come of it.
        manifest_only: whether the files beside the manifest are not even looked at.
        engines: whether the engine set is read instead.
        backend: what opens it.
    """

    number: int
    kind: str
    bundle: str
    files: Mapping[str, bytes | Callable[[Path], object] | None]
    may: str
    manifest_only: bool = False
    engines: bool = False
    backend: str = "onnxruntime"


@dataclass(frozen=True)
class Original:
    """A bundle before the damage: its directory, its files and what its manifest says."""

    path: Path
    contents: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Original:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return cls(path, {str(file.relative_to(path)): file.read_bytes() for file in files})

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.contents[MANIFEST])

    @property
    def plain(self) -> list[str]:
        """Names of its files beside the manifest, engines left out."""
        return [name for name in self.contents if "/" not in name and name != MANIFEST]

    @property
    def engine_manifest(self) -> str | None:
        names = (name for name in self.contents if name.startswith(f"{ENGINES}/"))
        return next((name for name in names if name.endswith(MANIFEST)), None)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def signed(content: dict[str, Any]) -> bytes:
    """A manifest's bytes with the digest that fits, as another program could have written it."""
    content = {key: value for key, value in content.items() if key != DIGEST}
    digest = sha256_of(to_text(content, sort_keys=True).encode())
    return to_text({**content, DIGEST: digest}).encode()


def resigned(original: Original, files: dict[str, bytes]) -> dict[str, bytes]:
    """Changed files with a manifest that lists their digests."""
    manifest = original.manifest
    manifest["files"].update({name: sha256_of(content) for name, content in files.items()})
    return {**files, MANIFEST: signed(manifest)}


def _edited_manifest(original: Original, rng: random.Random) -> dict[str, Any]:
    content = {key: value for key, value in original.manifest.items() if key != DIGEST}
    found = edited(content, rng)
    return found if isinstance(found, dict) else {"": found}


def _signed_manifest(original: Original, rng: random.Random) -> dict[str, Any]:
    return {"files": {MANIFEST: signed(_edited_manifest(original, rng))}, "may": ASKED}


def _manifest_alone(original: Original, rng: random.Random) -> dict[str, Any]:
    return {**_signed_manifest(original, rng), "manifest_only": True}


def _unsigned_manifest(original: Original, rng: random.Random) -> dict[str, Any]:
    text = to_text(edited(original.manifest, rng), indent=rng.choice((None, 2)))
    return {"files": {MANIFEST: text.encode()}, "may": SAME}


def _damaged_manifest(original: Original, rng: random.Random) -> dict[str, Any]:
    return {"files": {MANIFEST: damaged(original.contents[MANIFEST], rng)}, "may": SAME}


def _damaged_file(original: Original, rng: random.Random) -> dict[str, Any]:
    name = rng.choice(original.plain)
    return {"files": {name: damaged(original.contents[name], rng)}, "may": SAME}


def _swapped_files(original: Original, rng: random.Random) -> dict[str, Any]:
    one, other = rng.sample(sorted({*original.plain, MANIFEST}), 2)
    contents = original.contents
    if MANIFEST in (one, other) or rng.random() < 0.5:
        return {"files": {one: contents[other], other: contents[one]}, "may": SAME}
    return {"files": resigned(original, {one: contents[other], other: contents[one]}), "may": ANY}


def _other_kind(original: Original, rng: random.Random) -> dict[str, Any]:
    """Something else than a file, or none; what it links to is no matter if the bytes are right."""
    name = rng.choice(sorted({*original.plain, MANIFEST}))
    makers: tuple[Callable[[Path], object] | None, ...] = (
        None,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to(original.path / name),
        lambda path: path.symlink_to(original.path),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("nowhere"),
        lambda path: os.mkfifo(path),
        lambda path: (path.write_bytes(original.contents[name]), path.chmod(0)),
    )
    return {"files": {name: rng.choice(makers)}, "may": SAME}


def _extra_file(original: Original, rng: random.Random) -> dict[str, Any]:
    name = rng.choice(
        ("extra", ".hidden", "segment_9.onnx", "weights.safetensors.data", "engines.json")
    )
    return {"files": {name: rng.randbytes(64)}, "may": SAME}


def _tokenizer(original: Original, rng: random.Random) -> dict[str, Any]:
    content = original.contents[TOKENIZER]
    if rng.random() < 0.3:
        changed = damaged(content, rng)
    else:
        data = json.loads(content)
        vocabulary = data["model"]["vocab"]
        if rng.random() < 0.8:  # most places are words: damage the rest as well
            data["model"]["vocab"] = {}
            data = edited(data, rng)
            if isinstance(data, dict) and isinstance(data.get("model"), dict):
                data["model"].setdefault("vocab", vocabulary)
                data["model"]["vocab"] = data["model"]["vocab"] or vocabulary
        else:
            data = edited(data, rng)
        changed = to_text(data).encode()
    return {"files": resigned(original, {TOKENIZER: changed}), "may": ANY}


def _samples(original: Original, rng: random.Random) -> dict[str, Any]:
    lines = original.contents[SAMPLES].decode().splitlines()
    if rng.random() < 0.5:
        changed = damaged(original.contents[SAMPLES], rng)
    else:
        place = rng.randrange(len(lines))
        lines[place] = to_text(edited(json.loads(lines[place]), rng))
        changed = "\n".join(lines).encode()
    return {"files": resigned(original, {SAMPLES: changed}), "may": SAME}


def _graph(original: Original, rng: random.Random) -> dict[str, Any]:
    backend, variant = rng.choice((*[("onnxruntime", "fused")] * 4, ("openvino", "unmasked")))
    name = rng.choice([name for name in original.plain if name.endswith(f"{variant}.onnx")])
    change = rng.choice((damaged, damaged, renumbered))
    files = resigned(original, {name: change(original.contents[name], rng)})
    return {"files": files, "may": ANY, "backend": backend}


def _other_graph(original: Original, rng: random.Random) -> dict[str, Any]:
    """The graph of another segment, of another variant or of another bundle's shape."""
    graphs = sorted(name for name in original.plain if name.endswith(".onnx"))
    name, other = rng.sample(graphs, 2)
    files = resigned(original, {name: original.contents[other]})
    return {"files": files, "may": ANY, "backend": rng.choice(("onnxruntime", "openvino"))}


def _weights(original: Original, rng: random.Random) -> dict[str, Any]:
    changed = damaged(original.contents[WEIGHTS], rng)
    backend = rng.choice(("onnxruntime", "onnxruntime", "openvino"))
    return {"files": resigned(original, {WEIGHTS: changed}), "may": ANY, "backend": backend}


def _engine_manifest(original: Original, rng: random.Random) -> dict[str, Any]:
    name = original.engine_manifest
    if rng.random() < 0.2:
        changed = damaged(original.contents[name], rng)
    else:
        changed = to_text(edited(json.loads(original.contents[name]), rng)).encode()
    return {"files": {name: changed}, "may": SAME, "engines": True}


def _engine_file(original: Original, rng: random.Random) -> dict[str, Any]:
    names = [name for name in original.contents if name.endswith(".engine")]
    one, other = rng.sample(names, 2)
    contents = original.contents
    changes: tuple[dict[str, Any], ...] = (
        {one: damaged(contents[one], rng)},
        {one: None},
        {one: lambda path: path.mkdir()},
        {one: lambda path: path.symlink_to(original.path / one)},
        {one: lambda path: path.symlink_to("/etc/passwd")},
        {one: contents[other], other: contents[one]},
    )
    return {"files": rng.choice(changes), "may": SAME, "engines": True}


#: What is done -> its share.
KINDS: dict[Callable[[Original, random.Random], dict[str, Any]], int] = {
    _signed_manifest: 260,
    _manifest_alone: 270,
    _unsigned_manifest: 60,
    _damaged_manifest: 60,
    _damaged_file: 60,
    _swapped_files: 15,
    _other_kind: 20,
    _extra_file: 5,
    _tokenizer: 50,
    _samples: 20,
    _graph: 60,
    _other_graph: 10,
    _weights: 15,
    _engine_manifest: 80,
    _engine_file: 15,
}


def case_of(number: int, originals: Mapping[str, Original]) -> Case:
    """The case of this number, the same at every call."""
    rng = random.Random(number)
    (make,) = rng.choices(list(KINDS), list(KINDS.values()))
    name = rng.choice(sorted(originals))
    if make in (_engine_manifest, _engine_file):
        name = next(name for name in sorted(originals) if originals[name].engine_manifest)
    made = make(originals[name], rng)
    return Case(number, make.__name__.strip("_"), name, **made)

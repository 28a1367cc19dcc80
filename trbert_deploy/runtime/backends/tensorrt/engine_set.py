"""Engine sets in a bundle: what is on disk, and whether it may run here.

    bundle/engines/rtx-fp16-sm86/
      manifest.json       what the engines were built from, with what, for what
      segment_0.engine    one per graph of the bundle
      dense.engine

An engine fits one TensorRT version, one GPU architecture and one graph. Everything that must
agree is in the manifest and checked before an engine is loaded. Names are declared here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.errors import ConfigError, EngineError, LengthError
from trbert_deploy.fields import known_fields, require_kind
from trbert_deploy.files import read_json, sha256, write_json

FORMAT_VERSION = 1
ENGINE_MANIFEST = "manifest.json"
#: Figures of manifests that earlier releases wrote -> their names today.
_RENAMED = {
    "max_logit_difference": "max_output_difference",
    "dense_logit_difference": "dense_output_difference",
    "label_agreement": "answer_agreement",
}

#: In the order in which a runtime prefers them.
ENGINE_PRECISIONS = ("fp16", "bf16", "fp32")

_REBUILD = "run trbert-deploy build-engine again"


@dataclass(frozen=True)
class Profile:
    """The shapes that a part of an engine is made for.

    Attributes:
        min_length, max_length: tokens per row; tuned for the longest.
        min_batch, opt_batch, max_batch: rows; tuned for the middle one.

    Raises:
        ConfigError: the numbers are not in ascending order from 1.
    """

    min_length: int
    max_length: int
    min_batch: int
    opt_batch: int
    max_batch: int

    def __post_init__(self) -> None:
        batches = (1, self.min_batch, self.opt_batch, self.max_batch)
        lengths = (1, self.min_length, self.max_length)
        if sorted(batches) != list(batches) or sorted(lengths) != list(lengths):
            raise ConfigError(f"profile {self}: expected ascending numbers from 1")

    def __str__(self) -> str:
        return f"{self.min_batch}-{self.max_batch} x {self.min_length}-{self.max_length}"


def _renamed(parity: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a manifest, older ones too, by their names today."""
    return {_RENAMED.get(name, name): value for name, value in parity.items()}


def engine_file(name: str) -> str:
    """File name of the engine of the graph called ``name``."""
    return f"{name}.engine"


@dataclass(frozen=True)
class EngineFile:
    """One engine.

    Attributes:
        name: the graph's name in the bundle.
        sha256: of the engine file.
        size_bytes: of the engine file.
        scratch_bytes: GPU memory that the largest profile needs beside weights, inputs and
            outputs; None where the builder did not tell.
        build_seconds: time to build it.
    """

    name: str
    sha256: str
    size_bytes: int
    scratch_bytes: int | None
    build_seconds: float

    @property
    def file(self) -> str:
        return engine_file(self.name)


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine set depends on; equal keys make equal engines.

    Attributes:
        flavour, version: the TensorRT that builds and runs them.
        compute_capability: of the GPU, such as 8.6.
        precision: fp32, fp16 or bf16.
        profiles: of every engine, in ascending length.
        weights_sha256: of the bundle's file of weights.
        graphs: SHA-256 of each graph.
    """

    flavour: str
    version: str
    compute_capability: str
    precision: str
    profiles: tuple[Profile, ...]
    weights_sha256: str
    graphs: Mapping[str, str]

    @property
    def directory(self) -> str:
        """Name of the set's directory in the bundle's ``engines/``."""
        return set_directory(self.flavour, self.precision, self.compute_capability)


def set_directory(flavour: str, precision: str, compute_capability: str) -> str:
    """Name of an engine set's directory, such as ``rtx-fp16-sm86``."""
    return f"{flavour}-{precision}-sm{compute_capability.replace('.', '')}"


@dataclass(frozen=True)
class EngineManifest:
    """What an engine set holds.

    Attributes:
        key: what it depends on.
        engines: the engines, in the order of the bundle's graphs.
        parity: how far half precision is from float32; empty for fp32.
    """

    key: EngineKey
    engines: tuple[EngineFile, ...]
    parity: Mapping[str, Any]

    def engine(self, name: str) -> EngineFile:
        """The engine of the graph called ``name``."""
        return next(engine for engine in self.engines if engine.name == name)

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineManifest:
        """Read what ``to_json`` wrote.

        Raises:
            EngineError: another format version, or entries that are missing or of a wrong kind.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "upgrade trbert-deploy" if newer else _REBUILD
            raise EngineError(
                f"engines have format version {version!r}: this release reads {FORMAT_VERSION}; "
                f"{advice}"
            )
        try:
            key = known_fields(EngineKey, data["key"], "key")
            profiles = tuple(
                Profile(**known_fields(Profile, profile, "profile")) for profile in key["profiles"]
            )
            if not profiles:
                raise ValueError("no profiles")
            engines = tuple(
                EngineFile(**known_fields(EngineFile, engine, "engine"))
                for engine in data["engines"]
            )
            require_kind(data["parity"], Mapping[str, Any], "parity")
            return cls(
                key=EngineKey(**{**key, "profiles": profiles}),
                engines=engines,
                parity=_renamed(data["parity"]),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise EngineError(
                f"engine manifest is damaged ({type(problem).__name__}: {problem}); {_REBUILD}"
            ) from None


@dataclass(frozen=True)
class EngineSet:
    """An opened engine set: its directory and its manifest."""

    path: Path
    manifest: EngineManifest

    @classmethod
    def open(cls, path: Path, bundle: Bundle) -> EngineSet:
        """Open an engine set that was built from ``bundle`` as it is now.

        Raises:
            EngineError: it is missing, damaged, of another format version, or was built from
                other graphs or weights.
        """
        manifest = EngineManifest.from_json(read_json(path / ENGINE_MANIFEST, EngineError))
        digests = bundle.manifest.files
        if manifest.key.weights_sha256 != digests[WEIGHTS]:
            raise EngineError(f"{path} was built from other weights than {bundle.path}; {_REBUILD}")
        expected = {graph.name: digests[graph.file] for graph in bundle.manifest.graphs}
        built = {engine.name: manifest.key.graphs.get(engine.name) for engine in manifest.engines}
        for name in sorted(expected.keys() | built.keys()):
            if expected.get(name) != built.get(name):
                raise EngineError(
                    f"{path} was not built from the graph {name} that {bundle.path} has; {_REBUILD}"
                )
        for engine in manifest.engines:
            if not (path / engine.file).is_file():
                raise EngineError(f"{path / engine.file} is missing; {_REBUILD}")
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """The engine of the graph called ``name``.

        Raises:
            EngineError: the file was altered or truncated since it was built.
        """
        engine = self.manifest.engine(name)
        path = self.path / engine.file
        if sha256(path) != engine.sha256:
            raise EngineError(
                f"{path} was altered or truncated: its SHA-256 is not the one in "
                f"{ENGINE_MANIFEST}; "
                f"{_REBUILD}"
            )
        return path.read_bytes()

    def verify(self) -> None:
        """Read every engine.

        Raises:
            EngineError: one was altered or truncated.
        """
        for engine in self.manifest.engines:
            self.read(engine.name)

    def require_fit(self, flavour: str, version: str, compute_capability: str) -> None:
        """Refuse engines that cannot run on this GPU with this TensorRT.

        Raises:
            EngineError: they were built for another.
        """
        key = self.manifest.key
        pairs = {
            "TensorRT": ((key.flavour, key.version), (flavour, version)),
            "compute capability": ((key.compute_capability,), (compute_capability,)),
        }
        for what, (built, here) in pairs.items():
            if built != here:
                raise EngineError(
                    f"{self.path} was built for {what} {' '.join(built)}, here is "
                    f"{' '.join(here)}; {_REBUILD}"
                )

    def profile_for(self, length: int) -> int:
        """Index of the profile for rows of ``length`` tokens.

        Raises:
            LengthError: none covers it.
        """
        profiles = self.manifest.key.profiles
        for index, profile in enumerate(profiles):
            if profile.min_length <= length <= profile.max_length:
                return index
        raise LengthError(
            f"no engine profile takes rows of {length} tokens: {self.path} takes "
            f"{profiles[0].min_length} to {profiles[-1].max_length}; build with other --lengths"
        )


def write_manifest(directory: Path, manifest: EngineManifest) -> None:
    """Write the manifest into a directory that holds the engines."""
    write_json(directory / ENGINE_MANIFEST, manifest.to_json())


def find_engine_set(
    bundle: Bundle, flavour: str, version: str, compute_capability: str
) -> EngineSet:
    """The bundle's engine set for this TensorRT and GPU; half precision is preferred.

    Raises:
        EngineError: there are no engines, or those there are do not fit, with the reason.
    """
    names = sorted(path.parent.name for path in bundle.engines_path.glob(f"*/{ENGINE_MANIFEST}"))
    if not names:
        raise EngineError(f"{bundle.path} has no engines: run trbert-deploy build-engine")
    for precision in ENGINE_PRECISIONS:
        name = set_directory(flavour, precision, compute_capability)
        if name in names:
            engine_set = EngineSet.open(bundle.engines_path / name, bundle)
            engine_set.require_fit(flavour, version, compute_capability)
            return engine_set
    raise EngineError(
        f"{bundle.path} has engines {', '.join(names)}: this GPU with this TensorRT needs "
        f"{set_directory(flavour, '*', compute_capability)}; run trbert-deploy build-engine here"
    )

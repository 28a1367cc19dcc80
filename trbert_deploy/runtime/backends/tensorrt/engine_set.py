"""Engine sets in a bundle: what is on disk, and whether it may run here.

    bundle/engines/rtx-fp16-sm86/
      manifest.json       what the engines were built from, with what, for what
      segment_0.engine    one per graph of the bundle
      dense.engine

An engine fits one TensorRT version, one GPU architecture and one graph. Everything that must
agree is in the manifest and checked before an engine is loaded. Names are declared here and
nowhere else. Digests show damage, not who made a file: an engine is code, and runs as such.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import MASKED, SCHEDULED, WEIGHTS, Manifest
from trbert_deploy.errors import ConfigError, EngineError, LengthError
from trbert_deploy.fields import known_fields, require_kind
from trbert_deploy.files import read_json, write_json

FORMAT_VERSION = 2
ENGINE_MANIFEST = "manifest.json"
#: Figures of manifests that earlier releases wrote -> their names today.
_RENAMED = {
    "max_logit_difference": "max_output_difference",
    "dense_logit_difference": "dense_output_difference",
    "label_agreement": "answer_agreement",
}

#: In the order in which a runtime prefers them.
PREFERRED_PRECISIONS = ("fp16", "bf16", "fp32")
#: All of them. Those of 8 bits lose more, and no GPU has timed them: they run where asked for.
ENGINE_PRECISIONS = (*PREFERRED_PRECISIONS, "int8", "fp8")

_BUILD = "run trbert-deploy build-engine"
_REBUILD = f"{_BUILD} again"
_SUFFIX = ".engine"


@dataclass(frozen=True)
class Profile:
    """The shapes that a part of an engine is made for.

    Attributes:
        min_length, max_length: tokens per row.
        min_batch, opt_batch, max_batch: rows; tuned for the middle one.
        opt_length: tokens per row that it is tuned for; the most where it is 0.

    Raises:
        ConfigError: the numbers are not in ascending order from 1.
    """

    min_length: int
    max_length: int
    min_batch: int
    opt_batch: int
    max_batch: int
    opt_length: int = 0

    def __post_init__(self) -> None:
        if self.opt_length == 0:
            object.__setattr__(self, "opt_length", self.max_length)
        batches = (1, self.min_batch, self.opt_batch, self.max_batch)
        lengths = (1, self.min_length, self.opt_length, self.max_length)
        if any(type(number) is not int for number in (*batches, *lengths)):
            raise ConfigError(f"profile {self}: expected whole numbers")
        if sorted(batches) != list(batches) or sorted(lengths) != list(lengths):
            raise ConfigError(f"profile {self}: expected ascending numbers from 1")

    def __str__(self) -> str:
        return f"{self.min_batch}-{self.max_batch} x {self.min_length}-{self.max_length}"


def _upgraded(key: Any, version: int) -> Any:
    """A manifest's key as today's are: in version 1 all engines had the same profiles."""
    if version == FORMAT_VERSION:
        return key
    tuned = [{**profile, "opt_length": profile["max_length"]} for profile in key["profiles"]]
    return {**key, "profiles": dict.fromkeys(key["graphs"], tuned), "plugin": False}


def _renamed(parity: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a manifest, older ones too, by their names today."""
    return {_RENAMED.get(name, name): value for name, value in parity.items()}


def engine_sources(manifest: Manifest, plugin: bool = False) -> dict[str, str]:
    """Name of each engine of a bundle -> the file of the graph that it computes.

    Args:
        plugin: the whole chain's has slots for all survivors, as its masked variant has.
    """
    sources = {graph.name: graph.file for graph in manifest.graphs}
    if manifest.chain is not None:
        sources[manifest.chain.name] = manifest.chain.file_of(MASKED if plugin else SCHEDULED)
    return sources


def engine_file(name: str) -> str:
    """File name of the engine of the graph called ``name``."""
    return f"{name}{_SUFFIX}"


@dataclass(frozen=True)
class EngineFile:
    """One engine, a plain file in the set's directory.

    Attributes:
        name: the graph's name in the bundle.
        sha256: of the engine file.
        size_bytes: of the engine file.
        scratch_bytes: GPU memory that the largest profile needs beside weights, inputs and
            outputs; None where the builder did not tell.
        build_seconds: time to build it.

    Raises:
        TypeError: an entry of another kind.
        ValueError: the name leads elsewhere.
    """

    name: str
    sha256: str
    size_bytes: int
    scratch_bytes: int | None
    build_seconds: float

    def __post_init__(self) -> None:
        _require_strings(self.name, self.sha256)
        if type(self.size_bytes) is not int or type(self.scratch_bytes) not in (int, type(None)):
            raise TypeError(f"size of the engine {self.name}: expected a whole number of bytes")
        if type(self.build_seconds) not in (int, float):
            raise TypeError(f"build time of the engine {self.name}: expected a number")
        if not self.name or any(part in self.name for part in ("/", "\\", "..")):
            raise ValueError(f"engine {self.name!r}: expected a plain file name")

    @property
    def file(self) -> str:
        return engine_file(self.name)


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine set depends on; equal keys make equal engines.

    Attributes:
        flavour, version: the TensorRT that builds and runs them.
        compute_capability: of the GPU, such as 8.6.
        precision: fp32, fp16, bf16, int8 or fp8.
        profiles: of each engine, in ascending length; all of them divide the same lengths alike.
        weights_sha256: of the bundle's file of weights.
        graphs: SHA-256 of each graph.
        plugin: whether a plugin compacts tokens in the whole chain's engine.

    Raises:
        TypeError: an entry of another kind.
        ValueError: an engine without profiles, or of other lengths than the others.
    """

    flavour: str
    version: str
    compute_capability: str
    precision: str
    profiles: Mapping[str, tuple[Profile, ...]]
    weights_sha256: str
    graphs: Mapping[str, str]
    plugin: bool = False

    def __post_init__(self) -> None:
        _require_strings(self.flavour, self.version, self.compute_capability, self.precision)
        _require_strings(self.weights_sha256, *self.graphs, *self.graphs.values())
        if {*self.profiles} != {*self.graphs} or not all(self.profiles.values()):
            raise ValueError("expected profiles of each engine")
        for name, profiles in self.profiles.items():
            lengths = [(profile.min_length, profile.max_length) for profile in profiles]
            if lengths != self.lengths:
                raise ValueError(f"the profiles of {name} are of other lengths")

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Least and most tokens of each profile, of whichever engine."""
        profiles = next(iter(self.profiles.values()))
        return [(profile.min_length, profile.max_length) for profile in profiles]

    @property
    def directory(self) -> str:
        """Name of the set's directory in the bundle's ``engines/``."""
        return set_directory(self.flavour, self.precision, self.compute_capability)


def _require_strings(*values: object) -> None:
    for value in values:
        if not isinstance(value, str) or not value.isprintable():  # errors name it in one line
            raise TypeError(f"{value!r}: expected a plain string")


def set_directory(flavour: str, precision: str, compute_capability: str) -> str:
    """Name of an engine set's directory, such as ``rtx-fp16-sm86``."""
    return f"{flavour}-{precision}-sm{compute_capability.replace('.', '')}"


@dataclass(frozen=True)
class EngineManifest:
    """What an engine set holds.

    Attributes:
        key: what it depends on.
        engines: the engines, in the order of the bundle's graphs.
        parity: how far the precision is from float32; empty for fp32.
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
        if version not in (1, FORMAT_VERSION):
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "upgrade trbert-deploy" if newer else _REBUILD
            raise EngineError(
                f"engines have format version {version!r}: this release reads 1 to "
                f"{FORMAT_VERSION}; {advice}"
            )
        try:
            key = known_fields(EngineKey, _upgraded(data["key"], version), "key")
            profiles = {
                name: tuple(Profile(**known_fields(Profile, each, "profile")) for each in own)
                for name, own in key["profiles"].items()
            }
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
            EngineError: it is missing, damaged, of another format version, was built from other
                graphs or weights, or holds engines that its manifest or the bundle knows nothing
                of.
        """
        manifest = EngineManifest.from_json(read_json(path / ENGINE_MANIFEST, EngineError))
        digests = bundle.manifest.files
        if manifest.key.weights_sha256 != digests[WEIGHTS]:
            raise EngineError(f"{path} was built from other weights than {bundle.path}; {_REBUILD}")
        sources = engine_sources(bundle.manifest, manifest.key.plugin)
        expected = {name: digests[file] for name, file in sources.items()}
        built = manifest.key.graphs
        for name in sorted(expected.keys() | built.keys()):
            if expected.get(name) != built.get(name):
                raise EngineError(
                    f"{path} was not built from the graph {name} that {bundle.path} has; {_REBUILD}"
                )
        listed = sorted(engine.name for engine in manifest.engines)
        if listed != sorted(expected):
            raise EngineError(
                f"{path} lists the engines {', '.join(listed)}: expected one for each graph of "
                f"{bundle.path}, {', '.join(sorted(expected))}; {_REBUILD}"
            )
        for file in sorted(path.glob(f"*{_SUFFIX}")):
            if file.name.removesuffix(_SUFFIX) not in expected:
                raise EngineError(
                    f"{file} is not listed in {ENGINE_MANIFEST}: remove it, or {_REBUILD}"
                )
        for engine in manifest.engines:
            file = path / engine.file
            if not file.is_file():
                raise EngineError(f"{file} is missing; {_REBUILD}")
            if file.resolve().parent != path.resolve():
                raise EngineError(f"{file} is a link out of its directory; {_REBUILD}")
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """The engine of the graph called ``name``: the very bytes that were found sound.

        Raises:
            EngineError: the file was altered, truncated or removed since it was built.
        """
        engine = self.manifest.engine(name)
        path = self.path / engine.file
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise EngineError(f"{path} is missing; {_REBUILD}") from None
        if hashlib.sha256(data).hexdigest() != engine.sha256:
            raise EngineError(
                f"{path} was altered or truncated: its SHA-256 is not the one in "
                f"{ENGINE_MANIFEST}; {_REBUILD}"
            )
        return data

    def verify(self) -> None:
        """Read every engine.

        Raises:
            EngineError: one was altered or truncated.
        """
        for engine in self.manifest.engines:
            self.read(engine.name)

    def remove(self) -> None:
        """Delete the set; the manifest goes first, without which it is none."""
        (self.path / ENGINE_MANIFEST).unlink()
        shutil.rmtree(self.path)

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

    def profile_for(self, name: str, length: int) -> int:
        """Index of the profile of the engine called ``name`` for rows of ``length`` tokens.

        Raises:
            LengthError: none covers it.
        """
        profiles = self.manifest.key.profiles[name]
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


def engine_set_names(bundle: Bundle) -> list[str]:
    """Names of the bundle's engine sets, whether they fit or not."""
    names = (path.parent.name for path in bundle.engines_path.glob(f"*/{ENGINE_MANIFEST}"))
    return sorted(name for name in names if not name.startswith("."))  # a build in progress


def find_engine_set(
    bundle: Bundle,
    flavour: str,
    version: str,
    compute_capability: str,
    precision: str | None = None,
) -> EngineSet:
    """The bundle's sound engine set for this TensorRT and GPU; half precision is preferred.

    Sets that would have been preferred and are stale or damaged are passed over, with a warning.

    Args:
        precision: the only one to take; None takes any but those of 8 bits.

    Raises:
        EngineError: there are no engines, or none that fit: each is named with the reason.
    """
    names = engine_set_names(bundle)
    if not names:
        raise EngineError(f"{bundle.path} has no engines: {_BUILD}")
    unfit: dict[str, str] = {}
    for each in PREFERRED_PRECISIONS if precision is None else (precision,):
        name = set_directory(flavour, each, compute_capability)
        if name not in names:
            continue
        try:
            engine_set = _sound_set(bundle, name)
            engine_set.require_fit(flavour, version, compute_capability)
        except EngineError as problem:
            unfit[name] = str(problem).removesuffix(f"; {_REBUILD}")
            continue
        if unfit:
            warnings.warn(f"running the engines {name}: {_reasons(unfit)}", stacklevel=2)
        return engine_set
    needed = set_directory(flavour, precision or "*", compute_capability)
    unasked = {
        set_directory(flavour, each, compute_capability): each
        for each in ENGINE_PRECISIONS
        if precision is None and each not in PREFERRED_PRECISIONS
    }
    for name in names:
        reason = f"runs with --precision {unasked[name]}" if name in unasked else f"is not {needed}"
        unfit.setdefault(name, reason)
    raise EngineError(
        f"{bundle.path} has no engines that can run here, with {flavour} {version} and compute "
        f"capability {compute_capability}{f' in {precision}' if precision else ''}: "
        f"{_reasons(unfit)}; {_BUILD} here"
    )


def _sound_set(bundle: Bundle, name: str) -> EngineSet:
    """The engine set called ``name``, every byte of it read.

    Raises:
        EngineError: it is stale or damaged, or another set under this name.
    """
    engine_set = EngineSet.open(bundle.engines_path / name, bundle)
    if engine_set.manifest.key.directory != name:
        raise EngineError(
            f"{engine_set.path} holds the engines of {engine_set.manifest.key.directory}"
        )
    engine_set.verify()
    return engine_set


def _reasons(unfit: Mapping[str, str]) -> str:
    return "; ".join(f"{name} is passed over ({reason})" for name, reason in unfit.items())

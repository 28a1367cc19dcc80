"""Bundle to engines: one per graph, for the lengths, batches, precision and GPU asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS, require_whole
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import CHAIN, DEFAULT_DIRECTORY, DENSE, WEIGHTS, require_length
from trbert_deploy.errors import ConfigError, EngineError, ParityError
from trbert_deploy.exporters.calibration import eight_bit_models
from trbert_deploy.exporters.checks.engines import (
    Verification,
    require_polygraphy,
    verify_engines,
    why_not_verifiable,
)
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.one_graph import chain_of_parts
from trbert_deploy.exporters.onnx.precision import half_graph
from trbert_deploy.exporters.onnx.static_quantization import EIGHT_BITS
from trbert_deploy.exporters.tensorrt.builder import (
    build_engine,
    choose_compute_capability,
    multiplies_float32,
    require_precision,
)
from trbert_deploy.exporters.tensorrt.profiles import engine_profiles
from trbert_deploy.files import sha256, staged_directory
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    ENGINE_PRECISIONS,
    EngineFile,
    EngineKey,
    EngineManifest,
    EngineSet,
    Profile,
    engine_file,
    engine_sources,
    write_manifest,
)
from trbert_deploy.runtime.backends.tensorrt.library import (
    TensorRT,
    load_tensorrt,
    register_plugin,
)

DEFAULT_LENGTHS = (128, 512, 2048)
DEFAULT_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class EngineOptions:
    """What engines to build.

    Attributes:
        precision: fp16, bf16, fp32, int8 or fp8.
        lengths: token buckets, one profile each, tuned for its longest row (behind a cut for what
            is left of it, ``engine_profiles``); by default ``DEFAULT_LENGTHS`` below the bundle's
            maximum length, and that maximum.
        batches: smallest, usual and largest batch, or fewer numbers.
        compute_capability: of the GPU to build for, such as 8.6; by default the one here.
        flavour: ``tensorrt`` or ``rtx``; by default the one that is installed.
        plugin: let a plugin compact tokens in the whole chain's engine, by TensorRT's standard
            flavour: no survivor is lost to a number of slots.
        force: build engines even where the same ones are there.
        verify: compare the engines with ONNX Runtime before they are put in place, where there is
            a GPU that runs them.

    Raises:
        ConfigError: a value that cannot be.
    """

    precision: str = "fp16"
    lengths: tuple[int, ...] | None = None
    batches: tuple[int, ...] = DEFAULT_BATCHES
    compute_capability: str | None = None
    flavour: str | None = None
    plugin: bool = False
    force: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ENGINE_PRECISIONS:
            raise ConfigError(
                f"unknown precision {self.precision!r}: expected one of "
                f"{', '.join(ENGINE_PRECISIONS)}"
            )
        for what, numbers, most in (
            ("lengths", self.lengths, MOST_TOKENS),
            ("batches", self.batches, MOST_TEXTS),
        ):
            if numbers is not None and not numbers:
                raise ConfigError(f"{what} are {numbers}: expected at least one")
            for number in numbers or ():
                require_whole(f"one of the {what}", number, 1, most)
        if len(self.batches) > 3:
            raise ConfigError(
                f"batches are {self.batches}: expected at most three, the smallest, the usual "
                "and the largest"
            )

    def profiles(self, max_length: int) -> tuple[Profile, ...]:
        """Of whole rows: one per bucket of lengths, each beginning where the one before ends.

        Raises:
            LengthError: a length above ``max_length``.
        """
        lengths = self.lengths
        if lengths is None:
            lengths = (*(length for length in DEFAULT_LENGTHS if length < max_length), max_length)
        ends = sorted(set(lengths))
        require_length(ends[-1], max_length)
        batches = sorted(self.batches)
        usual = batches[len(batches) // 2]
        starts = [1, *(end + 1 for end in ends[:-1])]
        return tuple(
            Profile(start, end, batches[0], usual, batches[-1])
            for start, end in zip(starts, ends, strict=True)
        )


@dataclass(frozen=True)
class EnginesReport:
    """What was built, or was there already.

    Attributes:
        engine_set: the engines, on disk.
        skipped: the same engines were there, and were left as they are.
        note: something the user should know, or None.
        verification: how far they are from ONNX Runtime, where this was asked for and possible.
        not_verified: why it was not possible, or None.
    """

    engine_set: EngineSet
    skipped: bool
    note: str | None
    verification: tuple[Verification, ...] = ()
    not_verified: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.engine_set.path),
            "skipped": self.skipped,
            "note": self.note,
            "verification": [result.to_json() for result in self.verification],
            "not_verified": self.not_verified,
            **asdict(self.engine_set.manifest),
        }


def build_engines(
    bundle_path: Path = Path(DEFAULT_DIRECTORY),
    options: EngineOptions = EngineOptions(),
    progress: Progress = no_progress,
) -> EnginesReport:
    """Build an engine for every graph of a bundle, into the bundle.

    Other precisions are compared with float32 first, so that nothing is built that cannot be
    used. Engines that were built from the same things are left alone. What cannot be built, or
    is not what it should be, is never put in place: the old engines stay. Old ones that are found
    wrong are removed.

    Raises:
        StorageError, BundleError: the bundle cannot be read.
        ConfigError, LengthError: options that do not fit the bundle, TensorRT or the GPU.
        MissingDependencyError: TensorRT is not installed, or what verifies is not.
        DeviceError: standard TensorRT, and no GPU.
        ParityError: the precision is too far from float32 for this model, or an engine is.
        EngineError: TensorRT refuses a graph, or an engine does not run.
    """
    if options.verify:
        require_polygraphy()
    progress(f"read {bundle_path.name or bundle_path}", 0, None)
    bundle = Bundle.open(bundle_path)
    buckets = options.profiles(bundle.manifest.max_length)
    profiles = engine_profiles(bundle.manifest, buckets)
    library = load_tensorrt(options.flavour)
    if options.plugin:
        _require_plugin(bundle, library)
    capability, note = choose_compute_capability(library, options.compute_capability)
    require_precision(library, capability, options.precision)
    every_product = not multiplies_float32(library, capability)
    is_half = options.precision != "fp32"
    key = engine_key(bundle, library, capability, options.precision, profiles, options.plugin)
    target = bundle.engines_path / key.directory
    if not options.force and (existing := _existing(target, bundle, key)):
        try:
            verified = _verified(bundle, existing, options, progress)
            return EnginesReport(existing, True, note, *verified)
        except (ParityError, EngineError) as problem:
            existing.remove()
            raise type(problem)(f"{problem}; {target} was removed") from None
    sources = engine_sources(bundle.manifest, options.plugin)
    in_eight_bits = options.precision in EIGHT_BITS
    steps = len(sources) + is_half + in_eight_bits
    models: dict[str, onnx.ModelProto] = {}
    parity: Mapping[str, Any] = {}
    if is_half or options.plugin:
        for graph in bundle.manifest.graphs:
            with bundle.reading_graph(graph.name) as path:
                models[graph.name] = onnx.load(path)
    if in_eight_bits:
        progress("calibrate", 0, steps)
        models = eight_bit_models(bundle, models, options.precision)
    if is_half:
        progress("compare precisions", int(in_eight_bits), steps)
        parity = compare_precision(
            bundle, models, options.precision, every_product=every_product
        ).to_json()

    def made(name: str) -> onnx.ModelProto:
        if name == CHAIN:  # halved again, rather than all halves held at once
            parts = {part: made(part) for part in models if part != DENSE}
            capacities = bundle.manifest.capacities
            return chain_of_parts(bundle.manifest, parts, capacities, plugin=options.plugin)
        if not is_half:
            return models[name]
        return half_graph(models[name], options.precision, every_product=every_product)

    files: list[EngineFile] = []
    with staged_directory(target) as staging:
        for name, file in sources.items():
            progress(f"build {name}", steps - len(sources) + len(files), steps)
            with bundle.reading(file, WEIGHTS) as path:
                by_hand = is_half or (options.plugin and name == CHAIN)
                source = made(name).SerializeToString() if by_hand else path
                built = build_engine(library, source, profiles[name], capability)
            path = staging / engine_file(name)
            path.write_bytes(built.data)
            files.append(
                EngineFile(
                    name=name,
                    sha256=sha256(path),
                    size_bytes=len(built.data),
                    scratch_bytes=built.scratch_bytes,
                    build_seconds=round(built.build_seconds, 3),
                )
            )
        progress("write manifest", steps, steps)
        write_manifest(staging, EngineManifest(key, tuple(files), parity))
        verified = _verified(bundle, EngineSet.open(staging, bundle), options, progress)
    return EnginesReport(EngineSet.open(target, bundle), False, note, *verified)


def engine_key(
    bundle: Bundle,
    library: TensorRT,
    compute_capability: str,
    precision: str,
    profiles: Mapping[str, tuple[Profile, ...]],
    plugin: bool,
) -> EngineKey:
    """Everything that the engines of ``bundle`` would depend on."""
    digests = bundle.manifest.files
    return EngineKey(
        flavour=library.flavour,
        version=library.version,
        compute_capability=compute_capability,
        precision=precision,
        profiles=profiles,
        weights_sha256=digests[WEIGHTS],
        graphs={
            name: digests[file] for name, file in engine_sources(bundle.manifest, plugin).items()
        },
        plugin=plugin,
    )


def _require_plugin(bundle: Bundle, library: TensorRT) -> None:
    """Make TensorRT ready for the plugin, before anything is built.

    Raises:
        ConfigError: the bundle has no whole chain, or it is TensorRT for RTX, whose parser ends the
            process where it meets a plugin.
        MissingDependencyError: the plugin cannot run here.
    """
    bundle.require_chain()
    if library.is_rtx:
        raise ConfigError(
            "--plugin needs standard TensorRT: TensorRT for RTX takes no plugins; build without "
            "it, or with --flavour tensorrt"
        )
    register_plugin(library)


def _existing(target: Path, bundle: Bundle, key: EngineKey) -> EngineSet | None:
    """The engine set at ``target``, if it is sound and was built from the same things."""
    try:
        engine_set = EngineSet.open(target, bundle)
        engine_set.verify()
    except EngineError:  # stale, damaged or not there: it is built anew
        return None
    return engine_set if engine_set.manifest.key == key else None


def _verified(
    bundle: Bundle, engine_set: EngineSet, options: EngineOptions, progress: Progress
) -> tuple[tuple[Verification, ...], str | None]:
    """What was found where engines are to be verified, or why they cannot be.

    Raises:
        ParityError, EngineError: as ``verify_engines``.
    """
    if not options.verify:
        return (), None
    if reason := why_not_verifiable(engine_set):
        return (), reason
    return verify_engines(bundle, engine_set, progress), None

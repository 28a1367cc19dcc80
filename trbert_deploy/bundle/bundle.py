"""The bundle on disk: all that a server needs to run a model.

bundle/
  manifest.json         what is here, how it was made, and the SHA-256 of every file
  weights.safetensors   every weight once; the graphs refer to it as ONNX external data
  segment_0.onnx ...    one graph per segment, in several variants (segment_0.fused.onnx ...)
  dropped_0.onnx ...    what tokens say that a cut drops, where they take part in the answer
  dense.onnx ...        the same weights with no token removed
  states_8.onnx ...     the encoder up to a layer, no token removed, for alignment (optional)
  chain.onnx ...        all segments in one graph, for other runtimes (optional)
  tokenizer.json
  lexicon.tsv           phrases with tags, where the model takes such (optional)
  samples.jsonl         a few texts, or pairs, for benchmarking (optional)
  engines/              TensorRT engines, each set with a manifest of its own (optional)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trbert_deploy.bundle.manifest import (
    DEQUANTIZED,
    DIGEST,
    ENGINES,
    HALVES,
    INT8,
    LEXICON,
    MANIFEST,
    MASKED,
    SAMPLES,
    TOKENIZER,
    WEIGHTS,
    GraphDescription,
    Manifest,
    require_layers,
    states_name,
)
from trbert_deploy.bundle.samples import Sample, read_samples
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.files import (
    read_directory,
    read_json,
    require_directory,
)
from trbert_deploy.lexicon.entries import Entry, read_entries

#: Tells one state of a file from another: device, inode, size, times of content and of status.
_Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its directory, its manifest, and which files those were.

    A bundle may be replaced while it is open. What is read of it later goes through ``reading``,
    so that nothing is answered from files that were not verified, nor from two bundles.
    """

    path: Path
    manifest: Manifest
    _identities: Mapping[str, _Identity] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle directory: the old or the new one while an export replaces it.

        Args:
            path: the directory.
            verify: compare every file's SHA-256 with the manifest (reads the files once).

        Raises:
            StorageError: no such directory.
            BundleError: not a bundle, or a file is missing, altered, truncated or unknown.
        """
        return read_directory(Path(path), lambda: cls._read(Path(path), verify))

    @classmethod
    def _read(cls, path: Path, verify: bool) -> Bundle:
        require_directory(path, "bundle", "trbert-deploy export CHECKPOINT")
        if not (path / MANIFEST).is_file():
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST}; make one with trbert-deploy export"
            )
        return cls.of(path, Manifest.from_json(read_json(path / MANIFEST, BundleError)), verify)

    @classmethod
    def of(cls, path: Path, manifest: Manifest, verify: bool = True) -> Bundle:
        """The bundle that a manifest describes, which need not be written yet.

        Raises:
            BundleError: as ``open``.
        """
        required = {WEIGHTS, TOKENIZER}.union(
            *(
                graph.files_of(variant)
                for graph in manifest.all_graphs
                for variant in graph.variants
            )
        )
        undeclared = sorted(required - set(manifest.files))
        if undeclared:
            raise BundleError(f"{path / MANIFEST} lists no digest of {', '.join(undeclared)}")
        identities = {}
        for name, digest in manifest.files.items():
            if not (path / name).is_file():
                raise BundleError(f"{path / name} is missing; export the checkpoint again")
            identities[name], found = _identify(path / name, digest if not verify else None)
            if found != digest:
                raise BundleError(
                    f"{path / name} was altered or truncated: its SHA-256 is not the one in "
                    f"{MANIFEST}; export the checkpoint again"
                )
        return cls(path, manifest, identities)

    @contextmanager
    def reading(self, *names: str) -> Iterator[Path]:
        """The path of the first of some of the bundle's files, while they are read.

        Raises:
            BundleError: when they have been read, one is another than when the bundle was opened.
        """
        try:
            yield self.path / names[0]
        finally:
            for name in names:
                self._require_unchanged(name)

    @contextmanager
    def reading_graph(self, name: str, variant: str = MASKED) -> Iterator[Path]:
        """The ONNX file of the graph called ``name``, while it and its weights are read.

        Raises:
            BundleError: as ``reading``.
        """
        with self.reading(*self.manifest.graph(name).files_of(variant)) as path:
            yield path

    def _require_unchanged(self, name: str) -> None:
        path = self.path / name
        try:
            if _identity(path.stat()) == self._identities[name]:
                return
            if _identify(path)[1] == self.manifest.files[name]:  # touched, copied back, linked
                return
        except FileNotFoundError:
            pass
        raise BundleError(f"{path} was replaced since the bundle was opened: load it again")

    def has_variant(self, variant: str) -> bool:
        """Whether all graphs are there in this variant."""
        return all(variant in graph.variants for graph in self.manifest.graphs)

    def require_variant(self, variant: str) -> None:
        """Refuse to run the bundle in a variant that it lacks.

        Raises:
            ConfigError: it lacks it.
        """
        if not self.has_variant(variant):
            advice = f"no {variant} variant of its graphs: export the checkpoint again"
            if variant in (INT8, DEQUANTIZED):
                advice = "no graphs with 8-bit weights: export it with --int8"
            elif variant in HALVES:
                advice = "no graphs in fp16: export it with --fp16"
            raise ConfigError(f"{self.path} has {advice}")

    def require_chain(self) -> GraphDescription:
        """The graph of the whole chain.

        Raises:
            ConfigError: the bundle has none.
        """
        if self.manifest.chain is None:
            raise ConfigError(
                f"{self.path} has no graph of its whole chain: export it with --fused"
            )
        return self.manifest.chain

    def require_states(self, layers: int | None = None) -> GraphDescription:
        """The graph of the states behind so many layers; the last one that is there by default.

        Raises:
            ConfigError: the encoder has no such layer, or the bundle no such graph.
        """
        there = self.manifest.states_after
        if layers is not None:
            require_layers([layers], self.manifest.encoder.num_layers)
        elif there:
            layers = there[-1]
        if layers is None or layers not in there:
            asked = "" if layers is None else f" after layer {layers}"
            raise ConfigError(
                f"{self.path} has no graph of states{asked} (there are "
                f"{', '.join(map(str, there)) or 'none'}): export the checkpoint with "
                f"--states-after {'K' if layers is None else layers}"
            )
        return self.manifest.graph(states_name(layers))

    def graph_path(self, name: str, variant: str = MASKED) -> Path:
        """The ONNX file of the graph called ``name``."""
        return self.path / self.manifest.graph(name).file_of(variant)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything that it lists."""
        return str(self.manifest.to_json()[DIGEST])

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def engines_path(self) -> Path:
        return self.path / ENGINES

    def lexicon(self) -> list[Entry]:
        """The phrases that texts are searched for; none where it has no lexicon.

        Raises:
            BundleError: a line is no entry.
        """
        if LEXICON not in self.manifest.files:
            return []
        with self.reading(LEXICON) as path:
            return read_entries(path, BundleError)

    def samples(self) -> list[Sample]:
        """Sample texts for benchmarking; none when exported with ``--no-samples``.

        Raises:
            BundleError: a line holds no text.
        """
        if SAMPLES not in self.manifest.files:
            return []
        with self.reading(SAMPLES) as path:
            return read_samples(path, BundleError)


def _identify(path: Path, known_digest: str | None = None) -> tuple[_Identity, str]:
    """A file's identity, and the SHA-256 of just that content (unless it is taken as known)."""
    try:
        with path.open("rb") as file:
            identity = _identity(os.fstat(file.fileno()))
            return identity, known_digest or hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise BundleError(f"{path} cannot be read: permission denied") from None


def _identity(status: os.stat_result) -> _Identity:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )

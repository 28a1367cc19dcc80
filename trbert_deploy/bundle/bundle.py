"""The bundle on disk: all that a server needs to run a model.

bundle/
  manifest.json         what is here, how it was made, and the SHA-256 of every file
  weights.safetensors   every weight once; the graphs refer to it as ONNX external data
  segment_0.onnx ...    one graph per segment, in several variants (segment_0.fused.onnx ...)
  dense.onnx ...        the same weights with no token removed
  tokenizer.json
  samples.jsonl         a few texts for benchmarking (optional)
  engines/              TensorRT engines, each set with a manifest of its own (optional)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trbert_deploy.bundle.manifest import (
    DEQUANTIZED,
    DIGEST,
    ENGINES,
    INT8,
    MANIFEST,
    MASKED,
    SAMPLES,
    TOKENIZER,
    WEIGHTS,
    Manifest,
)
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.files import (
    read_directory,
    read_json,
    read_json_lines,
    require_directory,
    sha256,
)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its directory and its manifest."""

    path: Path
    manifest: Manifest

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
        bundle = cls(path, Manifest.from_json(read_json(path / MANIFEST, BundleError)))
        required = {WEIGHTS, TOKENIZER} | {
            graph.file_of(variant) for graph in bundle.manifest.graphs for variant in graph.variants
        }
        undeclared = sorted(required - set(bundle.manifest.files))
        if undeclared:
            raise BundleError(f"{path / MANIFEST} lists no digest of {', '.join(undeclared)}")
        for name, digest in bundle.manifest.files.items():
            file = path / name
            if Path(name).name != name:
                raise BundleError(f"{path / MANIFEST} names {name!r}: expected a plain file name")
            if not file.is_file():
                raise BundleError(f"{file} is missing; export the checkpoint again")
            if verify and sha256(file) != digest:
                raise BundleError(
                    f"{file} was altered or truncated: its SHA-256 is not the one in {MANIFEST}; "
                    "export the checkpoint again"
                )
        return bundle

    def has_variant(self, variant: str) -> bool:
        """Whether all graphs are there in this variant."""
        return all(variant in graph.variants for graph in self.manifest.graphs)

    def require_variant(self, variant: str) -> None:
        """Refuse to run the bundle in a variant that it lacks.

        Raises:
            ConfigError: it lacks it.
        """
        if not self.has_variant(variant):
            advice = (
                "no graphs with 8-bit weights: export it with --int8"
                if variant in (INT8, DEQUANTIZED)
                else f"no {variant} variant of its graphs: export the checkpoint again"
            )
            raise ConfigError(f"{self.path} has {advice}")

    def graph_path(self, name: str, variant: str = MASKED) -> Path:
        """The ONNX file of the graph called ``name``."""
        return self.path / self.manifest.graph(name).file_of(variant)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything that it lists."""
        return str(self.manifest.to_json()[DIGEST])

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def engines_path(self) -> Path:
        return self.path / ENGINES

    def samples(self) -> list[str]:
        """Sample texts for benchmarking; none when exported with ``--no-samples``."""
        if SAMPLES not in self.manifest.files:
            return []
        return [row["text"] for row in read_json_lines(self.path / SAMPLES, BundleError)]

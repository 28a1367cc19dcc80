"""What a bundle's manifest says: its graphs and their variants, files, and how it was made.

File and tensor names are declared here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trbert_deploy.bundle.older_versions import UPGRADES, upgraded
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import BundleError, LengthError
from trbert_deploy.files import write_json

FORMAT_VERSION = 3
DEFAULT_DIRECTORY = "bundle"

MANIFEST = "manifest.json"
DIGEST = "sha256"  # of the manifest's other entries
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
SAMPLES = "samples.jsonl"
ENGINES = "engines"
DENSE = "dense"

#: Variants of a graph (exporters/onnx/variants.py): with a padding mask; for rows of one length;
#: the same with the operators of ONNX Runtime.
MASKED, UNMASKED, FUSED = VARIANTS = ("masked", "unmasked", "fused")

#: Variants with 8-bit weights that a bundle may have: ``fused``, and ``unmasked`` in standard ONNX,
#: where a runtime sees for itself that it can compute in 8 bits.
INT8, DEQUANTIZED = "int8", "dequantized"

#: Before the name of an 8-bit weight, or of its scale, in weights.safetensors.
QUANTIZED = "quantized."

#: Behind the name of a weight that weights.safetensors holds as [in, out].
TRANSPOSED = ".transposed"

INPUT_IDS = "input_ids"
TOKEN_TYPE_IDS = "token_type_ids"
POSITIONS = "positions"  # where a survivor stood in the row as it was given
ATTENTION_MASK = "attention_mask"
HIDDEN = "hidden"  # into a later segment
HIDDEN_OUT = "hidden_out"  # out of any segment: a graph cannot use one name twice
KEEP_LOGIT = "keep_logit"


def segment_name(index: int) -> str:
    """The name of a segment's graph and engine."""
    return f"segment_{index}"


def require_length(length: int, max_length: int) -> None:
    """Refuse a row length above what a bundle was made for.

    Raises:
        LengthError: it is above.
    """
    if length > max_length:
        raise LengthError(
            f"length {length} is more than the bundle takes: expected at most {max_length}; "
            f"train with --max-length {length} to extend the encoder's positions"
        )


@dataclass(frozen=True)
class GraphDescription:
    """One ONNX graph of a bundle.

    Attributes:
        name: ``segment_0`` ... or ``dense``.
        inputs, outputs: tensor names with their dtypes and symbolic shapes, in order, of the masked
            variant; those without a mask lack that input.
        variants: those that are there; the masked one always is.
    """

    name: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    variants: tuple[str, ...] = VARIANTS

    @property
    def token_inputs(self) -> tuple[str, ...]:
        """Names of the inputs with one entry per token, the mask left out."""
        return tuple(tensor.name for tensor in self.inputs if tensor.name != ATTENTION_MASK)

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the outputs that somebody reads: behind the head not the states."""
        names = tuple(tensor.name for tensor in self.outputs)
        return names if KEEP_LOGIT in names else tuple(n for n in names if n != HIDDEN_OUT)

    @property
    def file(self) -> str:
        """The file of the masked variant."""
        return self.file_of(MASKED)

    def file_of(self, variant: str) -> str:
        return f"{self.name}.onnx" if variant == MASKED else f"{self.name}.{variant}.onnx"


@dataclass(frozen=True)
class TensorDescription:
    """Name, numpy dtype and shape of a tensor; dynamic axes are named B, S."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        encoder: shape of the model and its labels.
        reduction: the cuts and their rules.
        max_length: most tokens of a row, special tokens included.
        graphs: the segments' graphs in order, then the dense one.
        files: SHA-256 of every file beside the manifest.
        parity: the largest differences found against PyTorch when the bundle was made.
        training: figures of the training.
        made_by: versions of the packages that made it.
    """

    encoder: EncoderSpec
    reduction: ReductionConfig
    max_length: int
    graphs: tuple[GraphDescription, ...]
    files: Mapping[str, str]
    parity: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.encoder.task

    def graph(self, name: str) -> GraphDescription:
        """The graph called ``name``."""
        return next(graph for graph in self.graphs if graph.name == name)

    def to_json(self) -> dict[str, Any]:
        """The manifest with its own digest, so that a changed one is refused like any file."""
        data = {
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.to_json(),
            "reduction": self.reduction.to_json(),
            "max_length": self.max_length,
            "graphs": [asdict(graph) for graph in self.graphs],
            "files": dict(self.files),
            "parity": dict(self.parity),
            "training": dict(self.training),
            "made_by": dict(self.made_by),
        }
        return {**data, DIGEST: _digest(data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what ``to_json`` wrote.

        Raises:
            BundleError: another format version, altered, or entries that are missing or of a
                wrong kind.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION and version not in UPGRADES:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "upgrade trbert-deploy" if newer else "export the checkpoint again"
            raise BundleError(
                f"bundle has format version {version}: this release reads {min(UPGRADES)} to "
                f"{FORMAT_VERSION}; {advice}"
            )
        content = {key: value for key, value in data.items() if key != DIGEST}
        if data.get(DIGEST) != _digest(content):
            raise BundleError(
                f"{MANIFEST} was altered: its content does not match its own {DIGEST}; export the "
                "checkpoint again"
            )
        try:
            content = dict(upgraded(content))
            manifest = cls(
                encoder=EncoderSpec.from_json(content["encoder"]),
                reduction=ReductionConfig.from_json(content["reduction"]),
                max_length=int(content["max_length"]),
                graphs=tuple(_graph(entry) for entry in content["graphs"]),
                files={str(name): str(digest) for name, digest in content["files"].items()},
                parity=dict(content.get("parity", {})),
                training=dict(content.get("training", {})),
                made_by=dict(content.get("made_by", {})),
            )
            segments = manifest.reduction.segments(manifest.encoder.num_layers)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as problem:
            raise BundleError(
                f"bundle manifest is damaged ({type(problem).__name__}: {problem}); "
                "export the checkpoint again"
            ) from None
        received = [graph.name for graph in manifest.graphs]
        expected = [segment_name(segment.index) for segment in segments if len(segments) > 1]
        if received != [*expected, DENSE]:
            raise BundleError(
                f"bundle manifest lists the graphs {', '.join(received)}: expected "
                f"{', '.join([*expected, DENSE])}; export the checkpoint again"
            )
        return manifest


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever its layout in the file."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _graph(entry: Mapping[str, Any]) -> GraphDescription:
    def tensors(key: str) -> tuple[TensorDescription, ...]:
        return tuple(
            TensorDescription(tensor["name"], tensor["dtype"], tuple(tensor["shape"]))
            for tensor in entry[key]
        )

    variants = tuple(entry.get("variants", (MASKED,)))
    return GraphDescription(entry["name"], tensors("inputs"), tensors("outputs"), variants)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest into a bundle directory that holds every other file."""
    write_json(directory / MANIFEST, manifest.to_json())

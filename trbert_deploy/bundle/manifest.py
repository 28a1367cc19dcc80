"""What a bundle's manifest says: its graphs and their variants, files, and how it was made.

File and tensor names are declared here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trbert_deploy.bounds import require_whole
from trbert_deploy.bundle.older_versions import UPGRADES, upgraded
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import BundleError, ConfigError, LengthError, first_line
from trbert_deploy.fields import MOST_LEVELS, is_deep, known_fields
from trbert_deploy.files import write_json
from trbert_deploy.selection.capacity import Capacity

FORMAT_VERSION = 4
DEFAULT_DIRECTORY = "bundle"

MANIFEST = "manifest.json"
DIGEST = "sha256"  # of the manifest's other entries
WEIGHTS = "weights.safetensors"
CALIBRATED_WEIGHTS = "calibrated.safetensors"  # what graphs with ranges have of their own
TOKENIZER = "tokenizer.json"
SAMPLES = "samples.jsonl"
LEXICON = "lexicon.tsv"  # phrases with tags, where the model takes such
ENGINES = "engines"
DENSE = "dense"
HEAD = "head"  # of tokens that are asked for, which alone it answers
CHAIN = "chain"  # all segments in one graph

#: Variants of a graph (exporters/onnx/variants.py): with a padding mask; for rows of one length;
#: the same with the operators of ONNX Runtime.
MASKED, UNMASKED, FUSED = VARIANTS = ("masked", "unmasked", "fused")

#: Variants with 8-bit weights that a bundle may have: ``fused``, and ``unmasked`` in standard ONNX,
#: where a runtime sees for itself that it can compute in 8 bits.
INT8, DEQUANTIZED = "int8", "dequantized"

#: Variants with 8-bit weights whose activations have ranges that were found on sample texts:
#: ``unmasked`` and ``masked``, in standard ONNX.
CALIBRATED, CALIBRATED_MASKED = WITH_RANGES = ("calibrated", "calibrated_masked")

#: Variants in half precision that a bundle may have: ``fused`` and ``masked``.
HALF, HALF_MASKED = HALVES = ("fp16", "fp16_masked")

#: Variant of the graph of the whole chain, masked, whose slots follow from the length of rows.
SCHEDULED = "scheduled"
#: All variants of that graph; those in half precision are there where the segments' are.
CHAIN_VARIANTS = (MASKED, FUSED, SCHEDULED)

#: Before the name of an 8-bit weight, or of its scale, in weights.safetensors.
QUANTIZED = "quantized."
#: Before the name of a weight there that graphs in half precision alone have.
HALVED = "halved."

#: Behind the name of a weight that weights.safetensors holds as [in, out].
TRANSPOSED = ".transposed"

INPUT_IDS = "input_ids"
TOKEN_TYPE_IDS = "token_type_ids"
POSITIONS = "positions"  # where a survivor stood in the row as it was given
ATTENTION_MASK = "attention_mask"
PROTECTED = "protected"  # into the whole chain, where a task protects more than the first token
MATCHES = "matches"  # what a lexicon says of the tokens, into what answers (lexicon/columns.py)
HIDDEN = "hidden"  # into a later segment
HIDDEN_OUT = "hidden_out"  # out of any segment: a graph cannot use one name twice
KEEP_LOGIT = "keep_logit"
EXIT_LOGITS = "exit_logits"  # out of a segment before a cut with an exit

#: What a segment before a cut with an exit gives, besides states.
AT_EXIT = (KEEP_LOGIT, EXIT_LOGITS)

_KNOWN = {*VARIANTS, INT8, DEQUANTIZED, *WITH_RANGES, *HALVES}
_FIRST_INPUTS = {INPUT_IDS, TOKEN_TYPE_IDS, POSITIONS, MATCHES, ATTENTION_MASK}
_LATER_INPUTS = {HIDDEN, *_FIRST_INPUTS}
_LONGEST_NAME = 200  # letters: file systems take 255 bytes


def segment_name(index: int) -> str:
    """The name of a segment's graph and engine."""
    return f"segment_{index}"


def dropped_name(cut: int) -> str:
    """The name of the graph of what tokens say that a cut drops."""
    return f"dropped_{cut}"


def states_name(layers: int) -> str:
    """The name of the graph of the states behind so many layers; 0 for the embeddings."""
    return f"states_{layers}"


def survivors_name(cut: int) -> str:
    """What the whole chain calls the places of a cut's survivors."""
    return f"survivors_{cut}"


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


def require_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuse layers that an encoder of ``num_layers`` has no states behind.

    Raises:
        ConfigError: it has none behind one of them, or one stands twice, or out of order.
    """
    for layer in layers:
        require_whole("the layer that states are asked for after", layer, 0, num_layers)
    if list(layers) != sorted({*layers}):
        raise ConfigError(
            f"states are asked for after the layers {', '.join(map(str, layers))}: expected each "
            "one once, in ascending order"
        )


@dataclass(frozen=True)
class GraphDescription:
    """One ONNX graph of a bundle.

    Attributes:
        name: ``segment_0`` ..., ``dense``, and ``dropped_0`` ... or ``head``; ``states_8``;
            ``chain``.
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
    def takes_mask(self) -> bool:
        """Whether padded rows come with a mask; where each token is for itself they need none."""
        return any(tensor.name == ATTENTION_MASK for tensor in self.inputs)

    @property
    def token_outputs(self) -> frozenset[str]:
        """Names of the outputs with one entry per token."""
        return frozenset(
            tensor.name
            for tensor in self.outputs
            if len(tensor.shape) > 1 and isinstance(tensor.shape[1], str)
        )

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the outputs that somebody reads: behind the head not the states."""
        names = tuple(tensor.name for tensor in self.outputs)
        return names if KEEP_LOGIT in names else tuple(n for n in names if n != HIDDEN_OUT) or names

    @property
    def file(self) -> str:
        """The file of the masked variant."""
        return self.file_of(MASKED)

    def require_sense_of_tokens(self) -> None:
        """Refuse another graph than of states to what their tokens say, each for itself.

        Raises:
            ConfigError: it is.
        """
        inputs = [tensor.name for tensor in self.inputs]
        if inputs != [HIDDEN] or not self.answers or {HIDDEN_OUT, KEEP_LOGIT} & {*self.answers}:
            raise ConfigError(
                f"{self.name} takes {', '.join(inputs)} and gives {', '.join(self.answers)}: "
                f"expected {HIDDEN} and what a head says"
            )

    def require_sense_of_chain(self, cuts: int) -> None:
        """Refuse another graph than of ``cuts`` cuts and all segments.

        Raises:
            ConfigError: it is.
        """
        inputs = [tensor.name for tensor in self.inputs]
        outputs = [tensor.name for tensor in self.outputs]
        survivors = [survivors_name(cut) for cut in range(cuts)]
        known = {INPUT_IDS, TOKEN_TYPE_IDS, ATTENTION_MASK, PROTECTED}
        if (
            self.name != CHAIN
            or not {INPUT_IDS, ATTENTION_MASK} <= {*inputs} <= known
            or not cuts
            or outputs[-cuts:] != survivors
            or len(outputs) == cuts
            or {*self.variants} - {*HALVES} != {*CHAIN_VARIANTS}
        ):
            raise ConfigError(
                f"{self.name} takes {', '.join(inputs)} and gives {', '.join(outputs)} in the "
                f"variants {', '.join(self.variants)}: expected {INPUT_IDS} and {ATTENTION_MASK}, "
                f"what its head says and {', '.join(survivors)}, in "
                f"{', '.join(sorted(CHAIN_VARIANTS))}"
            )

    def require_sense(self, ends_in: frozenset[str] | None, is_first: bool) -> None:
        """Refuse tensors and variants that a chain could not run.

        Args:
            ends_in: what it gives besides states; None for what its head says.

        Raises:
            ConfigError: names that it does not know, or does not find.
        """
        inputs = [tensor.name for tensor in self.inputs]
        outputs = [tensor.name for tensor in self.outputs]
        known = _FIRST_INPUTS if is_first else _LATER_INPUTS
        needed = INPUT_IDS if is_first else HIDDEN
        if needed not in inputs or len({*inputs} & known) != len(inputs):
            raise ConfigError(f"{self.name} takes {', '.join(inputs)}: expected {needed}")
        answers = {*outputs} - {HIDDEN_OUT}
        if (
            len({*outputs}) != len(outputs)
            or HIDDEN_OUT not in outputs
            or (not answers - {*AT_EXIT} if ends_in is None else answers != ends_in)
        ):
            what = ["what its head says"] if ends_in is None else sorted(ends_in)
            raise ConfigError(
                f"{self.name} gives {', '.join(outputs)}: expected "
                f"{' and '.join([HIDDEN_OUT, *what])}"
            )
        if MASKED not in self.variants or len({*self.variants} & _KNOWN) != len(self.variants):
            raise ConfigError(
                f"{self.name} has the variants {', '.join(self.variants)}: expected {MASKED} and "
                f"others of {', '.join(sorted(_KNOWN))}"
            )

    def file_of(self, variant: str) -> str:
        return f"{self.name}.onnx" if variant == MASKED else f"{self.name}.{variant}.onnx"

    def files_of(self, variant: str) -> tuple[str, ...]:
        """The file of a variant, and those that it has its weights in."""
        own = (CALIBRATED_WEIGHTS,) if variant in WITH_RANGES else ()
        return (self.file_of(variant), WEIGHTS, *own)


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
        chain: the graph of the whole chain, where there is one.
        capacities: of its scheduled variant, at each cut.
        states: the graphs of states, where there are any: the encoder up to one of its layers,
            with no cut and no head.
        states_after: the layers behind which these are, in ascending order.
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
    chain: GraphDescription | None = None
    capacities: tuple[Capacity, ...] = ()
    states: tuple[GraphDescription, ...] = ()
    states_after: tuple[int, ...] = ()
    parity: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.encoder.task

    def graph(self, name: str) -> GraphDescription:
        """The graph called ``name``."""
        return next(graph for graph in self.all_graphs if graph.name == name)

    @property
    def all_graphs(self) -> tuple[GraphDescription, ...]:
        """The graphs, those of states, and that of the whole chain."""
        chain = () if self.chain is None else (self.chain,)
        return (*self.graphs, *self.states, *chain)

    def to_json(self) -> dict[str, Any]:
        """The manifest with its own digest, so that a changed one is refused like any file."""
        data = {
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.to_json(),
            "reduction": self.reduction.to_json(),
            "max_length": self.max_length,
            "graphs": [asdict(graph) for graph in self.graphs],
            **self._chain_json(),
            **self._states_json(),
            "files": dict(self.files),
            "parity": dict(self.parity),
            "training": dict(self.training),
            "made_by": dict(self.made_by),
        }
        return {**data, DIGEST: _digest(data)}

    def _chain_json(self) -> dict[str, Any]:
        if self.chain is None:
            return {}
        capacities = [asdict(capacity) for capacity in self.capacities]
        return {"chain": asdict(self.chain), "capacities": capacities}

    def _states_json(self) -> dict[str, Any]:
        if not self.states:
            return {}
        graphs = [asdict(graph) for graph in self.states]
        return {"states": graphs, "states_after": list(self.states_after)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what ``to_json`` wrote.

        Raises:
            BundleError: another format version, altered, or entries that are missing, of a wrong
                kind, or do not fit each other.
        """
        version = data.get("format_version")
        if not isinstance(version, int) or version not in (FORMAT_VERSION, *UPGRADES):
            newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "upgrade trbert-deploy" if newer else "export the checkpoint again"
            raise BundleError(
                f"bundle has format version {reprlib.repr(version)}: this release reads "
                f"{min(UPGRADES)} to {FORMAT_VERSION}; {advice}"
            )
        if is_deep(data):
            raise BundleError(
                f"{MANIFEST} nests more than {MOST_LEVELS} levels; export the checkpoint again"
            )
        content = {key: value for key, value in data.items() if key != DIGEST}
        if data.get(DIGEST) != _digest(content):
            raise BundleError(
                f"{MANIFEST} was altered: its content does not match its own {DIGEST}; export the "
                "checkpoint again"
            )
        try:
            entries = {entry.name for entry in fields(cls)}
            content = {key: value for key, value in upgraded(content).items() if key in entries}
            content = known_fields(cls, content, "manifest", defaults=True)
            manifest = cls(
                **{
                    **content,
                    "encoder": EncoderSpec.from_json(content["encoder"]),
                    "reduction": ReductionConfig.from_json(content["reduction"]),
                    "graphs": tuple(map(_graph, content["graphs"])),
                    "chain": _graph(content["chain"]) if content.get("chain") else None,
                    "capacities": tuple(
                        Capacity(**known_fields(Capacity, each, "capacity"))
                        for each in content.get("capacities", ())
                    ),
                    "states": tuple(map(_graph, content.get("states", ()))),
                    "states_after": tuple(content.get("states_after", ())),
                }
            )
            manifest._require_sense()
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as problem:
            raise BundleError(
                f"bundle manifest is damaged ({type(problem).__name__}: {first_line(problem)}); "
                "export the checkpoint again"
            ) from None
        return manifest

    def _require_sense(self) -> None:
        """Refuse entries that do not fit each other.

        Raises:
            ConfigError: they do not.
        """
        if not 1 <= self.max_length <= self.encoder.max_positions:
            raise ConfigError(
                f"max_length is {self.max_length}: expected 1 to {self.encoder.max_positions}"
            )
        for name in self.files:
            if name in ("", ".", "..") or len(name) > _LONGEST_NAME or set(name) & set("/\\"):
                raise ConfigError(f"a file is called {reprlib.repr(name)}: expected a plain name")
        segments = self.reduction.segments(self.encoder.num_layers)
        received = [graph.name for graph in self.graphs]
        last = frozenset[str]() if HEAD in received else None
        names = [segment_name(segment.index) for segment in segments]
        at_cut = frozenset([KEEP_LOGIT] if self.reduction.exits is None else AT_EXIT)
        ends = dict.fromkeys(names[:-1], at_cut) | {names[-1]: last}
        dropped = [dropped_name(segment.index) for segment in segments[:-1]]
        expected = {**(ends if len(ends) > 1 else {}), DENSE: last}
        if received not in (list(expected), [*expected, *dropped], [*expected, HEAD]):
            raise ConfigError(
                f"the graphs are {', '.join(received)}: expected {', '.join(expected)}"
            )
        if self.chain is not None:
            cuts = len(self.reduction.cuts)
            self.chain.require_sense_of_chain(cuts)
            if len(self.capacities) != cuts:
                raise ConfigError(f"there are {len(self.capacities)} capacities for {cuts} cuts")
        self._require_sense_of_states()
        for graph in self.graphs:
            if graph.name in (HEAD, *dropped):
                graph.require_sense_of_tokens()
            else:
                graph.require_sense(expected[graph.name], graph.name in (segment_name(0), DENSE))

    def _require_sense_of_states(self) -> None:
        """Refuse graphs of states that are not those of ``states_after``.

        Raises:
            ConfigError: they are not.
        """
        require_layers(self.states_after, self.encoder.num_layers)
        names = [graph.name for graph in self.states]
        expected = list(map(states_name, self.states_after))
        if names != expected:
            raise ConfigError(
                f"the graphs of states are {', '.join(names) or 'none'}: expected "
                f"{', '.join(expected) or 'none'}"
            )
        for graph in self.states:
            graph.require_sense(frozenset(), is_first=True)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever its layout in the file."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _graph(entry: Any) -> GraphDescription:
    values = known_fields(GraphDescription, entry, "graph", defaults=True)
    tensors = {
        key: tuple(
            TensorDescription(**{**known, "shape": tuple(known["shape"])})
            for known in (known_fields(TensorDescription, tensor, key) for tensor in values[key])
        )
        for key in ("inputs", "outputs")
    }
    variants = tuple(values.get("variants", (MASKED,)))
    return GraphDescription(values["name"], **tensors, variants=variants)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest into a bundle directory that holds every other file."""
    write_json(directory / MANIFEST, manifest.to_json())

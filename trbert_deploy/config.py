"""Frozen descriptions of a model and of where it drops tokens, saved as versioned JSON.

Cuts stand here and nowhere else: policies, FLOPs, export, runtime and benchmark all read
``ReductionConfig``. Positions count encoder layers from 0: ``3`` is before layer 3, ``0.5``
is inside layer 0, between its attention and its feed-forward. Inside the code a position is
a whole number of half layers (steps): step 2l is the attention of layer l, 2l+1 its
feed-forward.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from trbert_deploy.errors import ConfigError
from trbert_deploy.fields import known_fields
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.selection.rules import SelectionRule

CONFIG_VERSION = 1


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder and of its task, whatever its family.

    Attributes:
        family: backbone family, a key of ``modeling.families``.
        task: what the head answers, a key of ``tasks`` (``text-classification``).
        num_layers: L.
        hidden_size: H.
        num_heads: N; divides H.
        ffn_size: F.
        vocab_size: rows of the token table.
        max_positions: most tokens of a row.
        token_types: rows of the token-type table; 0 where there is none, and with 1 nobody asks.
        layer_norm_eps: epsilon of every LayerNorm.
        activation: feed-forward activation.
        dropout: probability while fine-tuning; 0 at inference.
        pad_token_id: id that fills padded places.
        labels: class names, in the order of the logits.
        embedding_size: width of the embedding tables; H unless a projection follows.
        gated_ffn: the feed-forward network has a third matrix, whose product gates the first's.
        relative_keys: relative positions that every token's query, and key, is multiplied with.
        answers_tokens: the head answers every token, those that are dropped behind a linear map.
        options: what the family alone reads (JSON values).
        head: what the head alone reads (JSON values); ``logits`` of them, where there are not as
            many as labels.
        answers: what the task alone reads of how outputs are answers (JSON values): of a task that
            has several kinds of them, ``problem`` names the kind, as config.json does.

    Raises:
        ConfigError: the heads do not divide the width, or a label is there twice.
    """

    family: str
    task: str
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    token_types: int
    layer_norm_eps: float
    activation: str
    dropout: float
    pad_token_id: int
    labels: tuple[str, ...]
    embedding_size: int = 0
    gated_ffn: bool = False
    relative_keys: int = 0
    answers_tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.embedding_size:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ConfigError(
                f"{self.num_heads} heads in a width of {self.hidden_size}: expected a number that "
                "divides it"
            )
        if len({*self.labels}) < len(self.labels):
            raise ConfigError(f"the labels are {', '.join(self.labels)}: expected each once")

    @property
    def num_steps(self) -> int:
        """Half layers in the encoder."""
        return 2 * self.num_layers

    @property
    def problem(self) -> str:
        """The kind of answers; empty for the task's first."""
        return str(self.answers.get("problem", ""))

    @property
    def num_logits(self) -> int:
        """Values that the head gives for a text, or for a token."""
        return int(self.head.get("logits", len(self.labels)))

    def with_positions(self, max_positions: int) -> EncoderSpec:
        """The same encoder with another number of positions."""
        return replace(self, max_positions=max_positions)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EncoderSpec:
        values = known_fields(cls, data, "encoder", defaults=True)
        return cls(**{**values, "labels": tuple(values["labels"])})


@dataclass(frozen=True)
class Cut:
    """A place where tokens are selected.

    Attributes:
        position: layers passed before the selection, a multiple of 0.5 (see module).
        rule: turns the keep logits of this cut into survivors.
    """

    position: float
    rule: SelectionRule = SelectionRule()

    def __post_init__(self) -> None:
        if not math.isfinite(self.position) or self.position < 0 or (2 * self.position) % 1:
            raise ConfigError(
                f"cut {self.position:g}: expected a layer number (3: before layer 3) or a half "
                "(0.5: inside layer 0, between attention and feed-forward)"
            )

    @property
    def step(self) -> int:
        """The position in half layers."""
        return int(2 * self.position)


@dataclass(frozen=True)
class Segment:
    """Half layers ``start`` to ``stop`` that run between two cuts.

    The first segment begins with the embeddings; every other begins with survivors. The
    last ends with the head; every other ends with the policy of ``cut``.
    """

    index: int
    start: int
    stop: int
    cut: Cut | None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.cut is None


@dataclass(frozen=True)
class ReductionConfig:
    """Where an encoder drops tokens; no cuts at all is the dense model.

    Attributes:
        cuts: the places, each with its rule.
        exits: when rows leave at them, where each has an exit; None where none has.

    Raises:
        ConfigError: cuts are repeated or not in ascending order, or exits have no cut.
    """

    cuts: tuple[Cut, ...] = ()
    exits: ExitRule | None = None

    def __post_init__(self) -> None:
        if self.exits is not None and not self.cuts:
            raise ConfigError("exits stand at cuts, and there are none: train with cuts")
        positions = [cut.position for cut in self.cuts]
        for earlier, later in pairwise(positions):
            if later <= earlier:
                problem = "repeated" if later == earlier else "out of order"
                raise ConfigError(
                    f"cuts {_join(positions)}: {later:g} is {problem}; "
                    "expected each place once, in ascending order"
                )

    @classmethod
    def parse(cls, text: str, rule: SelectionRule = SelectionRule()) -> ReductionConfig:
        """Read cuts as they are written on a command line, such as ``1,3`` or ``0.5,3``.

        An empty string or ``none`` means no cut.
        """
        if text.strip().lower() in ("", "none"):
            return cls()
        cuts = []
        for part in text.split(","):
            try:
                position = float(part)
            except ValueError:
                raise ConfigError(
                    f"cuts {text!r}: {part!r} is not a number; expected something like 1,3 or 0.5,3"
                ) from None
            cuts.append(Cut(position, rule))
        return cls(tuple(cuts))

    @classmethod
    def default_for(cls, spec: EncoderSpec) -> ReductionConfig:
        """Inside layer 0, behind its attention, and before layer L//2.

        Where every token is answered, dropped ones too, at a quarter and five twelfths of the
        layers: further down few are known well enough to be answered (docs/results.md, tags).
        """
        layers = spec.num_layers
        positions = {0.5, float(layers // 2)}
        if spec.answers_tokens:
            positions = {max(1, halves) / 2 for halves in (layers // 2, 5 * layers // 6)}
        return cls(tuple(Cut(position) for position in sorted(positions - {0})))

    @classmethod
    def published_for(cls, num_layers: int) -> ReductionConfig:
        """TR-BERT's places: before layer 1 and before layer L//2."""
        positions = sorted({1, num_layers // 2} - {0, num_layers})
        return cls(tuple(Cut(float(position)) for position in positions))

    @property
    def places(self) -> str:
        """The cuts as ``parse`` reads them."""
        return _join([cut.position for cut in self.cuts]) or "none"

    def with_rules(self, rules: tuple[SelectionRule, ...]) -> ReductionConfig:
        """The same places with other rules, one per cut."""
        if len(rules) != len(self.cuts):
            raise ConfigError(
                f"{len(rules)} selection rules for {len(self.cuts)} cuts: expected one for each"
            )
        pairs = zip(self.cuts, rules, strict=True)
        return replace(self, cuts=tuple(Cut(cut.position, rule) for cut, rule in pairs))

    def with_exits(self, rule: ExitRule | None) -> ReductionConfig:
        """The same cuts, with exits where rows leave by this rule."""
        return replace(self, exits=rule)

    @property
    def rows_leave(self) -> bool:
        """Whether rows leave at exits by its own rule."""
        return self.exits is not None and self.exits.is_active

    def at(self, point: OperatingPoint) -> ReductionConfig:
        """The same places at another operating point.

        Raises:
            ConfigError: a number of tokens that is no multiple of what a cut rounds to, or rows
                are to leave where there are no exits.
        """
        turned = self.with_rules(tuple(point.turn(cut.rule) for cut in self.cuts))
        return turned.with_exits(point.turn_exits(self.exits))

    def at_threshold(self, threshold: float) -> ReductionConfig:
        """The same places, keeping tokens from another keep probability on."""
        return self.at(OperatingPoint(threshold))

    def segments(self, num_layers: int) -> tuple[Segment, ...]:
        """The segments between the cuts: C cuts make C+1 of them.

        Raises:
            ConfigError: a cut lies at or behind the end of the encoder.
        """
        end = 2 * num_layers
        for cut in self.cuts:
            if cut.step >= end:
                raise ConfigError(
                    f"cut {cut.position:g} is out of range: the encoder has {num_layers} layers, "
                    f"so the last possible cut is {num_layers - 0.5:g}"
                )
        bounds = [0, *(cut.step for cut in self.cuts), end]
        cuts = (*self.cuts, None)
        return tuple(
            Segment(index, bounds[index], bounds[index + 1], cut) for index, cut in enumerate(cuts)
        )

    def to_json(self) -> dict[str, Any]:
        exits = {} if self.exits is None else {"exits": asdict(self.exits)}
        cuts = [asdict(cut) for cut in self.cuts]
        return {"version": CONFIG_VERSION, "cuts": cuts, **exits}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReductionConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: an unknown version, or fields that are missing or unknown.
        """
        version = data.get("version")
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"reduction configuration has version {version!r}: this release reads version "
                f"{CONFIG_VERSION}; upgrade trbert-deploy or make the file again"
            )
        entries = data.get("cuts")
        if not isinstance(entries, list):
            raise ConfigError(
                f"reduction configuration has the cuts {reprlib.repr(entries)}: expected a list"
            )
        cuts = []
        for entry in entries:
            values = known_fields(Cut, entry, "cut")
            rule = SelectionRule(**known_fields(SelectionRule, values["rule"], "selection rule"))
            cuts.append(Cut(values["position"], rule))
        exits = None
        if data.get("exits") is not None:
            exits = ExitRule(**known_fields(ExitRule, data["exits"], "exits", defaults=True))
        return cls(tuple(cuts), exits)


def _join(positions: list[float]) -> str:
    return ",".join(f"{position:g}" for position in positions)

"""The backbone family: what is known of one kind of encoder, and nowhere else.

A family reads a Hugging Face configuration into an ``EncoderSpec``, maps whole tensors between
Hugging Face's names and ours, and builds the encoder from the shared blocks. Most families need a
table of names and little besides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.blocks.encoder import Encoder
from trbert_deploy.tasks.fill_mask import FillMask
from trbert_deploy.tasks.question_answering import QuestionAnswering
from trbert_deploy.tasks.token_classification import TokenClassification

State = Mapping[str, Tensor]

#: Beginnings of names that are ours alone: no family's checkpoints have such tensors.
OWN = ("policies.", "projections.", "exits.", "head.lexicon.")

#: Our module in a layer -> theirs, of the families that grew from BERT.
BERT_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
BERT_EMBEDDINGS = {
    "token": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
    "projection": "embed_proj",
}
#: Task -> our modules of its head -> theirs, of all families whose head for tokens is one layer.
TOKEN_HEADS: Mapping[str, Mapping[str, str]] = {
    TokenClassification.name: {"classifier": "classifier"},
    QuestionAnswering.name: {"classifier": "qa_outputs"},
}
#: Those of the head for masked words, of the families that grew from BERT, and from RoBERTa.
BERT_MASKS = {
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "decoder": "cls.predictions",
}
ROBERTA_MASKS = {
    "dense": "lm_head.dense",
    "norm": "lm_head.layer_norm",
    "decoder": "lm_head",
}
#: Tasks whose heads multiply with the embeddings' weights, unless a configuration says otherwise.
TIED = (FillMask.name,)


class Family(ABC):
    """One kind of encoder.

    Attributes:
        model_types: values of ``model_type`` that it reads; the first names the family.
        class_prefix: of transformers' class names, such as ``Bert``.
        prefix: of the encoder's tensors in a model with a head, such as ``bert.``.
        carried: graph inputs of later segments besides ``hidden``: what their layers need of a
            token, such as ``positions``.
        embeddings: our modules of the embeddings -> theirs, behind ``embeddings_prefix``.
        layer: our modules of a layer -> theirs, behind ``layer_prefix``.
        head: our modules of the head for texts -> theirs.
        head_options: entries of ``spec.head`` that a task's head has besides, by task.
        task_heads: modules of heads that are others, by task.
    """

    model_types: ClassVar[tuple[str, ...]]
    class_prefix: ClassVar[str]
    prefix: ClassVar[str]
    carried: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[Mapping[str, str]] = BERT_EMBEDDINGS
    embeddings_prefix: ClassVar[str] = "embeddings."
    layer: ClassVar[Mapping[str, str]] = BERT_LAYER
    layer_prefix: ClassVar[str] = "encoder.layer."
    head: ClassVar[Mapping[str, str]]
    head_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    task_heads: ClassVar[Mapping[str, Mapping[str, str]]] = TOKEN_HEADS

    @property
    def name(self) -> str:
        return self.model_types[0]

    @abstractmethod
    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        """Our description of a transformers configuration.

        Raises:
            CheckpointError: a variant of the family that is not computed here.
        """

    @abstractmethod
    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        """The entries of config.json that follow from ``spec``, labels and dropout left out."""

    def build(self, spec: EncoderSpec) -> Encoder:
        """The encoder, newly initialized."""
        return Encoder.post_norm(spec)

    def modules(self, spec: EncoderSpec) -> dict[str, str]:
        """Our module -> theirs, of everything that has tensors of its own in both."""
        names = {
            f"encoder.embeddings.{ours}": f"{self.prefix}{self.embeddings_prefix}{theirs}"
            for ours, theirs in self.embeddings.items()
        }
        for layer in range(spec.num_layers):
            for ours, theirs in self.layer.items():
                names[f"encoder.layers.{layer}.{ours}"] = (
                    f"{self.prefix}{self.layer_prefix}{layer}.{theirs}"
                )
        head = self.task_heads.get(spec.task, self.head)
        return names | {f"head.{ours}": theirs for ours, theirs in head.items()}

    def load(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        """Their tensors under our names; those of a bare encoder, without ``prefix``, too."""
        ours = {theirs: ours for ours, theirs in self.modules(spec).items()}
        loaded = {}
        for name, tensor in with_prefix(state, self.prefix).items():
            module, _, kind = name.rpartition(".")
            if name.startswith(OWN):
                loaded[name] = tensor
            elif module in ours:
                loaded[f"{ours[module]}.{kind}"] = tensor
            elif name.startswith(self.prefix) and self.is_computed(name.removeprefix(self.prefix)):
                raise CheckpointError(
                    f"the checkpoint has the tensor {name}, which {self.name} does not compute "
                    "here: expected a plain encoder of this family"
                )
        return loaded

    def is_computed(self, name: str) -> bool:
        """Whether an unknown tensor of the encoder takes part in its states.

        Args:
            name: without ``prefix``. A pooler belongs to the head, or to nothing.
        """
        return not name.startswith("pooler.")

    def save(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        """Our tensors under their names; what they do not know (policies) keeps its own."""
        modules = self.modules(spec)
        return {their_name(name, modules): tensor for name, tensor in state.items()}


def their_name(name: str, modules: Mapping[str, str]) -> str:
    """Their name of one of our tensors; its own where they have none.

    Args:
        modules: as ``Family.modules`` gives them.
    """
    module, _, kind = name.rpartition(".")
    return f"{modules[module]}.{kind}" if module in modules else name


def with_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """A state whose encoder's tensors have their prefix, whether it came with a head or bare."""
    if not prefix or any(name.startswith(prefix) for name in state):
        return dict(state)
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_rows(tensors: dict[str, Tensor], name: str, rows: int) -> None:
    """Drop the first rows of a table: positions that no token has."""
    if name in tensors:
        tensors[name] = tensors[name][rows:].contiguous()


def with_rows(tensors: dict[str, Tensor], name: str, rows: int) -> None:
    """Put the rows that ``without_rows`` dropped back, as zeros."""
    if name in tensors:
        table = tensors[name]
        tensors[name] = table.new_zeros(len(table) + rows, table.shape[1])
        tensors[name][rows:] = table


def require_tied(config: Any, task: str) -> None:
    """Refuse a head with weights of its own in the place of the embeddings'.

    Raises:
        CheckpointError: the task's head should have theirs.
    """
    if task in TIED:
        require(config, "tie_word_embeddings", (True,), default=True)


def require(config: Any, what: str, expected: Iterable[Any], default: Any = None) -> None:
    """Refuse a configuration whose entry ``what`` is none of ``expected``.

    Raises:
        CheckpointError: it is another.
    """
    found = getattr(config, what, default)
    options = list(expected)
    if found not in options:
        wanted = " or ".join(repr(option) for option in options)
        raise CheckpointError(f"{what} is {found!r}: expected {wanted}")

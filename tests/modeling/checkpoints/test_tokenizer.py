"""Tokenizers of every kind give the ids that transformers' AutoTokenizer gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from many_scripts import lines, pairs
from tokenizer_kinds import (
    BERT_SPECIAL,
    KINDS,
    byte_pairs,
    edit_json,
    word_pieces,
    write_kind,
    write_sentencepiece,
)
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import AutoTokenizer

from trbert_deploy.bundle.bundle import TOKENIZER
from trbert_deploy.errors import CheckpointError, ParityError
from trbert_deploy.exporters import export
from trbert_deploy.modeling.checkpoints import tokenizer as ours
from trbert_deploy.modeling.checkpoints import tokenizer_loading
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.checkpoints.tokenizer import copy_tokenizer, tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.checkpoints.unigram_scores import numeral, save_exactly
from trbert_deploy.runtime.tokenizing import TextTokenizer

SINGLES, PAIRS = lines(1200, seed=2), pairs(400, seed=3)
FEW, FEW_PAIRS = lines(200, seed=4), pairs(80, seed=5)
LENGTH, SHORT = 160, 40  # which cut a few lines, and most

Ids = list[tuple[list[int], list[int]]]


def ids_of_transformers(
    directory: Path, singles: list[str], two: list[tuple[str, str]], length: int = LENGTH
) -> Ids:
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    options = {"return_token_type_ids": True, "truncation": True, "max_length": length}
    alone = tokenizer(singles, **options)
    together = tokenizer([first for first, _ in two], [second for _, second in two], **options)
    return [
        row
        for encoded in (alone, together)
        for row in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    ]


def ids_of_ours(
    directory: Path, singles: list[str], two: list[tuple[str, str]], length: int = LENGTH
) -> Ids:
    tokenizer = TextTokenizer(directory / TOKENIZER_FILE, length)
    tokenizer.truncated = 1  # that texts are cut is no news here, and warns no more
    return [
        (encoding.ids, encoding.type_ids)
        for encoding in (*tokenizer.encode(singles), *tokenizer.encode(two))
    ]


def assert_as_in_transformers(
    directory: Path,
    scratch: Path,
    singles: list[str] = FEW,
    two: list[tuple[str, str]] = FEW_PAIRS,
) -> Path:
    """Our ids are transformers', and stay so in a checkpoint that we write; where ours are read."""
    scratch.mkdir()
    made = tokenizer_directory(str(directory), scratch)
    assert ids_of_ours(made, singles, two) == ids_of_transformers(directory, singles, two)

    written = scratch.parent / "written"
    copy_tokenizer(made, written)
    config = directory / "config.json"
    if config.is_file():  # what a checkpoint of ours says of the tokenizer is the family alone
        model_type = json.loads(config.read_text()).get("model_type")
        edit_json(written / "config.json", model_type=model_type)
    expected = ids_of_transformers(directory, FEW, FEW_PAIRS, SHORT)
    assert ids_of_transformers(written, FEW, FEW_PAIRS, SHORT) == expected
    assert ids_of_ours(written, FEW, FEW_PAIRS, SHORT) == expected
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_ids_of_transformers(kind: str, tmp_path: Path) -> None:
    directory = write_kind(kind, tmp_path / "source")
    made = assert_as_in_transformers(directory, tmp_path / "scratch", SINGLES, PAIRS)
    if "bert, " in kind:  # nothing to add to what transformers saved
        assert made == directory


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "tokenizer_config.json", **changes)


def model_config(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", **changes)


def file(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / TOKENIZER_FILE, **changes)


def extra_file(name: str, **content: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / name, **content)


def added(content: str, **changes: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content, **flags, **changes}


NEW_ID = len(word_pieces(True))
MASK_STRIPS = {
    **{str(place): added(name, special=True) for place, name in enumerate(BERT_SPECIAL)},
    "4": added("[MASK]", special=True, lstrip=True),
    str(NEW_ID): added("<extra>", normalized=True),
}
CUT_AND_PADDED = {
    "truncation": {
        "direction": "Right",
        "max_length": 9,
        "strategy": "LongestFirst",
        "stride": 0,
    },
    "padding": {
        "strategy": {"Fixed": 12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    },
}

#: What checkpoints of 4.x and 5.x say beside tokenizer.json, and in it.
VARIANTS: dict[str, tuple[str, tuple[Callable[[Path], None], ...]]] = {
    "lower-cased by settings": ("bert, cased", (settings(do_lower_case=True),)),
    "lower-cased by default": ("bert, cased", (settings(do_lower_case=None),)),
    "cased by settings": ("bert, lower-cased", (settings(do_lower_case=False),)),
    "accents kept by settings": ("bert, lower-cased", (settings(strip_accents=False),)),
    "Chinese words by settings": ("bert, lower-cased", (settings(tokenize_chinese_chars=False),)),
    "deberta lower-cased by settings": ("deberta-v2", (settings(do_lower_case=True),)),
    "prefix space by settings": ("roberta", (settings(add_prefix_space=True),)),
    "no prefix space by settings": ("roberta, prefix space", (settings(add_prefix_space=False),)),
    "no settings": ("bert, cased", (lambda path: (path / "tokenizer_config.json").unlink(),)),
    "no config.json": ("bert, cased", (lambda path: (path / "config.json").unlink(),)),
    "old class": ("bert, lower-cased", (settings(tokenizer_class="BertTokenizerFast"),)),
    "general class, old name": (
        "bert, cased",
        (settings(tokenizer_class="PreTrainedTokenizerFast"),),
    ),
    "general class, new name": ("bert, cased", (settings(tokenizer_class="TokenizersBackend"),)),
    "unknown class": ("bert, cased", (settings(tokenizer_class="NobodysTokenizer"),)),
    "another family's class": ("xlm-roberta", (model_config(model_type="bert"),)),
    "class in config.json": (
        "mpnet",
        (
            settings(tokenizer_class=None),
            model_config(model_type="bert", tokenizer_class="MPNetTokenizer"),
        ),
    ),
    "added tokens of 4.x": ("bert, lower-cased", (settings(added_tokens_decoder=MASK_STRIPS),)),
    "added tokens, oldest": (
        "bert, lower-cased",
        (extra_file("added_tokens.json", **{"<extra>": NEW_ID}),),
    ),
    "special tokens map": (
        "bert, lower-cased",
        (
            extra_file(
                "special_tokens_map.json",
                mask_token=added("[MASK]", lstrip=True),
                cls_token="[CLS]",
                additional_special_tokens=["<extra>"],
            ),
        ),
    ),
    "additional tokens of 4.x": ("roberta", (settings(additional_special_tokens=["<extra>"]),)),
    "extra tokens of 5.x": ("roberta", (settings(extra_special_tokens=["<extra>"]),)),
    "extra tokens by name": ("modernbert", (settings(extra_special_tokens={"x": "<extra>"}),)),
    "other special tokens": (
        "bert, lower-cased",
        (settings(cls_token="[MASK]", sep_token="[UNK]"),),
    ),
    "no template in the file": ("bert, lower-cased", (file(post_processor=None),)),
    "no template at all": ("modernbert", (file(post_processor=None),)),
    "cut and padded by the file": ("bert, lower-cased", (file(**CUT_AND_PADDED),)),
    "cut on the left": ("bert, lower-cased", (settings(truncation_side="left"),)),
    "cut on the left, in the file": (
        "modernbert",
        (file(truncation={**CUT_AND_PADDED["truncation"], "direction": "Left"}),),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_mean_what_they_mean_to_transformers(variant: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[variant]
    directory = write_kind(kind, tmp_path / "source")
    for change in changes:
        change(directory)
    assert_as_in_transformers(directory, tmp_path / "scratch")


def write_words(directory: Path, model_type: str, vocab: dict[str, int], **options: Any) -> Path:
    """A checkpoint of before tokenizer.json, with vocab.txt."""
    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n")
    edit_json(directory / "config.json", model_type=model_type)
    if options:
        edit_json(directory / "tokenizer_config.json", **options)
    return directory


@pytest.mark.parametrize(
    ("kind", "model_type", "options"),
    [
        ("bert, lower-cased", "bert", {}),
        ("bert, cased", "bert", {"do_lower_case": False}),
        ("bert, accents kept", "bert", {"strip_accents": False}),
        ("distilbert", "distilbert", {"tokenizer_class": "DistilBertTokenizer"}),
        ("electra", "electra", {"do_lower_case": True}),
    ],
)
def test_a_list_of_words_is_converted(
    kind: str, model_type: str, options: dict[str, Any], tmp_path: Path
) -> None:
    vocab = word_pieces(options.get("do_lower_case", True))
    directory = write_words(tmp_path / "source", model_type, vocab, **options)
    made = assert_as_in_transformers(directory, tmp_path / "scratch")
    assert (made / "vocab.txt").read_text() == (directory / "vocab.txt").read_text()
    fast = write_kind(kind, tmp_path / "fast")
    assert ids_of_ours(made, FEW, FEW_PAIRS) == ids_of_ours(fast, FEW, FEW_PAIRS)


def test_words_keep_added_and_special_tokens(tmp_path: Path) -> None:
    directory = write_words(tmp_path / "source", "bert", word_pieces(True))
    edit_json(directory / "added_tokens.json", **{"<extra>": NEW_ID})
    edit_json(directory / "special_tokens_map.json", additional_special_tokens=["<extra>"])
    made = assert_as_in_transformers(directory, tmp_path / "scratch")
    (encoding,) = TextTokenizer(made / TOKENIZER_FILE, 16).encode(["x<extra>y [MASK]"])
    assert NEW_ID in encoding.ids and 4 in encoding.ids


def write_byte_pairs(directory: Path, **options: Any) -> Path:
    """A checkpoint of before tokenizer.json, with vocab.json and merges.txt."""
    directory.mkdir()
    vocab, merges = byte_pairs()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    rows = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (directory / "merges.txt").write_text("\n".join(rows) + "\n")
    edit_json(directory / "config.json", model_type="roberta")
    if options:
        edit_json(directory / "tokenizer_config.json", **options)
    return directory


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_pairs_are_converted(prefix: bool, tmp_path: Path) -> None:
    options = {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"} if prefix else {}
    directory = write_byte_pairs(tmp_path / "source", **options)
    made = assert_as_in_transformers(directory, tmp_path / "scratch")
    fast = write_kind("roberta, prefix space" if prefix else "roberta", tmp_path / "fast")
    assert ids_of_ours(made, FEW, FEW_PAIRS) == ids_of_ours(fast, FEW, FEW_PAIRS)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("xlm-roberta", "sentencepiece.bpe.model"),
        ("camembert", "sentencepiece.bpe.model"),
        ("albert", "spiece.model"),
        ("deberta-v2", "spm.model"),
    ],
)
def test_sentencepiece_models_are_converted(model_type: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    directory = write_sentencepiece(tmp_path / "source", model_type, name)
    made = assert_as_in_transformers(directory, tmp_path / "scratch")
    assert (made / name).read_bytes() == (directory / name).read_bytes()


def test_all_that_belongs_to_a_tokenizer_travels(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    belonging = [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
        *("spiece.model", "sentencepiece.bpe.model", "spm.model"),
    ]
    for name in (*belonging, "config.json", "model.safetensors"):
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(belonging)


def test_a_former_tokenizer_does_not_stay(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    (tmp_path / "added_tokens.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("kept")
    save_checkpoint(checkpoint, tmp_path)
    assert not (tmp_path / "added_tokens.json").exists()
    assert (tmp_path / "notes.txt").exists() and (tmp_path / TOKENIZER_FILE).exists()
    save_checkpoint(load_checkpoint(tmp_path), tmp_path)  # over itself
    assert (tmp_path / TOKENIZER_FILE).exists()


@pytest.mark.parametrize(("stated", "written"), [(64, 150), (512, 512), (None, None)])
def test_transformers_cuts_no_text_at_positions_that_were_extended(
    stated: int | None, written: int | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    edit_json(source / "tokenizer_config.json", model_max_length=stated)
    checkpoint = load_checkpoint(source)
    checkpoint.model.extend_positions(150)
    save_checkpoint(replace(checkpoint, max_length=150), tmp_path / "longer")
    settings = json.loads((tmp_path / "longer" / "tokenizer_config.json").read_text())
    assert settings.get("model_max_length") == written
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "longer")
    whole = len(tokenizer("good " * 200).input_ids)
    assert len(tokenizer("good " * 200, truncation=True).input_ids) == min(whole, written or whole)
    assert whole > 512


def test_an_export_holds_what_transformers_reads(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "ckpt"))
    edit_json(path / "tokenizer_config.json", do_lower_case=False)
    described = {}

    def look(model: object, staging: Path, *_: object) -> None:
        described.update(json.loads((staging / TOKENIZER).read_text()))
        raise ParityError("seen enough")

    monkeypatch.setattr(export, "export_graphs", look)
    with pytest.raises(ParityError, match="seen enough"):
        export.export_bundle(path, tmp_path / "bundle", samples=False)
    assert described["normalizer"]["lowercase"] is False


def test_a_model_of_the_hub_is_read_like_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_kind("bert, cased", tmp_path / "source")
    monkeypatch.setattr(ours, "snapshot_download", lambda name, allow_patterns: str(directory))
    assert tokenizer_directory("someone/a-model", tmp_path / "scratch") == directory


def test_a_model_that_the_hub_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise OSError("cannot connect\nto the hub")

    monkeypatch.setattr(ours, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"no directory here, .*: cannot connect$"):
        tokenizer_directory("someone/a-model", tmp_path)


def test_without_tokenizer_json_nothing_is_copied(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json: the runtime reads"):
        copy_tokenizer(tmp_path, tmp_path / "target")


def refusal(directory: Path, scratch: Path) -> str:
    """The one line with which a directory is refused."""
    scratch.mkdir()
    with pytest.raises(CheckpointError) as caught:
        tokenizer_directory(str(directory), scratch)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("names", [(), ("vocab.json",), ("merges.txt", "tokenizer_config.json")])
def test_incomplete_files_are_named_with_the_complete_ones(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    directory = write_byte_pairs(tmp_path / "source", do_lower_case=True)
    for name in {"vocab.json", "merges.txt", "tokenizer_config.json"} - set(names):
        (directory / name).unlink()
    message = refusal(directory, tmp_path / "scratch")
    assert "has no tokenizer: found " + ("none of its files" if not names else "") in message
    assert all(name in message for name in (*names, "vocab.json with merges.txt", "spm.model"))


def test_a_class_that_reads_other_files_is_named(tmp_path: Path) -> None:
    directory = write_byte_pairs(tmp_path / "source", tokenizer_class="BertTokenizer")
    message = refusal(directory, tmp_path / "scratch")
    assert "class BertTokenizer, which reads vocab.txt: found tokenizer_config.json" in message


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "spiece.model").write_bytes(b"\x00")
    edit_json(directory / "config.json", model_type="albert")
    monkeypatch.setattr(tokenizer_loading, "find_spec", lambda name: None)
    message = refusal(directory, tmp_path / "scratch")
    assert message.endswith("run pip install sentencepiece protobuf")
    assert "its tokenizer as spiece.model alone" in message


@pytest.mark.parametrize("name", [TOKENIZER_FILE, "tokenizer_config.json"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    directory = write_kind("bert, cased", tmp_path / "source")
    (directory / name).write_text("{")
    assert f"transformers cannot read {TOKENIZER_FILE}" in refusal(directory, tmp_path / "scratch")


def test_another_model_in_the_file_than_its_class_builds_is_refused(tmp_path: Path) -> None:
    directory = write_kind("roberta", tmp_path / "source")
    edit_json(directory / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer")
    assert "is tokenizer_class in" in refusal(directory, tmp_path / "scratch")


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    directory = write_kind("bert, cased", tmp_path / "source")
    edit_json(directory / "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    message = refusal(directory, tmp_path / "scratch")
    assert "ByT5Tokenizer, which tokenizer.json cannot express: supported are" in message


def test_special_tokens_that_are_no_tokens_in_texts_are_refused(tmp_path: Path) -> None:
    directory = write_kind("bert, cased", tmp_path / "source")
    edit_json(directory / "tokenizer_config.json", split_special_tokens=True)
    assert "has split_special_tokens in" in refusal(directory, tmp_path / "scratch")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = write_kind("bert, cased", tmp_path / "source")
    edit_json(directory / "tokenizer_config.json", sep_token="[END]")
    known = len(word_pieces(False))
    edit_json(directory / "config.json", vocab_size=known)
    message = refusal(directory, tmp_path / "scratch")
    assert f"puts [END] around texts, as number {known}, and an encoder of {known} tok" in message


def test_a_tokenizer_that_does_not_survive_being_saved_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_words(tmp_path / "source", "bert", word_pieces(True))
    monkeypatch.setattr(ours, "_behaviour_of", lambda tokenizer: {"loaded": id(tokenizer)})
    assert "reads otherwise once it is saved" in refusal(directory, tmp_path / "scratch")


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    scores = [0.0, *(-9.5 - 5 / place for place in range(1, 2000))]
    pieces = [(f'"{place}"\n', score) for place, score in enumerate(scores)]
    tokenizer = Tokenizer(Unigram(pieces, 0, False))

    def read(path: Path) -> list[tuple[str, float]]:
        described = json.loads(Tokenizer.from_file(str(path)).to_str())
        return [tuple(piece) for piece in described["model"]["vocab"]]

    tokenizer.save(str(tmp_path / "plain.json"))
    save_exactly(tokenizer, tmp_path / "exact.json")
    assert read(tmp_path / "plain.json") != pieces  # if not: is this module still needed?
    assert read(tmp_path / "exact.json") == pieces
    described = json.loads((tmp_path / "exact.json").read_text())
    assert [tuple(piece) for piece in described["model"]["vocab"]] == pieces


@pytest.mark.parametrize("number", [0.0, -1.0, -7.2096186306104455, 1e-30, 14.8848799613004])
def test_a_numeral_is_the_number_that_python_reads(number: float) -> None:
    assert json.loads(numeral(number)) == number


def test_a_checkpoint_keeps_the_files_of_its_source(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = write_words(tmp_path / "source", "bert", word_pieces(True), do_lower_case=True)
    (tmp_path / "scratch").mkdir()
    made = tokenizer_directory(str(directory), tmp_path / "scratch")
    model = load_checkpoint(tiny_checkpoint).model
    save_checkpoint(Checkpoint(model, made, 64), tmp_path / "ckpt")
    names = {path.name for path in (tmp_path / "ckpt").iterdir()}
    assert {"vocab.txt", "tokenizer_config.json", TOKENIZER_FILE} <= names
    expected = ids_of_transformers(directory, FEW, FEW_PAIRS)
    assert ids_of_transformers(tmp_path / "ckpt", FEW, FEW_PAIRS) == expected

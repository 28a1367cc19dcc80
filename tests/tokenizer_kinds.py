"""Tokenizers of each kind, trained here, in the files that checkpoints of their families have."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from conftest import BERT_SPECIAL
from many_scripts import lines
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    CamembertTokenizer,
    DebertaV2Tokenizer,
    DistilBertTokenizer,
    ElectraTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_SIZE = 1500


@cache
def word_pieces(lower: bool, special: tuple[str, ...] = BERT_SPECIAL) -> dict[str, int]:
    """A WordPiece vocabulary, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=_SIZE, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(lines(600, seed=1), trainer)
    return tokenizer.get_vocab()


@cache
def byte_pairs(
    special: tuple[str, ...] = ROBERTA_SPECIAL,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level BPE, as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(600, seed=1), trainer)
    described = json.loads(tokenizer.to_str())["model"]
    return described["vocab"], [tuple(merge) for merge in described["merges"]]


@cache
def unigram(special: tuple[str, ...] = ROBERTA_SPECIAL, unk: str = "<unk>") -> list[Any]:
    """Pieces with their scores, as XLM-RoBERTa's.

    The scores are short numbers, which every reader of a tokenizer.json reads as the same ones:
    longer ones may come back as their neighbours, and ways to split a word that tie then change.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_SIZE, special_tokens=list(special), unk_token=unk, show_progress=False
    )
    tokenizer.train_from_iterator(lines(600, seed=1), trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, round(score, 4)) for piece, score in pieces]


def _bert(**options: Any) -> BertTokenizer:
    return BertTokenizer(vocab=word_pieces(options.get("do_lower_case", True)), **options)


def _modern() -> PreTrainedTokenizerFast:
    vocab, merges = byte_pairs(BERT_SPECIAL)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = template()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, BERT_SPECIAL, strict=True))
    )


def template() -> Any:
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP] with types 0 and 1."""
    return TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )


def _mpnet(**options: Any) -> MPNetTokenizer:
    special = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    return MPNetTokenizer(vocab=word_pieces(True, special), **options)


def _roberta(**options: Any) -> RobertaTokenizer:
    vocab, merges = byte_pairs()
    return RobertaTokenizer(vocab=vocab, merges=merges, **options)


def _deberta(**options: Any) -> DebertaV2Tokenizer:
    special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
    return DebertaV2Tokenizer(vocab=unigram(special, "[UNK]"), unk_id=3, **options)


def _albert(**options: Any) -> AlbertTokenizer:
    special = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    return AlbertTokenizer(vocab=unigram(special), **options)


#: Name -> (model_type of config.json, what makes the tokenizer).
KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bert, lower-cased": ("bert", _bert),
    "bert, cased": ("bert", lambda: _bert(do_lower_case=False)),
    "bert, accents kept": ("bert", lambda: _bert(strip_accents=False)),
    "bert, Chinese words": ("bert", lambda: _bert(tokenize_chinese_chars=False)),
    "distilbert": ("distilbert", lambda: DistilBertTokenizer(vocab=word_pieces(True))),
    "electra": ("electra", lambda: ElectraTokenizer(vocab=word_pieces(True))),
    "mpnet": ("mpnet", _mpnet),
    "roberta": ("roberta", _roberta),
    "roberta, prefix space": ("roberta", lambda: _roberta(add_prefix_space=True)),
    "xlm-roberta": ("xlm-roberta", lambda: XLMRobertaTokenizer(vocab=unigram())),
    "camembert": ("camembert", lambda: CamembertTokenizer(vocab=unigram())),
    "deberta-v2": ("deberta-v2", _deberta),
    "deberta-v2, lower-cased": (
        "deberta-v2",
        lambda: _deberta(do_lower_case=True, split_by_punct=True),
    ),
    "albert": ("albert", _albert),
    "modernbert": ("modernbert", _modern),
}


def write_kind(kind: str, directory: Path) -> Path:
    """A directory as transformers saves it, with the model_type that config.json names."""
    model_type, make = KINDS[kind]
    make().save_pretrained(directory)
    edit_json(directory / "config.json", model_type=model_type)
    return directory


def write_sentencepiece(directory: Path, model_type: str, name: str) -> Path:
    """A directory with a model that sentencepiece trained, and nothing else of a tokenizer."""
    import sentencepiece

    directory.mkdir()
    special = "[CLS],[SEP],[MASK]" if model_type in ("albert", "deberta-v2") else ""
    with (directory / name).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line.replace("\x00", "") for line in lines(600, seed=1)),
            model_writer=file,
            vocab_size=_SIZE,
            control_symbols=special,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    edit_json(directory / "config.json", model_type=model_type)
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Change a JSON file, or make one; a value of None takes its key away."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")

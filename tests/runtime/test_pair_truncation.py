"""Which text of a pair is cut, beside the tokenizers library, transformers and CrossEncoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CheckpointMaker, make_texts
from hf_folders import classifier_folder
from many_scripts import pairs
from runtime.test_excerpts import MAKERS, tokens_of
from transformers import PreTrainedTokenizerFast

from trbert_deploy import load
from trbert_deploy.cli import cli
from trbert_deploy.errors import CheckpointError, ConfigError, LengthError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.pairs import ONLY_FIRST, ONLY_SECOND, TRUNCATIONS

pytestmark = pytest.mark.filterwarnings("ignore:texts longer than")
KINDS = ["WordPiece", "byte-level BPE", "Unigram", "roberta"]
PAIRS = [
    (first * repeats, second * (5 - repeats))
    for place, (first, second) in enumerate(pairs(60, seed=3))
    if (repeats := 1 + place % 4)
]
LONG_PASSAGE = ("a film", " ".join(row["text"] for row in make_texts(9, seed=4)))
LONG_QUERY = LONG_PASSAGE[::-1]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("truncation", [ONLY_FIRST, ONLY_SECOND])
@pytest.mark.parametrize("kind", KINDS)
def test_one_text_is_cut_as_by_the_library(
    kind: str, truncation: str, side: str, tmp_path: Path
) -> None:
    plain = MAKERS[kind]()
    plain.no_padding()
    plain.enable_truncation(24, strategy=truncation, direction=side)
    plain.save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer(tmp_path / "tokenizer.json", 24, truncation=truncation)
    cut = 0
    for pair in PAIRS:
        try:
            expected = plain.encode_batch([pair])[0]
        except Exception as problem:  # noqa: BLE001 - the library raises plain Exception
            assert "too short" in str(problem)
            with pytest.raises(LengthError, match=r"text of text 1 has (more than )?\d+ tokens"):
                ours.encode([pair])
            continue
        cut += bool(expected.overflowing)
        assert tokens_of(ours.encode([pair])[0]) == tokens_of(expected)
    assert cut > 5


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_one_text_is_cut_as_by_transformers(tokenizer_dir: Path, truncation: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_dir / "tokenizer.json"))
    ours = TextTokenizer(tokenizer_dir / "tokenizer.json", 32, truncation=truncation)
    pair = LONG_QUERY if truncation == ONLY_FIRST else LONG_PASSAGE
    other = ("a wonderful film " * 5, "the city " * 9)
    texts = [pair, "a film " * 40, other, "the city"]
    found = ours.encode(texts)
    assert ours.truncated == 3
    for text, encoding in zip(texts, found, strict=True):
        strategy = "longest_first" if isinstance(text, str) else truncation
        parts = [text] if isinstance(text, str) else text
        expected = theirs(*parts, truncation=strategy, max_length=32)
        assert encoding.ids == expected["input_ids"]
    assert len({tuple(encoding.ids) for encoding in found}) == 4


def test_a_text_that_may_not_be_cut_must_leave_room(tokenizer_dir: Path) -> None:
    path = tokenizer_dir / "tokenizer.json"
    for truncation, pair, which in (
        (ONLY_SECOND, LONG_QUERY, "first"),
        (ONLY_FIRST, LONG_PASSAGE, "second"),
    ):
        tokenizer = TextTokenizer(path, 32, truncation=truncation)
        with pytest.raises(LengthError) as caught:
            tokenizer.encode([("a film", "a city"), pair], ["line 1", "line 2"])
        assert str(caught.value).startswith(f"the {which} text of line 2 has ")
        assert f"is not to be cut ({truncation}): the model takes 32, so" in str(caught.value)
        assert "\n" not in str(caught.value)
        endless = tuple("a film " * 9999 if len(part) > 9 else part for part in pair)
        with pytest.raises(LengthError, match="of text 1 has more than 32 tokens"):
            tokenizer.encode([endless])
        refusing = TextTokenizer(path, 32, truncate=False, truncation=truncation)
        with pytest.raises(LengthError, match=r"^text 1 has .*\d+ tokens: the model takes"):
            refusing.encode([pair])
    tokenizer = TextTokenizer(path, 9, truncation=ONLY_SECOND)
    room = "film " * 5  # one token is left for the passage
    assert len(tokenizer.encode([(room, "the city")])[0]) == 9
    with pytest.raises(LengthError, match=r"has 6 tokens and is not to be cut .* at most 5; sho"):
        tokenizer.encode([(room + "film", "the city")])


@pytest.mark.parametrize("truncation", [None, ONLY_FIRST, ONLY_SECOND])
def test_a_cross_encoder_says_which_text_is_cut(
    tmp_path: Path, tokenizer_dir: Path, truncation: str | None
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",))
    theirs = sentence_transformers.CrossEncoder(str(folder))
    if truncation is not None:
        theirs[0].processing_kwargs = {"text": {"truncation": truncation}}
    theirs.save_pretrained(str(tmp_path / "theirs"))
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "theirs"))
    export_bundle(tmp_path / "theirs", tmp_path / "bundle")
    ours = load(tmp_path / "bundle", threads=1)
    balanced = ("a wonderful film " * 12, "the village after the war " * 12)
    texts = {
        None: [LONG_QUERY, LONG_PASSAGE, balanced],
        ONLY_FIRST: [LONG_QUERY],
        ONLY_SECOND: [LONG_PASSAGE],
    }[truncation]
    assert np.allclose(ours.predict(texts), theirs.predict(texts), atol=1e-4)
    save_checkpoint(load_checkpoint(tmp_path / "theirs"), tmp_path / "saved")
    entries = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert entries.get("truncation") == truncation
    assert load_checkpoint(tmp_path / "saved").model.spec.answers.get("truncation") == truncation


def test_export_stores_what_is_cut(tmp_path: Path, tokenizer_dir: Path) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",))
    command = ["export", str(folder), "--output", str(tmp_path / "bundle")]
    done = CliRunner().invoke(cli, [*command, "--truncation", ONLY_SECOND])
    assert done.exit_code == 0, done.output
    served = load(tmp_path / "bundle", threads=1)
    with pytest.raises(LengthError, match="the first text of text 1 has"):
        served([LONG_QUERY])
    (row,) = served.tokenize([LONG_PASSAGE])
    assert len(row) == 64
    short = load(tmp_path / "bundle", threads=1, max_length=8)
    assert len(short.tokenize([LONG_PASSAGE])[0]) == 8


def changed_config(folder: Path, **entries: Any) -> Path:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    return folder


def test_what_is_unknown_is_refused(
    tmp_path: Path, tokenizer_dir: Path, make_checkpoint: CheckpointMaker
) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",))
    changed_config(folder, truncation="only_third")
    with pytest.raises(CheckpointError, match="truncation is 'only_third': expected one of long"):
        load_checkpoint(folder)
    tagger = make_checkpoint(task="token-classification", labels=("O", "I"), answers_tokens=True)
    with pytest.raises(
        ConfigError, match="is for token-classification, which has no truncation: leave it out"
    ):
        export_bundle(tagger, tmp_path / "bundle", truncation=ONLY_SECOND)
    assert not (tmp_path / "bundle").exists()

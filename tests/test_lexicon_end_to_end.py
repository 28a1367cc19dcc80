"""A tagger with a lexicon: trained, served with it, and given another one without training."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands_in_tests import run, write
from conftest import FILLER, vocabulary
from hf_folders import deeper_folder

from trbert_deploy.bundle.bundle import Bundle

RECIPE = "batch_tokens = 512\nvalidations = 1\naveraged_runs = 1\n[teacher]\nepochs = 12.0\n"
RECIPE += "learning_rate = 1e-3\n"
RECIPE += "[lexicon]\nmissing_share = 0.1\nwrong_share = 0.1\n"
#: Names of two letters, whose kinds nothing tells but a lexicon.
LETTERS = sorted(piece for piece in vocabulary() if len(piece) == 1 and piece.isalpha())
NAMES = [one + other for one in LETTERS for other in LETTERS][::3]
random.Random(0).shuffle(NAMES)
KINDS = {name: ("PER", "ORG")[place % 2] for place, name in enumerate(NAMES)}
KNOWN, NEW = NAMES[20:], NAMES[:20]


def tagged(count: int, names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Words, of which two are entities."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(FILLER) for _ in range(rng.randint(6, 24))]
        tags = ["O"] * len(words)
        for name in rng.choices(names, k=2):
            place = rng.randrange(len(words) + 1)
            words.insert(place, name)
            tags.insert(place, f"B-{KINDS[name]}")
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def lexicon(path: Path, tags: Mapping[str, str]) -> str:
    path.write_text("".join(f"{phrase}\t{tag}\n" for phrase, tag in tags.items()))
    return str(path)


def score(bundle: Path, data: str, at: Path) -> dict[str, Any]:
    run("evaluate", str(bundle), "--data", data, "--json", str(at))
    report: dict[str, Any] = json.loads(at.read_text())
    return report


@pytest.mark.slow
def test_new_names_are_told_by_a_new_lexicon(tmp_path: Path, tokenizer_dir: Path) -> None:
    encoder = deeper_folder(tmp_path / "encoder", tokenizer_dir)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    known = {name: KINDS[name] for name in KNOWN}
    data = write(tmp_path / "train.jsonl", tagged(240, KNOWN))
    test = write(tmp_path / "test.jsonl", tagged(40, KNOWN, seed=1))
    new = write(tmp_path / "new.jsonl", tagged(40, NEW, seed=2))
    run(
        "train", "--model", str(encoder), "--task", "token-classification", "--train", data,
        "--validation", test, "--recipe", str(tmp_path / "recipe.toml"), "--target-speedup", "1.5",
        "--lexicon", lexicon(tmp_path / "known.tsv", known), "--output", str(tmp_path / "ckpt"),
    )  # fmt: skip
    bundle = tmp_path / "bundle"
    run("export", str(tmp_path / "ckpt"), "--output", str(bundle))
    assert score(tmp_path / "ckpt", test, tmp_path / "c.json")["reduced"]["entity_f1"] > 0.8
    assert score(bundle, test, tmp_path / "a.json")["reduced"]["entity_f1"] > 0.8
    before = score(bundle, new, tmp_path / "b.json")["reduced"]["entity_f1"]
    run(
        "evaluate", bundle, "--data", new, "--lexicon", lexicon(tmp_path / "all.tsv", KINDS),
        "--json", tmp_path / "t.json",
    )  # fmt: skip
    tried = json.loads((tmp_path / "t.json").read_text())["reduced"]["entity_f1"]
    assert score(bundle, new, tmp_path / "s.json")["reduced"]["entity_f1"] == before
    told = run("lexicon", "set", str(bundle), lexicon(tmp_path / "all.tsv", KINDS))
    assert f"{len(NAMES)} phrases" in told
    assert len(Bundle.open(bundle).lexicon()) == len(NAMES)
    after = score(bundle, new, tmp_path / "d.json")["reduced"]["entity_f1"]
    assert after == tried > before + 0.3, (before, after)
    told = run("lexicon", "show", str(bundle))
    assert f"ORG: {list(KINDS.values()).count('ORG')} phrases: {NAMES[1]}, {NAMES[3]}" in told

"""Texts without labels: each once, parts of what they are said to be parts of."""

from __future__ import annotations

import json
import random
from pathlib import Path

import texts
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

SENTENCES = ("The otter sleeps.", "Who asked?", "It ends in 1998!", "A turtle.", "None was seen.")


@given(st.lists(st.sampled_from(SENTENCES), max_size=8), st.integers(0, 9))
def test_a_part_is_a_run_of_two_sentences_or_more(sentences: list[str], seed: int) -> None:
    text = " ".join(sentences)
    part = texts.part_of(text, random.Random(seed))
    if part is None:
        assert len(sentences) < 4
    else:
        runs = {
            " ".join(sentences[start:stop])
            for start in range(len(sentences))
            for stop in range(start + 2, len(sentences) + 1)
        }
        assert part in runs


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_kind_of_record_gives_its_text_once(tmp_path: Path) -> None:
    squad = write(
        tmp_path / "squad.jsonl",
        [
            {"question": str(n), "context": f"{n % 2} is it. " + " ".join(SENTENCES)}
            for n in range(6)
        ],
    )
    others = write(
        tmp_path / "others.jsonl",
        [
            {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
            {"text": "A film.", "label": 1},
        ],
    )
    output = tmp_path / "texts.jsonl"
    done = CliRunner().invoke(texts.main, [str(output), str(others), "--parts", str(squad)])
    assert done.exit_code == 0, done.output
    found = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert len(found) == 6 and {"EU rejects", "A film."} < set(found)
    assert sum(text.startswith(("0 is", "1 is")) and text.endswith("seen.") for text in found) >= 2
    few = CliRunner().invoke(texts.main, [str(output), str(others), str(squad), "--each", "1"])
    assert few.exit_code == 0 and len(output.read_text().splitlines()) == 2


def test_a_record_without_a_text_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"query": "q"}])
    done = CliRunner().invoke(texts.main, [str(tmp_path / "b.jsonl"), str(source)])
    assert done.exit_code == 1
    assert "a.jsonl, line 1: expected a field context, text or tokens" in done.output
    assert not (tmp_path / "b.jsonl").exists()

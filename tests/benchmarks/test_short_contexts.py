"""Short contexts: the answer stands in them where they say so."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import short_contexts
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

SENTENCES = (
    "The otter sleeps. ",
    "Who asked? ",
    "It ends in 1998, e.g. here! ",
    "A turtle (old). ",
)


@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=6), st.data())
def test_the_answer_stands_where_it_is_said_to(sentences: list[str], data: st.DataObject) -> None:
    context = "".join(sentences)
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    record = {
        "question": "q",
        "context": context,
        "answers": {"text": [text], "answer_start": [start]},
    }
    made = short_contexts.shortened(record, random.Random(data.draw(st.integers(0, 9))))
    found, (place,) = made["context"], made["answers"]["answer_start"]
    assert found[place : place + len(text)] == text and found in context
    assert made["question"] == "q"
    if len(text) == 1:
        assert len(found) < 64
    without = {**record, "answers": {"text": [], "answer_start": []}}
    made = short_contexts.shortened(without, random.Random(0))
    assert made["answers"] == {"text": [], "answer_start": []} and made["context"] in context


@pytest.mark.parametrize("fields", [{}, {"answers": {"text": [], "answer_start": []}}])
def test_a_file_is_written_or_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"question": "q", "context": SENTENCES[0] * 9, **fields}) + "\n")
    done = CliRunner().invoke(short_contexts.main, [str(source), str(tmp_path / "b.jsonl")])
    if fields:
        (line,) = (tmp_path / "b.jsonl").read_text().splitlines()
        assert json.loads(line)["context"] == SENTENCES[0] * 2
    else:
        assert (
            done.exit_code == 1 and "expected the fields question, context, answers" in done.output
        )
        assert not (tmp_path / "b.jsonl").exists()

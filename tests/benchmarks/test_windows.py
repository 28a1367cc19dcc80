"""Windows in the attention of layer 0: who sees whom, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import windows
from click.testing import CliRunner
from conftest import make_texts, tiny_model
from windows import WindowedAttention, seen_in_windows

from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint


def test_a_token_sees_three_blocks_and_the_first_tokens() -> None:
    (seen,) = seen_in_windows(torch.arange(13)[None], 2, first=1)  # the last block is half a one
    assert seen[0].all() and seen[:, 0].all()
    assert seen[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]  # an end: two behind
    assert seen[6].nonzero().flatten().tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert seen[12].nonzero().flatten().tolist() == [0, 8, 9, 10, 11, 12]


def test_the_last_token_may_see_all_too() -> None:
    (seen,) = seen_in_windows(torch.arange(13)[None], 2, first=0, last=True)
    assert seen[12].all() and seen[:, 12].all()
    assert seen[6].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 12]


def test_short_rows_see_all() -> None:
    assert seen_in_windows(torch.arange(6)[None], 2, first=0).all()


def test_attention_with_positions_of_its_own_is_refused() -> None:
    class Other(Attention):
        pass

    with pytest.raises(ConfigError, match="is Other: expected BERT's"):
        WindowedAttention.of(Other(tiny_model("").spec), 2, 1)


@pytest.fixture
def workplace(tokenizer_dir: Path, tmp_path: Path) -> Path:
    save_checkpoint(Checkpoint(tiny_model("0.5,2"), tokenizer_dir, 64), tmp_path / "model")
    lines = [json.dumps(row) + "\n" for row in make_texts(24)]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    return tmp_path


def run(workplace: Path, *options: str) -> tuple[int, str]:
    given = [str(workplace / "model"), "--data", str(workplace / "texts.jsonl"), *options]
    done = CliRunner().invoke(windows.main, given)
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command_tells_each_window(workplace: Path) -> None:
    path = workplace / "figures.json"
    code, told = run(workplace, "--windows", "2,64", "--learn", "12", "--json", str(path))
    assert code == 0, told
    rows = json.loads(path.read_text())
    assert [(row["width"], row["learned"]) for row in rows] == [
        (None, False),
        (2, False),
        (2, True),
        (64, False),
        (64, True),
    ]
    assert rows[1]["divergence"] > 0.0
    assert rows[3] == {**rows[0], "width": 64}  # no text is as long


@pytest.mark.slow
def test_a_dense_model_keeps_all(workplace: Path) -> None:
    path = workplace / "figures.json"
    code, told = run(workplace, "--dense", "--windows", "2", "--json", str(path))
    assert code == 0, told
    assert [row["kept"] for row in json.loads(path.read_text())] == [1.0, 1.0]


def test_no_text_is_long_enough(workplace: Path) -> None:
    code, told = run(workplace, "--longer-than", "60")
    assert code == 1
    assert told == "error: no text is longer than 60 tokens: expected some that are\n"

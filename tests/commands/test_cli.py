"""The commands from outside: exit codes, one-line errors, the main job as the README has it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import CheckpointMaker, make_texts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
ENVIRONMENT["HF_HUB_OFFLINE"] = "1"
COMMAND = [sys.executable, "-m", "trbert_deploy"]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, "HF_HOME": str(cwd / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    # Notes may stand before it, and only one line is the error.
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(message, lines[-1]), lines[-1]


@pytest.mark.slow
def test_the_main_job_runs_as_written(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    commands = "export ckpt/", "build-engine --fp16", "bench --lengths 512,2048"
    assert all(f"    trbert-deploy {command}\n" in readme for command in commands)
    (tmp_path / "ckpt").symlink_to(make_checkpoint(max_positions=2048))
    export = run("export", "ckpt/", cwd=tmp_path)
    assert export.returncode == 0, export.stderr
    assert "largest difference from PyTorch" in export.stdout
    build = run("build-engine", "--fp16", cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    assert "fp16" in build.stdout
    bench = run("bench", "--lengths", "512,2048", "--rounds", "1", cwd=tmp_path)
    assert bench.returncode == 0, bench.stderr
    assert "512 tokens" in bench.stdout and "2048 tokens" in bench.stdout


@pytest.mark.slow
def test_train_makes_a_checkpoint_that_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = make_texts(30)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.toml").write_text('cuts = "0.5,2"\nteacher.epochs = 1\n')
    options = ["--model", tiny_checkpoint, "--train", "train.jsonl", "--recipe", "mine.toml"]
    result = run("train", *options, "--json", "figures.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no teacher stage" in result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["stages"]) == ["teacher", "policy", "joint", "hard"]
    used = (tmp_path / "ckpt" / "recipe.toml").read_text()
    assert 'cuts = "0.5,2"' in used and "penalty_ramp = 0.6" in used
    assert run("export", "ckpt", cwd=tmp_path).returncode == 0


def test_user_errors_are_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert_one_line(run("export", "nowhere", cwd=tmp_path), "checkpoint nowhere does not exist")
    (tmp_path / "empty").mkdir()
    assert_one_line(run("export", "empty", cwd=tmp_path), "empty is not a checkpoint")
    assert_one_line(run("bench", "empty", cwd=tmp_path), "empty is not a bundle")
    assert_one_line(run("bench", cwd=tmp_path), "bundle bundle does not exist")
    assert_one_line(run("build-engine", cwd=tmp_path), "bundle bundle does not exist")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "bad"}\n' * 5)
    train = ["train", "--model", tiny_checkpoint, "--train", data]
    for options, message in (
        ('cuts = "3,1"', "mine.toml: cuts 3,1: 1 is out of order"),
        ('cuts = "9"', "cut 9 is out of range: the encoder has 4 layers"),
        ('stages = ["joint"]', "stage joint needs the stages guide, policy"),
        ("epochs = 1", r"mine.toml: epochs is unknown: did you mean \[teacher\] epochs or"),
        (["--recipe", "bread"], "bread is neither a file nor one of gates, exits, tr-bert: give"),
        (["--recipe", "empty"], "recipe empty is a directory: expected a TOML file"),
        (["--validation", "none.jsonl"], "none.jsonl is not a file"),
        (["--resume"], "holds no run to resume"),
        (["--model", "no-such/model"], "no-such/model is no directory here, and from the hub"),
    ):
        if isinstance(options, str):
            (tmp_path / "mine.toml").write_text(options)
            options = ["--recipe", "mine.toml"]
        assert_one_line(run(*train, *options, cwd=tmp_path), message)
        assert not (tmp_path / "ckpt" / "model.safetensors").exists()
        if (tmp_path / "ckpt" / "training.json").exists():
            pytest.fail(f"{options} left a run behind")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "--lengths", "512;2048"),
        ("bench", "--backend", "abacus"),
        ("train", "--train", "x.jsonl"),
        ("dance",),
        ("export",),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*arguments, cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_leaves_nothing(
    make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    # Many segments: the signal must come before they are done, on a busy machine too.
    checkpoint = make_checkpoint(cuts="1,2,3,4,5,6,7", num_layers=8)
    process = subprocess.Popen(
        [*COMMAND, "export", str(checkpoint)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore the signal.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)  # until the export has begun to write
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_of_generated_code_ends_alike(tmp_path: Path) -> None:
    """Under ``python -m``, CPython alone would end by the signal, though it was caught."""
    (tmp_path / "interrupted.py").write_text(
        "from trbert_deploy import cli\n"
        "code = 'import os, signal\\nos.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass'\n"
        "cli.cli = lambda **options: exec(code)\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: interrupted")

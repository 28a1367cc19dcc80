"""Fixtures: a tiny seeded model with a real tokenizer, its checkpoint and its bundle."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from trbert_deploy.cli import main
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.runtime.autotune import cache as cached

# A busy machine is slow at times: no test here asserts a time.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
# With pytest --hypothesis-profile=thorough.
settings.register_profile("thorough", deadline=None, max_examples=2500)

if not torch.cuda.is_available():  # read when Triton is imported, by whomever
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)  # tiny models lose more than they gain with threads


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")


LABELS = ("bad", "good")
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD = ("wonderful", "superb", "delightful", "brilliant")
BAD = ("dreadful", "boring", "awful", "clumsy")
FILLER = tuple(
    word
    for line in (
        "the film tells of a sailor who returns to his village after the war and finds that",
        "the house of his mother has been sold to a merchant from the city",
        "while nobody remembers him",
    )
    for word in line.split()
)


def make_texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 5 to 40 words with one telling word, and their labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    rows = []
    for _ in range(count):
        good = draw(2)
        words = [FILLER[draw(len(FILLER))] for _ in range(5 + draw(36))]
        words.insert(draw(len(words)), (GOOD if good else BAD)[draw(4)])
        rows.append({"text": " ".join(words) + ".", "label": LABELS[good]})
    return rows


def vocabulary() -> dict[str, int]:
    """All words of the test texts, and the letters that other words are written with.

    No trained vocabulary: the trainer breaks ties by chance, so that a model would learn other
    tokens in each session.
    """
    words = sorted({*FILLER, *GOOD, *BAD})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*BERT_SPECIAL, ".", *letters, *(f"##{letter}" for letter in letters), *words]
    return {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a WordPiece tokenizer of the words of the test texts."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(WordPiece(vocabulary(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(directory / TOKENIZER_FILE))
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 64}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def tiny_spec(**changes: object) -> EncoderSpec:
    """A 4-layer encoder, 32 wide, 64 positions."""
    values: dict[str, object] = {
        "family": "bert",
        "task": "text-classification",
        "num_layers": 4,
        "hidden_size": 32,
        "num_heads": 4,
        "ffn_size": 64,
        "vocab_size": 256,
        "max_positions": 64,
        "token_types": 2,
        "layer_norm_eps": 1e-12,
        "activation": "gelu",
        "dropout": 0.1,
        "pad_token_id": 0,
        "labels": LABELS,
    }
    return EncoderSpec(**{**values, **changes})  # type: ignore[arg-type]


def tiny_model(cuts: str = "1,2", seed: int = 0, **changes: object) -> ReducedModel:
    """A seeded tiny model whose random policies decide clearly: logits far from the threshold."""
    torch.manual_seed(seed)
    model = ReducedModel(tiny_spec(**changes), ReductionConfig.parse(cuts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        for policy in model.policies:
            policy.score.weight.mul_(8.0)
    return model


CheckpointMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(
    tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> CheckpointMaker:
    """Writes a checkpoint directory of a tiny model: ``make_checkpoint(cuts="1,2", seed=0)``."""

    def make(cuts: str = "1,2", seed: int = 0, **changes: object) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / "ckpt"
        model = tiny_model(cuts, seed, **changes)
        samples = tuple(row["text"] for row in make_texts(6, seed=1))
        length = model.spec.max_positions
        save_checkpoint(Checkpoint(model, tokenizer_dir, length, samples=samples), path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: CheckpointMaker) -> Path:
    """A checkpoint shared by tests that only read it."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle shared by tests that only read it.

    With TINY_BUNDLE in the environment it is made there once, for all runs: planted faults are
    tried in hundreds of them.
    """
    path = Path(os.environ.get("TINY_BUNDLE") or tmp_path_factory.mktemp("exported") / "bundle")
    if not path.exists():
        export_bundle(request.getfixturevalue("tiny_checkpoint"), path)
    return path


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data.jsonl with 12 labelled texts, in the working directory of a terminal of 80 columns."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_texts(12)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own for what is remembered of this machine."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(cached, "user_cache_path", lambda name: directory / name)
    return directory


#: Arguments -> exit code.
Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command as a shell would, but in this process: ``command("predict", bundle, ...)``."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["trbert-deploy", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run

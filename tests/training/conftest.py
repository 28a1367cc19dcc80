"""What tests of training begin with: data and an encoder, and the options of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_in_tests import make_workplace, options_for

from trbert_deploy.training.options import TrainOptions


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    return make_workplace(tmp_path_factory.mktemp("training"), tokenizer_dir)


@pytest.fixture
def options(workplace: Path) -> TrainOptions:
    return options_for(workplace)

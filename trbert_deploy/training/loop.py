"""The loop that every trained stage shares: steps, figures, saving and resuming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import get_linear_schedule_with_warmup

from trbert_deploy.files import staged_file
from trbert_deploy.modeling.checkpoint import write_safetensors
from trbert_deploy.progress import Progress
from trbert_deploy.training.batches import PackedBatch, load_batches
from trbert_deploy.training.data import LabelledRow
from trbert_deploy.training.options import STAGES

WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
RESUME_FILE = "resume.safetensors"
FIGURES_FILE = "figures.jsonl"


@dataclass(frozen=True)
class Step:
    """What one batch came to.

    Attributes:
        loss: scalar to go down.
        figures: what to write down of it.
    """

    loss: Tensor
    figures: dict[str, float]


@dataclass(frozen=True)
class StageSettings:
    """How a stage is trained.

    Attributes:
        name: one of ``STAGES``.
        directory: receives figures, TensorBoard events and the state for resuming.
        plan: row indices of every batch, in order.
        warmup_share: share of the steps over which the learning rate rises.
        seed: of dropout and sampling, together with stage and step.
        save_seconds: seconds between two saves.
        device: where the model is.
    """

    name: str
    directory: Path
    plan: Sequence[list[int]]
    warmup_share: float
    seed: int
    save_seconds: float
    device: torch.device


def train_stage(
    settings: StageSettings,
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    rows: Sequence[LabelledRow],
    compute: Callable[[PackedBatch, float], Step],
    progress: Progress,
) -> None:
    """Train ``model`` in place, from where an interrupted run of the stage left off.

    Each step draws its random numbers from (seed, stage, step) alone, so that a run that was
    interrupted ends where an uninterrupted one does.

    Args:
        groups: optimizer groups: ``params`` and ``lr``.
        compute: (batch, share of the stage that is done) -> loss and figures.
    """
    settings.directory.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [dict(group) for group in groups], weight_decay=WEIGHT_DECAY, fused=True
    )
    total = len(settings.plan)
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(settings.warmup_share * total), total
    )
    first = _resume(settings.directory / RESUME_FILE, model, optimizer, schedule)
    saved = time.monotonic()
    batches = load_batches(rows, settings.plan[first:], settings.device)
    with _Figures(settings, first) as figures:
        for number, batch in enumerate(batches, start=first):
            torch.manual_seed(hash((settings.seed, STAGES.index(settings.name), number)) % 2**63)
            with autocast(settings.device):
                step = compute(batch, number / total)
            optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            values = {"loss": step.loss.item(), **step.figures}
            figures.write(number, values)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            progress(f"{settings.name}  {shown}", number + 1, total)
            if time.monotonic() - saved > settings.save_seconds and number + 1 < total:
                _save(settings.directory / RESUME_FILE, model, optimizer, number + 1)
                saved = time.monotonic()


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the processor or the GPU computes in it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=native)


class _Figures:
    """Writes a stage's figures as JSON lines and TensorBoard events."""

    def __init__(self, settings: StageSettings, first: int) -> None:
        self._stage = settings.name
        path = settings.directory / FIGURES_FILE
        # What an interrupted run wrote behind its last save comes again.
        lines = path.read_text(encoding="utf-8").splitlines(True)[:first] if path.exists() else []
        with staged_file(path) as staging:
            staging.write_text("".join(lines), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(settings.directory.parent, purge_step=first or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        rounded = {name: round(value, 6) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{self._stage}/{name}", value, step)

    def __enter__(self) -> _Figures:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Save what ``_resume`` needs, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{key}": value for key, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with staged_file(path) as staging:
        write_safetensors(staging, tensors, {"step": str(step)})


def _resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """Load what ``_save`` wrote, if anything; the step to go on with."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict(
        {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            parameter, _, key = rest.partition(".")
            state.setdefault(int(parameter), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    schedule.last_epoch = step
    groups = zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, peak, factor in groups:
        group["lr"] = peak * factor(step)
    return step


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)

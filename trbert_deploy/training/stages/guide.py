"""The saliency guide: which tokens the teacher's answer hangs on (TR-BERT, section 3.3).

For a cut with states h_c, and a later reference layer with states h_r, token i scores

    | grad_{h_r,i}(loss) . (h_r,i - h_c,i) |

so that tokens whose state still changes behind the cut in a direction that matters score high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from trbert_deploy.files import staged_file
from trbert_deploy.modeling.checkpoints.checkpoint import write_safetensors
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import dense_logits, head_logits
from trbert_deploy.progress import Progress
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.data import LabelledRow

GUIDE_FILE = "guide.safetensors"


@dataclass(frozen=True)
class Guide:
    """The teacher's view of the training rows.

    Attributes:
        teacher_logits: [N, C] float32; rows without labels may follow the N training rows.
        starts: [N + 1] int64, where each training row's tokens begin in ``saliency``.
        saliency: for each cut [total tokens] float32.
    """

    teacher_logits: NDArray[np.float32]
    starts: NDArray[np.int64]
    saliency: tuple[NDArray[np.float32], ...]

    def logits_of(self, batch: PackedBatch) -> Tensor:
        """The teacher's logits [B, C] on a batch."""
        return torch.from_numpy(self.teacher_logits[batch.rows]).to(batch.labels.device)

    def with_answers(self, logits: NDArray[np.float32]) -> Guide:
        """The same view, with the teacher's logits [M, C] on rows that follow the others."""
        return replace(self, teacher_logits=np.concatenate([self.teacher_logits, logits]))

    def saliency_of(self, batch: PackedBatch) -> list[Tensor]:
        """For each cut the scores [T] of a batch's tokens."""
        tokens = tokens_of(batch.rows, self.starts)
        return [
            torch.from_numpy(scores[tokens]).to(batch.labels.device) for scores in self.saliency
        ]

    def save(self, path: Path) -> None:
        """Write the guide, whole or not at all."""
        tensors = {"teacher_logits": self.teacher_logits, "starts": self.starts}
        tensors |= {f"saliency.{index}": scores for index, scores in enumerate(self.saliency)}
        with staged_file(path) as staging:
            write_safetensors(
                staging, {name: torch.from_numpy(array) for name, array in tensors.items()}
            )

    @classmethod
    def load(cls, path: Path) -> Guide:
        """Read what ``save`` wrote."""
        tensors = load_file(path)
        saliency = tuple(tensors[f"saliency.{index}"] for index in range(len(tensors) - 2))
        return cls(tensors["teacher_logits"], tensors["starts"], saliency)


def tokens_of(rows: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the tokens of some rows lie, given where each row starts: [T] int64."""
    return np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])


def reference_step(model: ReducedModel) -> int:
    """Half layers before the reference states.

    They stand behind layer 2L//3, or one layer behind the last cut where that is later.
    """
    layers = model.spec.num_layers
    last_cut = max((cut.step for cut in model.reduction.cuts), default=0)
    return min(2 * layers, max(2 * (2 * layers // 3 + 1), last_cut + 2))


def make_guide(
    model: ReducedModel,
    rows: Sequence[LabelledRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress,
) -> Guide:
    """One pass of the teacher over the training rows; processes divide the batches."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    logits = np.zeros((len(rows), len(model.spec.labels)), np.float32)
    saliency = tuple(np.zeros(starts[-1], np.float32) for _ in model.reduction.cuts)
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        scores, batch_logits = batch_saliency(model, batch)
        tokens = tokens_of(batch.rows, starts)
        for cut_scores, values in zip(saliency, scores, strict=True):
            cut_scores[tokens] = values.cpu().numpy()
        logits[batch.rows] = batch_logits.cpu().numpy()
        progress("guide", number, len(plan))
    return Guide(_combined(logits), starts, tuple(map(_combined, saliency)))


def answers(
    model: ReducedModel,
    rows: Sequence[LabelledRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress,
) -> NDArray[np.float32]:
    """The dense model's logits [N, C] on rows that need no labels; processes divide the batches."""
    logits = np.zeros((len(rows), len(model.spec.labels)), np.float32)
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        with torch.no_grad(), autocast(device):
            logits[batch.rows] = dense_logits(model, batch).cpu().numpy()
        progress("answers", number, len(plan))
    return _combined(logits)


def _combined(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the processes found, each 0 where others did."""
    return processes.total(torch.from_numpy(values)).numpy()


def batch_saliency(model: ReducedModel, batch: PackedBatch) -> tuple[list[Tensor], Tensor]:
    """Scores [T] of a batch's tokens for each cut, and the logits [B, C]."""
    reference = reference_step(model)
    at_cuts = []
    with autocast(batch.labels.device):
        with torch.no_grad():
            hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.positions)
            step = 0
            for cut in model.reduction.cuts:
                hidden = model.encoder.run_steps(hidden, batch.layout, step, cut.step)
                at_cuts.append(hidden.float())
                step = cut.step
            hidden = model.encoder.run_steps(hidden, batch.layout, step, reference)
        hidden = hidden.detach().requires_grad_()
        last = model.encoder.run_steps(hidden, batch.layout, reference, model.spec.num_steps)
        logits = head_logits(model, last, batch.layout)
        # Summed, so that a row's scores do not depend on how many others stand beside it.
        loss = cross_entropy(logits, batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, hidden)
    changes = [hidden.detach().float() - at_cut for at_cut in at_cuts]
    scores = [(gradient.float() * change).sum(-1).abs() for change in changes]
    return scores, logits.detach()

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

from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import begin, dense_outputs
from trbert_deploy.progress import Progress
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.row_outputs import RowAnswer, RowOutputs, row_answers
from trbert_deploy.training.stages.regression import Regression

GUIDE_FILE = "guide.safetensors"
#: Before the names of the teacher's outputs in it: on the training rows, on the held-out ones.
_TEACHER, _VALIDATION = "teacher_", "validation_"
_SALIENCY, _PROJECTION = "saliency.", "projection."


@dataclass(frozen=True)
class Guide:
    """The teacher's view of the training rows.

    Attributes:
        task: what it answers.
        answers: its outputs on them; rows without targets may follow the N training rows.
        starts: [N + 1] int64, where each training row's tokens begin in ``saliency``.
        saliency: for each cut [total tokens] float32.
        validation: its outputs on the validation rows.
        projections: for each cut the map of its states to last ones, [H, H + 1] float32 (the last
            column is the bias); none where dropped tokens take no part in the outputs.
    """

    task: Task
    answers: RowOutputs
    starts: NDArray[np.int64]
    saliency: tuple[NDArray[np.float32], ...]
    validation: RowOutputs = RowOutputs(())
    projections: tuple[NDArray[np.float32], ...] = ()

    def outputs_of(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The teacher's outputs [B, ...] on a batch."""
        return self.answers.of_batch(self.task, batch.rows, batch.layout)

    def project(self, model: ReducedModel) -> None:
        """Give a model the fitted maps."""
        for index, fitted in enumerate(self.projections):
            both = torch.from_numpy(fitted)
            model.projection(index).fit(both[:, :-1], both[:, -1])

    def saliency_of(self, batch: PackedBatch) -> list[Tensor]:
        """For each cut the scores [T] of a batch's tokens."""
        tokens = tokens_of(batch.rows, self.starts)
        return [
            torch.from_numpy(scores[tokens]).to(batch.targets.device) for scores in self.saliency
        ]

    def save(self, path: Path) -> None:
        """Write the guide, whole or not at all."""
        tensors = {f"{_TEACHER}{name}": each for name, each in self.answers.tensors().items()}
        held_out = self.validation.tensors()
        tensors |= {f"{_VALIDATION}{name}": values for name, values in held_out.items()}
        for prefix, arrays in ((_SALIENCY, self.saliency), (_PROJECTION, self.projections)):
            tensors |= {f"{prefix}{index}": torch.from_numpy(a) for index, a in enumerate(arrays)}
        write_safetensors(path, {"starts": torch.from_numpy(self.starts), **tensors})

    @classmethod
    def load(cls, path: Path, task: Task) -> Guide:
        """Read what ``save`` wrote."""
        tensors = load_file(path)

        def named(prefix: str) -> dict[str, NDArray[np.float32]]:
            return {
                name.removeprefix(prefix): values
                for name, values in tensors.items()
                if name.startswith(prefix)
            }

        def ordered(prefix: str) -> tuple[NDArray[np.float32], ...]:
            found = named(prefix)
            return tuple(found[str(index)] for index in range(len(found)))

        answers, held_out = (RowOutputs.of_tensors(named(each)) for each in (_TEACHER, _VALIDATION))
        saliency, projections = ordered(_SALIENCY), ordered(_PROJECTION)
        return cls(task, answers, tensors["starts"], saliency, held_out, projections)


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
    rows: Sequence[TrainingRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress,
) -> Guide:
    """One pass of the teacher over the training rows; processes divide the batches."""
    task = task_of(model.spec)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    found: list[RowAnswer] = []
    saliency = tuple(np.zeros(starts[-1], np.float32) for _ in model.reduction.cuts)
    regressions = [Regression(model.spec.hidden_size, device) for _ in model.projections]
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    progress("guide", 0, len(plan))
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        scores, outputs = batch_saliency(model, batch, regressions)
        tokens = tokens_of(batch.rows, starts)
        for cut_scores, values in zip(saliency, scores, strict=True):
            cut_scores[tokens] = values.cpu().numpy()
        found += row_answers(task, outputs, batch)
        progress("guide", number, len(plan))
    return Guide(
        task,
        RowOutputs.gathered(found),
        starts,
        tuple(processes.total(torch.from_numpy(scores)).numpy() for scores in saliency),
        projections=tuple(regression.solved() for regression in regressions),
    )


def answers(
    model: ReducedModel,
    rows: Sequence[TrainingRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress,
) -> RowOutputs:
    """The dense model's outputs on rows that need no targets; processes divide the batches."""
    task = task_of(model.spec)
    found: list[RowAnswer] = []
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    progress("answers", 0, len(plan))
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        with torch.no_grad(), autocast(device):
            found += row_answers(task, dense_outputs(model, batch), batch)
        progress("answers", number, len(plan))
    return RowOutputs.gathered(found)


def batch_saliency(
    model: ReducedModel, batch: PackedBatch, regressions: Sequence[Regression] = ()
) -> tuple[list[Tensor], Outputs]:
    """Scores [T] of a batch's tokens for each cut, and the outputs.

    Args:
        regressions: told the states at each cut, and the last ones.
    """
    reference = reference_step(model)
    at_cuts = []
    with autocast(batch.targets.device):
        with torch.no_grad():
            tokens = begin(model, batch)
            step = 0
            for cut in model.reduction.cuts:
                tokens = tokens.run(model, step, cut.step)
                at_cuts.append(tokens.hidden.float())
                step = cut.step
            tokens = tokens.run(model, step, reference)
        hidden = tokens.hidden.detach().requires_grad_()
        tokens = replace(tokens, hidden=hidden)
        tokens = tokens.run(model, reference, model.spec.num_steps)
        outputs = tokens.answer(model)
        # A row without a target is taken for what the teacher answers. Summed, so that a row's
        # scores do not depend on how many others stand beside it.
        targets = model.head.targets_or_answers(batch.targets, outputs)
        loss = model.head.loss(outputs, targets).sum()
    for regression, at_cut in zip(regressions, at_cuts, strict=False):
        regression.add(at_cut, tokens.hidden.detach())
    (gradient,) = torch.autograd.grad(loss, hidden)
    changes = [hidden.detach().float() - at_cut for at_cut in at_cuts]
    scores = [(gradient.float() * change).sum(-1).abs() for change in changes]
    return scores, outputs

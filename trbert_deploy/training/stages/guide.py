"""The saliency guide: which tokens the teacher's answer hangs on (TR-BERT, section 3.3).

For a cut with states h_c, and a later reference layer with states h_r, token i scores

    | grad_{h_r,i}(loss) . (h_r,i - h_c,i) |

so that tokens whose state still changes behind the cut in a direction that matters score high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.data import TrainingRow

GUIDE_FILE = "guide.safetensors"
#: Before the names of the teacher's outputs in it: on the training rows, on the held-out ones.
_TEACHER, _VALIDATION = "teacher_", "validation_"


@dataclass(frozen=True)
class Guide:
    """The teacher's view of the training rows.

    Attributes:
        answers: the teacher's outputs by name, [N, ...] float32; rows without targets may follow
            the N training rows.
        starts: [N + 1] int64, where each training row's tokens begin in ``saliency``.
        saliency: for each cut [total tokens] float32.
        validation: the teacher's outputs on the validation rows by name, [M, ...] float32.
    """

    answers: Mapping[str, NDArray[np.float32]]
    starts: NDArray[np.int64]
    saliency: tuple[NDArray[np.float32], ...]
    validation: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def outputs_of(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The teacher's outputs [B, ...] on a batch."""
        return {
            name: torch.from_numpy(values[batch.rows]).to(batch.targets.device)
            for name, values in self.answers.items()
        }

    def with_answers(self, further: Mapping[str, NDArray[np.float32]]) -> Guide:
        """The same view, with the teacher's outputs [M, ...] on rows that follow the others."""
        answers = {
            name: np.concatenate([values, further[name]]) for name, values in self.answers.items()
        }
        return replace(self, answers=answers)

    def saliency_of(self, batch: PackedBatch) -> list[Tensor]:
        """For each cut the scores [T] of a batch's tokens."""
        tokens = tokens_of(batch.rows, self.starts)
        return [
            torch.from_numpy(scores[tokens]).to(batch.targets.device) for scores in self.saliency
        ]

    def save(self, path: Path) -> None:
        """Write the guide, whole or not at all."""
        tensors = {f"{_TEACHER}{name}": values for name, values in self.answers.items()}
        tensors |= {f"{_VALIDATION}{name}": values for name, values in self.validation.items()}
        tensors |= {f"saliency.{index}": scores for index, scores in enumerate(self.saliency)}
        stored = {name: torch.from_numpy(array) for name, array in tensors.items()}
        write_safetensors(path, {"starts": torch.from_numpy(self.starts), **stored})

    @classmethod
    def load(cls, path: Path) -> Guide:
        """Read what ``save`` wrote."""
        tensors = load_file(path)

        def named(prefix: str) -> dict[str, NDArray[np.float32]]:
            return {
                name.removeprefix(prefix): values
                for name, values in tensors.items()
                if name.startswith(prefix)
            }

        saliency = named("saliency.")
        ordered = tuple(saliency[str(index)] for index in range(len(saliency)))
        return cls(named(_TEACHER), tensors["starts"], ordered, named(_VALIDATION))


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
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    found: dict[str, NDArray[np.float32]] = {}
    saliency = tuple(np.zeros(starts[-1], np.float32) for _ in model.reduction.cuts)
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    progress("guide", 0, len(plan))
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        scores, outputs = batch_saliency(model, batch)
        tokens = tokens_of(batch.rows, starts)
        for cut_scores, values in zip(saliency, scores, strict=True):
            cut_scores[tokens] = values.cpu().numpy()
        _note(found, outputs, batch, len(rows))
        progress("guide", number, len(plan))
    return Guide(_all(found), starts, tuple(map(_combined, saliency)))


def answers(
    model: ReducedModel,
    rows: Sequence[TrainingRow],
    batch_tokens: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    """The dense model's outputs [N, ...] on rows that need no targets; processes divide the
    batches.
    """
    found: dict[str, NDArray[np.float32]] = {}
    plan = plan_batches([len(row) for row in rows], batch_tokens)
    plan = plan[processes.index() :: processes.count()]
    model.eval()
    progress("answers", 0, len(plan))
    for number, batch in enumerate(load_batches(rows, plan, device), start=1):
        with torch.no_grad(), autocast(device):
            _note(found, dense_outputs(model, batch), batch, len(rows))
        progress("answers", number, len(plan))
    return _all(found)


def _note(
    found: dict[str, NDArray[np.float32]], outputs: Outputs, batch: PackedBatch, count: int
) -> None:
    """Put a batch's outputs into their places among those of ``count`` rows."""
    for name, values in outputs.items():
        if name not in found:
            found[name] = np.zeros((count, *values.shape[1:]), np.float32)
        found[name][batch.rows] = values.detach().float().cpu().numpy()


def _all(found: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """What the processes found; one that no batch was left to found nothing."""
    shapes = dict(processes.gather([(name, values.shape) for name, values in found.items()]))
    return {
        name: _combined(found.get(name, np.zeros(shape, np.float32)))
        for name, shape in shapes.items()
    }


def _combined(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the processes found, each 0 where others did."""
    return processes.total(torch.from_numpy(values)).numpy()


def batch_saliency(model: ReducedModel, batch: PackedBatch) -> tuple[list[Tensor], Outputs]:
    """Scores [T] of a batch's tokens for each cut, and the outputs."""
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
        outputs = tokens.run(model, reference, model.spec.num_steps).answer(model)
        # A row without a target is taken for what the teacher answers. Summed, so that a row's
        # scores do not depend on how many others stand beside it.
        targets = model.head.targets_or_answers(batch.targets, outputs)
        loss = model.head.loss(outputs, targets).sum()
    (gradient,) = torch.autograd.grad(loss, hidden)
    changes = [hidden.detach().float() - at_cut for at_cut in at_cuts]
    scores = [(gradient.float() * change).sum(-1).abs() for change in changes]
    return scores, outputs

"""A model's outputs on many rows: gathered over processes, kept in a file, given out by batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.tasks.outputs import asked_counts, rows_of_outputs
from trbert_deploy.tasks.task import Task
from trbert_deploy.training import processes
from trbert_deploy.training.batches import PackedBatch

#: Which row it is, and the outputs on it.
RowAnswer = tuple[int, Mapping[str, NDArray[np.float32]]]
#: Behind the name of an output, in a file: how many values each row has of it.
_LENGTHS = ".lengths"


def row_answers(task: Task, outputs: Outputs, batch: PackedBatch) -> list[RowAnswer]:
    """What a model says of the rows of a batch: outputs [B, ...] each."""
    names = [output.name for output in task.outputs]  # a head may tell more in training
    arrays = {name: outputs[name].detach().float().cpu().numpy() for name in names}
    lengths = batch.layout.lengths
    rows = np.split(batch.input_ids.cpu().numpy(), np.cumsum(lengths)[:-1])
    asked = asked_counts(task.outputs, rows)
    found = rows_of_outputs(task.outputs, arrays, lengths.tolist(), asked)
    return list(zip(batch.rows.tolist(), found, strict=True))


@dataclass(frozen=True)
class RowOutputs(Sequence[Mapping[str, NDArray[np.float32]]]):
    """Outputs row by row; those of tokens have as many values as their row has tokens."""

    rows: tuple[Mapping[str, NDArray[np.float32]], ...]

    @classmethod
    def gathered(cls, answers: Sequence[RowAnswer]) -> RowOutputs:
        """What all processes answered, each of its own rows; all rows from 0 on."""
        found = dict(processes.gather(list(answers)))
        return cls(tuple(found[row] for row in range(len(found))))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return self.rows[row]

    def __iter__(self) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        return iter(self.rows)

    def __add__(self, more: RowOutputs) -> RowOutputs:
        """These, and those of rows that follow them."""
        return RowOutputs(self.rows + more.rows)

    def of_batch(
        self, task: Task, rows: NDArray[np.int64], layout: PackedLayout
    ) -> dict[str, Tensor]:
        """Outputs [B, ...] on some rows, of tokens [B, S, ...] with zeros behind a row's, as of
        those that are asked for.

        Args:
            layout: of the rows, whose device they come to.
        """
        device, found = layout.positions.device, {}
        for output in task.outputs:
            values = [self.rows[row][output.name] for row in rows]
            if output.per == "token":
                found[output.name] = layout.pad(torch.from_numpy(np.concatenate(values)).to(device))
            elif output.per == "asked":
                each = [torch.from_numpy(value) for value in values]
                found[output.name] = pad_sequence(each, batch_first=True).to(device)
            else:
                found[output.name] = torch.from_numpy(np.stack(values)).to(device)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """As a file takes them: values of all rows one behind the other, with their numbers."""
        made = {}
        for name in self.rows[0] if self.rows else ():
            values = [np.atleast_1d(row[name]) for row in self.rows]
            made[name] = torch.from_numpy(np.concatenate(values))
            made[name + _LENGTHS] = torch.tensor([len(each) for each in values])
        return made

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, NDArray[np.float32]]) -> RowOutputs:
        """What ``tensors`` gave, read again."""
        names = [name for name in tensors if not name.endswith(_LENGTHS)]
        columns = [
            np.split(tensors[name], np.cumsum(tensors[name + _LENGTHS])[:-1]) for name in names
        ]
        return cls(tuple(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)))

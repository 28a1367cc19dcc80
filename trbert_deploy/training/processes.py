"""Several processes that train one model together (accelerate), or the only one.

Every process holds the whole model and goes through the same batches, of which each takes a share
of the rows. ``Share.total`` makes of what it found the value of the whole batch: losses, penalties
and figures are formed as one process forms them, and are the same in all. The gradient is that of
the own rows; ``sum_gradients`` adds up those of all processes, so that all make the same step.
(DistributedDataParallel would do so where a model is one call of ``forward``, and the loss a mean
of the processes' own.)

A single process takes every batch whole and asks nobody.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from accelerate.utils.environment import get_cpu_distributed_information
from numpy.typing import NDArray
from torch import Tensor, nn

Item = TypeVar("Item")


def join() -> torch.device:
    """Meet the other processes that a launcher started, if it did; the device to compute on.

    ``accelerate launch``, torchrun and mpirun tell by environment variables.
    """
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if get_cpu_distributed_information().world_size == 1:
        return torch.device("cpu" if cpu else "cuda")
    joined = dist.is_initialized()
    # Losses are added up where they are computed, figures and the guide on the CPU.
    state = PartialState(cpu=cpu, backend=None if cpu else "cuda:nccl,cpu:gloo")
    if not joined:
        atexit.register(dist.destroy_process_group)
    return torch.device("cpu") if cpu else torch.device(state.device)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes the files and talks to a person: the first one does."""
    return index() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def gather(own: Sequence[Item]) -> list[Item]:
    """The items of all processes, the first one's first."""
    parts: list[Any] = [own] * count()
    if count() > 1:
        dist.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def from_main(values: Tensor) -> Tensor:
    """The main process's values, in place of the own ones: same shape and dtype."""
    if count() > 1:
        dist.broadcast(values, 0)
    return values


def total(own: Tensor) -> Tensor:
    """Sum of the processes' tensors, all of the same shape and dtype.

    Its gradient reaches the own tensor alone: what all of them get adds up to that of the sum.
    """
    if count() == 1:
        return own
    summed = own.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed + (own - own.detach())  # adds exactly 0, and the gradient


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradients of all processes up, in place; the same parameters have one in each."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sums = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for pending in sums:
        pending.wait()


@dataclass(frozen=True)
class Share:
    """The rows of a batch that a process takes.

    Attributes:
        rows: of the whole batch, W.
        tokens: of the whole batch.
        places: [B] int64, the rows taken, ascending.
        counts: False for a process that no row was left to. It repeats one that is another's, so
            that it has its part in every sum, and adds nothing.
    """

    rows: int
    tokens: int
    places: NDArray[np.int64]
    counts: bool = True

    @classmethod
    def of(cls, lengths: NDArray[np.int64], index: int = 0, count: int = 1) -> Share:
        """What one of ``count`` processes takes, about as many tokens as the others.

        Rows are dealt out from the longest on, to and fro.

        Args:
            lengths: [W] int64, tokens of the batch's rows, ascending.
        """
        rows = len(lengths)
        turn = np.arange(rows)[::-1] % (2 * count)
        places = np.flatnonzero(np.minimum(turn, 2 * count - 1 - turn) == index)
        counts = len(places) > 0
        return cls(rows, int(lengths.sum()), places if counts else np.array([0]), counts)

    def total(self, own: Tensor) -> Tensor:
        """Sum over the whole batch, given that over the own rows; see ``total``."""
        return total(own if self.counts else own * 0)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the whole batch's rows, given the own ones' values: [..., B] -> [...]."""
        return self.total(values.sum(-1)) / self.rows

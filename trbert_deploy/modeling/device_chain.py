"""The chain on one device, in PyTorch: no state leaves it, the host learns survivors' counts.

It gives what ``runtime/chain.py`` gives, by the walk of training: rows packed without padding,
selection and compaction on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from trbert_deploy.batching import split_by_tokens
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.blocks.attention import Attention
from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.layout import RowsLayout
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.walk import begin, choose_by_rule, first_segment, walk_on
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS
from trbert_deploy.runtime.token_state import RowResult, TokenRow, packed_matches
from trbert_deploy.tasks.outputs import asked_counts, rows_of_outputs
from trbert_deploy.tasks.registry import task_of

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PackedRows:
    """Rows of tokens, packed on a device: what a walk begins with.

    Attributes:
        input_ids, token_type_ids: [T] int64.
        protected: [T] bool, tokens that must survive every cut.
        matches: [T, M, 3] int64, what a lexicon says of the tokens; None for nothing.
        layout: where the rows lie.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    protected: Tensor
    layout: RowsLayout
    matches: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device | str) -> PackedRows:
        """Pack rows, which attention likes best in ascending length."""

        columns = np.array(  # one copy to the device, instead of one for each
            [
                np.concatenate([row.input_ids for row in rows]),
                np.concatenate([row.token_type_ids for row in rows]),
                np.concatenate([row.protected for row in rows]),
            ]
        )
        input_ids, token_type_ids, protected = torch.from_numpy(columns).to(device)
        layout = PackedLayout(np.array([len(row) for row in rows], np.int64), device)
        found = packed_matches(rows)
        matches = None if found is None else torch.from_numpy(found).to(device)
        return cls(input_ids, token_type_ids, protected.bool(), layout, matches)


class DeviceChain:
    """A model and the cuts it has, on one device.

    In half precision, matrix products and attention are halved; normalization, residual sums,
    policies and head stay float32, as in exported graphs. The model that is given stays as it is.

    Args:
        model: any family.
        device: such as ``cpu`` or ``cuda``.
        precision: fp32, fp16 or bf16.
        max_batch_tokens: tokens that are on their way at a time; a longer row goes alone.

    Raises:
        ConfigError: no such precision.
    """

    def __init__(
        self,
        model: ReducedModel,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r}: expected {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        self._dtype = PRECISIONS[precision]
        self.model = deepcopy(model).to(self.device).eval()
        for module in self.model.encoder.layers.modules():
            if isinstance(module, Attention):
                module.merge()
        for module in self.model.encoder.layers.modules():
            if isinstance(module, nn.Linear):  # once, and not in every call
                module.to(self._dtype)
        self.max_batch_tokens = max_batch_tokens
        self._outputs = task_of(model.spec).outputs

    def at(self, reduction: ReductionConfig) -> Self:
        """The same cuts with other rules, on the same weights."""
        other = copy(self)
        other.model = copy(self.model)
        other.model.set_reduction(reduction)
        return other

    def run(self, rows: Sequence[TokenRow]) -> list[RowResult]:
        """Run rows, dropping tokens at every cut; one result per row, in the given order."""
        return self._run(rows, self.reduced)

    def run_dense(self, rows: Sequence[TokenRow]) -> list[RowResult]:
        """Run rows with the dense model."""
        return self._run(rows, self.dense)

    @torch.inference_mode()
    def reduced(self, batch: PackedRows) -> tuple[Outputs, list[RowsLayout]]:
        """The head's outputs on packed rows, and where the survivors of every cut lie."""
        with self._halved():
            tokens = first_segment(self.model, batch)
            walked = walk_on(self.model, tokens, choose_by_rule(self.model))
        return walked.answer(self.model), walked.layouts  # in float32

    @torch.inference_mode()
    def dense(self, batch: PackedRows) -> tuple[Outputs, list[RowsLayout]]:
        """The dense model's outputs on packed rows."""
        with self._halved():
            tokens = begin(self.model, batch).run(self.model, 0, self.model.spec.num_steps)
        return tokens.answer(self.model), []

    def _halved(self) -> AbstractContextManager[None]:
        if self._dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def _run(
        self,
        rows: Sequence[TokenRow],
        compute: Callable[[PackedRows], tuple[Outputs, list[RowsLayout]]],
    ) -> list[RowResult]:
        results: dict[int, RowResult] = {}
        for window in split_by_tokens([len(row) for row in rows], self.max_batch_tokens):
            outputs, layouts = compute(
                PackedRows.of([rows[index] for index in window], self.device)
            )
            answers = {name: values.cpu().numpy() for name, values in outputs.items()}
            kept = [
                np.split(layout.positions.cpu().numpy(), np.cumsum(layout.lengths))
                for layout in layouts
            ]
            lengths = [len(rows[index]) for index in window]
            asked = asked_counts(self._outputs, (rows[index].input_ids for index in window))
            by_row = rows_of_outputs(self._outputs, answers, lengths, asked)
            for place, (index, answer) in enumerate(zip(window, by_row, strict=True)):
                results[int(index)] = RowResult(answer, tuple(cut[place] for cut in kept))
        return [results[index] for index in range(len(rows))]

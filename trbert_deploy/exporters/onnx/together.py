"""The modules of several graphs in one pass: tracing them together takes a fraction of the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from torch import Tensor, nn

from trbert_deploy.bundle.manifest import (
    AT_EXIT,
    ATTENTION_MASK,
    HIDDEN,
    HIDDEN_OUT,
    INPUT_IDS,
    KEEP_LOGIT,
    MATCHES,
    POSITIONS,
    TOKEN_TYPE_IDS,
)
from trbert_deploy.exporters.onnx.parts import part_of
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.segments import DroppedModule, HeadModule, SegmentModule
from trbert_deploy.tasks.registry import task_of

Module = SegmentModule | DroppedModule | HeadModule


class Together(nn.Module):
    """Runs modules one after the other, those that read states on those of an earlier one.

    Attributes:
        modules_of: graph -> its module.
        sources: graph -> the one whose last states it reads, where it reads any.
        inputs: names of the inputs that there are, [B, S, ...] each.
    """

    def __init__(
        self, model: ReducedModel, modules: Mapping[str, Module], sources: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.model = model  # all weights are its own: the modules are not registered
        self.modules_of = dict(modules)
        self.sources = sources
        asked = {name for module in modules.values() for name in inputs_of(module)}
        order = (INPUT_IDS, TOKEN_TYPE_IDS, POSITIONS, MATCHES, ATTENTION_MASK)
        self.inputs = tuple(name for name in order if name in asked)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        positions: Tensor | None = None,
        matches: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """All outputs of all modules, in the order of ``outputs``.

        Args:
            input_ids, token_type_ids, positions: [B, S] int64, as the modules take them.
            matches: [B, S, M, 3] int64, likewise.
            attention_mask: [B, S] bool.
        """
        columns = {
            INPUT_IDS: input_ids,
            TOKEN_TYPE_IDS: token_type_ids,
            POSITIONS: positions,
            MATCHES: matches,
            ATTENTION_MASK: attention_mask,
        }
        states: dict[str, Tensor] = {}
        found: list[Tensor] = []
        for name, module in self.modules_of.items():
            if name in self.sources:
                columns[HIDDEN] = states[self.sources[name]]
            outputs = module(**{each: columns[each] for each in inputs_of(module)})
            states[name] = outputs[0]
            found += outputs
        return tuple(found)

    @property
    def outputs(self) -> list[str]:
        """What all outputs are called together."""
        return [
            tensor_of(name, output)
            for name, module in self.modules_of.items()
            for output in outputs_of(module)
        ]

    def part(self, whole: onnx.ModelProto, name: str) -> onnx.ModelProto:
        """One of the graphs, of the graph that all of them were traced into."""
        module = self.modules_of[name]
        read = {
            tensor_of(self.sources[name], HIDDEN_OUT) if each == HIDDEN else each: each
            for each in inputs_of(module)
        }
        written = {tensor_of(name, each): each for each in outputs_of(module)}
        return part_of(whole, name, read, written)


def tensor_of(graph: str, output: str) -> str:
    """What an output of a graph is called beside those of others."""
    return f"{graph}.{output}"


def inputs_of(module: Module) -> Iterator[str]:
    """A graph's inputs, in their order."""
    yield from module.inputs
    if isinstance(module, SegmentModule):
        yield ATTENTION_MASK


def outputs_of(module: Module) -> list[str]:
    """A graph's outputs, in their order."""
    answers = [output.name for output in task_of(module.model.spec).outputs]
    if not isinstance(module, SegmentModule):
        return answers
    if module.answers:
        return [HIDDEN_OUT, *answers]
    if module.segment.is_last:
        return [HIDDEN_OUT]
    return [HIDDEN_OUT, *(AT_EXIT if module.model.exits else (KEEP_LOGIT,))]

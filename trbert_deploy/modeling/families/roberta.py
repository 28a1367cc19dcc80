"""RoBERTa (Liu et al. 2019), and the models of its shape: XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.families.bert import bert_config, bert_spec
from trbert_deploy.modeling.families.family import (
    ROBERTA_MASKS,
    TOKEN_HEADS,
    Family,
    State,
    with_rows,
    without_rows,
)
from trbert_deploy.tasks.fill_mask import FillMask
from trbert_deploy.tasks.multiple_choice import MultipleChoice

#: Their position table, and ours.
_THEIRS = "embeddings.position_embeddings.weight"
POSITIONS = "encoder.embeddings.position.weight"


class Roberta(Family):
    """BERT with one token type, and positions that count from the padding token's id on.

    Rows 0 to pad + 0 of the position table belong to no token: ours begins behind them, so that
    the first token has position 0 as in every family.
    """

    model_types = ("roberta",)
    class_prefix = "Roberta"
    prefix = "roberta."
    head = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    head_options = {FillMask.name: {"decoder_activation": "gelu"}}
    task_heads = {
        **TOKEN_HEADS,
        FillMask.name: ROBERTA_MASKS,
        MultipleChoice.name: {"pooler": "roberta.pooler.dense", "classifier": "classifier"},
    }

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        return bert_spec(self.name, config, task, labels, config.pad_token_id + 1)

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        return bert_config(spec, spec.pad_token_id + 1)

    def load(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        tensors = super().load(state, spec)
        without_rows(tensors, POSITIONS, spec.pad_token_id + 1)
        return tensors

    def save(self, state: State, spec: EncoderSpec) -> dict[str, Tensor]:
        tensors = super().save(state, spec)
        with_rows(tensors, self.prefix + _THEIRS, spec.pad_token_id + 1)
        return tensors


class XlmRoberta(Roberta):
    """RoBERTa on a hundred languages."""

    model_types = ("xlm-roberta",)
    class_prefix = "XLMRoberta"


class Camembert(Roberta):
    """RoBERTa on French."""

    model_types = ("camembert",)
    class_prefix = "Camembert"

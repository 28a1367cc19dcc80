"""ELECTRA (Clark et al. 2020): the discriminator, and the generator, which fills masks."""

from __future__ import annotations

from typing import Any

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.families.bert import bert_config, bert_spec
from trbert_deploy.modeling.families.family import TOKEN_HEADS, Family, require
from trbert_deploy.tasks.fill_mask import FillMask
from trbert_deploy.tasks.multiple_choice import MultipleChoice


class Electra(Family):
    """BERT whose embeddings may be narrower than its layers: projected, once normalized."""

    model_types = ("electra",)
    class_prefix = "Electra"
    prefix = "electra."
    head = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    head_options = {FillMask.name: {"decoder_activation": "gelu"}}
    task_heads = {
        **TOKEN_HEADS,
        FillMask.name: {
            "dense": "generator_predictions.dense",
            "norm": "generator_predictions.LayerNorm",
            "decoder": "generator_lm_head",
        },
        MultipleChoice.name: {"pooler": "sequence_summary.summary", "classifier": "classifier"},
    }

    def spec(self, config: Any, task: str, labels: tuple[str, ...]) -> EncoderSpec:
        if task == MultipleChoice.name:  # the one head that reads these
            require(config, "summary_type", ("first",))
            require(config, "summary_use_proj", (True,))
            require(config, "summary_activation", ("gelu",))
        return bert_spec(
            self.name,
            config,
            task,
            labels,
            embedding_size=config.embedding_size,
            head={"activation": "gelu"},  # whatever summary_activation says
        )

    def hf_config(self, spec: EncoderSpec) -> dict[str, Any]:
        return {**bert_config(spec), "embedding_size": spec.embedding_size}

    def modules(self, spec: EncoderSpec) -> dict[str, str]:
        projection = {"encoder.embeddings.projection": f"{self.prefix}embeddings_project"}
        return super().modules(spec) | projection

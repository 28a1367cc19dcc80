"""What transformers calls a model with a head: behind a family's prefix, in ``architectures``."""

from __future__ import annotations

from trbert_deploy.tasks.feature_extraction import FeatureExtraction
from trbert_deploy.tasks.fill_mask import FillMask
from trbert_deploy.tasks.multiple_choice import MultipleChoice
from trbert_deploy.tasks.question_answering import QuestionAnswering
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.tasks.text_ranking import TextRanking
from trbert_deploy.tasks.token_classification import TokenClassification

#: Task -> what a model with its head is called. One line per task.
ARCHITECTURES = {
    TextClassification.name: "ForSequenceClassification",
    TextRanking.name: "ForSequenceClassification",
    TokenClassification.name: "ForTokenClassification",
    QuestionAnswering.name: "ForQuestionAnswering",
    FillMask.name: "ForMaskedLM",
    MultipleChoice.name: "ForMultipleChoice",
    FeatureExtraction.name: "Model",
}
#: Names without a head that answers anything.
BARE = ("", "Model", "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel")
#: Names of models that were pretrained, and answer that: for other tasks they get a new head.
PRETRAINED = ("ForMaskedLM",)


def architecture_of(task: str) -> str:
    """What a model with the head of ``task`` is called."""
    return ARCHITECTURES[task]

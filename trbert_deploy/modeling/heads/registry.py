"""Which head answers which task."""

from __future__ import annotations

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError
from trbert_deploy.modeling.heads.feature_extraction import FeatureExtractionHead
from trbert_deploy.modeling.heads.fill_mask import FillMaskHead
from trbert_deploy.modeling.heads.head import Head
from trbert_deploy.modeling.heads.multi_label import MultiLabelHead
from trbert_deploy.modeling.heads.multiple_choice import MultipleChoiceHead
from trbert_deploy.modeling.heads.question_answering import QuestionAnsweringHead
from trbert_deploy.modeling.heads.regression import RegressionHead
from trbert_deploy.modeling.heads.text_classification import TextClassificationHead
from trbert_deploy.modeling.heads.text_ranking import TextRankingHead
from trbert_deploy.modeling.heads.token_classification import TokenClassificationHead
from trbert_deploy.tasks.registry import task_of

#: Task and problem -> head. One line per head.
HEADS: dict[tuple[str, str], type[Head]] = {}


def register_head(head: type[Head]) -> None:
    """Let models of the head's task be built."""
    HEADS[head.task, head.problem] = head


for known in (
    TextClassificationHead,
    MultiLabelHead,
    RegressionHead,
    TextRankingHead,
    FeatureExtractionHead,
    TokenClassificationHead,
    QuestionAnsweringHead,
    FillMaskHead,
    MultipleChoiceHead,
):
    register_head(known)


def build_head(spec: EncoderSpec) -> Head:
    """The head of a model of this shape, newly initialized.

    Raises:
        ConfigError: no head answers the task.
    """
    return _head_of(spec).build(spec)


def build_exit(spec: EncoderSpec) -> Head:
    """A head that stands at a cut of a model of this shape, newly initialized.

    Raises:
        ConfigError: the task's answers do not tell how sure they are.
    """
    require_exits(spec)
    return _head_of(spec).build_exit(spec)


def require_exits(spec: EncoderSpec) -> None:
    """Refuse exits where answers do not tell how sure they are, or hear what an exit would not.

    Raises:
        ConfigError: they do not, or do.
    """
    if (reason := reason_against_exits(spec)) is not None:
        raise ConfigError(reason)


def reason_against_exits(spec: EncoderSpec) -> str | None:
    """Why ``require_exits`` refuses a model of this shape; None where it does not."""
    task = task_of(spec)
    if task.lexicon_tags:
        return (
            "the model takes a lexicon, which exits would not hear: train it without exits, or "
            "without --lexicon"
        )
    if not task.can_exit:
        return (
            f"the model answers {_told(spec)}, and such answers do not tell how sure they are, so "
            "no row can leave early: train it without exits"
        )
    return None


def _head_of(spec: EncoderSpec) -> type[Head]:
    head = HEADS.get((spec.task, spec.problem))
    if head is None:
        raise ConfigError(f"no head answers the task {_told(spec)}")
    return head


def _told(spec: EncoderSpec) -> str:
    """What is answered, in words."""
    return " as ".join(filter(None, (spec.task, spec.problem)))

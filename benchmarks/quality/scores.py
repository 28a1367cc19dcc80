"""What the rows of a quality table are judged by.

Labelled texts are judged by the task's own measure. A sentence encoder has no labels: on texts it
is judged by the mean cosine to its teacher's embeddings, and in the end by what questions find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from retrieval import read_collection
from setting import Setting
from students import Answers, Student, answer

from trbert_deploy.progress import Progress
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.feature_extraction import FeatureExtraction, of_length_one
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.task import mean_score
from trbert_deploy.tasks.text_ranking import DEPTH
from trbert_deploy.training.data import TrainingRow, targets_of
from trbert_deploy.training.stages.guide import answers


@dataclass(frozen=True)
class Score:
    """How good answers are.

    Attributes:
        value: what rows are compared by, from 0 to 1.
        metrics: all measures.
        statistics: [M, K] what ``value`` is computed of, text by text or question by question.
    """

    value: float
    metrics: dict[str, float]
    statistics: NDArray[np.float64]


def score(setting: Setting, rows: Sequence[TrainingRow], outputs: Sequence[Outputs]) -> Score:
    """By labels, or by the teacher's answers to the validation rows where there are none."""
    task = setting.task
    if setting.has_labels:
        targets = targets_of(task, rows)
        statistics = task.statistics(outputs, targets)
        return Score(task.measured(statistics), task.metrics(outputs, targets), statistics)
    pairs = zip(setting.validation_answers, outputs, strict=True)
    cosines = np.array([[task.agreement(one, other)] for one, other in pairs])
    return Score(mean_score(cosines), {"cosine": mean_score(cosines)}, cosines)


@dataclass(frozen=True)
class Retrieval:
    """Questions whose paragraphs are looked for by embeddings.

    Questions are short: the teacher embeds them, whatever embeds the paragraphs.

    Attributes:
        rows: the paragraphs.
        own: [Q], which one answers each question.
        questions: [Q, D] their embeddings, of length 1.
        teacher: [P, D] the teacher's embeddings of the paragraphs.
    """

    rows: list[TrainingRow]
    own: NDArray[np.int64]
    questions: NDArray[np.float32]
    teacher: NDArray[np.float32]

    @classmethod
    def read(cls, setting: Setting, path: str, batch_tokens: int, progress: Progress) -> Retrieval:
        """Those of a file of SQuAD's fields.

        Raises:
            DataError: it has others.
        """
        collection = read_collection(Path(path))
        asked = list(collection.relevant)
        teacher, task = setting.load_teacher(""), setting.task
        assert isinstance(task, FeatureExtraction)
        rows = [
            setting.tokenized([Example(text) for text in texts])
            for texts in (asked, collection.paragraphs)
        ]
        found = [
            embeddings(task, answers(teacher, each, batch_tokens, setting.device, progress))
            for each in rows
        ]
        own = np.array([collection.relevant[question][0] for question in asked])
        return cls(rows[1], own, found[0], found[1])

    def score(self, task: FeatureExtraction, outputs: Sequence[Outputs]) -> Score:
        """By what a row made of the paragraphs."""
        paragraphs = embeddings(task, outputs)
        found = gains(self.questions, paragraphs, self.own)
        metrics = {
            "ndcg_10": float(found[:, 0].mean()),
            "mrr_10": float(found[:, 1].mean()),
            "cosine": float((paragraphs * self.teacher).sum(1).mean()),
        }
        return Score(metrics["ndcg_10"], metrics, found[:, :1])


def retrieved(
    setting: Setting, student: Student, path: str, batch_tokens: int, progress: Progress
) -> tuple[Score, Answers, list[TrainingRow]]:
    """How well questions find their paragraphs as a student embeds them."""
    task = setting.task
    assert isinstance(task, FeatureExtraction)
    sought = Retrieval.read(setting, path, batch_tokens, progress)
    found = answer(student, sought.rows, batch_tokens, setting.device, progress)
    return sought.score(task, found.outputs), found, sought.rows


def embeddings(task: FeatureExtraction, outputs: Sequence[Outputs]) -> NDArray[np.float32]:
    """Embeddings of length 1: [N, D]."""
    return of_length_one(np.stack([task.embedding(each) for each in outputs]))


def gains(
    questions: NDArray[np.float32], paragraphs: NDArray[np.float32], own: NDArray[np.int64]
) -> NDArray[np.float64]:
    """nDCG@10 and MRR@10 of each question, which one paragraph answers: [Q, 2].

    Args:
        questions, paragraphs: [Q, D] and [P, D], of length 1.
        own: [Q], which paragraph answers.
    """
    scores = questions @ paragraphs.T
    ranks = 1 + (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
    found = ranks <= DEPTH
    return np.stack([found / np.log2(ranks + 1.0), found / ranks], axis=1)

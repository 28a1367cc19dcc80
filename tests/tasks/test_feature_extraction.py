"""Sentence embeddings: the task and its head, by hand-made outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_spec

from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.modeling.heads.registry import build_head
from trbert_deploy.tasks.columns import Columns
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.feature_extraction import EMBEDDING, FeatureExtraction
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.text_classification import TextClassification

ENCODING = SimpleNamespace(ids=[2, 7, 3])


def outputs(*values: float) -> dict[str, np.ndarray]:
    return {EMBEDDING: np.array(values, np.float32)}


def test_an_embedding_is_normalized_where_the_model_says_so() -> None:
    unit = FeatureExtraction(width=3).decode(outputs(0, 3, 4), ENCODING)
    assert unit.embedding == pytest.approx((0, 0.6, 0.8))
    raw = FeatureExtraction(normalize=False, width=3).decode(outputs(0, 3, 4), ENCODING)
    assert raw.embedding == (0, 3, 4)
    assert set(raw.to_json()) == {"embedding", "num_tokens"}
    nothing = FeatureExtraction(width=2).decode(outputs(0, 0), ENCODING)
    assert nothing.embedding == (0, 0)
    task = FeatureExtraction(width=4)
    assert task.summary(task.decode(outputs(0, 3, 4, 0), ENCODING)) == "0.00 0.60 0.80 ..."


def test_an_embedding_is_shortened_before_it_is_normalized() -> None:
    task = FeatureExtraction(width=4).set_up(dimensions=2)
    assert task.decode(outputs(3, 4, 5, 6), ENCODING).embedding == pytest.approx((0.6, 0.8))
    for dimensions in (0, 5):
        with pytest.raises(
            ConfigError, match=f"dimensions is {dimensions}: expected a whole number from 1 to 4"
        ):
            task.set_up(dimensions=dimensions)


def test_prompts_stand_before_texts() -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    task = FeatureExtraction(prompts=prompts, default_prompt="passage", width=3)
    assert task.input_of("a dog") == "passage: a dog"
    assert task.set_up(prompt="query").input_of("a dog") == "query: a dog"
    assert task.input_of("a dog") == "passage: a dog"  # still
    assert FeatureExtraction(prompts=prompts).input_of("a dog") == "a dog"
    with pytest.raises(ConfigError, match="has no prompt 'title': it has query, passage"):
        task.set_up(prompt="title")
    with pytest.raises(ConfigError, match="has no prompt 'query': it has no prompts"):
        FeatureExtraction().set_up(prompt="query")


def test_other_tasks_have_neither_dimensions_nor_prompts() -> None:
    task = TextClassification(("a", "b"))
    assert task.set_up() is task
    assert task.input_of(("a", "b")) == ("a", "b")
    with pytest.raises(
        ConfigError, match="dimensions is 3, and the model is for text-classification, wh"
    ):
        task.set_up(dimensions=3)
    with pytest.raises(
        ConfigError, match=r"prompt is .query., .*, which has no prompt: leave it out"
    ):
        task.set_up(prompt="query")


def test_agreement_is_the_cosine() -> None:
    task = FeatureExtraction(width=2)
    assert task.agreement(outputs(1, 0), outputs(5, 0)) == pytest.approx(1)
    assert task.agreement(outputs(1, 0), outputs(1, 1)) == pytest.approx(0.5**0.5)
    assert task.agreement(outputs(1, 0), outputs(-1, 0)) == 0
    assert task.agreement(outputs(1, 0), outputs(np.nan, 0)) == 0
    assert task.divergence(outputs(1, 0), outputs(-1, 0)) == pytest.approx(2)
    assert task.divergence(outputs(1, 0), outputs(3, 0)) == pytest.approx(0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_embedding(value: float) -> None:
    with pytest.raises(OutputError, match="sentence_embedding hold"):
        FeatureExtraction(width=2).decode(outputs(1, value), ENCODING)
    with pytest.raises(OutputError, match=r"has the shape \[2\]: expected \[3\]"):
        FeatureExtraction(width=3).decode(outputs(1, 2), ENCODING)


def test_embeddings_have_single_texts_and_no_labels() -> None:
    task = FeatureExtraction(width=2)
    assert task.read({"text": "a dog"}, "row 1", Columns()) == Example("a dog")
    with pytest.raises(DataError, match="row 1 is a pair of texts: expected one"):
        task.read({"text": "a", "b": "c"}, "row 1", Columns("text", "b"))
    with pytest.raises(DataError, match="embeddings are not learned from labels"):
        FeatureExtraction.new_head([])
    with pytest.raises(DataError, match="m makes embeddings: expected texts without labels"):
        task.require_names(("good",), "m")
    for judge in (task.metrics, task.statistics):
        with pytest.raises(DataError, match="no labels to be judged by"):
            judge([], [])
    with pytest.raises(DataError, match="embeddings have no labels"):
        task.targets([Example("a", "good")])
    with pytest.raises(DataError, match="makes embeddings of 2 values: expected as many"):
        task.require_like(FeatureExtraction(width=3), "the teacher t")
    with pytest.raises(ConfigError, match="the pooling is 'last': expected one of first, mean"):
        FeatureExtraction(pooling="last")  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_the_head_learns_a_teachers_embeddings(pooling: str) -> None:
    spec = tiny_spec(task="feature-extraction", labels=(), answers={"pooling": pooling})
    assert task_of(spec).outputs == build_head(spec).outputs  # type: ignore[union-attr]
    head = build_head(spec)
    torch.manual_seed(0)
    teacher, other = ({EMBEDDING: torch.randn(4, 32)} for _ in range(2))
    longer = {EMBEDDING: 3 * teacher[EMBEDDING]}
    none = torch.full((4,), torch.nan)
    assert not head.has_target(none).any()
    assert head.loss(longer, none, teacher).abs().max() < 1e-5  # the length says nothing
    assert (head.loss(other, none, teacher) > 0.5).all()
    turned = {EMBEDDING: teacher[EMBEDDING] @ torch.linalg.qr(torch.randn(32, 32))[0]}
    cosines = torch.cosine_similarity(turned[EMBEDDING], teacher[EMBEDDING], dim=-1)
    # All turned alike: cosines between texts are right, and those with the teacher's wrong.
    torch.testing.assert_close(head.loss(turned, none, teacher), 1 - cosines, atol=1e-4, rtol=1e-4)
    paths = {EMBEDDING: torch.cat([longer[EMBEDDING], other[EMBEDDING]])}
    losses = head.path_loss(paths, none, teacher)
    assert losses.shape == (2, 4) and losses[0].abs().max() < 1e-5 and (losses[1] > 0.5).all()
    wanted = head.targets_or_answers(none, teacher)
    torch.testing.assert_close(head.correct(longer, wanted), torch.ones(4))
    states = teacher[EMBEDDING].clone().requires_grad_()
    head.loss({EMBEDDING: states}, wanted).sum().backward()
    assert states.grad is not None and (states.grad.norm(dim=-1) > 0).all()  # the guide needs it

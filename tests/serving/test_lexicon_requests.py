"""Requests with phrases of their own: answered as by the library, bounded, and refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from conftest import CheckpointMaker
from lexicons_in_tests import lexicon_bundle
from services_in_tests import serving

from trbert_deploy import load
from trbert_deploy.lexicon.entries import Entry
from trbert_deploy.runtime.bundled_lexicon import set_lexicon
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.serving.routes.common import MOST_PHRASES

TEXT = "the film of a sailor"
MORE = [{"phrase": "sailor", "tag": "Y"}]


@pytest.fixture(scope="module")
def tagger(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    place = tmp_path_factory.mktemp("tagger") / "bundle"
    # Without O, so that random weights tag something.
    lexicon_bundle(make_checkpoint, place, ("B-X", "B-Y", "I-Y"))
    set_lexicon(place, [Entry("film", "X")])
    return load(place, threads=1)


@pytest.fixture(scope="module")
def client(tagger: Pipeline) -> Iterator[httpx.Client]:
    with serving(tagger) as client:
        yield client


def scores(answers: list[dict[str, Any]]) -> list[float]:
    return [round(each["score"], 4) for each in answers]


@pytest.mark.parametrize("only", [False, True])
def test_phrases_of_a_request_are_searched_for(
    client: httpx.Client, tagger: Pipeline, only: bool
) -> None:
    body: dict[str, Any] = {"inputs": TEXT, "parameters": {"aggregation_strategy": "none"}}
    own = tagger.set_up(aggregation_strategy="none")
    expected = own.without_lexicon() if only else own
    expected = expected.with_lexicon([("sailor", "Y")])
    body |= {"lexicon": MORE, "only_lexicon": only}
    asked = client.post("/token-classification", json=body).json()
    (answer,) = expected([TEXT])
    assert scores(asked) == scores(answer.to_json()["entities"])
    (plain,) = own([TEXT])
    assert scores(asked) != scores(plain.to_json()["entities"])
    told = client.post("/answers", json=body).json()["answers"][0]
    assert scores(told["entities"]) == scores(asked)


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [
        ([{"phrase": "sailor", "tag": "Z"}], "lexicon has tags .*: Z .it knows X, Y."),
        ([{"phrase": " ", "tag": "X"}], "entry 1 of lexicon: the phrase has no letter"),
        ([{"phrase": "sailor"}], r"lexicon\.0\.tag: Field required"),
        ([["sailor", "X"]], r"lexicon\.0: .*valid dictionary"),
        (MORE * (MOST_PHRASES + 1), "lexicon: .*at most 1000 items"),
    ],
)
def test_bad_phrases_are_told(client: httpx.Client, lexicon: Any, message: str) -> None:
    body = {"inputs": TEXT, "lexicon": lexicon}
    answer = client.post("/token-classification", json=body)
    assert answer.status_code == 422, answer.text
    assert re.search(message, answer.json()["error"]), answer.text


def test_the_schema_has_them(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("TagsRequest", "AnswersRequest"):
        assert schemas[name]["properties"]["lexicon"]["maxItems"] == MOST_PHRASES


def test_other_models_take_none(tiny_bundle: Path) -> None:
    with serving(load(tiny_bundle, threads=1)) as client:
        answer = client.post("/answers", json={"inputs": TEXT, "lexicon": MORE})
    assert answer.status_code == 422 and "takes no lexicon" in answer.json()["error"]

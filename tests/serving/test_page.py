"""The page of a service, in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import make_texts
from services_in_tests import answering

from trbert_deploy import load
from trbert_deploy.serving.served import Limits, ServedModel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


def shown(address: str, profile: Path) -> str:
    """What a browser makes of a page."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def text_of(page: str, tag: str, name: str) -> str:
    found = re.search(rf'<{tag} id="{name}"[^>]*>(.*?)</{tag}>', page, re.S)
    assert found is not None, page
    return found[1]


def test_the_page_shows_at_which_cut_each_token_leaves(tiny_bundle: Path, tmp_path: Path) -> None:
    model = load(tiny_bundle, threads=1)
    text = make_texts(1, seed=5)[0]["text"] + " <b>&"
    (expected,) = model([text], return_kept=True)
    tokens = model.tokenizer.encode([text])[0].tokens
    assert expected.kept
    counts = [sum(place in cut.positions for cut in expected.kept) for place in range(len(tokens))]
    with answering(ServedModel(model, Limits())) as client:
        address = f"{str(client.base_url).rstrip('/')}/#{urlencode({'text': text})}"
        page = shown(address, tmp_path)
    assert text_of(page, "p", "error") == ""
    assert (
        json.loads(unescape(text_of(page, "pre", "answer")))["label"] == expected.to_json()["label"]
    )
    spans = re.findall(
        r'<span title="(.*?)"[^>]*>(.*?)</span>|<span style="[^"]*" title="(.*?)">(.*?)</span>',
        text_of(page, "p", "tokens"),
    )
    seen = [(title or other, unescape(token or rest)) for title, token, other, rest in spans]
    assert [token for _, token in seen] == tokens
    for (title, _), count in zip(seen, counts, strict=True):
        stays = count == len(expected.kept)
        cut = None if stays else f"{expected.kept[count].cut:g}"
        assert title == ("stays to the end" if stays else f"leaves at cut {cut}")


def test_the_page_says_what_is_wrong(tiny_bundle: Path, tmp_path: Path) -> None:
    with answering(ServedModel(load(tiny_bundle, threads=1), Limits())) as client:
        address = f"{str(client.base_url).rstrip('/')}/#{urlencode({'text': ' '})}"
        page = shown(address, tmp_path)
    assert "is empty" in text_of(page, "p", "error")

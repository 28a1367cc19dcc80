"""The files of deploy/: what they ask for is there. No container is built here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from trbert_deploy.cli import cli
from trbert_deploy.serving.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
YAML_FILES = sorted(DEPLOY.rglob("*.yaml"))
#: What a histogram makes of its name.
SUFFIXES = re.compile("_(bucket|sum|count|created)$")


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_they_are_yaml(path: Path) -> None:
    assert all(isinstance(document, dict) for document in documents(path))


def known_figures() -> set[str]:
    lines = Metrics().text().decode().splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE")}


def asked_figures() -> Iterator[tuple[str, str]]:
    """File -> name of each figure that it asks for."""
    files = [*YAML_FILES, *DEPLOY.rglob("*.json"), ROOT / "docs" / "serving.md"]
    for path in files:
        for name in re.findall(r"\btrbert_[a-z0-9_]+", path.read_text(encoding="utf-8")):
            yield path.name, name


def test_all_figures_that_they_ask_for_are_there() -> None:
    made = {each["name"]["as"] for each in documents(DEPLOY / "adapter.yaml")[0]["rules"]}
    known = known_figures() | made | {"trbert_deploy"}
    asked = list(asked_figures())
    assert len(asked) > 30
    for file, name in asked:
        assert SUFFIXES.sub("", name) in known or name in known, f"{file} asks for {name}"


def served_with(arguments: list[str]) -> str:
    """What the command says of the options of a container, without a bundle."""
    assert arguments[0] == "serve"
    result = CliRunner().invoke(cli, [*arguments, "--threads", "x"])
    assert result.exit_code == 2
    return str(result.output)


def test_containers_start_the_service_with_options_that_it_has() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    command = json.loads(next(line for line in lines if line.startswith("CMD ["))[4:])
    (deployment, _, _) = documents(DEPLOY / "kubernetes.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for arguments in (command, container["args"]):
        assert "'x'" in served_with(arguments)  # what is wrong is that, and no option's name


def test_the_image_leaves_extras_that_there_are() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"EXTRAS=([a-z,-]+)", text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.M), extra


def test_the_dashboard_has_a_panel_for_each_place() -> None:
    (path,) = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels]
    assert len(set(places)) == len(places) == len({each["id"] for each in panels})


def test_the_alert_of_the_document_is_the_file_s() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (shown,) = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])  # type: ignore[index]
    (group,) = documents(DEPLOY / "alerts.yaml")[0]["groups"]
    assert shown in group["rules"]

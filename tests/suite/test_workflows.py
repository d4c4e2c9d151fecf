"""CI, pre-commit and the metadata name the same Pythons, environments and versions."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml
from harness.documents import ROOT

import gracefulworker

WORKFLOWS = {
    path.stem: (path.read_text(), yaml.safe_load(path.read_text()))
    for path in ROOT.glob(".github/workflows/*.yml")
}
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")
TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini")


def matrix(workflow, job):
    return WORKFLOWS[workflow][1]["jobs"][job]["strategy"]["matrix"]


def test_each_environment_is_one_of_tox():
    named = {*matrix("ci", "tests")["env"], *matrix("newest-gunicorn", "newest")["env"]}
    named |= {one["env"] for one in matrix("ci", "tests")["include"]}
    defined = {name.removeprefix("testenv:") for name in TOX.sections()}
    assert named - {"py"} <= defined
    # What is not run there needs root, minutes, or somebody who reads the figures.
    assert defined - named - {"testenv", "tox", "middle"} <= {
        *("bench", "cluster", "coverage", "demo", "rollout", "stress"),
        # All of the suite is run on it.
        "python310",
    }


def test_pythons_are_those_of_the_classifiers():
    classifiers = SETUP["metadata"]["classifiers"]
    promised = re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE)
    tested = matrix("ci", "tests")["python"]
    assert {*promised} <= {*tested}
    assert SETUP["options"]["python_requires"] == f">={tested[0]}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_of_others_are_pinned(name):
    """A tag can be moved; the version is beside the commit, for readers and for dependabot."""
    text, workflow = WORKFLOWS[name]
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one
    assert workflow["permissions"] == {"contents": "read"}


def test_pre_commit_has_the_versions_of_the_extra():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    wanted = SETUP["options.extras_require"]["lint"].split()
    used = {
        package
        for repository in config["repos"]
        for hook in repository["hooks"]
        for package in hook["additional_dependencies"]
        if package.startswith("ruff")
    }
    assert used and used <= {*wanted}


def test_documents_name_this_version():
    """What users copy from the pages: the hook's `rev`, the action's tag."""
    text = (ROOT / "docs" / "check.md").read_text()
    revisions = re.findall(r"rev: v(\S+)|gracefulworker/gracefulworker@v(\S+)", text)
    assert len(revisions) == 2
    assert {one or other for one, other in revisions} == {gracefulworker.__version__}

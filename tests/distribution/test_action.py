"""The GitHub Action: its steps as the runner's shell runs them, in a user's repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from distribution.conftest import SOUND, must
from harness.documents import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SCHEMA = json.loads((ROOT / "tests" / "tools" / "schemas" / "sarif-2.1.0.json").read_text())
STEPS = ACTION["runs"]["steps"]
INPUT = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")


def test_the_steps_are_shell_alone():
    """So nothing of others' is to be pinned, and no input becomes a part of a script."""
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS:
        assert step["shell"] == "bash" and "uses" not in step
        assert "${{" not in step["run"]
        assert all(INPUT.fullmatch(value) for value in step["env"].values())


@pytest.fixture(scope="module")
def runner(tmp_path_factory, source):
    """Variables of the runner's, after the first step."""
    environ = {
        **os.environ,
        "RUNNER_TEMP": str(tmp_path_factory.mktemp("runner temp")),
        "GITHUB_ACTION_PATH": str(source),
    }
    assert bash(STEPS[0], {"python": sys.executable}, environ, source).returncode == 0
    return environ


def bash(step, inputs, environ, directory):
    """Run one step: https://docs.github.com/actions/reference/workflow-syntax (`shell: bash`)."""
    given = {name: str(one["default"]) for name, one in ACTION["inputs"].items()} | inputs
    variables = {
        name: INPUT.sub(lambda match: given[match[1]], value) for name, value in step["env"].items()
    }
    script = Path(environ["RUNNER_TEMP"]) / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
        cwd=directory,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_what_is_installed_is_what_uses_names(runner, source):
    """The action's own checkout, and nothing that is not pinned."""
    python = Path(runner["RUNNER_TEMP"]) / "gracefulworker-check" / "bin" / "python"
    frozen = must(python, "-m", "pip", "freeze").splitlines()
    pinned = (source / ".github" / "action-constraints.txt").read_text().splitlines()
    ours = [line for line in frozen if line.startswith("gracefulworker @ file://")]
    assert len(ours) == 1
    assert {*frozen} - {*ours} <= {*pinned}


def test_a_mistake_fails_the_step_and_is_an_annotation(runner, user, source):
    done = bash(STEPS[1], {}, runner, user)
    assert done.returncode == 1, done.stderr
    first, *lines = done.stdout.splitlines()
    file = Path(first.removeprefix("::add-matcher::"))
    (matcher,) = json.loads(file.read_text())["problemMatcher"]
    (pattern,) = matcher["pattern"]
    found = [match for line in lines if (match := re.match(pattern["regexp"], line))]
    assert [
        (m[pattern["file"]], m[pattern["line"]], m[pattern["severity"]], m[pattern["code"]])
        for m in found
    ] == [("./k8s/web.yaml", "11", "error", "no-delay")]
    assert found[0][pattern["message"]].startswith("gunicorn (worker class gthread) stops")


def test_sarif_is_written_whatever_was_found(runner, user):
    for text, status in ((user / "k8s" / "web.yaml").read_text(), 1), (SOUND, 0):
        (user / "k8s" / "web.yaml").write_text(text)
        done = bash(STEPS[1], {"sarif-file": "check.sarif", "paths": "k8s"}, runner, user)
        assert done.returncode == status, done.stderr
        log = json.loads((user / "check.sarif").read_text())
        jsonschema.validate(log, SCHEMA)
        assert len(log["runs"][0]["results"]) == status
        for result in log["runs"][0]["results"]:
            where = result["locations"][0]["physicalLocation"]["artifactLocation"]
            assert where == {"uri": "k8s/web.yaml", "uriBaseId": "%SRCROOT%"}


def test_the_other_inputs(runner, user):
    manifest = user / "k8s" / "web.yaml"
    assert bash(STEPS[1], {"ignore": "no-delay,unready"}, runner, user).returncode == 0
    (user / "conf.py").write_text("worker_class = 'gracefulworker.gthread'\n")
    manifest.write_text(manifest.read_text().replace("-k, gthread, ", ""))
    assert bash(STEPS[1], {"config": "conf.py"}, runner, user).returncode == 0
    manifest.write_text(SOUND + "  strategy: {type: Recreate}\n")
    assert bash(STEPS[1], {}, runner, user).returncode == 0
    assert bash(STEPS[1], {"strict": "true"}, runner, user).returncode == 1
    assert bash(STEPS[1], {"paths": "nowhere"}, runner, user).returncode == 2
    (user / "more.yaml").write_text(SOUND)
    done = bash(STEPS[1], {"paths": "k8s\n  more.yaml\n"}, runner, user)
    assert "2 files, 2 gunicorns" in done.stdout


def test_no_input_is_run(runner, user):
    for name in ACTION["inputs"].keys() - {"python"}:
        bash(STEPS[1], {name: "$(touch run) `touch run` ; touch run"}, runner, user)
    assert not (user / "run").exists()

"""`gracefulworker check` where others read it: SARIF, the list of rules, what CI makes of both."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest

import gracefulworker
from gracefulworker.tools import cli
from gracefulworker.tools.manifests import rules

TESTS = Path(__file__).parent
MANIFESTS = TESTS / "manifests"
FAULTS = sorted(path for path in MANIFESTS.iterdir() if path.is_file())
ERROR, WARNING = MANIFESTS / "no-delay.yaml", MANIFESTS / "recreate.yaml"
SCHEMA = json.loads((TESTS / "schemas" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


@pytest.fixture
def sarif(capsys):
    """Runs the command; returns its exit status and the one run of a log that is valid."""

    def run(*arguments):
        status = cli.main(["check", "--format", "sarif", *map(str, arguments)])
        log = json.loads(capsys.readouterr().out)
        assert [error.message for error in VALIDATOR.iter_errors(log)] == []
        (only,) = log["runs"]
        return status, only

    return run


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.name)
def test_a_finding_is_a_result(sarif, capsys, path):
    cli.main(["check", "--format", "json", str(path)])
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    status, run = sarif(path)
    (result,) = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert (result["ruleId"], result["level"]) == (finding["rule"], finding["severity"])
    assert all(finding[part] in result["message"]["text"] for part in ("mistake", "effect", "fix"))
    (location,) = result["locations"]
    assert location["physicalLocation"]["region"] == {"startLine": finding["line"]}
    (where,) = location["logicalLocations"]
    assert finding["server"] in where["fullyQualifiedName"]
    assert run["invocations"][0]["exitCode"] == status < 2
    assert run["invocations"][0]["executionSuccessful"]


def test_the_schema_finds_a_fault(sarif):
    """Else its acceptance would mean nothing."""
    _, run = sarif(ERROR)
    log = {"version": "2.1.0", "runs": [run]}
    assert VALIDATOR.is_valid(log)
    for break_it in (
        lambda result: result.update(level="fatal"),
        lambda result: result.pop("message"),
        lambda result: result.update(rule="no-delay"),
        lambda result: result["locations"][0]["physicalLocation"]["region"].update(startLine=0),
    ):
        broken = copy.deepcopy(log)
        break_it(broken["runs"][0]["results"][0])
        assert not VALIDATOR.is_valid(broken)


def test_paths_are_relative_to_the_working_directory_and_uris(sarif, tmp_path, monkeypatch):
    text = ERROR.read_text()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = [*("a b.yaml", "ä#.yaml", "%41.yaml"), *(["\udcff.yaml"] if os.name == "posix" else [])]
    for name in names:
        Path(name).write_text(text)
    _, run = sarif(".")
    found = [r["locations"][0]["physicalLocation"]["artifactLocation"] for r in run["results"]]
    assert {one["uriBaseId"] for one in found} == {"%SRCROOT%"}
    uris = {"a%20b.yaml", "%C3%A4%23.yaml", "%2541.yaml", "%FF.yaml"}
    assert {one["uri"] for one in found} == uris
    (tmp_path / "there.yaml").write_text(text)
    absolute = {"uri": (tmp_path / "there.yaml").as_uri()}
    for path in ("../there.yaml", tmp_path / "there.yaml"):
        (result,) = sarif(path)[1]["results"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"] == absolute
    (result,) = sarif(tmp_path / "here" / "a b.yaml")[1]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {
        "uri": "a%20b.yaml",
        "uriBaseId": "%SRCROOT%",
    }


def test_what_was_not_judged_or_read_is_a_notification(sarif, tmp_path):
    """A file of which nothing is said would pass for sound."""
    (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: }\n")
    status, run = sarif(tmp_path / "broken.yaml", TESTS / "cases" / "jobs.yaml", tmp_path / "none")
    assert (status, run["results"]) == (2, [])
    (invocation,) = run["invocations"]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (2, False)
    said = {
        note["message"]["text"]: (note["level"], note.get("locations", [{}])[0])
        for note in invocation["toolExecutionNotifications"]
    }
    (yaml_error,) = (text for text in said if "is not valid YAML" in text)
    assert said[yaml_error][0] == "error"
    assert said[yaml_error][1]["physicalLocation"]["region"]["startLine"] == 2
    (absent,) = (text for text in said if text.startswith("cannot be read"))
    assert "region" not in said[absent][1]["physicalLocation"]
    assert [text for text in said if text.startswith("not judged: ")]
    assert said["no gunicorn was judged"][0] == "error"


def test_sarif_of_standard_input():
    command = [sys.executable, "-m", "gracefulworker", "check", "-", "--format", "sarif"]
    ran = subprocess.run(command, input=ERROR.read_text(), capture_output=True, text=True)
    log = json.loads(ran.stdout)
    assert (ran.returncode, VALIDATOR.is_valid(log)) == (1, True)
    (result,) = log["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 17


# -- which findings count


def test_a_rule_that_is_ignored_is_not_judged_by_but_counted(sarif, capsys):
    assert cli.main(["check", str(ERROR), str(WARNING), "--ignore", "no-delay"]) == 0
    printed = capsys.readouterr().out
    assert "no-delay: " not in printed and "recreate: " in printed
    last = printed.splitlines()[-1]
    assert last == "2 files, 2 gunicorns: 0 errors, 1 warning (ignored: 1 no-delay)"
    both = ("--ignore", "no-delay,recreate", "--ignore", "options")
    cli.main(["check", "--format", "json", str(ERROR), str(WARNING), *both])
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert report["ignored"] == {"no-delay": 1, "recreate": 1, "options": 0}
    status, run = sarif(ERROR, WARNING, *both)
    assert (status, run["results"]) == (0, [])
    overrides = run["invocations"][0]["ruleConfigurationOverrides"]
    assert [one["descriptor"]["id"] for one in overrides] == ["no-delay", "recreate", "options"]
    assert all(one["configuration"] == {"enabled": False} for one in overrides)


def test_what_is_ignored_by_nobody_is_not_mentioned(capsys):
    cli.main(["check", str(ERROR), "--ignore", "recreate"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 file, 1 gunicorn: 1 error, 0 warnings"


@pytest.mark.parametrize("name", ("no-dely", "NO-DELAY", ""))
def test_a_rule_that_there_is_not_cannot_be_ignored(capsys, name):
    assert cli.main(["check", str(ERROR), "--ignore", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--ignore {name}: there is no such rule: did you mean " in printed.err


def test_strict_counts_warnings(sarif):
    assert [sarif(path)[0] for path in (ERROR, WARNING)] == [1, 0]
    assert [sarif(path, "--strict")[0] for path in (ERROR, WARNING)] == [1, 1]
    assert sarif(WARNING, "--strict", "--ignore", "recreate")[0] == 0
    assert sarif(WARNING, "--strict")[1]["results"][0]["level"] == "warning"
    assert sarif("/nowhere", "--strict")[0] == 2


# -- the rules


def test_the_list_of_rules(capsys):
    assert cli.main(["check", "--list-rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(rules.RULES)
    assert all(line.endswith(".") for line in lines)
    assert max(map(len, lines)) <= 120


def test_each_rule_is_described_and_explained(sarif):
    driver = sarif(ERROR)[1]["tool"]["driver"]
    assert driver["version"] == gracefulworker.__version__
    assert [one["id"] for one in driver["rules"]] == list(rules.RULES)
    for one in driver["rules"]:
        assert one["helpUri"] == f"{driver['informationUri']}#{one['id']}"
        assert one["shortDescription"]["text"].endswith(".")


def test_without_docstrings_a_rule_has_its_name(sarif):
    command = [sys.executable, "-OO", "-m", "gracefulworker", "check", "--format", "sarif"]
    ran = subprocess.run([*command, str(ERROR)], capture_output=True, text=True)
    log = json.loads(ran.stdout)
    assert (ran.returncode, VALIDATOR.is_valid(log)) == (1, True)
    described = log["runs"][0]["tool"]["driver"]["rules"]
    assert [one["shortDescription"]["text"] for one in described] == list(rules.RULES)


def test_the_rules_are_explained_where_the_documentation_is():
    urls = dict(
        line.split(", ", 1)
        for line in metadata.metadata("gracefulworker").get_all("Project-URL") or ()
    )
    assert rules.PAGE.startswith(urls["Documentation"])

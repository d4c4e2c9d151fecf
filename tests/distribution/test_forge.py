"""What GitHub reads, by its own schemas."""

from __future__ import annotations

import sys

import pytest
from distribution.conftest import must, run
from harness.documents import ROOT

SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-actions": "action.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "dependabot": ".github/dependabot.yml",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_accepts(name):
    files = sorted(ROOT.glob(SCHEMAS[name]))
    assert files
    must(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{name}", *files)


def test_the_schema_finds_a_fault(tmp_path):
    (workflow,) = ROOT.glob(".github/workflows/ci.yml")
    (tmp_path / "ci.yml").write_text(workflow.read_text().replace("runs-on:", "run-on:"))
    command = ("check_jsonschema", "--builtin-schema", "vendor.github-workflows")
    assert run(sys.executable, "-m", *command, tmp_path / "ci.yml").returncode == 1

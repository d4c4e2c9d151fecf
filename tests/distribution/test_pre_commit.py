"""The pre-commit hook, in a user's repository, installed from this one."""

from __future__ import annotations

import sys

import pytest
from distribution.conftest import SOUND, commit, must, run

import gracefulworker

CONFIG = """\
repos:
  - repo: {source}
    rev: v{version}
    hooks:
      - id: gracefulworker-check
        args: {args}
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return {"PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("pre-commit"))}


@pytest.fixture
def hook(source, user, home, monkeypatch):
    """Runs the hook in the user's repository."""
    for name, value in home.items():
        monkeypatch.setenv(name, value)

    def start(args, *files):
        version = gracefulworker.__version__
        (user / ".pre-commit-config.yaml").write_text(
            CONFIG.format(source=source, version=version, args=args)
        )
        commit(user)
        chosen = ["--files", *files] if files else ["--all-files"]
        return run(sys.executable, "-m", "pre_commit", "run", "--color=never", *chosen, cwd=user)

    return start


def test_the_hook_finds_a_mistake_and_passes_without_it(hook, user):
    done = hook("[k8s]")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "k8s/web.yaml:11: error: no-delay: " in done.stdout
    (user / "k8s" / "web.yaml").write_text(SOUND)
    done = hook("[k8s]")
    assert done.returncode == 0 and "Passed" in done.stdout, done.stdout + done.stderr


def test_all_is_judged_whatever_was_changed(hook, user):
    """The Dockerfile alone would say nothing of the Deployment, and the other way round."""
    (user / "Dockerfile").write_text("FROM python:3.13-slim\nCOPY . .\n")
    done = hook("[., --ignore, no-delay]", "Dockerfile")
    assert done.returncode == 0, done.stdout
    assert hook("[.]", "Dockerfile").returncode == 1
    (user / "notes.txt").write_text("gunicorn\n")
    assert "Skipped" in hook("[.]", "notes.txt").stdout


def test_our_own_configuration_is_valid(source):
    must(sys.executable, "-m", "pre_commit", "validate-config", source / ".pre-commit-config.yaml")
    must(sys.executable, "-m", "pre_commit", "validate-manifest", source / ".pre-commit-hooks.yaml")
    must("git", "-C", source, "add", "-A")


def test_our_own_hooks_pass(source, home, monkeypatch):
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    done = run(sys.executable, "-m", "pre_commit", "run", "--all-files", cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr

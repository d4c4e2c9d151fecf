"""Fixtures for what is installed from this repository: by pip, by pre-commit, as a GitHub Action.

``tox -e distribution`` has what they need; all of it wants a package index.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from harness.documents import ROOT

import gracefulworker

#: What a checkout has beside what is in the repository.
BESIDE = shutil.ignore_patterns(
    *(".git", ".tox", ".venv", "build", "dist", "site", "*.egg-info", "__pycache__", ".*_cache")
)


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, **options
    )


def must(*command: str | Path, **options) -> str:
    """Run a command that must not fail, and return what it printed."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def commit(repository: Path) -> None:
    """Commit all that is there."""
    git = ("git", "-C", repository, "-c", "user.name=Test", "-c", "user.email=test@example.org")
    must("git", "init", "-q", repository)
    must(*git, "add", "-A")
    must(*git, "commit", "-q", "--allow-empty", "-m", "All")


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """This repository as it is now, as a clone of its newest tag would be."""
    repository: Path = tmp_path_factory.mktemp("source") / "gracefulworker"
    shutil.copytree(ROOT, repository, ignore=BESIDE)
    commit(repository)
    must("git", "-C", repository, "tag", f"v{gracefulworker.__version__}")
    return repository


FAULTY = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: app
          image: registry.example/web:1
          command: [gunicorn, -k, gthread, app:app]
          readinessProbe: {httpGet: {path: /, port: 8000}}
"""
SOUND = FAULTY.replace("gthread", "gracefulworker.gthread")


@pytest.fixture
def user(tmp_path) -> Path:
    """A user's repository, with a mistake in its manifest."""
    repository: Path = tmp_path / "a shop"
    (repository / "k8s").mkdir(parents=True)
    (repository / "k8s" / "web.yaml").write_text(FAULTY)
    commit(repository)
    return repository

"""The tests run on the package that tox built and installed, not on the checkout beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from harness.documents import ROOT

import gracefulworker

HERE = Path(gracefulworker.__file__)

in_tox = pytest.mark.skipif(
    "TOX_ENV_NAME" not in os.environ, reason="outside of tox it may be an editable installation"
)


@in_tox
def test_it_is_the_installed_one():
    assert HERE.is_relative_to(sysconfig.get_path("purelib"))


@in_tox
def test_nothing_is_left_out_of_the_wheel():
    def files(package):
        return {
            path.relative_to(package)
            for path in package.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    assert files(HERE.parent) == files(ROOT / "gracefulworker")


def test_servers_have_the_same_one(serve):
    say = "import gracefulworker\nprint('package at', gracefulworker.__file__, flush=True)\n"
    server = serve("gracefulworker.sync", config=say)
    assert server.wait_log("^package at ").message == f"package at {HERE}"


@in_tox
def test_commands_have_the_same_one():
    """Python looks in the working directory first for what -c and -m name."""
    say = "import gracefulworker; print(gracefulworker.__file__)"
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True)
    assert done.stdout == f"{HERE}\n", done.stderr

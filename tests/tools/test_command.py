"""The command `gracefulworker` itself: its version, its completion, what its start costs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata

import gunicorn
import pytest

import gracefulworker
from gracefulworker.tools import cli


def run(*arguments):
    command = [sys.executable, "-m", "gracefulworker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_version():
    ran = run("--version")
    versions = f"(gunicorn {gunicorn.__version__}, Python {platform.python_version()})"
    assert ran.stdout == f"gracefulworker {gracefulworker.__version__} {versions}\n"
    assert (ran.returncode, ran.stderr) == (0, "")
    assert metadata.version("gracefulworker") == gracefulworker.__version__


def test_a_command_is_imported_when_its_name_is_given():
    """`gracefulworker drain`, in a preStop hook, waits for nothing that it does not need."""
    code = """
import sys
from gracefulworker.tools import cli
try:
    cli.main(["drain", "--help"])
finally:
    print(*sys.modules, file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported = set(ran.stderr.split())
    assert "gracefulworker.tools.cli.drain" in imported
    assert not {"shtab", "yaml", "rich", "gracefulworker.tools.cli.check"} & imported


@pytest.mark.parametrize("options", ([], ["-u"]))  # written at its end, and line by line
def test_output_that_cannot_be_written(options):
    command = [sys.executable, *options, "-m", "gracefulworker", "plan"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == os.EX_IOERR
    assert ran.stderr == "gracefulworker: the output is not written: No space left on device\n"
    closed = ["sh", "-c", '"$@" >&-', "sh", *command]
    ran = subprocess.run(closed, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("shell", ("bash", "zsh", "fish"))
def test_completion_is_a_script_that_the_shell_understands(tmp_path, shell):
    pytest.importorskip("shtab")
    script = run("--print-completion", shell).stdout
    assert all(word in script for word in (*cli.COMMANDS, "graceful-delay", "list-rules"))
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it")
    file = tmp_path / "completion"
    file.write_text(script)
    read = subprocess.run([shell, "-n", file], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


ASK_BASH = r"""
eval "$(%s -m gracefulworker --print-completion bash)"
function=$(complete -p gracefulworker | sed 's/.*-F \([^ ]*\).*/\1/')
COMP_WORDS=(gracefulworker "$@") COMP_CWORD=$#
"$function" gracefulworker "${!#}" ""
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["pl"], "plan"),
        (["check", "--ig"], "--ignore"),
        (["check", "--format", "sa"], "sarif"),
        (["check", "Dock"], "Dockerfile"),
        (["plan", "-c", "Dock"], "Dockerfile"),
    ],
    ids=str,
)
def test_bash_completes(tmp_path, words, completed):
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    (tmp_path / "Dockerfile").touch()
    command = ["bash", "-c", ASK_BASH % sys.executable, "bash", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == completed, ran.stderr


def test_without_shtab_the_fix_is_named(tmp_path):
    (tmp_path / "shtab.py").write_text("raise ModuleNotFoundError('no shtab', name='shtab')\n")
    start = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gracefulworker.tools import cli"
    )
    code = f"{start}; cli.main(['--print-completion', 'bash'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "pip install 'gracefulworker[completion]'" in ran.stderr
    assert "Traceback" not in ran.stderr

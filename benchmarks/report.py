"""RESULTS.md: each part of the benchmarks replaces its own section, and leaves the rest as it is.

What may be changed here: how a section looks. The text between the sections is written by hand.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.servers import GO

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = (
    "gunicorn",
    "gevent",
    "uvicorn",
    "uvicorn-worker",
    "httptools",
    "uvloop",
    "granian",
    "waitress",
    "uWSGI",
)


def tell(what: str) -> None:
    """Say on stderr what is under way."""
    print(what, file=sys.stderr, flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(part: str, section: str, quick: bool) -> None:
    """Put `section` between the marks of `part`."""
    how = "a quick look (`--quick`), " if quick else ""
    text = f"*{how}{datetime.date.today()}, {machine()}; {versions()}*\n\n{section}"
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    old = RESULTS.read_text(encoding="utf-8")
    new, count = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", old)
    if count != 1:
        raise RuntimeError(f"{RESULTS} has no place for part {part}: {begin} ... {end}")
    RESULTS.write_text(new, encoding="utf-8")


def _commit() -> str:
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        said = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", ":/", f":!{RESULTS.name}"])
    except FileNotFoundError:
        return "an unknown commit"
    commit = said.stdout.strip() or "an unknown commit"
    return f"{commit}, changed" if changed.returncode else commit


def machine() -> str:
    """Processors, memory and kernel, and what else was going on."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    model = found.group(1) if found else platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{psutil.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()}"
        f" {platform.release()}, load {load} at the end"
    )


def versions() -> str:
    found = [f"gracefulworker at {_commit()}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    for name, command in (("wrk", ["wrk", "-v"]), ("Go", [GO, "version"])):
        try:
            said = subprocess.run(command, capture_output=True, text=True).stdout
        except FileNotFoundError:
            continue
        if version := re.search(r"(?:wrk |go)(?:debian/)?(\d[\w.]*)", said):
            found.append(f"{name} {version.group(1)}")
    return ", ".join(found)

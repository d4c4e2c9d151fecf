"""README.md, docs/*.md and the examples' pages say what the code does."""

from __future__ import annotations

import ast
import configparser
import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gunicorn
import pytest
import yaml
from gunicorn.config import Config
from gunicorn.util import load_class
from harness.documents import PAGES, ROOT, Block, blocks, table

import gracefulworker
from gracefulworker import settings
from gracefulworker.phases import EXIT_CUT, Phase

README = ROOT / "README.md"
ALL = [block for page in PAGES for block in blocks(page)]
STAMP = re.compile(r"\[\d{4}-\d\d-\d\d [^]]+\] \[\d+\] \[\w+\] ")


def written_in(*languages):
    return [block for block in ALL if block.language in languages]


def is_log(block: Block) -> bool:
    return bool(STAMP.match(block.text)) or block.text.startswith("shutdown plan: ")


#: Where no language is named it is the shell, or lines of a log.
LOGS = [block for block in written_in("") if is_log(block)]
SHELL = [block for block in written_in("") if not is_log(block)]


def test_the_pages_are_found():
    assert README in PAGES and len(LOGS) > 2 and len(SHELL) > 5
    known = ("", "html", "ini", "json", "nginx", "python", "text", "toml", "yaml")
    assert {block.language for block in ALL} <= {*known}


# -- tables ----------------------------------------------------------------------------------------


def test_the_settings_table_is_in_step():
    named = []
    for cell, variable, default, _ in table(README, "| environment | default |"):
        names = re.findall(r"`(\w+)`", cell)
        named += names
        if variable:  # a function has none
            assert variable == f"`{cell.strip('`').upper()}`"
        for row in (settings.TABLE[name] for name in names):
            if default == "unset":
                assert row.default in (None, (), ""), cell
            else:
                assert row.metadata["kind"].read(default.strip("`")) == row.default, cell
    assert sorted(named) == sorted(settings.TABLE)


def test_the_phase_table_is_in_step():
    rows = table(README, "| phase | begins |")
    assert [name.strip("`") for name, *_ in rows] == [phase.name for phase in Phase]
    assert f"with {EXIT_CUT} if a request was cut" in rows[-1][-1]


# -- what is typed or copied -----------------------------------------------------------------------


#: What a configuration consists of; with anything else in it a block is a fragment.
STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.ClassDef)


@pytest.mark.parametrize("block", written_in("python"), ids=str)
def test_python_runs_and_is_a_gunicorn_configuration(block):
    tree = ast.parse(block.text)
    code = compile(tree, str(block), "exec")
    if not all(isinstance(statement, STATEMENTS) for statement in tree.body):
        return
    names = {"__name__": "__config__"}
    try:
        exec(code, names)
    except ModuleNotFoundError as error:
        pytest.skip(f"compiled only: {error}")
    assert settings.read(Config(), {}, names).warnings == ()


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_shell_understands(block):
    done = subprocess.run(["sh", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def commands():
    """The words after each `gunicorn` in the shell's blocks."""
    for block in SHELL:
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            for n, word in enumerate(words):
                if word.rpartition("/")[2] == "gunicorn" and words[:1] != ["kubectl"]:
                    yield pytest.param(words[n + 1 :], id=f"{block}: {line}")


@pytest.mark.parametrize("words", [*commands()])
def test_gunicorn_understands(words):
    given = Config().parser().parse_args(words)
    if given.worker_class and given.worker_class.startswith("gracefulworker."):
        assert load_class(given.worker_class) in [
            getattr(gracefulworker, name) for name in ("sync", "gthread", "gevent")
        ]


@pytest.mark.parametrize("block", written_in("yaml", "json", "toml", "ini"), ids=str)
def test_the_configuration_is_well_formed(block):
    if block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
    elif block.language == "json":
        assert json.loads(block.text)
    elif block.language == "ini":
        configparser.RawConfigParser().read_string(block.text)
    elif sys.version_info >= (3, 11):
        import tomllib

        assert tomllib.loads(block.text)


# -- the log ---------------------------------------------------------------------------------------


def formats():
    """All texts in the code of gracefulworker and of gunicorn, as regular expressions."""
    sources = [*Path(gracefulworker.__file__).parent.rglob("*.py")]
    sources += Path(gunicorn.__file__).parent.rglob("*.py")
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "%s"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.search("[a-z]{3}", text):
                yield ".+".join(re.escape(part) for part in re.split(r"%(?:\.\d)?[sdf]", text))


@functools.cache
def known_forms():
    return [re.compile(form) for form in formats()]


@pytest.mark.parametrize("block", LOGS, ids=str)
def test_the_log_is_what_is_logged(block):
    plan = settings.read(Config(), {}, {}).plan()
    known = known_forms()
    for line in block.text.splitlines():
        message = STAMP.sub("", line)
        if message.startswith("shutdown plan: "):
            assert message == plan
        else:
            assert any(form.fullmatch(message) for form in known), message


def test_another_line_would_be_noticed():
    known = known_forms()
    line = "lame duck: SIGTERM received, serving for 5.0 s more"
    assert any(form.fullmatch(line) for form in known)
    assert not any(form.fullmatch(line + " or so") for form in known)


# -- links -----------------------------------------------------------------------------------------


def anchors(page):
    """As GitHub makes them of headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target

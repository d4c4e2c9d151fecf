"""README.md, docs/*.md and the other pages say what the code does."""

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
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.util import load_class
from harness import documents
from harness.documents import PAGES, ROOT, Block, blocks, table

import gracefulworker
from docs import generated
from gracefulworker import settings
from gracefulworker.arbiter.metrics import METRICS
from gracefulworker.phases import EXIT_CUT, Phase
from gracefulworker.tools.manifests import rules

README = ROOT / "README.md"
DOCS = ROOT / "docs"
ALL = [block for page in PAGES for block in blocks(page)]
STAMP = re.compile(r"\[\d{4}-\d\d-\d\d [^]]+\] \[\d+\] \[\w+\] ")


def written_in(*languages):
    return [block for block in ALL if block.language in languages]


def is_log(block: Block) -> bool:
    return bool(STAMP.match(block.text)) or block.text.startswith("shutdown plan: ")


#: Where no language is named it is the shell, or lines of a log.
LOGS = [block for block in written_in("", "output") if is_log(block)]
SHELL = [block for block in written_in("") if not is_log(block)]


def test_the_pages_are_found():
    assert README in PAGES and len(LOGS) > 2 and len(SHELL) > 5
    known = ("", "html", "ini", "json", "nginx", "output", "python", "text", "toml", "yaml")
    assert {block.language for block in ALL} <= {*known}
    assert all(is_log(block) for block in written_in("output"))


# -- tables ----------------------------------------------------------------------------------------


def test_what_is_generated_is_as_it_would_be():
    for name, regions in generated.PAGES.items():
        page = (DOCS / name).read_text()
        assert page == generated.fill(page, regions), "run: python tests/docs/generated.py"


def test_each_setting_has_an_anchor_and_a_comment():
    assert [*settings.TABLE] == [a for a in anchors(DOCS / "settings.md") if a in settings.TABLE]
    assert all(generated.comments()[row.name] for row in settings.TABLE.values())


def test_the_settings_that_people_change_are_in_step():
    rows = table(README, "| `gunicorn.conf.py` | default |")
    assert len(rows) == 8
    for cell, default, _ in rows:
        (name,) = re.findall(r"^\[`(\w+)`\]\(\S+/settings/#\1\)$", cell)
        assert default == generated.default_of(settings.TABLE[name].default)


def test_what_is_to_be_set_on_a_platform_fits():
    seen = []
    for _, cell in table(README, "| platform | set |"):
        pairs = re.findall(r"`(graceful_\w+) = (\w+)`", cell)
        read = settings.read(Config(), {}, {name: ast.literal_eval(value) for name, value in pairs})
        assert read.warnings == ()
        for period in re.findall(r"terminationGracePeriodSeconds: (\d+)", cell):
            assert read.needed <= int(period) == read.kill_after
            seen.append(period)
    assert len(seen) == 2


@pytest.mark.parametrize("page", (README, DOCS / "shutdown.md"), ids=lambda page: page.name)
def test_the_phase_table_is_in_step(page):
    rows = table(page, "| phase | begins |")
    assert [name.strip("`") for name, *_ in rows] == [phase.name for phase in Phase]
    assert f"with {EXIT_CUT} if a request was cut" in rows[-1][-1]


@pytest.mark.parametrize("page", (README, DOCS / "workers.md"), ids=lambda page: page.name)
def test_each_worker_has_a_row(page):
    rows = table(page, "| you have now | write |")
    named = {name for _, cell in rows for name in re.findall(r"-k gracefulworker\.(\w+)", cell)}
    assert named >= {*gracefulworker._WORKERS}


@pytest.mark.parametrize(
    ("page", "heading"),
    [(README, "| in the last line | means |"), (DOCS / "operations.md", "| words | means |")],
    ids=("README.md", "operations.md"),
)
def test_the_legend_explains_the_last_line(page, heading):
    (line,) = {
        line
        for block in LOGS
        if block.page == page
        for line in block.text.splitlines()
        if "stopped: clean" in line
    }
    only_sometimes = {"told 40 WebSockets", "workers killed 1"}
    for cell, _ in table(page, heading):
        (words,) = re.findall(r"^`(.+)`$", cell)
        assert words in line or words in only_sometimes


def test_the_figures_of_what_is_lost_are_those_that_were_measured():
    rows = table(README, "| requests lost | five rolling updates")
    assert [row[:3] for row in rows] == table(DOCS / "why.md", "| worker | gracefulworker | stock")
    results = ROOT / "benchmarks" / "RESULTS.md"
    measured = {server: (lost, of) for server, _, lost, of, *_ in table(results, "| server | lost")}
    for cell, _, _, ours, stock in rows:
        worker = cell.strip("`")
        for server, said in ((f"gracefulworker.{worker}", ours), (f"gunicorn {worker}", stock)):
            lost, of = measured[server]
            assert said == f"{lost.replace(' / ', ', ')} of {of} each"
    late = re.findall(r"[\d,]{5,} of [\d,]+|0 of 16,701|125 of 6,426", README.read_text())
    why = (DOCS / "why.md").read_text()
    assert late and all(figures in why for figures in late)


# -- operations ------------------------------------------------------------------------------------

OPERATIONS = DOCS / "operations.md"


def test_the_alerts_look_for_what_is_there():
    names = {metric.statsd.replace(".", "_") for metric in METRICS}
    names |= {sample for metric in METRICS for sample in metric.samples}
    assert {*re.findall(r"\w+_graceful_\w+|gracefulworker_\w+_\w+", OPERATIONS.read_text())} <= (
        names | {metric.name for metric in METRICS}
    )
    alerts = [
        rule
        for block in written_in("yaml")
        if block.page == OPERATIONS and "alert:" in block.text
        for group in yaml.safe_load(block.text)["groups"]
        for rule in group["rules"]
    ]
    assert len(alerts) == 3
    logged = [form.pattern for form in known_forms()]
    for rule in alerts:
        metrics = re.findall(r"g\w+_\w+_\w+", rule["expr"])
        lines = re.findall(r'\|= "([^"]+)"', rule["expr"])
        assert (metrics or lines) and {*metrics} <= names
        for words in lines:
            assert any(form.startswith(re.escape(words)) for form in logged), words


def test_the_exit_statuses_are_in_step():
    rows = table(OPERATIONS, "| gunicorn's main process |")
    said = {int(n): meaning for cell, meaning in rows for n in cell.split(", ")}
    assert said.keys() == {0, 1, Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR, EXIT_CUT, 137}
    assert "was cut" in said[EXIT_CUT]


# -- errors ----------------------------------------------------------------------------------------


def test_the_error_without_the_import_is_the_one_that_is_shown(tmp_path):
    (tmp_path / "app.py").write_text("def app(environ, start_response): ...\n")
    command = [sys.executable, "-m", "gunicorn", "-k", "gracefulworker", "app:app"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    shown = re.findall("`((?:Error|ImportError): [^`]+)`", README.read_text())
    assert len(shown) == 2
    traceback = documents.block("docs/workers.md", "text", "Error: class uri")
    for line in [*shown, *traceback.splitlines()]:
        assert line == "..." or line in done.stderr


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
            getattr(gracefulworker, name) for name in gracefulworker._WORKERS
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

METADATA = configparser.ConfigParser()
METADATA.read(ROOT / "setup.cfg")
URLS = dict(line.split(" = ") for line in METADATA["metadata"]["project_urls"].strip().splitlines())
SITE, REPOSITORY = URLS["Documentation"], METADATA["metadata"]["url"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")


def anchors(page):
    """As GitHub makes them of headings, and those that are written."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    yield from re.findall(r'<a id="([^"]+)"', prose)


def source(page):
    """The file that a page shows, if that is all it does; else itself."""
    if page.parent != DOCS or page.suffix != ".md":
        return page
    snippet = re.fullmatch(r'--8<-- "(.+)"\n', page.read_text())
    return ROOT / snippet[1] if snippet else page


def file_of(path):
    """The file that an address is of, None when it is somebody else's."""
    if path.startswith(SITE):
        name = path.removeprefix(SITE)
        assert name.endswith("/") or not name, f"{path}: the site's pages end with a slash"
        return DOCS / f"{name.rstrip('/') or 'index'}.md"
    for start in (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", f"{RAW}/main/"):
        if path.startswith(start):
            return ROOT / path.removeprefix(start)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if "://" in path:
            there = file_of(path)
            if there is None:
                continue
        assert there.exists() and source(there).exists(), target
        if anchor:
            assert anchor in anchors(source(there)), target


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent == ROOT], ids=lambda page: page.name
)
def test_links_are_absolute_where_a_page_is_shown_elsewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert all(target.startswith(("https://", "#")) for target in targets)


def test_links_of_the_site_stay_in_it():
    for page in DOCS.glob("*.md"):
        assert not re.findall(r"\]\((\.\./[^)]*)\)", page.read_text()), page


def test_the_site_has_each_page():
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r": (\S+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md"))
    assert f"site_url: {SITE}\n" in text and f"repo_url: {REPOSITORY}\n" in text
    assert rules.PAGE == f"{SITE}check/"

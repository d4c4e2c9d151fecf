"""Writes what the pages in docs/ have from the code: `python tests/docs/generated.py`.

A region of a page stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; NAME is a
function below, which returns it. A test runs this, and fails when a page is not as it would be.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

from gracefulworker import settings
from gracefulworker.arbiter.metrics import METRICS
from gracefulworker.tools.manifests import rules

DOCS = Path(__file__).parents[2] / "docs"

#: What may be written for a setting, by its kind.
VALUES = {
    settings.Seconds: "seconds, 0 to {high:g}",
    settings.Switch: "true or false; 1 or 0, yes or no, on or off in the environment",
    settings.FileName: "a file's name",
    settings.Path: "a path that begins with a slash",
    settings.Requests: "a list of paths; with commas between them in the environment",
    settings.Address: "HOST:PORT",
    settings.Function: "a function ({parameters})",
}


def table_of_settings() -> str:
    """The settings at a glance."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, row in settings.TABLE.items():
        meaning = row.metadata["kind"].meaning
        lines.append(f"| [`{name}`](#{name}) | {default_of(row.default)} | {meaning} |")
    return "\n".join(lines)


def sections_of_settings() -> str:
    """A heading for each setting, which is its anchor, what may be set, and the comment there."""
    remarks = comments()
    sections = []
    for name, row in settings.TABLE.items():
        kind = row.metadata["kind"]
        values = VALUES[type(kind)].format_map(vars(kind))
        variable = "" if isinstance(kind, settings.Function) else f"`{name.upper()}`, "
        sections += [
            f"### `{name}`",
            f"{kind.meaning[0].upper()}{kind.meaning[1:]}. {remarks[row.name]}".strip(),
            f"{variable}{values}. Default: {default_of(row.default)}.",
        ]
    return "\n\n".join(sections)


def default_of(value: object) -> str:
    """A default as the tables have it."""
    if value in (None, ()):
        return "unset"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def comments() -> dict[str, str]:
    """The text of the comments that begin with ``#:`` above each field of `Settings`."""
    source = inspect.getsource(settings)
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == settings.Settings.__name__:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    above = []
                    for line in reversed(lines[: field.lineno - 1]):
                        if not line.strip().startswith("#: "):
                            break
                        above.append(line.strip().removeprefix("#: "))
                    found[field.target.id] = " ".join(reversed(above))
    return found


def sections_of_rules() -> str:
    """A heading for each rule of `check`, which is its anchor, and its function's docstring."""
    sections = []
    for name, function in rules.RULES.items():
        text = inspect.getdoc(function) or ""
        text = re.sub(r"^(Clients|Fix): ", r"- **\1:** ", text, flags=re.MULTILINE)
        sections += [f"### {name}", text]
    return "\n\n".join(sections)


def table_of_metrics() -> str:
    """The figures of the report: their names there, in statsd and for Prometheus."""
    lines = ["| report | statsd | Prometheus | unit | what |", "|---|---|---|---|---|"]
    for metric in METRICS:
        label = f", by `{metric.label}`" if metric.label else ""
        statsd = "gauge" if metric.kind == "summary" else metric.kind
        cells = [
            f"`{metric.key}`",
            f"`{metric.statsd}`, {statsd}",
            f"`{metric.name}`, {metric.kind}{label}",
            metric.unit,
            metric.help.rstrip("."),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


#: Each page and its regions.
PAGES: dict[str, list[Callable[[], str]]] = {
    "settings.md": [table_of_settings, sections_of_settings],
    "check.md": [sections_of_rules],
    "operations.md": [table_of_metrics],
}


def fill(text: str, regions: list[Callable[[], str]]) -> str:
    """Return a page's text with its regions as they are to be.

    :raises ValueError: a region is not there exactly once.
    """
    for region in regions:
        begin, end = (f"<!-- {word} {region.__name__} -->" for word in ("begin", "end"))
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed or begin in after:
            raise ValueError(f"there must be one region {begin} ... {end}")
        text = f"{before}{begin}\n\n{region()}\n\n{end}{after}"
    return text


def main() -> None:
    for name, regions in PAGES.items():
        page = DOCS / name
        page.write_text(fill(page.read_text(), regions))


if __name__ == "__main__":
    main()

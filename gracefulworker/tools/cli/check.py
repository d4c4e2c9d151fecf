"""`gracefulworker check`: finds the mistakes that cost requests in the files of a deployment.

Exit status: 0 when there is no error among the findings (with ``--strict`` no warning either), 1
when there is one, 2 when something given cannot be read, or no gunicorn was found in it (then there
is no telling: a pipeline that looks at the wrong directory is not to be green). What may be changed
here: how findings are printed. The fields of ``--format json`` are an interface; a change that
breaks it raises `SCHEMA`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from gracefulworker.tools.configuration import ConfigFileError

if TYPE_CHECKING:
    from gracefulworker.tools.manifests import rules

#: Of the output of ``--format json``.
SCHEMA = 1

#: Files without anything to judge, and other programs, that are named in the text.
NAMED = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="manifests, compose files, Dockerfiles, Procfiles, start scripts, systemd units, "
        "supervisord's configuration, fly.toml; a directory means all of these below it, - means "
        "manifests on standard input; IMAGE=DOCKERFILE says which image a Dockerfile builds",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="gunicorn's config file; it is run")
    parser.add_argument("--target", metavar="STAGE", help="the stage of the Dockerfile that runs")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="RULE",
        help="leave out what this rule finds, but for their number (repeatable, or with commas)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 for a warning, too"
    )
    parser.add_argument("--format", choices=("text", "json", "sarif"), default="text")
    parser.add_argument(
        "--list-rules", action="store_true", help="say what each rule finds, and end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what is found and return the exit status."""
    try:
        from gracefulworker.tools.manifests import reader, rules, sarif, sources
    except ModuleNotFoundError as error:
        if error.name not in ("yaml", "tree_sitter", "tree_sitter_bash"):
            raise
        print(
            "gracefulworker check needs PyYAML and tree-sitter: "
            "pip install 'gracefulworker[kubernetes]'",
            file=sys.stderr,
        )
        return 2
    ignored = [name for names in arguments.ignore for name in names.split(",")]
    unknown = [name for name in ignored if name not in rules.RULES]
    if unknown:
        (near,) = difflib.get_close_matches(unknown[0], rules.RULES, 1, 0.0)
        return _refuse(f"--ignore {unknown[0]}: there is no such rule: did you mean {near}?")
    if arguments.list_rules:
        width = max(map(len, rules.RULES))
        for name in rules.RULES:
            sentence, *_ = rules.describe(name).splitlines()
            print(f"{name:{width}}  {sentence}")
        return 0
    if not arguments.paths:
        return _refuse("give at least one file or directory, such as k8s/ or Dockerfile")
    images: dict[str, str] = {}
    paths = []
    for path in arguments.paths:
        image, equals, file = path.partition("=")
        if equals and image and not os.path.exists(path):
            images[image] = path = file
        paths.append(path)
    inputs = [one for path in paths for one in sources.read(path)]
    files = reader.read_all(inputs, arguments.config, images, arguments.target)
    try:
        found = files.servers()
    except ConfigFileError as error:
        return _refuse(str(error))
    # A service that may be started in several ways is judged for each of them.
    same: dict[object, list[rules.Finding]] = {}
    for server in found:
        for finding in rules.judge(server):
            key = (finding.rule, finding.place, finding.mistake, finding.effect)
            same.setdefault(key, []).append(finding)
    hidden = Counter(first.rule for first, *_ in same.values() if first.rule in ignored)
    shown = [findings for findings in same.values() if findings[0].rule not in ignored]
    report = {
        "schema": SCHEMA,
        "files": len({one.file for one in inputs}),
        "servers": len(files.judged),
        "findings": [_flat(findings) for findings in shown],
        "ignored": {name: hidden[name] for name in dict.fromkeys(ignored)},
        "judged": files.judged,
        "not_judged": [
            {"name": one.name, "file": one.place.file, "line": one.place.line, "why": one.why}
            for one in files.not_judged
        ],
        "others": [
            {"name": name, "file": place.file, "line": place.line, "program": program}
            for name, place, program in files.others
        ],
        "passed_over": files.passed_over,
        "unreadable": [
            {"file": error.file, "line": error.line, "message": error.message}
            for error in files.errors
        ],
        "notes": files.notes,
    }
    if files.errors or not files.judged:
        status = 2
    else:
        status = int(any(f.severity == rules.ERROR or arguments.strict for f, *_ in shown))
    if arguments.format == "json":
        print(json.dumps(report, indent=2))
    elif arguments.format == "sarif":
        print(json.dumps(sarif.render(report, status), indent=2))
    else:
        _print(report)
    return status


def _refuse(sentence: str) -> int:
    print(f"gracefulworker check: {sentence}", file=sys.stderr)
    return 2


def _flat(findings: Sequence[rules.Finding]) -> dict[str, object]:
    """The first of some that are the same of several servers, which it names."""
    first = findings[0]
    fields: dict[str, object] = dataclasses.asdict(first)
    del fields["place"]
    servers = dict.fromkeys(one.server for one in findings)
    also = [name for name in servers if name != first.server]
    return fields | dataclasses.asdict(first.place) | {"also": also}


def _print(report: dict[str, Any]) -> None:
    for one in report["findings"]:
        place = f"{one['file']}:{one['line']}"
        _line(f"{place}: {one['severity']}: {one['rule']}: {one['mistake']}")
        where = f"{one['server']}: {one['field']}" if one["field"] else one["server"]
        _line(f"    where    {where}")
        if one["also"]:
            _line(f"    also     {'; '.join(one['also'])}")
        _line(f"    clients  {one['effect']}")
        _line(f"    fix      {one['fix']}")
    for one in report["unreadable"]:
        place = f"{one['file']}:{one['line']}" if one["line"] else one["file"]
        _line(f"{place}: {one['message']}", sys.stderr)
    for note in report["notes"]:
        _line(f"note: {note}", sys.stderr)
    for one in report["not_judged"]:
        _line(f"{one['file']}:{one['line']}: not judged: {one['name']}: {one['why']}")
    if report["passed_over"]:
        _line(f"nothing that is read here in {_named(report['passed_over'])}")
    severities = [one["severity"] for one in report["findings"]]
    programs = [one["program"] for one in report["others"]]
    others = f"{_count(len(programs), 'other program')} ({_named(programs)})"
    counts = [
        _count(report["servers"], "gunicorn"),
        *([others] if programs else []),
        *([f"{len(report['not_judged'])} not judged"] if report["not_judged"] else []),
    ]
    hidden = [f"{number} {name}" for name, number in report["ignored"].items() if number]
    print(
        f"{_count(report['files'], 'file')}, {', '.join(counts)}: "
        f"{_count(severities.count('error'), 'error')}, "
        f"{_count(severities.count('warning'), 'warning')}"
        + (f" (ignored: {', '.join(hidden)})" if hidden else "")
    )
    if not report["servers"]:
        print("no gunicorn was judged", file=sys.stderr)


def _named(names: Sequence[str]) -> str:
    """The first of some names, each once."""
    each = list(dict.fromkeys(names))
    more = f" and {len(each) - NAMED} more" if len(each) > NAMED else ""
    return ", ".join(each[:NAMED]) + more


def _line(text: str, stream: TextIO | None = None) -> None:
    """Print one line, whatever characters the files and their names are made of."""
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=stream)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

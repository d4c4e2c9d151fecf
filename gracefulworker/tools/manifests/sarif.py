"""The report of `gracefulworker check` as SARIF 2.1.0, for code scanning and editors.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html, and what GitHub asks for
beyond it: https://docs.github.com/code-security/code-scanning (texts of each rule, relative paths).
Findings are results; what was not judged, notes and what could not be read are notifications of the
run, so that no file looks sound for want of an answer. What may be changed here: how they read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gracefulworker
from gracefulworker.tools.manifests import rules

#: The schema of the output.
SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)

#: What a consumer takes relative paths from: the working directory, which in CI is the checkout.
ROOT = "%SRCROOT%"

Object = dict[str, Any]


def render(report: Object, status: int) -> Object:
    """Return the log.

    :param report: as ``--format json`` prints it.
    :param status: the exit status that goes with it.
    """
    names = list(rules.RULES)
    ignored = [
        {
            "descriptor": {"id": name, "index": names.index(name)},
            "configuration": {"enabled": False},
        }
        for name in report["ignored"]
    ]
    run = {
        "tool": {
            "driver": {
                "name": "gracefulworker check",
                "version": gracefulworker.__version__,
                "informationUri": rules.PAGE,
                "rules": [_descriptor(name) for name in names],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": status != 2,
                "exitCode": status,
                "toolExecutionNotifications": _notifications(report),
                "ruleConfigurationOverrides": ignored,
            }
        ],
        "results": [_result(one, names.index(one["rule"])) for one in report["findings"]],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _descriptor(name: str) -> Object:
    text, page = rules.describe(name), rules.page(name)
    return {
        "id": name,
        "shortDescription": {"text": text.partition("\n")[0]},
        "fullDescription": {"text": text},
        "help": {"text": f"{text}\n\n{page}", "markdown": f"{text}\n\n<{page}>"},
        "helpUri": page,
    }


def _result(finding: Object, index: int) -> Object:
    location = _location(finding["file"], finding["line"])
    parts = [finding["server"], *([finding["field"]] if finding["field"] else [])]
    location["logicalLocations"] = [{"fullyQualifiedName": ": ".join(parts)}]
    return {
        "ruleId": finding["rule"],
        "ruleIndex": index,
        "level": finding["severity"],
        "message": {
            "text": f"{finding['mistake']}.\nClients: {finding['effect']}.\nFix: {finding['fix']}"
        },
        "locations": [location],
    }


def _notifications(report: Object) -> list[Object]:
    found = [
        _notification("error", one["message"], _location(one["file"], one["line"]))
        for one in report["unreadable"]
    ]
    found += [_notification("note", note) for note in report["notes"]]
    found += [
        _notification(
            "warning",
            f"not judged: {one['name']}: {one['why']}",
            _location(one["file"], one["line"]),
        )
        for one in report["not_judged"]
    ]
    if not report["servers"]:
        found.append(_notification("error", "no gunicorn was judged"))
    return found


def _notification(level: str, text: str, location: Object | None = None) -> Object:
    notification: Object = {"level": level, "message": {"text": text}}
    if location is not None:
        notification["locations"] = [location]
    return notification


def _location(file: str, line: int) -> Object:
    """:param line: 0 for the whole file."""
    physical: Object = {"artifactLocation": _artifact(file)}
    if line:
        physical["region"] = {"startLine": line}
    return {"physicalLocation": physical}


def _artifact(file: str) -> Object:
    """A path below the working directory is relative to it: else each checkout has other names."""
    relative = os.path.relpath(file)
    if relative.split(os.sep)[0] == os.pardir:
        return {"uri": Path(os.path.abspath(file)).as_uri()}
    return {"uri": quote(os.fsencode(relative)), "uriBaseId": ROOT}

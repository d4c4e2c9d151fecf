"""The functions of gunicorn that we lean on, and how their sources differ from version to version.

`functions.csv` has a row for each: where it is, what we do with it, where we do so, and a digest of
its source in the newest patch release of each minor version that we test::

    python tests/seam/foreign.py update               # write the installed gunicorn's column
    python tests/seam/foreign.py update 26.2.0 27.0.1 # those of other releases, from the index
    python tests/seam/foreign.py difference           # the table's newest and the installed one
    python tests/seam/foreign.py difference 26.2.0 27.0.1 [FUNCTION ...]

The digest is one of the syntax tree, so comments, docstrings and formatting do not count. No source
is imported for it: a release need not be installed, and what it needs neither.
"""

from __future__ import annotations

import argparse
import ast
import csv
import difflib
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gunicorn

TABLE = Path(__file__).with_name("functions.csv")

#: In place of a digest where a version does not have the function, and for what is not gunicorn's
#: (gevent's versions are others: there only the row is asked for).
ABSENT = "-"
UNDATED = "*"

#: In the file: the same as in the version before.
SAME = "="

#: What is done with a function: our class overrides it, we put another in its place at run time,
#: we call it, or we rely on what it does (it calls ours, or we take part in its work).
HOW = ("overridden", "replaced", "called", "relied on")

#: Where the installed packages are.
SITE = Path(gunicorn.__file__).parent.parent


@dataclass
class Row:
    """What we lean on.

    :param name: ``module:qualified.name``
    :param how: one of `HOW`.
    :param ours: where in our package, as ``module:qualified.name``, or a module or package alone.
    :param digests: by gunicorn's version.
    """

    name: str
    how: str
    ours: list[str]
    digests: dict[str, str]


def read() -> list[Row]:
    with TABLE.open(newline="") as file:
        (_, _, _, *versions), *lines = csv.reader(file)
    rows = []
    for name, how, ours, *cells in lines:
        for place, cell in enumerate(cells):
            if cell == SAME:
                cells[place] = cells[place - 1]
        rows.append(Row(name, how, ours.split(), dict(zip(versions, cells, strict=True))))
    return rows


def write(rows: list[Row]) -> None:
    versions = sorted({v for row in rows for v in row.digests}, key=numbers)
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["function", "how", "ours", *versions])
        for row in sorted(rows, key=lambda row: row.name):
            digests = [row.digests[version] for version in versions]
            cells = [
                SAME if digest == before else digest
                for before, digest in zip([None, *digests], digests, strict=False)
            ]
            table.writerow([row.name, row.how, " ".join(row.ours), *cells])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


def column(version: str, versions: Sequence[str]) -> str | None:
    """The one of `versions` with which this one shares its minor version."""
    return next((v for v in versions if numbers(v)[:2] == numbers(version)[:2]), None)


def nearest(version: str, versions: Sequence[str]) -> str | None:
    """The same, or the last one before it in its major version, which it is to be like."""
    before = [v for v in versions if numbers(v)[:1] == numbers(version)[:1]]
    before = [v for v in before if numbers(v)[:2] <= numbers(version)[:2]]
    return before[-1] if before else None


# Sources


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module_file(site: Path, module: str) -> Path | None:
    base = site.joinpath(*module.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def find(site: Path, name: str) -> tuple[Path, ast.stmt] | None:
    """The file and the syntax tree of ``module:qualified.name``; None when there is none."""
    module, _, qualified = name.partition(":")
    file = module_file(site, module)
    if file is None:
        return None
    scope: ast.Module | ast.stmt = tree(file)
    for part in qualified.split("."):
        found = [node for node in getattr(scope, "body", ()) if part in _names(node)]
        if not found:
            return None
        scope = found[-1]
    assert isinstance(scope, ast.stmt)
    return file, scope


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def digest(site: Path, name: str) -> str:
    """Eight hexadecimal digits; `ABSENT` when it is not there, `UNDATED` when not gunicorn's."""
    if not name.startswith("gunicorn"):
        return UNDATED
    found = find(site, name)
    if found is None:
        return ABSENT
    return hashlib.sha256(repr(shape(found[1])).encode()).hexdigest()[:8]


def shape(node: object) -> object:
    """A syntax tree without docstrings and positions, the same in each version of Python.

    ast.dump shows the empty fields that newer Pythons have added.
    """
    if isinstance(node, list):
        return [shape(one) for one in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        if ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
    shapes = [(key, shape(value)) for key, value in fields.items() if value not in (None, [])]
    return type(node).__name__, shapes


def text(site: Path, name: str) -> list[str]:
    """The lines of its source; none when it is not there."""
    found = find(site, name)
    if found is None:
        return []
    file, node = found
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return file.read_text().splitlines()[first - 1 : node.end_lineno]


@contextmanager
def release(version: str) -> Iterator[Path]:
    """Where a release's packages are: the installed one's, or downloaded into a folder."""
    if version == gunicorn.__version__:
        yield SITE
        return
    with tempfile.TemporaryDirectory(prefix="gunicorn-") as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", folder, f"gunicorn=={version}"], check=True)
        yield Path(folder)


def differences(rows: list[Row], old: str, new: str) -> Iterator[str]:
    """The lines of the difference of each function that is not the same in two releases.

    A method is not shown once more when its whole class has a row.
    """
    with release(old) as former, release(new) as present:
        changed = [row for row in rows if digest(former, row.name) != digest(present, row.name)]
        shown = ""
        for row in changed:
            yield f"=== {row.name} ({row.how}: {' '.join(row.ours)})"
            if shown and row.name.startswith(shown):
                continue
            shown = f"{row.name}."
            yield from difflib.unified_diff(
                text(former, row.name), text(present, row.name), old, new, lineterm="", n=5
            )
            yield ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    update = commands.add_parser("update", help="write the digests of these versions")
    update.add_argument("versions", nargs="*", default=[gunicorn.__version__])
    difference = commands.add_parser("difference", help="print what has changed")
    difference.add_argument("old", nargs="?", help="the newest in the table")
    difference.add_argument("new", nargs="?", default=gunicorn.__version__, help="the installed")
    difference.add_argument("functions", nargs="*", metavar="FUNCTION", help="all of the table")
    args = parser.parse_args()
    rows = read()
    if args.command == "update":
        for version in args.versions:
            with release(version) as site:
                for row in rows:
                    former = column(version, list(row.digests))
                    row.digests.pop(former or "", None)
                    row.digests[version] = digest(site, row.name)
        write(rows)
        return 0
    old = args.old or list(rows[0].digests)[-1]
    chosen = [
        row
        for row in rows
        if (row.name in args.functions if args.functions else digest(SITE, row.name) != UNDATED)
    ]
    lines = list(differences(chosen, old, args.new))
    print("\n".join(lines))
    changed = sum(line.startswith("=== ") for line in lines)
    print(f"gunicorn {old} to {args.new}: {changed} of {len(chosen)} functions differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
